"""Networks of image translation: the generators and the discriminator of CycleGAN and pix2pix, parts and checks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.checks import nearest_sizes, require, require_choice, require_int, require_number
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.choices import GeneratorNorm, PatchNorm
from hfgen.models.outputs import LogitsOutput, SampleOutput
from hfgen.models.spectral import SPECTRAL_LAYERS, spectral_norm

Conv = nn.Conv2d | nn.ConvTranspose2d
NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
}
"""Normalisations of feature maps; instance norm is without scale and shift, as in CycleGAN."""


def layers(conv: Conv, norm: str, activation: nn.Module | None, normalise: bool = True) -> list[nn.Module]:
    """Return a convolution, its normalisation and its activation, as far as there are any.

    Spectral normalisation is applied to the weights of every convolution, also without `normalise`.
    """
    init_weights(conv)
    parts: list[nn.Module] = [spectral_norm(conv) if norm == "spectral" else conv]
    if normalise and norm in NORM_LAYERS:
        parts.append(NORM_LAYERS[norm](conv.out_channels))
    if activation is not None:
        parts.append(activation)
    return parts


def has_bias(norm: str) -> bool:
    """Return whether convolutions before this normalisation have a bias; instance norm would remove it."""
    return norm != "instance"


def init_weights(conv: Conv) -> Conv:
    """Return the convolution with weights from N(0, 0.02^2) and biases 0 (Zhu et al. 2017, section 7.1)."""
    nn.init.normal_(conv.weight, 0.0, 0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def dropout_or_none(dropout: float) -> list[nn.Module]:
    """Return a list with a dropout layer, empty for 0."""
    return [nn.Dropout(dropout)] if dropout else []


class ResidualBlock(nn.Module):
    """x + f(x); f is two 3x3 convolutions with reflected borders and normalisation, and ReLU in between."""

    def __init__(self, channels: int, norm: str, dropout: float) -> None:
        super().__init__()
        bias = has_bias(norm)
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), *layers(nn.Conv2d(channels, channels, 3, bias=bias), norm, nn.ReLU()),
            *dropout_or_none(dropout),
            nn.ReflectionPad2d(1), *layers(nn.Conv2d(channels, channels, 3, bias=bias), norm, None),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x), (B, C, H, W), for x (B, C, H, W)."""
        return x + self.body(x)


class ResNetTranslator(ModelMixin):
    """Generator of CycleGAN: images (B, C', H, W) in [-1, 1] from images (B, C, H, W) in [-1, 1].

    Source: Johnson et al. 2016; Zhu et al. 2017, section 7.2, there c7s1-64, d128, d256, R256 x `blocks`, u128, u64,
    c7s1-C'. The layers are a 7x7 convolution, `downsamplings` convolutions of stride 2 that double the channels,
    residual blocks, as many fractionally-strided convolutions, a 7x7 convolution and tanh. `norm`: "instance", "layer"
    (over channels and pixels) or "none". Sides must be divisible by 2^downsamplings, and at least twice that and 4.
    Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = ("ResidualBlock",)
    _repeated_blocks = ("ResidualBlock",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        blocks: int = 9,
        downsamplings: int = 2,
        norm: GeneratorNorm = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_config(self.config, ("instance", "layer", "none"))
        # halve the sides
        bias, c = has_bias(norm), width
        body = [nn.ReflectionPad2d(3), *layers(nn.Conv2d(in_channels, c, 7, bias=bias), norm, nn.ReLU())]
        for _ in range(downsamplings):
            body += layers(nn.Conv2d(c, 2 * c, 3, 2, 1, bias=bias), norm, nn.ReLU())      # (B, 2c, h / 2, w / 2)
            c *= 2
        # residual blocks
        for _ in range(blocks):
            body.append(ResidualBlock(c, norm, dropout))
        # double the sides
        for _ in range(downsamplings):
            up = nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1, bias=bias)
            body += layers(up, norm, nn.ReLU())                                           # (B, c / 2, 2h, 2w)
            c //= 2
        self.body = nn.Sequential(*body, nn.ReflectionPad2d(3), *layers(nn.Conv2d(c, out_channels, 7), "none", None))

    @property
    def sides(self) -> tuple[int, int]:
        """Return the divisor of the sides of images and the smallest side: borders of 3 and of 1 are reflected."""
        factor = 2 ** self.config["downsamplings"]
        return factor, max(4, 2 * factor)

    def forward(self, x: Tensor, return_dict: bool = True) -> SampleOutput | tuple[Tensor]:
        """Return the translations (B, C', H, W) of images x (B, C, H, W), both in [-1, 1].

        The result is `.sample`, or a tuple of one without `return_dict`.
        Raises ConfigError, naming the nearest sizes, for a wrong size.
        """
        check_images(x, self.config["in_channels"], *self.sides)
        sample = torch.tanh(self.body(x))                                                 # (B, C', H, W)
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)


class UpStage(nn.Sequential):
    """One stage of the decoder of pix2pix; it joins the skip connection, which is on the device of the encoder."""

    def forward(self, h: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return features (B, C', 2h, 2w) of h (B, C, h, w) and, except in the first stage, of `skip` (B, C, h, w)."""
        joined = h if skip is None else torch.cat([h, skip], 1)                           # (B, 2 C, h, w)
        return super().forward(joined)


class UNetTranslator(ModelMixin):
    """Generator of pix2pix: images (B, C', H, W) in [-1, 1] from images (B, C, H, W), by an encoder-decoder with skips.

    Source: Isola et al. 2017, sections 3.2.1 and 6.1.1. The encoder has `depth` convolutions that halve the sides, with
    channels doubled from `width` to at most 8 `width`. The decoder mirrors it, with a skip connection at each size.
    `dropout`: of the first three layers of the decoder, in training only (the paper also uses it in sampling, as
    noise). Sides must be divisible by 2^depth. Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = ("UpStage",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        width: int = 64,
        depth: int = 8,
        norm: GeneratorNorm = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_config(self.config, ("instance", "layer", "none"))
        # encoder; the last map has one pixel, which has no deviation to divide by
        bias, widths = has_bias(norm), [width * min(2**i, 8) for i in range(depth)]
        self.down = nn.ModuleList([nn.Sequential(*layers(nn.Conv2d(in_channels, width, 4, 2, 1), "none", None))])
        for i in range(1, depth):
            last = i == depth - 1
            conv = nn.Conv2d(widths[i - 1], widths[i], 4, 2, 1, bias=bias or last)
            self.down.append(nn.Sequential(nn.LeakyReLU(0.2), *layers(conv, norm, None, normalise=not last)))
        # decoder
        self.up = nn.ModuleList()
        for number, i in enumerate(reversed(range(1, depth))):
            inputs = widths[i] * (1 if number == 0 else 2)
            conv_up = nn.ConvTranspose2d(inputs, widths[i - 1], 4, 2, 1, bias=bias)
            regular = dropout_or_none(dropout if number < 3 else 0.0)
            self.up.append(UpStage(nn.ReLU(), *layers(conv_up, norm, None), *regular))
        # image
        out = nn.ConvTranspose2d(width * (1 if depth == 1 else 2), out_channels, 4, 2, 1)
        self.up.append(UpStage(nn.ReLU(), *layers(out, "none", None)))

    @property
    def sides(self) -> tuple[int, int]:
        """Return the divisor of the sides of images and the smallest side: the deepest map has one pixel."""
        return 2 ** self.config["depth"], 2 ** self.config["depth"]

    def forward(self, x: Tensor, return_dict: bool = True) -> SampleOutput | tuple[Tensor]:
        """Return the translations (B, C', H, W) of images x (B, C, H, W), both in [-1, 1].

        The result is `.sample`, or a tuple of one without `return_dict`.
        Raises ConfigError, naming the nearest sizes, for a wrong size.
        """
        check_images(x, self.config["in_channels"], *self.sides)
        # encoder
        skips, h = [], x
        for stage in self.down:
            h = stage(h)                                                                  # (B, c, h / 2, w / 2)
            skips.append(h)
        # decoder
        h = self.up[0](skips.pop())
        for stage in self.up[1:]:
            h = stage(h, skips.pop())                                                     # (B, c / 2, 2h, 2w)
        sample = torch.tanh(h)                                                            # (B, C', H, W)
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)


class PatchDiscriminator(ModelMixin):
    """PatchGAN: logits (B, 1, h, w) that patches of images (B, C, H, W) are real (Isola et al. 2017, section 3.2.2).

    It has `layers` 4x4 convolutions of stride 2, one of stride 1 and one to the logit; channels are doubled from
    `width` to at most 8 `width`. Patches are 70x70 for 3 layers (C64-C128-C256-C512), 34x34 for 2, 16x16 for 1. `norm`:
    "instance", "layer", "spectral" (of the weights, Miyato et al. 2018) or "none"; the first and the last layer have no
    normalisation. `condition_channels`: channels of the image that was translated, an input next to its translation; 0
    for none. Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = SPECTRAL_LAYERS

    @register_to_config
    def __init__(
        self,
        channels: int = 3,
        condition_channels: int = 0,
        width: int = 64,
        layers: int = 3,
        norm: PatchNorm = "instance",
    ) -> None:
        super().__init__()
        check_config(self.config, ("instance", "layer", "spectral", "none"))
        self.body = patch_layers(channels + condition_channels, width, layers, norm)

    @property
    def receptive_field(self) -> int:
        """Return the side in pixels of the patch that one logit judges."""
        side = 1
        for conv in reversed([m for m in self.body if isinstance(m, nn.Conv2d)]):
            side = (side - 1) * conv.stride[0] + conv.kernel_size[0]
        return side

    def forward(
        self, x: Tensor, condition: Tensor | None = None, return_dict: bool = True
    ) -> LogitsOutput | tuple[Tensor]:
        """Return logits (B, 1, h, w) of images x (B, C, H, W), as `.logits` or as a tuple of one.

        `condition` (B, C', H, W) is given exactly if the network is conditional. Raises ConfigError for other channels,
        and for images smaller than a patch.
        """
        # check the image
        channels, least = self.config["condition_channels"], 3 * 2 ** self.config["layers"]
        check_images(x, self.config["channels"], 1, least)
        # join the condition
        if (condition is None) != (channels == 0):
            raise ConfigError(f"condition must be {'given' if channels else 'None'} (condition_channels={channels})")
        if condition is not None:
            check_images(condition, channels, 1, least)
            x = torch.cat([condition, x], 1)                                              # (B, C' + C, H, W)
        logits = self.body(x)
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)


def patch_layers(channels: int, width: int, number: int, norm: str) -> nn.Sequential:
    """Return the convolutions of a PatchGAN with `number` layers of stride 2."""
    widths = [width * min(2**i, 8) for i in range(number + 1)]
    body: list[Any] = layers(nn.Conv2d(channels, width, 4, 2, 1), norm, nn.LeakyReLU(0.2), normalise=False)
    for i in range(1, number + 1):
        stride = 2 if i < number else 1
        conv = nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=has_bias(norm))
        body += layers(conv, norm, nn.LeakyReLU(0.2))
    return nn.Sequential(*body, *layers(nn.Conv2d(widths[-1], 1, 4, 1, 1), norm, None, normalise=False))


def check_config(config: Any, norms: tuple[str, ...]) -> None:
    """Raise ConfigError, naming the field, for impossible settings of a network of translation."""
    # sizes
    sizes = {"in_channels": 2**10, "out_channels": 2**10, "channels": 2**10, "width": 2**12, "depth": 12, "layers": 8}
    for field, high in sizes.items():
        if field in config:
            require_int(field, config[field], high=high)
    for field, high in (("blocks", 64), ("downsamplings", 8), ("condition_channels", 2**10)):
        if field in config:
            require_int(field, config[field], low=0, high=high)
    # normalisation and dropout
    require_choice("norm", config["norm"], norms)
    if "dropout" in config:
        require_number("dropout", config["dropout"], 0.0, 0.99)


def check_images(x: Tensor, channels: int, factor: int, least: int) -> None:
    """Raise ConfigError unless x is (B, channels, H, W), H and W divisible by `factor` and at least `least`.

    The message names the nearest valid sizes.
    """
    # channels
    require(x.ndim == 4 and x.shape[1] == channels, "images", tuple(x.shape), f"(B, {channels}, H, W) for this network")
    # sides
    height, width = x.shape[2:]
    check_sides(height, width, factor, least)


def check_sides(height: int, width: int, factor: int, least: int) -> None:
    """Raise ConfigError, naming the nearest valid sizes, unless both sides divide by `factor` and are >= `least`."""
    if any(side % factor or side < least for side in (height, width)):
        raise ConfigError(
            f"images must have height and width divisible by {factor} and at least {least}, got {height}x{width}; "
            f"the nearest are {nearest_sizes(height, width, factor, least)}"
        )
