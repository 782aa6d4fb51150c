"""Layers with an equalised learning rate, and normalisation of the features of each pixel (Karras et al. 2018).

Weights are drawn from N(0, 1) and scaled when they are used: w = c v, c = gain / sqrt(fan_in), the constant of He et
al. 2015. An optimiser that adapts its steps, such as Adam, then moves all of them at one relative speed (section 4.1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELU_GAIN = math.sqrt(2)
"""Gain of layers before a rectified activation (He et al. 2015, eq. 10)."""


class EqualisedLinear(nn.Module):
    """Linear layer y = c v x + b with v (outputs, inputs) and c = `gain` / sqrt(inputs); the bias is 0 at first."""

    def __init__(self, inputs: int, outputs: int, gain: float = RELU_GAIN) -> None:
        super().__init__()
        self.scale = gain / math.sqrt(inputs)
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, outputs) from x (B, inputs)."""
        return F.linear(x, self.scale * self.weight, self.bias)


class EqualisedConv2d(nn.Module):
    """Convolution y = c v * x + b that keeps the sides of a map, c = `gain` / sqrt(inputs kernel^2), b = 0 at first."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = RELU_GAIN) -> None:
        super().__init__()
        self.padding, self.scale = kernel // 2, gain / math.sqrt(inputs * kernel**2)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, outputs, h, w) from x (B, inputs, h, w)."""
        return F.conv2d(x, self.scale * self.weight, self.bias, padding=self.padding)


class PixelNorm(nn.Module):
    """Normalisation of the features of each pixel: h / sqrt(mean of h^2 over channels + 1e-8) (section 4.2)."""

    def forward(self, h: Tensor) -> Tensor:
        """Return features of the shape of h (B, C, ...), whose mean square over channels is 1."""
        return h * (h.square().mean(1, keepdim=True) + 1e-8).rsqrt()
