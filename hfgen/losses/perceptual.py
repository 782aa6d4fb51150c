"""LPIPS, a distance of images in the features of a network for classification of photographs (Zhang et al. 2018).

    d(x, x') = sum_l mean_hw sum_c w_lc (f_lhwc(x) - f_lhwc(x'))^2

f_l are the activations of VGG-16 (Simonyan and Zisserman 2015) after the last convolution of each of its five blocks,
divided by their norm over the channels. The weights w_l >= 0 were fitted to human judgements of similarity.
"""

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Positions of the convolutions of each block in VGG-16, which are part of the names of its weights."""
WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the blocks."""
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of the colours of photographs in [-1, 1]."""
SMALLEST = 16
"""Smallest side in pixels: sides are halved four times."""


class LPIPS(nn.Module):
    """The distance, with frozen weights; `LPIPS.of(weights)` takes those of the `lpips` library."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        # convolutions
        self.blocks, channels = nn.ModuleList(), 3
        for positions, width in zip(BLOCKS, WIDTHS, strict=True):
            block = nn.ModuleList()
            for _ in positions:
                block.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.blocks.append(block)
        # weights of the distance
        self.weights = nn.ParameterList(torch.zeros(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.requires_grad_(False)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "LPIPS":
        """Return the distance with the weights of `lpips.LPIPS(net="vgg")`, under that library's names.

        Shapes: `net.slice1.0.weight` (64, 3, 3, 3) and so on; `lin0.model.1.weight` (1, 64, 1, 1), with values >= 0.
        Raises KeyError with the first missing name, ValueError for a weight of another shape.
        """
        net = cls().eval()
        for i, (layers, block) in enumerate(zip(BLOCKS, net.blocks, strict=True)):
            for layer, conv in zip(layers, cast(nn.ModuleList, block), strict=True):
                for kind in ("weight", "bias"):
                    put(getattr(conv, kind), weights, f"net.slice{i + 1}.{layer}.{kind}")
            put(net.weights[i], weights, f"lin{i}.model.1.weight")
        return net

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the activations (B, C_l, H_l, W_l) of five blocks, with norm 1 over channels.

        `x`: images (B, 1 or 3, H, W) in [-1, 1].
        """
        h, activations = (x - self.shift) / self.scale, []
        for i, block in enumerate(self.blocks):
            # halve the side before every block but the first
            if i:
                h = F.max_pool2d(h, 2)
            # apply the block, and normalise a copy
            for conv in cast(nn.ModuleList, block):
                h = F.relu(conv(h))
            activations.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
        return activations

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Return d(x, x') of each pair, (B,), >= 0; images (B, 1 or 3, H, W) in [-1, 1] with sides of at least 16."""
        distance = x.new_zeros(len(x))
        for w, a, b in zip(self.weights, self.features(x), self.features(other), strict=True):
            distance = distance + (w[:, None, None] * (a - b).square()).sum(1).mean((1, 2))
        return distance


def put(parameter: Tensor, weights: Mapping[str, Tensor], name: str) -> None:
    """Copy the weight of this name into a parameter, in the parameter's shape.

    Raises ValueError for another number of values.
    """
    if weights[name].numel() != parameter.numel():
        raise ValueError(f"{name}: shape {list(weights[name].shape)}, expected {list(parameter.shape)}")
    parameter.copy_(weights[name].reshape(parameter.shape))
