"""Autoencoders of images: an encoder from an image to a short code and a decoder from the code to an image."""

from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.checks import nearest_sizes, require, require_choice, require_int, require_size
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.choices import Body, CodeActivation, OutputActivation
from hfgen.models.outputs import AutoencoderOutput

CODES: dict[str, type[nn.Module]] = {"linear": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
OUTPUTS = ("tanh", "linear")


class Autoencoder(ModelMixin):
    """Autoencoder x' = d(e(x)) with a code of `latent_dim` numbers; the decoder mirrors the encoder.

    `body`: "mlp", hidden layers of `hidden` units (Hinton and Salakhutdinov 2006), or "conv", for each number of
    channels in `hidden` a convolution that halves the sides, then a linear layer. There is no normalisation, because it
    would remove the brightness of an image. ReLU follows each layer, and the last `output_activation`: "tanh", or
    "linear" for images without bounds. `code_activation`: "linear" (unbounded code), "relu" (>= 0) or "sigmoid" (rates
    in [0, 1]). `tied`: the weights of the decoder are the transposes of the encoder's, D = E^T; without hidden layers
    and activations that is the factorisation x' = E^T E x, whose optimum spans the principal components (Baldi and
    Hornik 1989). `resolution`: int or (height, width). Raises ConfigError, naming the field, for impossible values.
    """

    _no_split_modules: tuple[str, ...] = ()

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 28,
        channels: int = 1,
        body: Body = "mlp",
        hidden: list[int] | tuple[int, ...] = (256, 128),
        latent_dim: int = 32,
        code_activation: CodeActivation = "linear",
        tied: bool = False,
        output_activation: OutputActivation = "tanh",
    ) -> None:
        super().__init__()
        check_config(self.config)
        # hidden layers
        height, width = self.sides
        shape = (channels, height, width)
        if body == "mlp":
            down, up = perceptrons(shape, hidden)
            features = [prod(shape), *hidden][-1]
        else:
            halved = 2 ** len(hidden)
            small = (hidden[-1], height // halved, width // halved)
            down, up = convolutions(channels, hidden, small)
            features = prod(small)
        # code
        self.encoder = nn.Sequential(*down, nn.Linear(features, latent_dim), CODES[code_activation]())
        self.decoder = nn.Sequential(nn.Linear(latent_dim, features), *up)
        if tied:
            layers = [layer for layer in self.encoder if isinstance(layer, nn.Linear | nn.Conv2d)]
            self.decoder = nn.Sequential(*(tied_layer(layer, layers) for layer in self.decoder))

    @property
    def sides(self) -> tuple[int, int]:
        """Return the (height, width) of the images."""
        return require_size("resolution", self.config["resolution"])

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes e(x), (B, D), of images (B, C, H, W) in [-1, 1]. Raises ConfigError for another shape."""
        expected = (self.config["channels"], *self.sides)
        allowed = f"(B, {', '.join(map(str, expected))})"
        require(tuple(x.shape[1:]) == expected, "images", tuple(x.shape), allowed)
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images d(z), (B, C, H, W), of codes (B, D), in [-1, 1] unless `output_activation` is linear.

        Raises ConfigError for another shape.
        """
        size = self.config["latent_dim"]
        require(tuple(z.shape[1:]) == (size,), "latents", tuple(z.shape), f"(B, {size})")
        x: Tensor = self.decoder(z)
        return torch.tanh(x) if self.config["output_activation"] == "tanh" else x

    def forward(self, x: Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[Tensor, Tensor]:
        """Return d(e(x)), (B, C, H, W) in [-1, 1], as `.sample` and the codes (B, D) as `.latents`, or both as a tuple.

        `x`: images (B, C, H, W) in [-1, 1]. Raises ConfigError for another shape.
        """
        z = self.encode(x)
        sample = self.decode(z)
        if not return_dict:
            return sample, z
        return AutoencoderOutput(sample=sample, latents=z)


class Transposed(nn.Module):
    """The transpose of a linear layer or a convolution, with its weights and a bias of its own.

    The layer stays part of the encoder alone, so that its weights are stored once.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = (layer,)                                                            # a tuple: no submodule
        self.bias = nn.Parameter(torch.zeros(layer.weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Return W^T x + b: (B, I) of x (B, O), or (B, I, 2 H, 2 W) of x (B, O, H, W)."""
        (layer,) = self.layer
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(x, layer.weight.T, self.bias)
        return nn.functional.conv_transpose2d(x, layer.weight, self.bias, stride=2, padding=1)


def tied_layer(layer: nn.Module, layers: list[nn.Linear | nn.Conv2d]) -> nn.Module:
    """Return the transpose of the last of the encoder's `layers`, and remove it; the `layer` itself without weights."""
    if isinstance(layer, nn.Linear | nn.ConvTranspose2d):
        return Transposed(layers.pop())
    return layer


def perceptrons(shape: tuple[int, int, int], hidden: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers from images to the last hidden units, and those back to images without the last tanh."""
    # encoder
    sizes = [prod(shape), *hidden]
    down: list[nn.Module] = [nn.Flatten()]                                               # (B, C H W)
    for a, b in pairwise(sizes):
        down += [nn.Linear(a, b), nn.ReLU()]
    # decoder
    up: list[nn.Module] = []
    for a, b in pairwise(reversed(sizes)):
        up += [nn.ReLU(), nn.Linear(a, b)]
    return down, [*up, nn.Unflatten(1, shape)]


def convolutions(channels: int, hidden: Any, small: tuple[int, int, int]) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers from images to the flattened map `small` (C', h, w), and those back without the last tanh."""
    # encoder
    sizes = [channels, *hidden]
    down: list[nn.Module] = []
    for a, b in pairwise(sizes):
        down += [nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()]                                    # (B, b, H / 2, W / 2)
    # decoder
    up: list[nn.Module] = [nn.Unflatten(1, small)]
    for a, b in pairwise(reversed(sizes)):
        up += [nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1)]                             # (B, b, 2 H, 2 W)
    return [*down, nn.Flatten()], up


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for impossible settings of an autoencoder."""
    # sizes and choices
    sides = require_size("resolution", config["resolution"])
    for field, high in (("channels", 2**10), ("latent_dim", 2**16)):
        require_int(field, config[field], high=high)
    require_choice("body", config["body"], ("mlp", "conv"))
    require_choice("code_activation", config["code_activation"], CODES)
    require_choice("output_activation", config["output_activation"], OUTPUTS)
    require(isinstance(config["tied"], bool), "tied", config["tied"], "true or false")
    # hidden layers
    hidden = config["hidden"]
    listed = isinstance(hidden, list | tuple) and len(hidden) <= 12 and (len(hidden) > 0 or config["body"] == "mlp")
    require(listed, "hidden", hidden, "a list of at most 12 sizes, and of at least one for body conv")
    for size in hidden:
        require_int("hidden", size, high=2**14)
    if config["body"] == "conv":
        check_halving(sides, len(hidden))


def check_halving(sides: tuple[int, int], times: int) -> None:
    """Raise ConfigError with the nearest valid sizes unless both sides can be halved that many times."""
    factor = 2**times
    if any(side % factor for side in sides):
        raise ConfigError(
            f"resolution must be divisible by {factor} for body conv with {times} sizes in hidden, got "
            f"{sides[0]}x{sides[1]}; the nearest are {nearest_sizes(*sides, factor, factor)}"
        )
