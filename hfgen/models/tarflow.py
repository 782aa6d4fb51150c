"""A normalizing flow of causal transformers over the patches of an image (TarFlow, Zhai et al. 2025)."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hfgen.checks import require, require_int, require_number, require_size
from hfgen.loading.config import register_to_config
from hfgen.loading.mixins import ModelMixin
from hfgen.losses.elbo import log_normal
from hfgen.models.autoregressive import check_conditions
from hfgen.models.image_transformer import DEVIATION, EPS, Block, Cache
from hfgen.models.outputs import FlowOutput

MAX_PATCHES = 2**14
"""Largest number of patches of an image, whose pairs attention computes."""


class FlowBlock(nn.Module):
    """The invertible map z_i = (x_i - mu_i) exp(-alpha_i) of N patches (Zhai et al. 2025, section 2.2).

    mu_i and alpha_i are functions of x_1, ..., x_{i-1}, by a causal transformer whose first input is a start, or the
    class. `backwards`: the patches are taken in the opposite order.
    """

    def __init__(
        self, patches: int, size: int, width: int, layers: int, heads: int, mlp_ratio: int, classes: int | None,
        text_width: int | None, dropout: float, backwards: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backwards = backwards
        # inputs: conditions, patches, places
        self.text_proj = nn.Linear(text_width, width) if text_width else None
        self.start = nn.Embedding(classes or 1, width)
        self.inputs = nn.Linear(size, width)
        self.places = nn.Embedding(patches, width)
        # transformer
        self.h = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(layers)])
        # alpha and mu, which are 0 at first
        self.ln_f = nn.RMSNorm(width, EPS)
        self.outputs = nn.Linear(width, 2 * size)
        for embedding in (self.start, self.places):
            nn.init.normal_(embedding.weight, std=DEVIATION)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def forward(self, x: Tensor, class_labels: Tensor | None, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (B, N, D) of patches x (B, N, D), and log |det dz/dx| = - sum alpha, (B,)."""
        x = self.ordered(x)
        alpha, mu = self.coefficients(x[:, :-1], class_labels, text)
        z = (x - mu) * torch.exp(-alpha)
        return self.ordered(z), -alpha.flatten(1).sum(1)

    def inverse(
        self, z: Tensor, class_labels: Tensor | None, text: Tensor | None, scale: float = 1.0, use_cache: bool = True
    ) -> Tensor:
        """Return x (B, N, D) of z (B, N, D), one patch after the other: x_i = mu_i + exp(alpha_i) z_i.

        `scale` w other than 1: alpha and mu are u + w (c - u) (Zhai et al. 2025, section 2.5), and conditions have 2 B
        rows, those of the unconditional prediction u first. `use_cache`: each patch runs once.
        """
        z = self.ordered(z)
        cache = Cache(len(self.h)) if use_cache else None
        x = z[:, :0]
        for i in range(z.shape[1]):
            # coefficients of patch i
            known = x if scale == 1 else torch.cat([x, x])
            alpha, mu = (part[:, -1] for part in self.coefficients(known, class_labels, text, cache))
            if scale != 1:
                alpha, mu = (u + scale * (c - u) for u, c in (alpha.chunk(2), mu.chunk(2)))
            # patch i
            x = torch.cat([x, (mu + torch.exp(alpha) * z[:, i])[:, None]], 1)
        return self.ordered(x)

    def ordered(self, x: Tensor) -> Tensor:
        """Return patches x (B, N, D) in the order of this block, or back in that of the image."""
        return x.flip(1) if self.backwards else x

    def coefficients(
        self, x: Tensor, class_labels: Tensor | None, text: Tensor | None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return alpha and mu (B, m + 1, D) of the patches 1, ..., m + 1 from x (B, m, D), in the order of this block.

        With a cache only those of the patches that it has not seen.
        """
        # inputs: texts, then the start or the class, then patches, each at the place of the patch that it predicts
        tokens = 0 if text is None else text.shape[1]
        B, m, _ = x.shape
        seen = 0
        if cache is not None:
            seen = cache.begin(B, tokens + 1 + m, tokens + self.places.num_embeddings)
        h = self.inputs(x[:, max(0, seen - tokens - 1) :])
        if not seen:
            start = x.new_zeros(B, dtype=torch.int64) if class_labels is None else class_labels
            h = torch.cat([self.start(start)[:, None], h], 1)
        h = h + self.places.weight[m + 1 - h.shape[1] : m + 1]
        if not seen and self.text_proj is not None and text is not None:
            h = torch.cat([self.text_proj(text), h], 1)
        # transformer
        for layer, block in enumerate(self.h):
            h = block(h, None, cache, layer)
        if cache is not None:
            cache.length = seen + h.shape[1]
        # coefficients
        if not seen:
            h = h[:, tokens:]
        alpha, mu = self.outputs(self.ln_f(h)).to(x.dtype).chunk(2, -1)
        return alpha, mu


class TarFlow(ModelMixin):
    """Normalizing flow of images (B, C, H, W): blocks of causal transformers over patches, in alternating directions.

    z = f(x) ~ N(0, I), and log p(x) = log N(z; 0, I) + log |det dz/dx| (Zhai et al. 2025, eq. 1). `blocks`: invertible
    maps, each of a transformer with `layers`. Classes, `num_class_embeds`, take the place of the start of each
    transformer; texts, of `text_width` features, come before it. Raises ConfigError for impossible values.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("ln_", "start", "places")
    _no_split_modules = ("FlowBlock",)
    _repeated_blocks = ("FlowBlock",)

    @register_to_config
    def __init__(
        self,
        channels: int = 1,
        sample_size: int | tuple[int, int] = 8,
        patch_size: int = 2,
        width: int = 96,
        blocks: int = 4,
        layers: int = 2,
        heads: int = 3,
        mlp_ratio: int = 4,
        num_class_embeds: int | None = None,
        text_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        height, width_in_patches = (side // patch_size for side in self.shape[1:])
        self.flow = nn.ModuleList([
            FlowBlock(
                height * width_in_patches, channels * patch_size**2, width, layers, heads, mlp_ratio, num_class_embeds,
                text_width, dropout, backwards=number % 2 == 1,
            )
            for number in range(blocks)
        ])  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of an image, (C, H, W)."""
        return self.config["channels"], *require_size("sample_size", self.config["sample_size"])

    @property
    def num_patches(self) -> int:
        """Return N, the number of patches of an image."""
        _, height, width = self.shape
        return height * width // self.config["patch_size"] ** 2

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowOutput | tuple[Tensor, Tensor]:
        """Return z (B, C, H, W) of images (B, C, H, W) in [-1, 1], `.latents`, and log p(x|y) in nats, `.log_prob`.

        `class_labels`: (B,) int64. `encoder_hidden_states`: (B, L, text_width). `.log_prob` is (B,), at least float32.
        Raises ConfigError for another shape, and for conditions that this network does not have or lacks.
        """
        # check the inputs
        fits = sample.ndim == 4 and tuple(sample.shape[1:]) == self.shape
        require(fits, "sample", tuple(sample.shape), f"(B, {', '.join(map(str, self.shape))})")
        check_conditions(self.config, class_labels, encoder_hidden_states)
        # all blocks
        z, log_det = self.patches(sample), sample.new_zeros(sample.shape[0])
        for block in self.flow:
            z, more = block(z, class_labels, encoder_hidden_states)
            log_det = log_det + more
        # the density
        log_p = log_normal(z).flatten(1).sum(1) + log_det
        latents = self.images(z)
        return FlowOutput(latents=latents, log_prob=log_p) if return_dict else (latents, log_p)

    @apply_forward_hook
    def inverse(
        self,
        z: Tensor,
        block: int,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        scale: float = 1.0,
        use_cache: bool = True,
    ) -> Tensor:
        """Return the inputs (B, C, H, W) of a block, the number `block` from 0 on, for its outputs z (B, C, H, W).

        Other arguments as in `FlowBlock.inverse`. The image of latents is that of all blocks, from the last to 0.
        """
        check_conditions(self.config, class_labels, encoder_hidden_states)
        of_block: Any = self.flow[block]
        return self.images(
            of_block.inverse(self.patches(z), class_labels, encoder_hidden_states, scale, use_cache)
        )

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, C p^2) of images x (B, C, H, W), in raster order."""
        return F.pixel_unshuffle(x, self.config["patch_size"]).flatten(2).transpose(1, 2)

    def images(self, patches: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of patches (B, N, C p^2)."""
        _, height, width = self.shape
        p = self.config["patch_size"]
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height // p, width // p)), p)


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible."""
    # images
    c = config
    require_int("channels", c["channels"])
    height, width = require_size("sample_size", c["sample_size"])
    p = require_int("patch_size", c["patch_size"])
    require(height % p == 0 == width % p, "patch_size", p, f"a divisor of the sides of images, {height} and {width}")
    count = height * width // p**2
    require(count <= MAX_PATCHES, "patch_size", p, f"so large that an image has at most {MAX_PATCHES:,} patches")
    # sizes
    for field, high in (("width", 2**14), ("blocks", 2**8), ("layers", 2**8), ("heads", 2**8), ("mlp_ratio", 64)):
        require_int(field, c[field], 1, high)
    divides = c["width"] % c["heads"] == 0
    require(divides, "heads", c["heads"], f"a divisor of the width {c['width']}")
    # conditions
    for field in ("num_class_embeds", "text_width"):
        if c[field] is not None:
            require_int(field, c[field])
    require_number("dropout", c["dropout"], 0.0, 0.99)
