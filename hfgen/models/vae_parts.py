"""The parts of variational autoencoders: perceptrons, convolutions down and up, and checked settings."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from hfgen.losses.elbo import LIKELIHOODS
from hfgen.models.checks import check_divisible, require, require_int, require_number
from hfgen.models.mlp import check_coordinates

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
BODIES = ("mlp", "conv")
MAX_LAYERS = 32


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return linear layers with the activation between them; weights as in Glorot and Bengio 2010, eq. 16."""
    parts: list[nn.Module] = []
    for width in hidden:
        parts += [linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*parts, linear(inputs, outputs))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts with Glorot's uniform weights and no bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def conv_encoder(
    shape: tuple[int, ...], classes: int, hidden: Sequence[int], outputs: int, activation: type[nn.Module]
) -> nn.Sequential:
    """Return 4x4 convolutions of stride 2 from images to `outputs` numbers."""
    channels, height, width = shape[0] + classes, *shape[1:]
    parts: list[nn.Module] = []
    for wider in hidden:
        parts += [nn.Conv2d(channels, wider, 4, 2, 1), activation()]
        channels, height, width = wider, height // 2, width // 2
    return nn.Sequential(*parts, nn.Flatten(), linear(channels * height * width, outputs))


def conv_decoder(
    inputs: int, hidden: Sequence[int], shape: tuple[int, ...], activation: type[nn.Module]
) -> nn.Sequential:
    """Return the mirror image of `conv_encoder`, with fractionally-strided convolutions."""
    factor, channels = 2 ** len(hidden), hidden[0]
    height, width = (side // factor for side in shape[1:])
    parts: list[nn.Module] = [linear(inputs, channels * height * width), nn.Unflatten(1, (channels, height, width))]
    for narrower in (*hidden[1:], shape[0]):
        parts += [activation(), nn.ConvTranspose2d(channels, narrower, 4, 2, 1)]
        channels = narrower
    return nn.Sequential(*parts)


def check_config(config: Any, sizes: Any, hidden: Any) -> None:
    """Raise ConfigError, naming the field, for settings that no variational autoencoder can have."""
    c = config
    choices = (("body", BODIES), ("activation", ACTIVATIONS), ("likelihood", LIKELIHOODS))
    for field, allowed in choices:
        require(isinstance(c[field], str) and c[field] in allowed, field, c[field], f"one of {', '.join(allowed)}")
    listed = isinstance(sizes, list | tuple) and 1 <= len(sizes) <= MAX_LAYERS
    field = "latent_dims" if "latent_dims" in c else "latent_dim"
    require(listed, field, sizes, f"a list of 1 to {MAX_LAYERS} sizes")
    for size in sizes:
        require_int(field, size, high=2**16)
    groups = isinstance(hidden, list | tuple) and len(hidden) == len(sizes)
    require(groups, "hidden", hidden, f"a list of widths for each of the {len(sizes)} layers of latents")
    for widths in hidden:
        require(isinstance(widths, list | tuple) and len(widths) <= MAX_LAYERS, "hidden", widths, "a list of widths")
        for width in widths:
            require_int("hidden", width, high=2**16)
    require_number("sigma", c["sigma"], 1e-6)
    require_int("levels", c["levels"], 2, 2**16)
    if c["num_classes"] is not None:
        require_int("num_classes", c["num_classes"], high=2**20)
    _check_shape(c, hidden[0])


def _check_shape(c: Any, hidden: Sequence[int]) -> None:
    if c["dim"] is not None:
        require_int("dim", c["dim"], high=2**24)
        require(c["body"] == "mlp", "body", c["body"], "mlp for vectors (dim)")
        if c["data_mean"] is not None:
            check_coordinates(c)
        return
    sides = c["resolution"] if isinstance(c["resolution"], list | tuple) else [c["resolution"]] * 2
    require(len(sides) == 2, "resolution", c["resolution"], "an int or a pair (height, width)")
    for side in sides:
        require_int("resolution", side, high=2**12)
    require_int("channels", c["channels"], high=2**10)
    if c["body"] == "conv":
        require(len(hidden) > 0, "hidden", hidden, "the channels of one stage at least, for body conv")
        check_divisible("resolution", sides[0], sides[1], len(hidden) + 1)
