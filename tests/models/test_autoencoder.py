"""The autoencoder: shapes, independence of images, codes, configuration."""

import copy
import json
import pickle

import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.models.autoencoder import Autoencoder


def test_tied_weights_are_stored_once_and_the_decoder_is_the_transpose_with_its_own_biases():
    net = Autoencoder((2, 3), 1, "mlp", hidden=(4,), latent_dim=2, tied=True, output_activation="linear")
    assert [tuple(p.shape) for p in net.parameters()] == [(4, 6), (4,), (2, 4), (2,), (4,), (6,)]
    for bias in list(net.parameters())[-2:]:
        torch.nn.init.normal_(bias)
    w1, b1, w2, b2, c2, c1 = (p.detach() for p in net.parameters())
    x = torch.randn(5, 1, 2, 3)
    z = (x.flatten(1) @ w1.T + b1).relu() @ w2.T + b2
    expected = ((z @ w2 + c2).relu() @ w1 + c1).reshape(5, 1, 2, 3)
    torch.testing.assert_close(net(x).sample, expected, atol=1e-5, rtol=0)


def test_tied_convolutions_are_adjoint_to_each_other():
    """<E x, y> = <x, E^T y> for every x and y."""
    net = Autoencoder((8, 4), 2, "conv", hidden=(3,), latent_dim=5, tied=True, output_activation="linear")
    conv, up = net.encoder[0], net.decoder[-1]
    torch.nn.init.zeros_(conv.bias)
    x, y = torch.randn(1, 2, 8, 4), torch.randn(1, 3, 4, 2)
    torch.testing.assert_close((conv(x) * y).sum(), (x * up(y)).sum(), atol=1e-4, rtol=0)
    assert sum(p.ndim > 1 for p in net.parameters()) == 2
    net(x).sample.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_a_copy_and_a_saved_folder_stay_tied(body, tmp_path):
    net = Autoencoder(8, 1, body, hidden=(4,), latent_dim=3, tied=True)
    net.save_pretrained(tmp_path)
    x = torch.randn(2, 1, 8, 8)
    for other in (copy.deepcopy(net), Autoencoder.from_pretrained(tmp_path), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x).sample, net(x).sample)
        before = net(x).sample
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
            z = torch.randn(2, 3)
            assert not torch.equal(other.decode(z), net.decode(z))           # the decoder moved with the encoder
        assert torch.equal(net(x).sample, before)


@pytest.mark.parametrize("body", ["mlp", "conv"])
@pytest.mark.parametrize(("resolution", "channels"), [(8, 1), (28, 3), ((8, 12), 1), ((32, 16), 3)])
def test_images_become_codes_and_codes_images_of_their_shape(body, resolution, channels):
    net = Autoencoder(resolution, channels, body, hidden=(8, 6), latent_dim=5)
    x = torch.rand(3, channels, *net.sides) * 2 - 1
    z = net.encode(x)
    assert z.shape == (3, 5)
    assert net.decode(z).shape == x.shape and net.decode(1e3 * z).abs().max() <= 1
    out = net(x)
    assert torch.equal(out.latents, z) and torch.equal(out.sample, net.decode(z))
    assert all(torch.equal(a, b) for a, b in zip(net(x, return_dict=False), (out.sample, z), strict=True))


def test_an_mlp_computes_what_its_matrices_say():
    net = Autoencoder((2, 3), 1, "mlp", hidden=(4,), latent_dim=2, code_activation="sigmoid")
    x = torch.rand(5, 1, 2, 3) * 2 - 1
    w = [p.detach().double() for p in net.parameters()]
    assert [tuple(p.shape) for p in w] == [(4, 6), (4,), (2, 4), (2,), (4, 2), (4,), (6, 4), (6,)]
    z = ((x.flatten(1).double() @ w[0].T + w[1]).relu() @ w[2].T + w[3]).sigmoid()
    sample = ((z @ w[4].T + w[5]).relu() @ w[6].T + w[7]).tanh().reshape(5, 1, 2, 3)
    torch.testing.assert_close(net.encode(x).double(), z, atol=1e-6, rtol=0)
    torch.testing.assert_close(net(x).sample.double(), sample, atol=1e-6, rtol=0)


def test_no_hidden_layer_makes_two_matrices():
    assert [tuple(p.shape) for p in Autoencoder(4, 1, "mlp", (), 3).parameters()] == [(3, 16), (3,), (16, 3), (16,)]


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_images_do_not_see_each_other_even_in_training(body):
    net, x = Autoencoder(8, 1, body, (8, 8), 4).train(), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        together, alone = net(x).sample, torch.cat([net(image[None]).sample for image in x])
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("code", "low", "high"), [("linear", -9, 9), ("relu", 0, 9), ("sigmoid", 0, 1)])
def test_codes_are_bounded_as_their_activation_says(code, low, high):
    z = Autoencoder(4, 1, "mlp", (16,), 64, code).encode(4 * torch.randn(200, 1, 4, 4))
    assert low <= z.min() and z.max() <= high
    assert (z.min() < 0) == (code == "linear") and (z.max() > 1) == (code != "sigmoid")


@pytest.mark.parametrize("body", ["mlp", "conv"])
def test_a_few_images_can_be_learnt_by_heart(body):
    net, x = Autoencoder(8, 1, body, (32, 32), 8), torch.rand(4, 1, 8, 8) * 1.6 - 0.8
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(300):
        loss = (net(x).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 < 0.1 < x.var()                                 # nothing in the way loses what is in an image


def test_the_saved_folder_gives_the_same_network(tmp_path):
    net, x = Autoencoder((8, 12), 3, "conv", (4, 6), 5, "relu"), torch.rand(2, 3, 8, 12)
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden"] == [4, 6]
    loaded = Autoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x).sample, net(x).sample)


def test_the_meta_device_holds_the_same_tensors_without_memory():
    with torch.device("meta"):
        empty = Autoencoder(8, 1, "conv", (4, 8), 3).state_dict()
    full = Autoencoder(8, 1, "conv", (4, 8), 3).state_dict()
    assert {key: value.shape for key, value in empty.items()} == {key: value.shape for key, value in full.items()}
    assert all(value.is_meta for value in empty.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 0),
        ("resolution", (8, 8, 8)),
        ("channels", 0),
        ("body", "unet"),
        ("hidden", 64),
        ("hidden", (64, 0)),
        ("latent_dim", True),
        ("code_activation", "tanh"),
        ("tied", 1),
        ("output_activation", "relu"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field} must be"):
        Autoencoder(**{field: value})


def test_sides_that_cannot_be_halved_are_refused_with_the_nearest_that_can():
    with pytest.raises(ConfigError, match=r"divisible by 8 for body .* got 28x28; the nearest are 24x24 and 32x32"):
        Autoencoder(28, 1, "conv", (8, 8, 8))
    with pytest.raises(ConfigError, match="hidden must be a list of at most 12 sizes, and of at least one for body"):
        Autoencoder(28, 1, "conv", ())


def test_images_and_codes_of_another_shape_are_refused():
    net = Autoencoder(8, 1, latent_dim=4)
    for shape in [(2, 1, 8, 9), (2, 3, 8, 8), (1, 8, 8)]:
        with pytest.raises(ConfigError, match=r"images must be \(B, 1, 8, 8\)"):
            net(torch.zeros(shape))
    for shape in [(2, 5), (4,)]:
        with pytest.raises(ConfigError, match=r"latents must be \(B, 4\)"):
            net.decode(torch.zeros(shape))
