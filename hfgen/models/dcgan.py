"""The deep convolutional generator and discriminator of Radford et al. 2016, for images of many sizes.

The rules of the paper: strided convolutions in place of pooling, fractionally-strided ones in the generator; no hidden
fully-connected layers; batch normalisation except next to the image; ReLU and tanh in the generator, LeakyReLU in the
discriminator; weights from N(0, 0.02^2). The file has the parts of both networks, the networks, and the checks of
their settings.
"""

from collections.abc import Callable
from itertools import pairwise
from math import gcd
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.checks import nearest_sizes, require_choice, require_int, require_size
from hfgen.errors import ConfigError
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.choices import Norm
from hfgen.models.outputs import LogitsOutput, SampleOutput
from hfgen.models.pooled_text import PooledText, check_text
from hfgen.models.spectral import SPECTRAL_LAYERS, spectral_norm

NORMS = ("batch", "layer", "none", "spectral")
NORM_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
    "spectral": lambda channels: nn.Identity(),
}


class Layers:
    """Builder of an `nn.Sequential` of convolutions, each with its normalisation and activation."""

    def __init__(self, norm: str, activation: nn.Module):
        self.norm, self.activation, self._list = norm, activation, list[nn.Module]()

    def add(self, conv: nn.Conv2d | nn.ConvTranspose2d, normalise: bool = True, last: bool = False) -> None:
        """Append a convolution, then normalisation (if `normalise`) and activation unless it is the `last`."""
        if self.norm == "batch":
            nn.init.normal_(conv.weight, 0.0, 0.02)
        self._list.append(spectral_norm(conv) if self.norm == "spectral" else conv)
        if normalise and not last:
            self._list.append(NORM_LAYERS[self.norm](conv.out_channels))
        if not last:
            self._list.append(self.activation)

    def refine(self, channels: int, number: int) -> None:
        """Append `number` 3x3 convolutions with `channels` input and output channels."""
        for _ in range(number):
            self.add(nn.Conv2d(channels, channels, 3, padding=1, bias=self.norm != "batch"))

    def sequential(self) -> nn.Sequential:
        """Return the layers without identities."""
        return nn.Sequential(*(layer for layer in self._list if not isinstance(layer, nn.Identity)))


def with_classes(x: Tensor, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return x (B, C) or (B, C, H, W) joined with the one-hot class of `labels` (B,) as K more channels.

    Labels are in [0, K - 1]. Without classes the result is x. Raises ConfigError unless labels are given exactly if
    there are classes.
    """
    require_labels(labels, num_classes)
    if labels is None or num_classes is None:
        return x
    one_hot = F.one_hot(labels, num_classes).to(x.dtype)
    return torch.cat([x, one_hot.view(*one_hot.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)


def require_labels(labels: Tensor | None, num_classes: int | None) -> None:
    """Raise ConfigError unless labels are given exactly if there are classes."""
    if (num_classes is None) != (labels is None):
        expected = "None: this network has no classes" if num_classes is None else "given"
        raise ConfigError(f"class_labels must be {expected} (num_classes={num_classes})")


def require_images(x: Tensor, config: Any) -> None:
    """Raise ConfigError unless x are images (B, C, H, W) of the size that a network of this `config` judges."""
    size = (config["channels"], *sides_of(config["resolution"]))
    if tuple(x.shape[1:]) != size:
        raise ConfigError(f"x must have shape (B, {', '.join(map(str, size))}), got {tuple(x.shape)}")


def text_embedding(features: int) -> PooledText:
    """Return the module that pools text features (B, L, F) to a vector (B, F)."""
    return PooledText(features, features, gcd(features, 32))


def packed(x: Tensor, pack: int, group: int) -> Tensor:
    """Return x (B, C, ...) as (B / pack, pack * C, ...): consecutive samples are joined (Lin et al. 2018, fig. 1).

    Raises ConfigError unless B is a multiple of `pack` times `group`.
    """
    unit = pack * max(1, group)
    if x.shape[0] % unit:
        raise ConfigError(f"the batch must be a multiple of {unit} (pack x minibatch_stddev), got {x.shape[0]}")
    return x.reshape(x.shape[0] // pack, -1, *x.shape[2:])


def with_deviation(h: Tensor, group: int) -> Tensor:
    """Return h (B, C, ...) with one more channel: the variation within groups of `group` consecutive samples.

    It is the standard deviation over the group, averaged over channels and pixels (Karras et al. 2018, section 3).
    h itself for `group` below 2.
    """
    if group < 2:
        return h
    groups = h.reshape(-1, group, h[0].numel())
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean(1)                    # (B / g,)
    column = deviation.repeat_interleave(group).view(-1, *[1] * (h.ndim - 1))
    return torch.cat([h, column.expand(-1, 1, *h.shape[2:])], 1)


class DCGANGenerator(ModelMixin):
    """Generator of images (B, C, H, W) in [-1, 1] from latents z (B, latent_dim) (Radford et al. 2016, fig. 1).

    z, joined with the one-hot class of a conditional network, is projected to a map with sides of about `base_size`.
    Each stage doubles the sides and halves the channels, to `width` before the image. `extra_layers`: number of 3x3
    convolutions after each stage. `norm`: "batch", "layer" (over channels and pixels), "none", or "spectral" (of the
    weights, Miyato et al. 2018). `text_width`: features of each token of a text, which is pooled to one vector and
    joined to z (Reed et al. 2016, section 4.1); None without texts. Raises ConfigError, naming the field, for
    impossible values.
    """

    _no_split_modules = SPECTRAL_LAYERS

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
        text_width: int | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        stages, base = stages_of(resolution, base_size)
        # pool the text
        self.text = None if text_width is None else text_embedding(text_width)
        # project the latents
        widths = [width * 2**i for i in reversed(range(stages))]
        inputs = latent_dim + (num_classes or 0) + (text_width or 0)
        up = Layers(norm, nn.ReLU())
        up.add(nn.ConvTranspose2d(inputs, widths[0], base, bias=norm != "batch"))
        # double the sides
        for wider, narrower in pairwise(widths):
            up.refine(wider, extra_layers)
            up.add(nn.ConvTranspose2d(wider, narrower, 4, 2, 1, bias=norm != "batch"))
        up.refine(width, extra_layers)
        up.add(nn.ConvTranspose2d(width, channels, 4, 2, 1), last=True)
        self.body = up.sequential()

    def forward(
        self,
        z: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> SampleOutput | tuple[Tensor]:
        """Return images (B, C, H, W) in [-1, 1] from z (B, latent_dim), as `.sample` or as a tuple of one.

        `class_labels` (B,) and text features `encoder_hidden_states` (B, L, text_width) are given exactly if the
        network is conditioned on them; otherwise raises ConfigError.
        """
        check_text(encoder_hidden_states, self.config["text_width"])
        h = with_classes(z, class_labels, self.config["num_classes"])                    # (B, D + K)
        if self.text is not None:
            h = torch.cat([h, self.text(encoder_hidden_states).to(h.dtype)], 1)          # (B, D + K + F)
        sample = torch.tanh(self.body(h[:, :, None, None]))                              # (B, C, H, W)
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)

    def first_layer(self) -> Tensor:
        """Return the matrix (F, latent_dim) that the first layer multiplies z with, without class and text."""
        weight = cast(nn.ConvTranspose2d, self.body[0]).weight                         # (D + K + F, C, h, w)
        return weight[: self.config["latent_dim"]].flatten(1).T


class DCGANDiscriminator(ModelMixin):
    """Discriminator of images: logits (B / pack,) that they are real, without sigmoid; a critic without batch norm.

    It mirrors the generator: each stage halves the sides and doubles the channels, and a last convolution covers the
    whole map. The class is joined to the image as one-hot planes. `pack`: images that are judged together, joined to
    one image with `pack` times the channels, against mode collapse (PacGAN, Lin et al. 2018). `minibatch_stddev`: size
    of the groups of consecutive samples whose variation is an input of the last layer (Karras et al. 2018, section 3);
    0 for none. `text_width`: features of each token of a text, which is pooled to one vector and joined to every place
    of the last map, followed by a 1x1 convolution (Reed et al. 2016, section 4.1); None without texts. Raises
    ConfigError, naming the field, for impossible values.
    """

    _no_split_modules = SPECTRAL_LAYERS

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
        text_width: int | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        stages, base = stages_of(resolution, base_size)
        # halve the sides
        widths = [width * 2**i for i in range(stages)]
        down = Layers(norm, nn.LeakyReLU(0.2))
        down.add(nn.Conv2d(pack * (channels + (num_classes or 0)), width, 4, 2, 1), normalise=False)
        for narrower, wider in pairwise(widths):
            down.refine(narrower, extra_layers)
            down.add(nn.Conv2d(narrower, wider, 4, 2, 1, bias=norm != "batch"))
        down.refine(widths[-1], extra_layers)
        self.body = down.sequential()
        # join the text
        self.text = None
        if text_width is not None:
            self.text = text_embedding(text_width)
            join = Layers(norm, nn.LeakyReLU(0.2))
            join.add(nn.Conv2d(widths[-1] + pack * text_width, widths[-1], 1, bias=norm != "batch"))
            self.join = join.sequential()
        # one logit
        head = Layers(norm, nn.Identity())
        head.add(nn.Conv2d(widths[-1] + (minibatch_stddev > 1), 1, base), last=True)
        self.head = head.sequential()

    def forward(
        self,
        x: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> LogitsOutput | tuple[Tensor]:
        """Return logits (B / pack,) of images x (B, C, H, W), as `.logits` or as a tuple of one.

        `class_labels` (B,) and text features `encoder_hidden_states` (B, L, text_width) are given exactly if the
        network is conditioned on them. Raises ConfigError for another size, other conditions, or a batch that the pack
        and the group do not divide.
        """
        # check the text and the size
        c = self.config
        check_text(encoder_hidden_states, c["text_width"])
        require_images(x, c)
        # join classes and packs
        x = with_classes(x, class_labels, c["num_classes"])                              # (B, C + K, H, W)
        h = self.body(packed(x, c["pack"], c["minibatch_stddev"]))                     # (B / m, C', h, w)
        # join texts
        if self.text is not None:
            text = packed(self.text(encoder_hidden_states).to(h.dtype), c["pack"], 0)    # (B / m, m F)
            h = self.join(torch.cat([h, text[:, :, None, None].expand(-1, -1, *h.shape[2:])], 1))
        logits = self.head(with_deviation(h, c["minibatch_stddev"])).flatten()           # (B / m,)
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)


def sides_of(resolution: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return a resolution as (height, width)."""
    if isinstance(resolution, int):
        return resolution, resolution
    return resolution[0], resolution[1]


def stages_of(resolution: int | tuple[int, int], base_size: int) -> tuple[int, tuple[int, int]]:
    """Return the number of doublings and the sides (h, w) before them, the smaller at least `base_size`.

    Raises ConfigError, with the nearest sizes, unless the resolution can be halved that often.
    """
    height, width = sides_of(resolution)
    stages = (min(height, width) // base_size).bit_length() - 1
    factor = 2 ** max(1, stages)
    if stages < 1 or height % factor or width % factor:
        raise ConfigError(
            f"resolution must be at least {2 * base_size} and divisible by {factor} (base_size {base_size} doubled "
            f"{max(1, stages)} times), got {height}x{width}; the nearest are "
            f"{nearest_sizes(height, width, factor, 2 * base_size)}"
        )
    return stages, (height // factor, width // factor)


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for impossible settings of a DCGAN network."""
    require_size("resolution", config["resolution"])
    check_parts(config)


def check_parts(config: Any) -> None:
    """Raise ConfigError, naming the field, for impossible values of settings that GANs of images and points share."""
    # sizes
    sizes = {"channels": 2**10, "width": 2**14, "dim": 2**12, "hidden": 2**16, "latent_dim": 2**16}
    for field, high in {**sizes, "pack": 64}.items():
        if field in config:
            require_int(field, config[field], high=high)
    most = {"extra_layers": 16, "minibatch_stddev": 2**10, "base_size": 16, "attention_size": 2**12, "layers": 2**8}
    for field, high in most.items():
        if field in config:
            require_int(field, config[field], low=int(field == "base_size"), high=high)
    # classes and normalisation
    if config["num_classes"] is not None:
        require_int("num_classes", config["num_classes"])
    if config.get("text_width") is not None:
        require_int("text_width", config["text_width"], high=2**14)
    if "norm" in config:
        require_choice("norm", config["norm"], NORMS)
