"""Networks of a GAN that grow from about 4 x 4 pixels to the data's resolution while they train (Karras et al. 2018).

Both networks always work on images of the full resolution. At level n, an integer, they see no detail finer than maps
that are doubled n times from the smallest one; between two levels the new layers fade in (figure 2 of the paper). The
file has the parts of both networks, the networks, and the images of a level.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.checks import require_number
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.biggan import doubled, widths_of
from hfgen.models.dcgan import check_config, packed, require_images, stages_of, with_classes, with_deviation
from hfgen.models.equalised import EqualisedConv2d, EqualisedLinear, PixelNorm
from hfgen.models.outputs import LogitsOutput, SampleOutput

SLOPE = 0.2
"""Slope of LeakyReLU below 0."""


def stage_of(level: float) -> tuple[int, float]:
    """Return the stage n and the weight of its layers, in (0, 1], of a level in (n - 1, n]; (0, 1.0) for level 0."""
    stage = math.ceil(level)
    return stage, level - stage + 1


def faded(below: Tensor, new: Tensor, weight: float) -> Tensor:
    """Return (1 - a) below + a new, tensors of one shape and a = `weight` in [0, 1] (Karras et al. 2018, figure 2)."""
    return torch.lerp(below, new, weight)


def at_level(x: Tensor, level: float, stages: int) -> Tensor:
    """Return images x (B, C, H, W) with the detail of `level` in [0, stages], in their own size and range.

    At an integer level n these are means over squares of 2^(stages - n) pixels; between two levels they are faded from
    the coarser to the finer ones, as generated images are.
    """
    stage, weight = stage_of(level)
    new = shrunk(x, stages - stage)
    if weight < 1:
        new = faded(doubled(shrunk(new, 1)), new, weight)
    return enlarged(new, stages - stage)


def shrunk(x: Tensor, times: int) -> Tensor:
    """Return x (B, C, h, w) with sides halved `times` times by means over squares."""
    return F.avg_pool2d(x, 2**times) if times else x


def enlarged(x: Tensor, times: int) -> Tensor:
    """Return x (B, C, h, w) with sides doubled `times` times by repeated pixels."""
    return F.interpolate(x, scale_factor=2**times, mode="nearest") if times else x


class Growing(ModelMixin):
    """Base of both networks: `level` of the configuration, in [0, stages], is how far they have grown.

    Parameters of later stages take no part in a pass below their level.
    """

    _no_split_modules: Any = ("EqualisedConv2d", "EqualisedLinear")
    _unused_parameters = True
    stages: int

    def grow(self, level: float) -> None:
        """Set the level, in [0, stages]. Raises ConfigError for any other."""
        require_number("level", level, 0, self.stages)
        self.register_to_config(level=level)

    @property
    def level(self) -> float:
        """Return the level, in [0, stages]."""
        level = self.config["level"]
        return float(self.stages if level is None else level)


def features(inputs: int, *outputs: int) -> nn.Sequential:
    """Return 3x3 convolutions with pixel normalisation, a generator's, from `inputs` channels to each of `outputs`."""
    layers: list[nn.Module] = []
    for channels in outputs:
        layers += [EqualisedConv2d(inputs, channels), nn.LeakyReLU(SLOPE), PixelNorm()]
        inputs = channels
    return nn.Sequential(*layers)


def halving(inputs: int, outputs: int) -> nn.Sequential:
    """Return 3x3 convolutions from `inputs` to `outputs` channels, a discriminator's, and means over 2 x 2 pixels."""
    layers = [EqualisedConv2d(inputs, inputs), nn.LeakyReLU(SLOPE), EqualisedConv2d(inputs, outputs)]
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE), nn.AvgPool2d(2))


class ProgressiveGenerator(Growing):
    """Generator of images (B, C, H, W) in [-1, 1] from latents z (B, latent_dim) (Karras et al. 2018, table 2).

    z, normalised to mean square 1 and joined with the one-hot class of a conditional network, is projected to a map
    with sides of about `base_size`. Each stage doubles the sides; a 1x1 convolution and tanh make an image of a map.
    Channels are `width` at the full resolution, twice as many at each smaller size, 16 times at most. All layers have
    an equalised learning rate. `level`: number of stages in use, in [0, stages]; a fraction is the weight of a stage
    that fades in. Default: all. Raises ConfigError, naming the field, for impossible values.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 32,
        channels: int = 3,
        width: int = 64,
        latent_dim: int = 128,
        num_classes: int | None = None,
        base_size: int = 4,
        level: float | None = None,
    ) -> None:
        super().__init__()
        # check the settings
        check_config(self.config)
        self.stages, self._base = stages_of(resolution, base_size)
        self.grow(self.level)
        # project the latents, double the sides
        widths = widths_of(width, self.stages + 1)[::-1]
        self.project = EqualisedLinear(latent_dim + (num_classes or 0), widths[0] * self._base[0] * self._base[1])
        self.normalise, self.activation = PixelNorm(), nn.LeakyReLU(SLOPE)
        self.blocks = nn.ModuleList([features(widths[0], widths[0])])
        for wider, narrower in pairwise(widths):
            self.blocks.append(features(wider, narrower, narrower))
        # images of each stage
        self.images = nn.ModuleList([EqualisedConv2d(channels_, channels, 1, gain=1.0) for channels_ in widths])

    def forward(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> SampleOutput | tuple[Tensor]:
        """Return images (B, C, H, W) in [-1, 1] from z (B, latent_dim), as `.sample` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional; otherwise raises ConfigError.
        """
        # the small map
        stage, weight = stage_of(self.level)
        h = self.project(with_classes(self.normalise(z), class_labels, self.config["num_classes"]))
        h = self.normalise(self.activation(h.unflatten(1, (-1, *self._base))))           # (B, C', h, w)
        # maps of each stage in use
        below, h = h, self.blocks[0](h)
        for block in self.blocks[1 : stage + 1]:
            below, h = h, block(doubled(h))
        # an image, the new layers faded in
        sample = torch.tanh(self.images[stage](h))
        if weight < 1:
            sample = faded(doubled(torch.tanh(self.images[stage - 1](below))), sample, weight)
        sample = enlarged(sample, self.stages - stage)                                   # (B, C, H, W)
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)

    def first_layer(self) -> Tensor:
        """Return the matrix (F, latent_dim) that the first layer multiplies the normalised z with, without classes."""
        return self.project.scale * self.project.weight[:, : self.config["latent_dim"]]


class ProgressiveDiscriminator(Growing):
    """Discriminator of images: logits (B / pack,) that they are real, without sigmoid (Karras et al. 2018, table 2).

    It mirrors the generator, without pixel normalisation. Classes are joined to the image as one-hot planes. `pack`,
    `minibatch_stddev`: as in `DCGANDiscriminator`; other settings are those of the generator. Raises ConfigError,
    naming the field, for impossible values.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 32,
        channels: int = 3,
        width: int = 64,
        num_classes: int | None = None,
        base_size: int = 4,
        pack: int = 1,
        minibatch_stddev: int = 4,
        level: float | None = None,
    ) -> None:
        super().__init__()
        # check the settings
        check_config(self.config)
        self.stages, base = stages_of(resolution, base_size)
        self.grow(self.level)
        # read images of each stage, halve the sides
        widths, self.activation = widths_of(width, self.stages + 1), nn.LeakyReLU(SLOPE)
        inputs = pack * (channels + (num_classes or 0))
        self.images = nn.ModuleList([EqualisedConv2d(inputs, channels_, 1) for channels_ in widths])
        self.blocks = nn.ModuleList([halving(narrower, wider) for narrower, wider in pairwise(widths)])
        # one logit
        last = widths[-1]
        self.features = EqualisedConv2d(last + (minibatch_stddev > 1), last)
        self.hidden, self.head = EqualisedLinear(last * base[0] * base[1], last), EqualisedLinear(last, 1, gain=1.0)

    def forward(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> LogitsOutput | tuple[Tensor]:
        """Return logits (B / pack,) of images x (B, C, H, W), as `.logits` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional. Raises ConfigError for another size, other
        labels, or a batch that the pack and the group do not divide.
        """
        # images of the stage, with classes and packs
        c = self.config
        require_images(x, c)
        x = packed(with_classes(x, class_labels, c["num_classes"]), c["pack"], c["minibatch_stddev"])
        stage, weight = stage_of(self.level)
        finest = self.stages - stage
        x = shrunk(x, finest)                                                            # (B / m, m (C + K), h, w)
        # maps of each stage in use, the new layers faded in
        h = self.activation(self.images[finest](x))
        for i, block in enumerate(cast(Sequence[nn.Module], self.blocks)[finest:]):
            h = block(h)
            if i == 0 and weight < 1:
                h = faded(self.activation(self.images[finest + 1](shrunk(x, 1))), h, weight)
        # one logit
        h = self.activation(self.features(with_deviation(h, c["minibatch_stddev"])))
        logits = self.head(self.activation(self.hidden(h.flatten(1)))).flatten()         # (B / m,)
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)
