"""The residual generator and projection discriminator of BigGAN (Brock et al. 2019), for images of many sizes.

Every layer has spectral normalisation and starts from an orthogonal matrix; one map has self-attention (Zhang et al.
2019). The file has the parts of both networks, the networks, and the checks of their settings.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfgen.checks import require, require_choice, require_int
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.models.dcgan import NORM_LAYERS, check_config, require_images, require_labels, stages_of
from hfgen.models.outputs import LogitsOutput, SampleOutput
from hfgen.models.spectral import SPECTRAL_LAYERS, spectral_norm

Normalisation = Literal["batch", "layer", "none"]
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "layer": lambda channels: nn.GroupNorm(1, channels, affine=False),
    "none": lambda channels: nn.Identity(),
}
"""Normalisations of the generator, by name, without their own gain and bias."""

WIDEST = 16
"""Channels of the widest maps, in those of the maps next to the image (Brock et al. 2019, appendix B)."""


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the sides, orthogonal at first, with spectral normalisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(cast(nn.Parameter, layer.bias))
    return spectral_norm(layer)


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Return a linear layer, orthogonal at first, with spectral normalisation."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer)


class ConditionalNorm(nn.Module):
    """Normalisation whose gain and bias depend on each sample: (1 + U c) norm(h) + V c (Brock et al. 2019, appendix B).

    `condition`: the length of c, a chunk of z joined with the embedding of the class.
    """

    def __init__(self, channels: int, condition: int, norm: str) -> None:
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.gain, self.bias = linear(condition, channels, bias=False), linear(condition, channels, bias=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return features (B, C, h, w) from `h`, of the same shape, and conditions c (B, K)."""
        gain, bias = 1 + self.gain(c)[:, :, None, None], self.bias(c)[:, :, None, None]  # (B, C, 1, 1)
        return gain * self.norm(h) + bias


class SelfAttention(nn.Module):
    """Self-attention of a map: h_j + gamma v(sum_i beta_ji w(h_i)), beta_ji = softmax_i(f(h_i) . g(h_j)).

    Zhang et al. 2019, eq. 1 to 3; f, g, v and w are linear, gamma starts at 0. As in the authors' code, i runs over a
    map with half the sides: the largest values of f and of w in each 2 x 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (conv(channels, max(1, channels // 8), 1) for _ in range(2))
        self.value = conv(channels, max(1, channels // 2), 1)
        self.out = conv(max(1, channels // 2), channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, C, h, w) from `h`, of the same shape."""
        query = self.query(h).flatten(2)                                                 # (B, C / 8, N)
        key, value = (F.max_pool2d(layer(h), 2).flatten(2) for layer in (self.key, self.value))
        beta = (query.transpose(1, 2) @ key).softmax(2)                                  # (B, N, N / 4)
        attended = value @ beta.transpose(1, 2)                                          # (B, C / 2, N)
        return h + self.gamma * self.out(attended.unflatten(2, h.shape[2:]))


class UpBlock(nn.Module):
    """Residual block that doubles the sides of a map (Brock et al. 2019, figure 15b).

    `condition`: length of the condition of its normalisations. `attention`: self-attention follows.
    """

    def __init__(self, inputs: int, outputs: int, condition: int, norm: str, attention: bool = False) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = ConditionalNorm(inputs, condition, norm), conv(inputs, outputs)
        self.norm_2, self.conv_2 = ConditionalNorm(outputs, condition, norm), conv(outputs, outputs)
        self.skip = conv(inputs, outputs, 1)
        self.attention = SelfAttention(outputs) if attention else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return features (B, C', 2 h, 2 w) from features h (B, C, h, w) and conditions c (B, K)."""
        r = self.conv_1(doubled(F.relu(self.norm_1(h, c))))
        r = self.conv_2(F.relu(self.norm_2(r, c)))
        return self.attention(r + doubled(self.skip(h)))


class DownBlock(nn.Module):
    """Residual block that halves the sides of a map, or keeps them (Brock et al. 2019, figure 15c).

    `first`: the input is an image, which has no activation before it. `attention`: self-attention follows.
    """

    def __init__(
        self, inputs: int, outputs: int, down: bool = True, first: bool = False, attention: bool = False
    ) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv_1, self.conv_2 = conv(inputs, outputs), conv(outputs, outputs)
        self.skip = conv(inputs, outputs, 1) if down else nn.Identity()
        self.attention = SelfAttention(outputs) if attention else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, C', h / 2, w / 2), or with the sides of h (B, C, h, w)."""
        r = h if self.first else F.relu(h)
        r = self.conv_2(F.relu(self.conv_1(r))) + self.skip(h)
        return self.attention(F.avg_pool2d(r, 2) if self.down else r)


def doubled(h: Tensor) -> Tensor:
    """Return h (B, C, h, w) with every pixel repeated in 2 x 2, (B, C, 2 h, 2 w)."""
    return F.interpolate(h, scale_factor=2, mode="nearest")


class BigGANGenerator(ModelMixin):
    """Generator of images (B, C, H, W) in [-1, 1] from latents z (B, latent_dim) (Brock et al. 2019, figure 15a).

    z is cut into chunks. The first is projected to a map with sides of about `base_size`; each block doubles the sides,
    and takes one more chunk, joined with an embedding of the class that all blocks share, as the condition of its
    normalisations. Without classes the chunk alone is the condition. Channels are `width` next to the image, twice as
    many at each smaller size, 16 times at most. `attention_size`: the smaller side of the map with self-attention; 0
    for none. `norm`: "batch" (as in the paper), "layer" (over channels and pixels) or "none". Raises ConfigError,
    naming the field, for impossible values.
    """

    _no_split_modules = ("SelfAttention", *SPECTRAL_LAYERS)

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 64,
        channels: int = 3,
        width: int = 64,
        latent_dim: int = 120,
        num_classes: int | None = None,
        embedding_dim: int = 128,
        norm: Normalisation = "batch",
        base_size: int = 4,
        attention_size: int = 32,
    ) -> None:
        super().__init__()
        # check the settings
        check_config(self.config)
        stages, self._base = stages_of(resolution, base_size)
        require_int("latent_dim", latent_dim, low=stages + 1, high=2**16)
        require_int("embedding_dim", embedding_dim, high=2**16)
        require_choice("norm", norm, NORMS)
        # chunks of z, and the embedding of classes
        self._chunks = chunks_of(latent_dim, stages + 1)
        shared = 0
        if num_classes:
            shared = embedding_dim
            self.embedding = nn.Embedding(num_classes, embedding_dim)                    # N(0, 1), the scale of z
        # project the first chunk
        widths = widths_of(width, stages)[::-1]
        self.project = linear(self._chunks[0], widths[0] * self._base[0] * self._base[1])
        # double the sides
        attended = attended_stage(attention_size, self._base, stages)
        self.blocks, inputs = nn.ModuleList(), widths[0]
        for i, (chunk, outputs) in enumerate(zip(self._chunks[1:], widths, strict=True), 1):
            self.blocks.append(UpBlock(inputs, outputs, chunk + shared, norm, attention=i == attended))
            inputs = outputs
        # make an image
        self.norm_out = NORM_LAYERS[norm](width)
        self.out = conv(width, channels)

    def forward(
        self, z: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> SampleOutput | tuple[Tensor]:
        """Return images (B, C, H, W) in [-1, 1] from z (B, latent_dim), as `.sample` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional; otherwise raises ConfigError.
        """
        # conditions of the blocks
        require_labels(class_labels, self.config["num_classes"])
        first, *conditions = z.split(self._chunks, 1)
        if class_labels is not None:
            shared = self.embedding(class_labels)                                        # (B, E)
            conditions = [torch.cat([chunk, shared], 1) for chunk in conditions]
        # from the small map to the image
        h = self.project(first).unflatten(1, (-1, *self._base))                          # (B, C', h, w)
        for block, c in zip(self.blocks, conditions, strict=True):
            h = block(h, c)
        sample = torch.tanh(self.out(F.relu(self.norm_out(h))))                          # (B, C, H, W)
        if not return_dict:
            return (sample,)
        return SampleOutput(sample=sample)

    def first_layer(self) -> Tensor:
        """Return the block-diagonal matrix (F, latent_dim) of the layers that multiply chunks of z, without classes."""
        parts = [self.project.weight]
        for block, chunk in zip(cast(Sequence[UpBlock], self.blocks), self._chunks[1:], strict=True):
            layers = (block.norm_1.gain, block.norm_1.bias, block.norm_2.gain, block.norm_2.bias)
            parts.append(torch.cat([layer.weight[:, :chunk] for layer in layers]))
        return torch.block_diag(*parts)


class BigGANDiscriminator(ModelMixin):
    """Projection discriminator of images: logits (B,) that they are real, without sigmoid (Brock et al. 2019).

    It mirrors the generator. With the sum phi(x) of the last map over its places, the logit of x with the class y is
    psi(phi(x)) + (V phi(x))_y: a linear layer, and the inner product of phi(x) with a vector of the class (Miyato &
    Koyama 2018, eq. 4). Settings are those of the generator. Raises ConfigError, naming the field, for impossible
    values.
    """

    _no_split_modules = ("SelfAttention", *SPECTRAL_LAYERS)

    @register_to_config
    def __init__(
        self,
        resolution: int | tuple[int, int] = 64,
        channels: int = 3,
        width: int = 64,
        num_classes: int | None = None,
        base_size: int = 4,
        attention_size: int = 32,
    ) -> None:
        super().__init__()
        check_config(self.config)
        stages, base = stages_of(resolution, base_size)
        # halve the sides, then keep them
        attended = attended_stage(attention_size, base, stages)
        self.blocks, inputs = nn.ModuleList(), channels
        for i, outputs in enumerate(widths_of(width, stages), 1):
            self.blocks.append(DownBlock(inputs, outputs, first=i == 1, attention=stages - i == attended))
            inputs = outputs
        self.blocks.append(DownBlock(inputs, inputs, down=False))
        # one logit, and one more for each class
        self.head = linear(inputs, 1)
        if num_classes:
            self.classes = linear(inputs, num_classes, bias=False)

    def forward(
        self, x: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> LogitsOutput | tuple[Tensor]:
        """Return logits (B,) of images x (B, C, H, W), as `.logits` or as a tuple of one.

        `class_labels` (B,) are given exactly if the network is conditional. Raises ConfigError for another size or
        other labels.
        """
        # features of the image
        require_images(x, self.config)
        require_labels(class_labels, self.config["num_classes"])
        h = x
        for block in self.blocks:
            h = block(h)
        phi = F.relu(h).sum((2, 3))                                                      # (B, C')
        # their logit, with the class
        logits = self.head(phi)[:, 0]                                                    # (B,)
        if class_labels is not None:
            logits = logits + self.classes(phi).gather(1, class_labels[:, None])[:, 0]
        if not return_dict:
            return (logits,)
        return LogitsOutput(logits=logits)


def widths_of(width: int, stages: int) -> list[int]:
    """Return the channels of the maps of each stage, from the image on: twice as many each time, 16 times at most."""
    return [width * min(2**i, WIDEST) for i in range(stages)]


def chunks_of(latent_dim: int, number: int) -> list[int]:
    """Return the lengths of `number` chunks of z, equal but for the first ones, which may be longer by 1."""
    return [latent_dim // number + (i < latent_dim % number) for i in range(number)]


def attended_stage(size: int, base: tuple[int, int], stages: int) -> int | None:
    """Return the number of doublings of `base` that gives a map whose smaller side is `size`; None for size 0.

    Raises ConfigError for a size that no map between the base and the image has.
    """
    sizes = [min(base) * 2**i for i in range(1, stages)]
    require(size in (0, *sizes), "attention_size", size, f"one of {', '.join(map(str, (0, *sizes)))}")
    return sizes.index(size) + 1 if size else None
