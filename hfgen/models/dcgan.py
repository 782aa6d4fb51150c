"""The deep convolutional generator and discriminator of Radford et al. 2016, for images of many sizes.

The paper's rules: strided convolutions down and fractionally-strided ones up instead of pooling, no hidden
fully-connected layers, batch normalisation except at the image's side, ReLU and Tanh in the generator, LeakyReLU in
the discriminator, weights from N(0, 0.02^2).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from hfgen.checks import require, require_int
from hfgen.errors import ConfigError
from hfgen.loading.mixins import ModelMixin

Norm = Literal["batch", "layer", "none", "spectral"]
NORMS = ("batch", "layer", "none", "spectral")


def with_classes(x: Tensor, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return x (B, C) or (B, C, H, W) with the one-hot class as further channels; x where there are no classes."""
    if (num_classes is None) != (labels is None):
        wanted = "None: this network has no classes" if num_classes is None else "given"
        raise ConfigError(f"class_labels must be {wanted} (num_classes={num_classes})")
    if labels is None or num_classes is None:
        return x
    one_hot = F.one_hot(labels, num_classes).to(x.dtype)
    return torch.cat([x, one_hot.view(*one_hot.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)


def packed(x: Tensor, pack: int, group: int) -> Tensor:
    """Return x (B, C, ...) as (B / pack, pack * C, ...): consecutive samples side by side (Lin et al. 2018, fig. 1).

    Raises ConfigError where the batch is not made of whole packs, and of whole groups of `group` packs.
    """
    unit = pack * max(1, group)
    if len(x) % unit:
        raise ConfigError(f"the batch must be a multiple of {unit} (pack x minibatch_stddev), got {len(x)}")
    return x.reshape(len(x) // pack, -1, *x.shape[2:])


def with_deviation(h: Tensor, group: int) -> Tensor:
    """Return h (B, C, ...) with one more channel: how much groups of `group` consecutive samples vary; h if group < 2.

    The standard deviation over the group, averaged over channels and pixels (Karras et al. 2018, section 3).
    """
    if group < 2:
        return h
    groups = h.reshape(-1, group, h[0].numel())
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean(1)                    # (B / g,)
    column = deviation.repeat_interleave(group).view(-1, *[1] * (h.ndim - 1))
    return torch.cat([h, column.expand(-1, 1, *h.shape[2:])], 1)


def check_parts(config: Any) -> None:
    """Raise ConfigError, naming the field, for values of the shared settings that are impossible."""
    sizes = {"channels": 2**10, "width": 2**14, "dim": 2**12, "hidden": 2**16, "layers": 2**8, "latent_dim": 2**16}
    for field, high in {**sizes, "pack": 64}.items():
        if field in config:
            require_int(field, config[field], high=high)
    for field, low, high in (("extra_layers", 0, 16), ("minibatch_stddev", 0, 2**10), ("base_size", 1, 16)):
        if field in config:
            require_int(field, config[field], low=low, high=high)
    if config["num_classes"] is not None:
        require_int("num_classes", config["num_classes"])
    require(config["norm"] in NORMS, "norm", config["norm"], f"one of {', '.join(NORMS)}")


NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
    "spectral": lambda channels: nn.Identity(),
}


class DCGANGenerator(ModelMixin):
    """Images (B, C, H, W) in [-1, 1] from latents z (B, latent_dim) (Radford et al. 2016, fig. 1).

    z, and the class as a one-hot vector beside it if `num_classes` is given, is projected to a small map of about
    `base_size` pixels a side; each stage doubles the side and halves the channels, down to `width` before the image.
    `extra_layers` 3x3 convolutions follow each stage. `norm`: "batch", "layer" (over channels and pixels), "none",
    "spectral" (of the weights, Miyato et al. 2018). Raises ConfigError, naming the field, for impossible values.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 64,
        channels: int = 3,
        width: int = 64,
        latent_dim: int = 100,
        num_classes: int | None = None,
        norm: Norm = "batch",
        extra_layers: int = 0,
        base_size: int = 4,
    ) -> None:
        super().__init__()
        check_config(self.config)
        stages, base = stages_of(resolution, base_size)
        widths = [width * 2**i for i in reversed(range(stages))]
        up = Layers(norm, nn.ReLU())
        up.add(nn.ConvTranspose2d(latent_dim + (num_classes or 0), widths[0], base, bias=norm != "batch"))
        for wider, narrower in pairwise(widths):
            up.refine(wider, extra_layers)
            up.add(nn.ConvTranspose2d(wider, narrower, 4, 2, 1, bias=norm != "batch"))
        up.refine(width, extra_layers)
        up.add(nn.ConvTranspose2d(width, channels, 4, 2, 1), last=True)
        self.body = up.sequential()

    def forward(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]; `class_labels` (B,) exactly if the network is conditional."""
        h = with_classes(z, class_labels, self.config["num_classes"])                    # (B, D + K)
        return torch.tanh(self.body(h[:, :, None, None]))                              # (B, C, H, W)

    def first_layer(self) -> Tensor:
        """Return the matrix (F, latent_dim) by which the first layer acts on z, the one-hot class left out."""
        weight = cast(nn.ConvTranspose2d, self.body[0]).weight                         # (D + K, C, h, w)
        return weight[: self.config["latent_dim"]].flatten(1).T


class DCGANDiscriminator(ModelMixin):
    """Logits that images are real, no sigmoid inside; with norm "layer", "none" or "spectral", a critic.

    The generator's mirror image: each stage halves the side and doubles the channels, and a last convolution takes in
    the whole map. The class comes as one-hot planes beside the image. `pack` images are judged together as one with
    `pack` times the channels, against mode collapse (PacGAN, Lin et al. 2018). `minibatch_stddev` > 1 tells the last
    layer how much groups of that many consecutive samples vary (Karras et al. 2018, section 3).
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 64,
        channels: int = 3,
        width: int = 64,
        num_classes: int | None = None,
        norm: Norm = "batch",
        extra_layers: int = 0,
        base_size: int = 4,
        pack: int = 1,
        minibatch_stddev: int = 0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        stages, base = stages_of(resolution, base_size)
        widths = [width * 2**i for i in range(stages)]
        down = Layers(norm, nn.LeakyReLU(0.2))
        down.add(nn.Conv2d(pack * (channels + (num_classes or 0)), width, 4, 2, 1), normalise=False)
        for narrower, wider in pairwise(widths):
            down.refine(narrower, extra_layers)
            down.add(nn.Conv2d(narrower, wider, 4, 2, 1, bias=norm != "batch"))
        down.refine(widths[-1], extra_layers)
        self.body = down.sequential()
        head = Layers(norm, nn.Identity())
        head.add(nn.Conv2d(widths[-1] + (minibatch_stddev > 1), 1, base), last=True)
        self.head = head.sequential()

    def forward(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Return logits (B / pack,) of images (B, C, H, W); `class_labels` (B,) exactly if conditional.

        Raises ConfigError for another size, or a batch that the pack and the group do not divide.
        """
        c = self.config
        size = (c["channels"], *sides_of(c["resolution"]))
        if tuple(x.shape[1:]) != size:
            raise ConfigError(f"x must have shape (B, {', '.join(map(str, size))}), got {tuple(x.shape)}")
        x = with_classes(x, class_labels, c["num_classes"])                              # (B, C + K, H, W)
        h = self.body(packed(x, c["pack"], c["minibatch_stddev"]))                     # (B / m, C', h, w)
        return self.head(with_deviation(h, c["minibatch_stddev"])).flatten()             # (B / m,)


class Layers:
    """A list of convolutions, each with its normalisation and activation, that ends up as one `nn.Sequential`."""

    def __init__(self, norm: str, activation: nn.Module):
        self.norm, self.activation, self._list = norm, activation, list[nn.Module]()

    def add(self, conv: nn.Conv2d | nn.ConvTranspose2d, normalise: bool = True, last: bool = False) -> None:
        """Append a convolution; after it, unless it is the last, normalisation (if asked for) and activation."""
        if self.norm == "batch":
            nn.init.normal_(conv.weight, 0.0, 0.02)
        self._list.append(spectral_norm(conv) if self.norm == "spectral" else conv)
        if normalise and not last:
            self._list.append(NORM_LAYERS[self.norm](conv.out_channels))
        if not last:
            self._list.append(self.activation)

    def refine(self, channels: int, number: int) -> None:
        """Append `number` 3x3 convolutions that keep size and channels."""
        for _ in range(number):
            self.add(nn.Conv2d(channels, channels, 3, padding=1, bias=self.norm != "batch"))

    def sequential(self) -> nn.Sequential:
        """Return the layers, the identities left out."""
        return nn.Sequential(*(layer for layer in self._list if not isinstance(layer, nn.Identity)))


def sides_of(resolution: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return a resolution as (height, width)."""
    return (resolution, resolution) if isinstance(resolution, int) else (resolution[0], resolution[1])


def stages_of(resolution: int | tuple[int, int], base_size: int) -> tuple[int, tuple[int, int]]:
    """Return how often the side is doubled, and the sides (h, w) before: the smallest side is base_size or more."""
    height, width = sides_of(resolution)
    stages = (min(height, width) // base_size).bit_length() - 1
    factor = 2 ** max(1, stages)
    if stages < 1 or height % factor or width % factor:
        below, above = ([max(2 * base_size, factor * (-(-side // factor) - less)) for side in (height, width)]
                        for less in (1, 0))  # fmt: skip
        raise ConfigError(
            f"resolution must be at least {2 * base_size} and divisible by {factor} (base_size {base_size} doubled "
            f"{max(1, stages)} times), got {height}x{width}; the nearest are {below[0]}x{below[1]} and "
            f"{above[0]}x{above[1]}"
        )
    return stages, (height // factor, width // factor)


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for settings that no DCGAN network can have."""
    pair = config["resolution"]
    good = isinstance(pair, int) or (isinstance(pair, list | tuple) and len(pair) == 2)
    require(good, "resolution", pair, "an int or a pair (height, width)")
    for side in sides_of(pair):
        require_int("resolution", side, high=2**12)
    check_parts(config)
