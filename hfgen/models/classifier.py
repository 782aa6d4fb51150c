"""A small convolutional classifier of images, also used as a feature extractor."""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from hfgen.checks import require, require_int, require_number, require_size
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.encoders import Encoder
from hfgen.models.outputs import LogitsOutput

SMALLEST = 7
"""Largest side that is not halved."""

MAX_GROUPS = 8
"""Largest number of groups of a group norm."""


class ConvBlock(nn.Module):
    """3x3 convolution, group norm, ReLU; a stride of 2 halves a side, rounded up."""

    def __init__(self, channels_in: int, channels_out: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels_out), channels_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (B, C', H', W') >= 0 from x (B, C, H, W); H' = H / stride, rounded up."""
        return F.relu(self.norm(self.conv(x)))


class Classifier(ModelMixin):
    """Classifier of images: 3x3 convolutions with strides until no side exceeds 7, two linear layers, K logits.

    The channels double from `width` to 4 `width`. With group norm (Wu and He 2018) in place of batch norm the logits of
    an image do not depend on its batch. `resolution`: int or (height, width). `class_names`: one name per class, stored
    for the pipeline. With `encoder`, settings of `hfgen.models.encoders.Encoder`, the logits are a linear function of
    its codes, in place of all other layers. Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = ("ConvBlock",)
    _repeated_blocks = ("ConvBlock",)

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 28,
        channels: int = 1,
        num_classes: int = 10,
        width: int = 32,
        dropout: float = 0.0,
        class_names: list[str] | None = None,
        encoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._check_config()
        # the encoder of another network, and a linear layer
        self.codes: Encoder | None = None
        if encoder is not None:
            self.codes = Encoder(encoder)
            shape = (channels, *self.sides)
            require(self.codes.shape == shape, "encoder", self.codes.shape, f"an encoder of images {shape}")
            self._build_head(self.codes.size)
            return
        # plan widths and strides
        height, wide = self.sides
        widths, strides = [width], []
        while max(height, wide) > SMALLEST:
            strides.append((1 + (height > SMALLEST), 1 + (wide > SMALLEST)))
            height, wide = math.ceil(height / strides[-1][0]), math.ceil(wide / strides[-1][1])
            widths.append(min(2 * widths[-1], 4 * width))
        # convolutions
        self.conv_in = ConvBlock(channels, width)
        self.blocks = nn.ModuleList()
        for (before, after), stride in zip(pairwise(widths), strides, strict=True):
            self.blocks.append(ConvBlock(before, after, stride))
        # linear layers
        self.hidden = nn.Linear(widths[-1] * height * wide, 4 * width)
        self._build_head(4 * width)

    def _build_head(self, features: int) -> None:
        dropout = self.config["dropout"]
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.linear_out = nn.Linear(features, self.config["num_classes"])

    @property
    def sides(self) -> tuple[int, int]:
        """Return the (height, width) of the images."""
        return require_size("resolution", self.config["resolution"])

    def _check_config(self) -> None:
        # sizes
        c: Any = self.config
        require_size("resolution", c["resolution"])
        for field, low, high in (("channels", 1, 2**10), ("num_classes", 2, 2**20), ("width", 1, 2**12)):
            require_int(field, c[field], low, high)
        require_number("dropout", c["dropout"], 0.0, 0.99)
        # class names
        names, count = c["class_names"], c["num_classes"]
        listed = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        fits = names is None or (listed and len(names) == count)
        require(fits, "class_names", names, f"None or a list of {count} strings (num_classes)")

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the penultimate activations (B, 4 width), >= 0, of images (B, C, H, W) in [-1, 1], or codes (B, D).

        They are differentiable in x. Raises ConfigError for another shape.
        """
        expected = (self.config["channels"], *self.sides)
        allowed = f"(B, {', '.join(map(str, expected))})"
        require(tuple(x.shape[1:]) == expected, "images", tuple(x.shape), allowed)
        if self.codes is not None:
            codes: torch.Tensor = self.codes(x)                                          # (B, D)
            return codes
        h = self.conv_in(x)                                                              # (B, width, H, W)
        for block in self.blocks:
            h = block(h)                                                                 # (B, 4 width, <= 7, <= 7)
        return F.relu(self.hidden(h.flatten(1)))                                         # (B, 4 width)

    def forward(self, x: torch.Tensor, return_dict: bool = True) -> LogitsOutput | tuple[torch.Tensor]:
        """Return the logits (B, K) of images x (B, C, H, W) in [-1, 1], as `.logits` or as a tuple of one.

        Raises ConfigError for another shape.
        """
        logits = self.linear_out(self.drop(self.features(x)))
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)
