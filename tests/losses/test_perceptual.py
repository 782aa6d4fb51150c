"""LPIPS against its equation, with weights drawn at random: no library of ours has the fitted ones."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.losses.perceptual import BLOCKS, LPIPS, SCALE, SHIFT, WIDTHS


def weights() -> dict[str, Tensor]:
    """Return weights under the names of the lpips library, and what else it saves."""
    generator, found, before = torch.Generator().manual_seed(0), {}, 3
    for i, (layers, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
        for layer in layers:
            name = f"net.slice{i + 1}.{layer}"
            found[f"{name}.weight"] = torch.randn(width, before, 3, 3, generator=generator) / (3 * before**0.5)
            found[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)
            before = width
        found[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return {**found, "scaling_layer.shift": torch.tensor(SHIFT)[None, :, None, None]}


def reference(of: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the distance by the letter of the paper: VGG-16's layers one after the other, then equation 1."""
    poolings = (4, 9, 16, 23)
    h, total = torch.stack([x, y]), torch.zeros(len(x), dtype=x.dtype)
    h = (h - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
    h, lasts = h.flatten(0, 1), [layers[-1] for layers in BLOCKS]
    for layer in range(29):
        block = next(i for i, last in enumerate(lasts) if layer <= last)
        if layer in poolings:
            h = F.max_pool2d(h, 2)
        elif (key := f"net.slice{block + 1}.{layer}") + ".weight" in of:
            h = F.relu(F.conv2d(h, of[f"{key}.weight"], of[f"{key}.bias"], padding=1))
        if layer in lasts:
            a, b = (f / f.square().sum(1, keepdim=True).sqrt() for f in h.chunk(2))
            total = total + F.conv2d((a - b) ** 2, of[f"lin{block}.model.1.weight"]).mean((1, 2, 3))
    return total


@pytest.fixture(scope="module")
def fitted() -> dict[str, Tensor]:
    return weights()


def test_the_distance_is_that_of_the_equation(fitted: dict[str, Tensor]) -> None:
    x, y = torch.rand(2, 2, 3, 32, 48).mul(2).sub(1)
    found = LPIPS.of(fitted)(x, y)
    assert found.shape == (2,) and (found > 0).all()
    torch.testing.assert_close(found, reference(fitted, x, y))


def test_equal_images_are_at_no_distance_and_it_is_symmetric(fitted: dict[str, Tensor]) -> None:
    net: Any = LPIPS.of(fitted)
    x, y = torch.rand(2, 3, 1, 16, 16)
    assert net(x, x).eq(0).all()
    torch.testing.assert_close(net(x, y), net(y, x))
    torch.testing.assert_close(net(x, y), net(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))


def test_nothing_of_it_is_trained_but_images_get_gradients(fitted: dict[str, Tensor]) -> None:
    net = LPIPS.of(fitted)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(x, torch.rand(1, 3, 16, 16)).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert not any(p.requires_grad for p in net.parameters())
    assert sum(p.numel() for p in net.blocks.parameters()) == 14_714_688                  # VGG-16's convolutions


def test_other_weights_are_refused_by_name(fitted: dict[str, Tensor]) -> None:
    less = {name: weight for name, weight in fitted.items() if name != "net.slice3.12.bias"}
    with pytest.raises(KeyError, match=r"net\.slice3.12\.bias"):
        LPIPS.of(less)
    with pytest.raises(ValueError, match=r"lin2.model.1.weight: shape \[1, 9, 1, 1\], expected \[256\]"):
        LPIPS.of({**fitted, "lin2.model.1.weight": torch.ones(1, 9, 1, 1)})
