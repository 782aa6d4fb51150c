"""The networks of GANs: shapes, the paper's rules, classes, packing, and state that survives a round trip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfgen import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from hfgen.errors import ConfigError
from hfgen.models.dcgan import stages_of, with_deviation

RESOLUTIONS = [8, 16, 28, 32, 64, 128, (16, 48), (32, 64)]
NORMS = ["batch", "layer", "none", "spectral"]


def sides(resolution: Any) -> tuple[int, int]:
    return (resolution, resolution) if isinstance(resolution, int) else resolution


@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=str)
def test_images_and_logits_have_their_shapes_at_every_resolution(resolution: Any) -> None:
    G = DCGANGenerator(resolution, channels=3, width=4, latent_dim=5)
    D = DCGANDiscriminator(resolution, channels=3, width=4)
    x = G(torch.randn(2, 5)).sample
    assert x.shape == (2, 3, *sides(resolution)) and x.abs().max() <= 1
    assert D(x).logits.shape == (2,)


def test_the_networks_follow_the_papers_rules() -> None:
    G, D = DCGANGenerator(64, 3), DCGANDiscriminator(64, 3)
    for net, up in ((G, True), (D, False)):
        layers = [m for m in net.modules() if not list(m.children())]
        assert not any(isinstance(m, nn.Linear | nn.MaxPool2d | nn.AvgPool2d | nn.Upsample) for m in layers)
        convs = [m for m in layers if isinstance(m, nn.ConvTranspose2d if up else nn.Conv2d)]
        assert [c.stride for c in convs] == ([(1, 1)] + [(2, 2)] * 4 if up else [(2, 2)] * 4 + [(1, 1)])
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in layers)
        assert norms == (4 if up else 3)                                # none next to the image, none on the logit
    widths = [m.out_channels for m in G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert widths == [512, 256, 128, 64, 3]                            # figure 1 of the paper, halved
    assert {type(m) for m in G.body if not list(m.parameters())} == {nn.ReLU}
    weights = torch.cat([m.weight.detach().flatten() for m in D.modules() if isinstance(m, nn.Conv2d)])
    assert abs(float(weights.std()) - 0.02) < 1e-3 and abs(float(weights.mean())) < 1e-4


@pytest.mark.parametrize("resolution", [7, 30, 4, (16, 18), 100], ids=str)
def test_an_impossible_resolution_is_an_error_that_names_sizes_that_work(resolution: Any) -> None:
    with pytest.raises(ConfigError, match=r"resolution must be .* got (\d+)x(\d+); the nearest are") as caught:
        DCGANGenerator(resolution)
    nearest = str(caught.value).split("the nearest are ")[1].split(" and ")
    for size in nearest:
        height, width = map(int, size.split("x"))
        assert stages_of((height, width), 4)[0] >= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("channels", -1), ("latent_dim", 2.5), ("norm", "group"), ("num_classes", 0), ("base_size", 0),
     ("extra_layers", -1), ("resolution", (8, 8, 8))],
)  # fmt: skip
def test_a_bad_setting_is_an_error_that_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        DCGANGenerator(**{"resolution": 8, field: value})


@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_norm_mixes_the_samples_of_a_batch(norm: Any) -> None:
    torch.manual_seed(0)
    for net, x in (
        (DCGANDiscriminator(16, 1, 4, norm=norm, extra_layers=1), torch.randn(6, 1, 16, 16)),
        (MLPDiscriminator(hidden=8, norm=norm), torch.randn(6, 2)),
    ):
        net.eval()                                                     # spectral norm: no power iteration between
        if norm == "batch":
            net.train()
        together, alone = net(x)[0][:2], net(x[:2])[0]
        assert torch.allclose(together, alone, atol=1e-6) == (norm != "batch")


@pytest.mark.parametrize("pair", ["images", "points"])
def test_the_class_reaches_both_networks_as_a_one_hot_vector(pair: str) -> None:
    torch.manual_seed(0)
    if pair == "images":
        G, D = DCGANGenerator(8, 1, 4, 6, num_classes=3), DCGANDiscriminator(8, 1, 4, num_classes=3)
        first = G.body[0].weight.shape[0], D.body[0].weight.shape[1]
        assert first == (6 + 3, 1 + 3)
    else:
        G, D = MLPGenerator(latent_dim=6, num_classes=3), MLPDiscriminator(num_classes=3)
        assert (G.body[0].in_features, D.body[0].in_features) == (6 + 3, 2 + 3)
    G.eval(), D.eval()
    z, a, b = torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 2, 0])
    x = G(z, a).sample
    assert not torch.equal(x[0], G(z, b).sample[0]) and torch.equal(x[1:], G(z, b).sample[1:])
    assert not torch.equal(D(x, a).logits[0], D(x, b).logits[0])
    with pytest.raises(ConfigError, match="class_labels must be given"):
        G(z)
    with pytest.raises(ConfigError, match="class_labels must be None"):
        DCGANDiscriminator(8, 1, 4)(torch.randn(4, 1, 8, 8), a)


def test_packing_judges_consecutive_samples_together() -> None:
    torch.manual_seed(0)
    D = DCGANDiscriminator(8, 2, 4, norm="none", pack=3)
    x = torch.randn(6, 2, 8, 8)
    logits = D(x).logits.detach()
    assert logits.shape == (2,)
    plain = DCGANDiscriminator(8, 6, 4, norm="none")
    plain.load_state_dict(D.state_dict())
    assert torch.equal(logits, plain(torch.stack([torch.cat(list(x[:3])), torch.cat(list(x[3:]))])).logits)
    assert MLPDiscriminator(pack=4)(torch.randn(8, 2)).logits.shape == (2,)
    with pytest.raises(ConfigError, match="multiple of 3"):
        D(x[:4])


def test_minibatch_deviation_is_that_of_each_group_and_constant_over_the_plane() -> None:
    h = torch.randn(6, 4, 2, 3, dtype=torch.float64)
    out = with_deviation(h, 3)
    assert out.shape == (6, 5, 2, 3) and torch.equal(out[:, :4], h)
    for group, plane in ((h[:3], out[:3, 4]), (h[3:], out[3:, 4])):
        expected = group.std(0, unbiased=False).mean()
        torch.testing.assert_close(plane, expected.expand(3, 2, 3), atol=1e-6, rtol=0)
    same = DCGANDiscriminator(8, 1, 4, norm="none", minibatch_stddev=2)
    x = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    with_it = same(x).logits
    same.head[0].weight.data[:, -1] = 100.0                            # copies have no deviation: nothing changes
    torch.testing.assert_close(same(x).logits, with_it, atol=0.2, rtol=0)
    assert float((same(torch.randn(2, 1, 8, 8)).logits - with_it).detach().abs().min()) > 1


@pytest.mark.parametrize("make", [
    lambda: DCGANGenerator(8, 1, 4, 6, norm="batch"),
    lambda: DCGANGenerator(8, 1, 4, 6, norm="spectral", extra_layers=1, num_classes=2),
    lambda: DCGANDiscriminator((8, 16), 1, 4, norm="spectral", pack=2),
    lambda: DCGANDiscriminator(8, 1, 4, norm="batch"),
    lambda: MLPGenerator(latent_dim=3, norm="batch", data_mean=(1.0, 2.0), data_std=(3.0, 4.0)),
    lambda: MLPDiscriminator(norm="spectral", minibatch_stddev=2),
    lambda: MLPGenerator(layers=0, latent_dim=3),
    lambda: MLPDiscriminator(layers=0),
])  # fmt: skip
def test_everything_survives_a_round_trip_batch_statistics_and_power_iterations_too(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make()
    latents = hasattr(net, "first_layer")
    classes = net.config["num_classes"]
    image = () if "dim" in net.config else (1, *sides(net.config["resolution"]))
    shape = (net.config["latent_dim"],) if latents else image or (2,)
    labels = None if classes is None else torch.zeros(4, dtype=torch.long)
    for _ in range(3):
        net(torch.randn(4, *shape) * 2 + 1, labels)                    # moves the statistics
    net.eval().save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    assert net.state_dict().keys() == again.state_dict().keys()
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    x = torch.randn(4, *shape)
    torch.testing.assert_close(net(x, labels)[0], again.eval()(x, labels)[0], atol=1e-7, rtol=0)


def test_spectral_norm_bounds_every_layer_by_one() -> None:
    torch.manual_seed(0)
    D = DCGANDiscriminator(16, 1, 8, norm="spectral", extra_layers=1)
    x = torch.randn(4, 1, 16, 16)
    for _ in range(200):
        D(x)                                                                  # power iterations
    for layer in D.modules():
        if isinstance(layer, nn.Conv2d):
            assert abs(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() - 1) < 1e-3


def test_the_first_layer_is_what_acts_on_z() -> None:
    torch.manual_seed(0)
    z, dz = torch.randn(1, 6), torch.randn(1, 6)
    G = DCGANGenerator(8, 1, 4, 6, num_classes=2, norm="none")
    conv = G.body[0]
    one_hot = torch.tensor([[1.0, 0.0]])
    moved = [conv(torch.cat([z + d, one_hot], 1)[:, :, None, None]).flatten() for d in (dz, 0 * dz)]
    torch.testing.assert_close(moved[0] - moved[1], G.first_layer() @ dz[0], atol=1e-5, rtol=0)
    mlp = MLPGenerator(latent_dim=6, num_classes=2)
    moved = [mlp.body[0](torch.cat([z + d, one_hot], 1))[0] for d in (dz, 0 * dz)]
    torch.testing.assert_close(moved[0] - moved[1], mlp.first_layer() @ dz[0], atol=1e-5, rtol=0)


def test_a_text_is_joined_to_the_latent_and_to_the_last_map() -> None:
    G = DCGANGenerator(16, channels=1, width=4, latent_dim=5, text_width=6, norm="none", num_classes=2)
    D = DCGANDiscriminator(16, channels=1, width=4, text_width=6, norm="none", pack=2)
    z, text = torch.randn(4, 5), torch.randn(4, 3, 6)
    assert G.text is not None and D.text is not None
    vector = G.text(text)
    assert vector.shape == (4, 6)
    joined = torch.cat([z, torch.eye(2)[[0, 1, 1, 0]], vector], 1)
    x = G(z, torch.tensor([0, 1, 1, 0]), text).sample
    torch.testing.assert_close(x, torch.tanh(G.body(joined[:, :, None, None])), atol=1e-6, rtol=0)
    # two samples of a pack with the texts of both at each place of the map
    h, vectors = D.body(x.reshape(2, 2, 16, 16)), D.text(text).reshape(2, 12, 1, 1)
    expected = D.head(D.join(torch.cat([h, vectors.expand(2, 12, 4, 4)], 1))).flatten()
    torch.testing.assert_close(D(x, encoder_hidden_states=text).logits, expected, atol=1e-6, rtol=0)
    assert G.first_layer().shape[1] == 5


def test_text_features_are_given_exactly_to_networks_of_texts() -> None:
    text = torch.randn(2, 3, 6)
    for net, x in ((DCGANGenerator(8, 1, 4, 5, base_size=2), torch.randn(2, 5)),
                   (DCGANDiscriminator(8, 1, 4), torch.randn(2, 1, 8, 8))):  # fmt: skip
        with pytest.raises(ConfigError, match="encoder_hidden_states must be None: this network has no texts"):
            net(x, encoder_hidden_states=text)
    with pytest.raises(ConfigError, match=r"encoder_hidden_states must be given \(text_width=6\)"):
        DCGANGenerator(8, 1, 4, 5, text_width=6)(torch.randn(2, 5))
    with pytest.raises(ConfigError, match="text_width must be"):
        DCGANDiscriminator(8, 1, 4, text_width=0)


def test_without_hidden_layers_the_discriminator_is_a_linear_classifier_and_the_generator_an_affine_map() -> None:
    torch.manual_seed(0)
    G = MLPGenerator(layers=0, latent_dim=6, num_classes=2, norm="batch")
    for net, inputs, outputs in ((MLPDiscriminator(layers=0, pack=2), 4, 1), (G, 6 + 2, 2)):
        assert [tuple(p.shape) for p in net.parameters()] == [(outputs, inputs), (outputs,)]
    D = MLPDiscriminator(layers=0, norm="none")
    a, b, weight = torch.randn(5, 2), torch.randn(5, 2), torch.rand(5, 1)
    between, (share,) = D(weight * a + (1 - weight) * b).logits, weight.T
    torch.testing.assert_close(between, share * D(a).logits + (1 - share) * D(b).logits, atol=1e-6, rtol=0)
    z, dz, label = torch.randn(1, 6), torch.randn(1, 6), torch.tensor([1])
    moved = (G(z + dz, label).sample - G(z, label).sample)[0]
    torch.testing.assert_close(moved, G.first_layer() @ dz[0], atol=1e-5, rtol=0)
    assert MLPDiscriminator(layers=0, minibatch_stddev=2, frequencies=3)(torch.randn(4, 2)).logits.shape == (4,)
    with pytest.raises(ConfigError, match=r"layers must be an int in \[0, 256\]"):
        MLPDiscriminator(layers=-1)
