"""Gated convolutions of the pixels above and to the left (van den Oord et al. 2016; Salimans et al. 2017)."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hfgen.checks import require_choice, require_int, require_number, require_size
from hfgen.loading.config import register_to_config
from hfgen.losses.logistic_mixture import LogisticMixture
from hfgen.models.autoregressive import AutoregressiveNetwork, check_conditions

OUTPUTS = ("categorical", "logistic_mixture")
MAX_CHANNELS = 4


class Cache:
    """Inputs of all convolutions at the pixels that were computed, padded with zeros above, left and right.

    `done`: number of pixels whose features are known; `features`: those of the last one.
    """

    def __init__(self) -> None:
        self.maps: dict[nn.Module, Tensor] = {}
        self.rows: list[Tensor] = []
        self.done = 0
        self.features: Tensor | None = None

    def padded(self, conv: nn.Module, like: Tensor, height: int, width: int) -> Tensor:
        """Return the map (B, C, H + 1, W + 2) of the inputs of a convolution."""
        if conv not in self.maps:
            self.maps[conv] = like.new_zeros(len(like), like.shape[1], height + 1, width + 2)
        return self.maps[conv]


class Spot:
    """Where a cached evaluation computes: a whole row, or one pixel of it."""

    def __init__(self, cache: Cache, size: tuple[int, int], row: int, column: int | None) -> None:
        self.cache, self.size, self.row, self.column = cache, size, row, column

    def window(self, conv: nn.Module, x: Tensor) -> Tensor:
        """Return the inputs that the output here depends on, after its own input x (B, C, 1, W or 1) is kept."""
        known, r, c = self.cache.padded(conv, x, *self.size), self.row, self.column
        if c is None:
            known[:, :, r + 1, 1:-1] = x[:, :, 0]
            return known[:, :, r : r + 2]
        known[:, :, r + 1, c + 1] = x[:, :, 0, 0]
        return known[:, :, r : r + 2, c : c + 2]


class CausalConv(nn.Conv2d):
    """Convolution of this row and the one above: of three columns (`wide`), or of this one and that to the left."""

    def __init__(self, channels_in: int, channels_out: int, wide: bool) -> None:
        super().__init__(channels_in, channels_out, (2, 3 if wide else 2))
        self.pads = (1, int(wide), 1, 0)

    def forward(self, x: Tensor, spot: Spot | None = None) -> Tensor:
        """Return features (B, C', H, W) of x (B, C, H, W), or those at the spot alone."""
        return super().forward(F.pad(x, self.pads) if spot is None else spot.window(self, x))


class GatedBlock(nn.Module):
    """x + a sigmoid(b), with a and b from two causal convolutions (van den Oord et al. 2016, eq. 2; Salimans et al.
    2017, section 2.4), of features beside x, and of conditions."""

    def __init__(self, width: int, wide: bool, beside: bool, condition: int | None, dropout: float) -> None:
        super().__init__()
        self.conv1 = CausalConv(width, width, wide)
        self.beside = nn.Conv2d(width, width, 1) if beside else None
        self.drop = nn.Dropout(dropout)
        self.conv2 = CausalConv(width, 2 * width, wide)
        self.condition = nn.Linear(condition, 2 * width, bias=False) if condition else None
        nn.init.zeros_(self.conv2.bias)                                                  # type: ignore[arg-type]
        nn.init.normal_(self.conv2.weight, std=0.1 * self.conv2.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor, other: Tensor | None, y: Tensor | None, spot: Spot | None = None) -> Tensor:
        """Return features (B, C, H, W) of x; `other` (B, C, H, W): features beside it; y (B, D): conditions."""
        h = self.conv1(F.silu(x), spot)
        if self.beside is not None and other is not None:
            h = h + self.beside(F.silu(other))
        h = self.conv2(self.drop(F.silu(h)), spot)
        if self.condition is not None:
            h = h + self.condition(y)[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a * torch.sigmoid(b)


class PixelCNN(AutoregressiveNetwork):
    """Convolutional model of pixels at `levels` even levels, in raster order, the channels of a pixel in turn.

    Two stacks without a blind spot (van den Oord et al. 2016, section 2.2): the upper sees all rows above, the left one
    also the pixels to the left in its row; each of `layers` has a gated residual block of both. `output`: a softmax
    over the levels whose logits depend on the earlier channels, or a mixture of `mixtures` discretised logistics. None:
    a softmax up to 32 levels. Classes and the mean of a text's features condition every block. Raises ConfigError for
    impossible values.
    """

    _no_split_modules = ("GatedBlock",)
    _repeated_blocks = ("GatedBlock",)

    @register_to_config
    def __init__(
        self,
        channels: int = 1,
        sample_size: int | tuple[int, int] = 28,
        levels: int = 256,
        width: int = 64,
        layers: int = 6,
        output: str | None = None,
        mixtures: int = 10,
        num_class_embeds: int | None = None,
        text_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.vocab_size, C = levels, channels
        self.mixture = output == "logistic_mixture" or (output is None and levels > 32)
        # conditions
        self.class_embedding = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.text_proj = nn.Linear(text_width, width) if text_width else None
        condition = width if num_class_embeds or text_width else None
        # first convolutions, whose inputs are pixels and a constant that zeros around the image lack
        self.above = nn.Conv2d(C + 1, width, (2, 3))
        self.row_above = nn.Conv2d(C + 1, width, (1, 3))
        self.column_left = nn.Conv2d(C + 1, width, (2, 1))
        # the two stacks
        self.upper, self.left = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            self.upper.append(GatedBlock(width, True, False, condition, dropout))
            self.left.append(GatedBlock(width, False, True, condition, dropout))
        # distribution of each channel
        if self.mixture:
            self.head: nn.Module = nn.Linear(width, mixtures * (1 + 2 * C + C * C))
            nn.init.normal_(self.head.weight, std=0.1 * width**-0.5)
            return
        self.head = nn.Linear(width, C * width)
        self.earlier = nn.ModuleList([nn.Embedding(levels, width) for _ in range(C - 1)])
        self.outputs = nn.ModuleList([nn.Linear(width, levels) for _ in range(C)])

    @property
    def grid(self) -> tuple[int, int, int]:                                              # type: ignore[override]
        """Return rows, columns, and channels of a pixel."""
        return *require_size("sample_size", self.config["sample_size"]), self.config["channels"]

    def logits(
        self, entries: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, n, V); of a mixture the log-probabilities of all levels."""
        x = self.pixels(entries)
        h = self.features(x, self.conditions(class_labels, encoder_hidden_states))
        return self.of_levels(h.flatten(0, 2), x.flatten(0, 2)).view(-1, self.num_entries, self.vocab_size)

    def log_probabilities(
        self, entries: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Return log p(x_i | x_1, ..., x_{i-1}, y) <= 0 of `entries` (B, n), in nats, (B, n) float32."""
        if not self.mixture:
            return super().log_probabilities(entries, class_labels, encoder_hidden_states)
        x = self.pixels(entries)
        h = self.features(x, self.conditions(class_labels, encoder_hidden_states))
        mixture = LogisticMixture.of(self.head(h).flatten(0, 2), self.config["channels"], self.vocab_size)
        return mixture.log_prob(x.flatten(0, 2)).view(-1, self.num_entries)

    @apply_forward_hook
    def next_logits(
        self,
        entries: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return the logits (B, V) of entry i, from the `entries` (B, i) before it; with a cache at one pixel only."""
        # pixels so far
        i, (_, columns, C) = entries.shape[1], self.grid
        x = self.pixels(F.pad(entries, (0, self.num_entries - i)))                       # (B, H, W, C)
        y = self.conditions(class_labels, encoder_hidden_states)
        # features of this pixel
        r, c = divmod(i // C, columns)
        if cache is None:
            h = self.features(x, y)[:, r, c]
        else:
            h = self.advanced(cache, x, y, i // C)
        return self.of_channel(h, x[:, r, c], i % C)

    def new_cache(self) -> Cache:
        """Return an empty cache of the inputs of all convolutions."""
        return Cache()

    def pixels(self, entries: Tensor) -> Tensor:
        """Return pixels (B, H, W, C) in [-1, 1] of entries (B, n)."""
        return entries.view(-1, *self.grid) * (2 / (self.vocab_size - 1)) - 1

    def conditions(self, class_labels: Tensor | None, text: Tensor | None) -> Tensor | None:
        """Return the sum of the embeddings of class and text, (B, width); None without conditions.

        Raises ConfigError for conditions that this network does not have or lacks.
        """
        check_conditions(self.config, class_labels, text)
        parts = []
        if self.class_embedding is not None:
            parts.append(self.class_embedding(class_labels))
        if self.text_proj is not None and text is not None:
            parts.append(self.text_proj(text.mean(1)))
        return sum(parts) if parts else None

    def padded(self, x: Tensor) -> Tensor:
        """Return pixels x (B, H, W, C) and a constant 1 as (B, C + 1, H + 2, W + 2), zeros above, left and right."""
        planes = F.pad(x, (0, 1), value=1.0).permute(0, 3, 1, 2)
        return F.pad(planes.to(self.above.weight.dtype), (1, 1, 2, 0))

    def features(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return features (B, H, W, width): those of a pixel depend on the pixels above and to its left.

        x: pixels (B, H, W, C) in [-1, 1]; y: conditions (B, width).
        """
        # first convolutions
        _, H, W, _ = x.shape
        p = self.padded(x)                                                               # (B, C + 1, H + 2, W + 2)
        u = self.above(p[:, :, : H + 1])
        h = self.row_above(p[:, :, 1 : H + 1]) + self.column_left(p[:, :, 1:, :W])
        # both stacks
        for upper, left in zip(self.upper, self.left, strict=True):
            u = upper(u, None, y)
            h = left(h, u, y)
        return F.silu(h).permute(0, 2, 3, 1)

    def advanced(self, cache: Cache, x: Tensor, y: Tensor | None, pixel: int) -> Tensor:
        """Return the features (B, width) of `pixel`, after the cache has seen all pixels before it."""
        _, H, W, _ = x.shape
        p = self.padded(x)
        while cache.done <= pixel:
            r, c = divmod(cache.done, W)
            # the rows above, once for each row
            if c == 0:
                spot, u = Spot(cache, (H, W), r, None), self.above(p[:, :, r : r + 2])
                cache.rows = []
                for upper in self.upper:
                    u = upper(u, None, y, spot)
                    cache.rows.append(u)
            # this pixel
            spot = Spot(cache, (H, W), r, c)
            h = self.row_above(p[:, :, r + 1 : r + 2, c : c + 3]) + self.column_left(p[:, :, r + 1 : r + 3, c : c + 1])
            for left, u in zip(self.left, cache.rows, strict=True):
                h = left(h, u[:, :, :, c : c + 1], y, spot)
            cache.features = F.silu(h)[:, :, 0, 0]
            cache.done += 1
        assert cache.features is not None
        return cache.features

    def of_levels(self, h: Tensor, x: Tensor) -> Tensor:
        """Return logits (N, C, V) of N pixels x (N, C) in [-1, 1] with the features h (N, width)."""
        return torch.stack([self.of_channel(h, x, c) for c in range(self.config["channels"])], 1)

    def of_channel(self, h: Tensor, x: Tensor, channel: int) -> Tensor:
        """Return logits (N, V) of a channel, from the features h (N, width) and the earlier channels of x (N, C)."""
        if self.mixture:
            return LogisticMixture.of(self.head(h), x.shape[1], self.vocab_size).log_probs_of_levels(x, channel)
        hidden = self.head(h).unflatten(1, (x.shape[1], -1))[:, channel]
        for embedding, column in zip(list(self.earlier)[:channel], x.unbind(1), strict=False):
            hidden = hidden + embedding(((column + 1) * ((self.vocab_size - 1) / 2)).round().long())
        return self.outputs[channel](F.silu(hidden))


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible."""
    # images
    c = config
    require_int("channels", c["channels"], 1, MAX_CHANNELS)
    require_size("sample_size", c["sample_size"])
    require_int("levels", c["levels"], 2, 2**16)
    # sizes
    for field, high in (("width", 2**12), ("layers", 2**8), ("mixtures", 2**8)):
        require_int(field, c[field], 1, high)
    if c["output"] is not None:
        require_choice("output", c["output"], OUTPUTS)
    # conditions
    for field in ("num_class_embeds", "text_width"):
        if c[field] is not None:
            require_int(field, c[field])
    require_number("dropout", c["dropout"], 0.0, 0.99)
