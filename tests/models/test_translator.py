"""The networks of translation: the papers' layers, sizes, patches, borders, and state that survives a round trip."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfgen import PatchDiscriminator, ResNetTranslator, UNetTranslator
from hfgen.errors import ConfigError

TINY: dict[str, Any] = {"width": 4, "blocks": 1}
NETS = [
    lambda: ResNetTranslator(**TINY),
    lambda: ResNetTranslator(1, 3, **TINY, norm="layer", dropout=0.5),
    lambda: UNetTranslator(3, 1, width=4, depth=3),
    lambda: UNetTranslator(width=4, depth=1, norm="none"),
    lambda: PatchDiscriminator(width=4, layers=1, norm="spectral"),
    lambda: PatchDiscriminator(3, 1, width=4, layers=1),
]


def convs(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_the_residual_generator_has_the_layers_of_the_paper() -> None:
    found = [(type(c).__name__, c.kernel_size[0], c.stride[0], c.out_channels) for c in convs(ResNetTranslator())]
    residual = [("Conv2d", 3, 1, 256)] * 18
    down = [("Conv2d", 7, 1, 64), ("Conv2d", 3, 2, 128), ("Conv2d", 3, 2, 256)]
    up = [("ConvTranspose2d", 3, 2, 128), ("ConvTranspose2d", 3, 2, 64), ("Conv2d", 7, 1, 3)]
    assert found == [*down, *residual, *up]
    net = ResNetTranslator()
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in net.modules()) == 23      # all convolutions but the last
    by_hand = 2 * 49 * 3 * 64 + 2 * 9 * (64 * 128 + 128 * 256) + 18 * 9 * 256 * 256
    assert sum(p.numel() for p in net.parameters() if p.ndim > 1) == by_hand
    assert {tuple(m.padding) for m in net.modules() if isinstance(m, nn.ReflectionPad2d)} == {(3,) * 4, (1,) * 4}


def test_the_patch_discriminator_is_c64_c128_c256_c512_and_judges_70_pixels() -> None:
    net = PatchDiscriminator()
    assert [(c.kernel_size[0], c.stride[0], c.out_channels) for c in convs(net)] == [
        (4, 2, 64), (4, 2, 128), (4, 2, 256), (4, 1, 512), (4, 1, 1)
    ]  # fmt: skip
    norms = [m for m in net.body if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) == 3 and isinstance(net.body[1], nn.LeakyReLU)                # none on the first layer
    assert net(torch.zeros(2, 3, 256, 256)).logits.shape == (2, 1, 30, 30)                 # as in pix2pix
    assert [PatchDiscriminator(width=2, layers=n).receptive_field for n in (1, 2, 3)] == [16, 34, 70]


@pytest.mark.parametrize("number", [1, 2])
def test_a_logit_sees_exactly_its_patch(number: int) -> None:
    net = PatchDiscriminator(1, width=2, layers=number, norm="none")
    x = torch.randn(1, 1, 96, 96, requires_grad=True)
    logits = net(x).logits
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs().sum(0).nonzero().flatten()
    assert len(seen) == int(seen.max() - seen.min()) + 1 == net.receptive_field


def test_weights_start_as_in_the_papers() -> None:
    for net in (ResNetTranslator(width=32), UNetTranslator(width=32, depth=5), PatchDiscriminator()):
        weights = torch.cat([c.weight.detach().flatten() for c in convs(net)])
        assert abs(float(weights.std()) - 0.02) < 1e-4 and abs(float(weights.mean())) < 1e-4
        assert all(not c.bias.any() for c in convs(net) if c.bias is not None)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (20, 44), (64, 24)])
def test_every_size_that_four_divides_keeps_its_shape(size: tuple[int, int]) -> None:
    x = torch.rand(2, 1, *size) * 2 - 1
    y = ResNetTranslator(1, 3, **TINY)(x).sample
    assert y.shape == (2, 3, *size) and y.abs().max() <= 1
    assert UNetTranslator(1, 2, width=4, depth=2)(x).sample.shape == (2, 2, *size)


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (lambda: ResNetTranslator(**TINY), (30, 33), "divisible by 4 .* got 30x33; the nearest are 28x32 and 32x36"),
        (lambda: ResNetTranslator(**TINY), (32, 35), "got 32x35; the nearest are 32x32 and 32x36"),
        (lambda: ResNetTranslator(**TINY), (4, 4), "at least 8, got 4x4; the nearest are 8x8$"),
        (lambda: ResNetTranslator(**TINY, downsamplings=3), (36, 40), "divisible by 8 .* nearest are 32x40 and 40x40"),
        (lambda: UNetTranslator(width=4, depth=4), (24, 32), "divisible by 16 .* nearest are 16x32 and 32x32"),
        (lambda: PatchDiscriminator(width=4), (20, 20), "at least 24, got 20x20; the nearest are 24x24"),
    ],
)
def test_an_impossible_size_is_an_error_that_names_the_nearest(make: Any, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()(torch.zeros(1, 3, *size))


def test_the_smallest_size_that_is_allowed_works() -> None:
    assert ResNetTranslator(**TINY)(torch.zeros(1, 3, 8, 8)).sample.shape == (1, 3, 8, 8)
    assert UNetTranslator(width=4, depth=4)(torch.zeros(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)
    for number in (1, 2, 3):
        least = 3 * 2**number
        assert PatchDiscriminator(width=2, layers=number)(torch.zeros(1, 3, least, least)).logits.shape == (1, 1, 1, 1)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    x = torch.randn(4, 3, 16, 16)
    for net in (ResNetTranslator(**TINY), UNetTranslator(width=4, depth=3), PatchDiscriminator(width=4, layers=1)):
        torch.testing.assert_close(net(x)[0][1:2], net(x[1:2])[0], atol=1e-6, rtol=0)


def test_the_residual_generator_turns_with_the_image_so_borders_are_reflected() -> None:
    net = ResNetTranslator(**TINY, downsamplings=0, norm="none").double()
    with torch.no_grad():
        for conv in convs(net):
            conv.weight.copy_((conv.weight + conv.weight.flip(3)) * 10)             # kernels that are their own mirror
    x = torch.randn(1, 3, 12, 12).double()
    torch.testing.assert_close(net(x.flip(3)).sample, net(x).sample.flip(3), atol=1e-9, rtol=0)
    plain = torch.full((1, 3, 12, 12), 0.3).double()                                # zeros outside would show as a rim
    assert float(net(plain).sample.detach().std(dim=(2, 3)).max()) < 1e-9


def test_skips_carry_what_the_bottleneck_has_lost() -> None:
    net = UNetTranslator(1, 1, width=4, depth=3, norm="none")
    x, y = torch.randn(2, 1, 1, 16, 16)
    with torch.no_grad():
        net.down[-1][-1].weight.zero_()                                             # nothing passes the bottleneck
        assert float((net(x).sample - net(y).sample).abs().max()) > 1e-6
        net.up[-1][-1].weight[4:].zero_()                                           # nor the skips into the last layers
        net.up[-2][1].weight[8:].zero_()
        assert torch.equal(net(x).sample, net(y).sample)


def test_a_conditional_discriminator_sees_the_condition_beside_the_image() -> None:
    net = PatchDiscriminator(3, 1, width=4, layers=1, norm="none")
    x, condition = torch.randn(2, 3, 16, 16), torch.randn(2, 1, 16, 16)
    plain = PatchDiscriminator(4, width=4, layers=1, norm="none")
    plain.load_state_dict(net.state_dict())
    assert torch.equal(net(x, condition).logits, plain(torch.cat([condition, x], 1)).logits)
    with pytest.raises(ConfigError, match="condition must be given"):
        net(x)
    with pytest.raises(ConfigError, match="condition must be None"):
        plain(torch.randn(2, 4, 16, 16), condition)


def test_spectral_norm_bounds_every_layer_by_one() -> None:
    net = PatchDiscriminator(width=8, layers=1, norm="spectral")
    x = torch.randn(2, 3, 16, 16)
    for _ in range(200):
        net(x)                                                                      # power iterations
    for conv in convs(net):
        assert abs(torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() - 1) < 1e-3


@pytest.mark.parametrize("make", NETS)
def test_every_network_survives_a_round_trip(make: Any, tmp_path: Path) -> None:
    net = make()
    c = net.config
    x = torch.randn(2, c.get("channels") or c["in_channels"], 16, 16)
    more = (torch.randn(2, c["condition_channels"], 16, 16),) if c.get("condition_channels") else ()
    net(x, *more)
    net.eval().save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path)
    torch.testing.assert_close(again.eval()(x, *more)[0], net(x, *more)[0], atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ResNetTranslator(width=0), "width"),
        (lambda: ResNetTranslator(blocks=-1), "blocks"),
        (lambda: ResNetTranslator(norm="batch"), "norm"),  # type: ignore[arg-type]
        (lambda: ResNetTranslator(dropout=1.5), "dropout"),
        (lambda: UNetTranslator(depth=0), "depth"),
        (lambda: UNetTranslator(in_channels=2.5), "in_channels"),  # type: ignore[arg-type]
        (lambda: PatchDiscriminator(layers=0), "layers"),
        (lambda: PatchDiscriminator(condition_channels=-1), "condition_channels"),
        (lambda: PatchDiscriminator(norm="batch"), "norm"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_setting_is_an_error_that_names_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be"):
        make()
