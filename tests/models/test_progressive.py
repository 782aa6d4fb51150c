"""Networks that grow: levels and fades against the stages they lie between, classes, packs, and states on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hfgen import ProgressiveDiscriminator, ProgressiveGenerator
from hfgen.errors import ConfigError
from hfgen.models.dcgan import with_deviation
from hfgen.models.progressive import at_level, stage_of

SIZE: dict[str, Any] = {"resolution": 16, "channels": 2, "width": 4}
LATENT: dict[str, Any] = {**SIZE, "latent_dim": 6}


def pair(**changes: Any) -> tuple[Any, Any]:
    """Return a generator and a discriminator of two stages above 4 x 4, with random biases."""
    torch.manual_seed(0)
    nets = ProgressiveGenerator(**LATENT, **changes), ProgressiveDiscriminator(**SIZE, minibatch_stddev=0, **changes)
    for net in nets:
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return nets


def images_of_stage(G: Any, z: torch.Tensor, stage: int) -> torch.Tensor:
    """Return the images of a stage in its own size, computed layer by layer from the weights."""
    h = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    h = F.leaky_relu(G.project(h).view(len(z), -1, 4, 4), 0.2)
    h = h / (h.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(stage + 1):
        if i:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for conv in list(G.blocks[i])[::3]:
            h = F.leaky_relu(F.conv2d(h, conv.weight * conv.scale, conv.bias, padding=1), 0.2)
            h = h / (h.square().mean(1, keepdim=True) + 1e-8).sqrt()
    return torch.tanh(G.images[stage](h))


def repeated(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.repeat_interleave(2**times, 2).repeat_interleave(2**times, 3)


@pytest.mark.parametrize("resolution", [8, 28, 32, (16, 24)], ids=str)
def test_images_and_logits_have_the_full_resolution_at_every_level(resolution: Any) -> None:
    G, D = ProgressiveGenerator(resolution, 3, 4, 6), ProgressiveDiscriminator(resolution, 3, 4, minibatch_stddev=2)
    sides = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert G.level == G.stages
    for level in (0, 0.25, 1, G.stages - 0.5, G.stages):
        G.grow(level), D.grow(level)
        x = G(torch.randn(4, 6)).sample
        assert x.shape == (4, 3, *sides) and x.abs().max() <= 1 and D(x).logits.shape == (4,)


def test_a_generator_at_an_integer_level_makes_the_images_of_that_stage_enlarged() -> None:
    G, _ = pair()
    z = torch.randn(3, 6)
    for stage in range(3):
        G.grow(stage)
        expected = repeated(images_of_stage(G, z, stage), 2 - stage)
        torch.testing.assert_close(G(z).sample, expected, atol=1e-5, rtol=0)


def test_a_fade_begins_at_the_lower_stage_ends_at_the_upper_one_and_is_a_line_between_them() -> None:
    G, D = pair()
    z, x = torch.randn(3, 6), torch.randn(3, 2, 16, 16)

    def at(level: float) -> tuple[torch.Tensor, torch.Tensor]:
        G.grow(level), D.grow(level)
        return G(z).sample, D(x).logits

    for lower in (0, 1):
        ends = at(lower)[0], at(lower + 1)[0]
        torch.testing.assert_close(at(lower + 0.3)[0], 0.7 * ends[0] + 0.3 * ends[1], atol=1e-6, rtol=0)
        for near, end in ((lower + 1e-7, lower), (lower + 1 - 1e-7, lower + 1)):
            for found, expected in zip(at(near), at(end), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_discriminator_that_fades_adds_the_maps_of_both_stages_with_their_weights() -> None:
    _, D = pair()
    x = torch.randn(3, 2, 16, 16)
    D.grow(1.25)
    act = torch.nn.LeakyReLU(0.2)
    new = D.blocks[0](act(D.images[0](x)))
    below = act(D.images[1](F.avg_pool2d(x, 2)))
    h = D.blocks[1](0.75 * below + 0.25 * new)
    h = act(D.features(h)).flatten(1)
    torch.testing.assert_close(D(x).logits, D.head(act(D.hidden(h)))[:, 0], atol=1e-5, rtol=0)


def test_below_its_level_a_discriminator_sees_means_over_squares_only() -> None:
    _, D = pair()
    x = torch.randn(3, 2, 16, 16)
    D.grow(1)
    same = repeated(F.avg_pool2d(x, 2), 1)
    torch.testing.assert_close(D(x).logits, D(same).logits, atol=1e-5, rtol=0)
    D.grow(1.5)
    assert (D(x).logits - D(same).logits).abs().min() > 1e-4


def test_images_of_a_level_are_means_over_squares_faded_between_stages() -> None:
    x = torch.rand(2, 3, 16, 24)
    assert torch.equal(at_level(x, 2, 2), x)
    torch.testing.assert_close(at_level(x, 0, 2), repeated(F.avg_pool2d(x, 4), 2), atol=1e-6, rtol=0)
    expected = 0.6 * repeated(F.avg_pool2d(x, 4), 2) + 0.4 * repeated(F.avg_pool2d(x, 2), 1)
    torch.testing.assert_close(at_level(x, 0.4, 2), expected, atol=1e-6, rtol=0)
    assert stage_of(0) == (0, 1.0) and stage_of(1) == (1, 1.0) and stage_of(1.25) == (2, 0.25)


def test_the_minibatch_deviation_is_an_input_of_the_last_convolution() -> None:
    torch.manual_seed(0)
    D: Any = ProgressiveDiscriminator(8, 1, 4, minibatch_stddev=2)
    x, act = torch.randn(4, 1, 8, 8), torch.nn.LeakyReLU(0.2)
    h = D.blocks[0](act(D.images[0](x)))
    h = act(D.features(with_deviation(h, 2))).flatten(1)
    torch.testing.assert_close(D(x).logits, D.head(act(D.hidden(h)))[:, 0], atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="multiple of 2"):
        D(x[:3])


def test_classes_and_packs_reach_both_networks() -> None:
    torch.manual_seed(0)
    G, D = ProgressiveGenerator(**LATENT, num_classes=3), ProgressiveDiscriminator(**SIZE, num_classes=3, pack=2)
    z, a, b = torch.randn(4, 6), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 2, 0])
    x = G(z, a).sample
    assert not torch.equal(x[0], G(z, b).sample[0]) and torch.equal(x[1:], G(z, b).sample[1:])
    alone = ProgressiveDiscriminator(**SIZE, num_classes=3, minibatch_stddev=0, pack=2)
    logits = alone(x, a).logits
    assert logits.shape == (2,) and logits[0] != alone(x, b).logits[0] and logits[1] == alone(x, b).logits[1]
    with pytest.raises(ConfigError, match="class_labels must be given"):
        D(x)


@pytest.mark.parametrize(
    ("field", "value"),
    [("width", 0), ("latent_dim", 0), ("level", 2.5), ("level", -0.1), ("level", float("nan")), ("resolution", 18)],
)
def test_a_bad_setting_is_an_error_that_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        ProgressiveGenerator(**{**LATENT, field: value})


def test_a_network_saved_within_a_fade_is_loaded_at_its_level(tmp_path: Path) -> None:
    G, D = pair()
    z, x = torch.randn(3, 6), torch.randn(3, 2, 16, 16)
    for net, inputs in ((G, z), (D, x)):
        net.grow(1.3125)
        net.save_pretrained(tmp_path)
        again = type(net).from_pretrained(tmp_path)
        assert again.level == 1.3125 and torch.equal(again(inputs)[0], net(inputs)[0])


def test_the_matrix_of_the_first_layer_acts_on_the_normalised_z() -> None:
    G: Any = ProgressiveGenerator(**LATENT, num_classes=2)
    z = torch.randn(1, 6)
    with_class = torch.cat([z, torch.tensor([[1.0, 0.0]])], 1)
    without = torch.cat([0 * z, torch.tensor([[1.0, 0.0]])], 1)
    moved = G.project(with_class)[0] - G.project(without)[0]
    torch.testing.assert_close(G.first_layer() @ z[0], moved, atol=1e-5, rtol=0)
