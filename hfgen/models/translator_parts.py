"""The parts that networks of image translation share: normalised convolutions, starting weights, and checked inputs."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hfgen.errors import ConfigError
from hfgen.models.checks import require, require_int, require_number

GeneratorNorm = Literal["instance", "layer", "none"]
PatchNorm = Literal["instance", "layer", "spectral", "none"]
Conv = nn.Conv2d | nn.ConvTranspose2d

NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,                                     # without scale and shift, as in CycleGAN
    "layer": lambda channels: nn.GroupNorm(1, channels),
}


def started(conv: Conv) -> Conv:
    """Return the convolution with weights from N(0, 0.02^2) and biases of 0 (Zhu et al. 2017, section 7.1)."""
    nn.init.normal_(conv.weight, 0.0, 0.02)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def layers(conv: Conv, norm: str, activation: nn.Module | None, normalise: bool = True) -> list[nn.Module]:
    """Return a convolution, its normalisation where there is one, and its activation.

    Spectral normalisation is one of the weights, and so of every convolution, `normalise` or not.
    """
    found: list[nn.Module] = [spectral_norm(started(conv)) if norm == "spectral" else started(conv)]
    if normalise and norm in NORM_LAYERS:
        found.append(NORM_LAYERS[norm](conv.out_channels))
    return found if activation is None else [*found, activation]


def has_bias(norm: str) -> bool:
    """Return whether convolutions before this normalisation have a bias; instance norm takes every one away again."""
    return norm != "instance"


def dropped(dropout: float) -> list[nn.Module]:
    """Return a dropout layer, or none for 0."""
    return [nn.Dropout(dropout)] if dropout else []


def check_images(x: Tensor, channels: int, factor: int, least: int) -> None:
    """Raise ConfigError unless x is (B, channels, H, W), H and W divisible by `factor` and at least `least`.

    The message names the nearest sizes that are.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ConfigError(f"images must be (B, {channels}, H, W) for this network, got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if any(side % factor or side < least for side in (height, width)):
        below = [max(least, side // factor * factor) for side in (height, width)]
        above = [max(least, -(-side // factor) * factor) for side in (height, width)]
        sizes = " and ".join(dict.fromkeys(f"{h}x{w}" for h, w in (below, above)))
        raise ConfigError(
            f"images must have height and width divisible by {factor} and at least {least}, got {height}x{width}; "
            f"the nearest are {sizes}"
        )


def check_config(config: Any, norms: tuple[str, ...]) -> None:
    """Raise ConfigError, naming the field, for settings that no network of translation can have."""
    sizes = {"in_channels": 2**10, "out_channels": 2**10, "channels": 2**10, "width": 2**12, "depth": 12, "layers": 8}
    for field, high in sizes.items():
        if field in config:
            require_int(field, config[field], high=high)
    for field, high in (("blocks", 64), ("downsamplings", 8), ("condition_channels", 2**10)):
        if field in config:
            require_int(field, config[field], low=0, high=high)
    require(config["norm"] in norms, "norm", config["norm"], f"one of {', '.join(norms)}")
    if "dropout" in config:
        require_number("dropout", config["dropout"], 0.0, 0.99)
