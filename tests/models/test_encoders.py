"""Encoders of trained networks as parts of a classifier: their codes, saved folders, and settings that are refused."""

from typing import Any

import pytest
import torch

from hfgen import VAE, Autoencoder, Classifier, HierarchicalVAE
from hfgen.errors import ConfigError
from hfgen.models.encoders import encoder_settings

MADE: dict[str, Any] = {
    "mlp": lambda: Autoencoder(resolution=8, hidden=(12,), latent_dim=3),
    "conv": lambda: Autoencoder(8, 3, body="conv", hidden=(4,), latent_dim=3, code_activation="sigmoid"),
    "vae": lambda: VAE(resolution=8, hidden=(12,), latent_dim=3),
    "conv vae": lambda: VAE((8, 4), 1, body="conv", hidden=(4,), latent_dim=3),
    "flow": lambda: VAE(resolution=8, hidden=(12,), latent_dim=3, posterior="inverse_autoregressive", flow_width=8),
    "two layers": lambda: HierarchicalVAE(resolution=8, hidden=((12,), (6,)), latent_dims=(5, 2)),
}


def classifier(source: Any) -> Any:
    c = source.config
    net = Classifier(c["resolution"], c["channels"], 4, encoder=encoder_settings(source))
    assert net.codes is not None
    net.codes.start_from(source)
    return net


@pytest.mark.parametrize("kind", sorted(MADE))
def test_the_features_are_the_codes_of_the_network_and_logits_are_linear_in_them(kind: str) -> None:
    source = MADE[kind]()
    if not isinstance(source, Autoencoder):
        source.centre.normal_()
    net = classifier(source)
    x = torch.randn(5, source.config["channels"], *net.sides)
    codes = source.encode(x)
    if isinstance(codes, tuple):
        codes, _ = codes
    torch.testing.assert_close(net.features(x), codes)
    torch.testing.assert_close(net(x).logits, codes @ net.linear_out.weight.T + net.linear_out.bias)
    net(x).logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", sorted(MADE))
def test_the_saved_folder_gives_the_same_classifier(kind: str, tmp_path: Any) -> None:
    net = classifier(MADE[kind]())
    net.save_pretrained(tmp_path)
    x = torch.randn(3, net.config["channels"], *net.sides)
    assert torch.equal(Classifier.from_pretrained(tmp_path)(x).logits, net(x).logits)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("VAE", "encoder must be a mapping of settings"),
        ({"name": "UNet"}, "encoder name must be one of"),
        ({"name": ["VAE"]}, "encoder name must be one of"),
        ({"name": "VAE", "depth": 3}, "encoder must be settings of VAE, got ['depth']"),
        ({"name": "VAE", "num_classes": 3}, "encoder num_classes must be None"),
        ({"name": "VAE", "dim": 2, "likelihood": "gaussian"}, "encoder dim must be None"),
        ({"name": "VAE", "latent_dim": 0}, "latent_dim must be"),
        ({"name": "Autoencoder", "resolution": 16}, "encoder must be an encoder of images (1, 28, 28)"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused_by_name(encoder: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Classifier(encoder=encoder)
    assert message in str(caught.value)
