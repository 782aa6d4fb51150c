"""A transformer over the entries of images: decoder-only (Chen et al. 2020), or bidirectional for masked entries."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hfgen.checks import require, require_choice, require_int, require_number
from hfgen.loading.config import register_to_config
from hfgen.models import stock_image_transformer
from hfgen.models.attention import attend
from hfgen.models.autoregressive import AutoregressiveNetwork, check_conditions

EPS, DEVIATION = 1e-5, 0.02
"""Epsilon of the normalisation, and standard deviation of the first weights (Radford et al. 2019)."""

MAX_ENTRIES = 2**16
"""Largest number of entries of an image, whose pairs attention computes."""

POSITIONS = ("learned", "rotary")
BASE = 100.0
"""Ratio of the highest to the lowest frequency of rotations, in radians for each row or column."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (N, d / 2) of the angles of N positions."""


class Cache:
    """Keys and values of the inputs that a transformer has seen, (B, heads, n, d) for each of its layers.

    `length`: number of inputs seen. Memory for all inputs of a sequence is allocated at the first call.
    """

    def __init__(self, layers: int) -> None:
        self.batch, self.size, self.length = 0, 0, 0
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def begin(self, batch: int, total: int, size: int) -> int:
        """Return the number of inputs seen, before a call for `batch` sequences of `total` inputs out of `size`.

        Raises ConfigError for another batch than that of the first call, and if there is no new input.
        """
        if not self.length:
            self.batch, self.size = batch, size
        require(batch == self.batch, "cache", f"one of {self.batch} sequences", f"one of {batch} sequences, or new")
        require(self.length < total, "cache", f"one of {self.length}", f"one of fewer than {total} inputs")
        return self.length

    def extended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, heads, length + m, d) of a layer with those of m new inputs, k and v."""
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            B, heads, _, d = k.shape
            keys = self.keys[layer] = k.new_empty(B, heads, self.size, d)
            values = self.values[layer] = v.new_empty(B, heads, self.size, d)
        end = self.length + k.shape[2]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


class EntryEmbedding(nn.Embedding):
    """Embeddings of the entries 0, ..., V - 1 and, in the last row, of the start or of the mask."""

    def forward(self, x: Tensor, predict: bool = False) -> Tensor:
        """Return the embeddings of x (...), int64 in [0, V]; with `predict` the products (..., V) of features x (...,
        width) with the embeddings of the V entries, as logits (Press and Wolf 2017)."""
        return F.linear(x, self.weight[:-1]) if predict else super().forward(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1), causal or bidirectional."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rotations: tuple[Rotation, Rotation] | None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Return features (B, m, width) of inputs x (B, m, width), which may attend to those in the cache too.

        `rotations`: of queries and of keys, None for none.
        """
        # queries, keys and values of each head
        q, k, v = self.c_attn(x).chunk(3, -1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        if rotations is not None:
            q, k = rotated(q, rotations[0]), rotated(k, rotations[1])                    # (B, heads, m, d)
        # attend to earlier inputs, and to the same
        if cache is not None:
            k, v = cache.extended(layer, k, v)
        h = attend(q, k, v, self.causal, self.dropout if self.training else 0.0)
        return self.c_proj(h.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with h sigmoid(1.702 h) between them, a fast form of GELU (Hendrycks and Gimpel 2016)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, m, width) of x (B, m, width)."""
        h = self.c_fc(x)
        return self.c_proj(F.silu(1.702 * h) / 1.702)


class Block(nn.Module):
    """Residual block with the normalisation before each part: x + attention(norm x), then x + mlp(norm x)."""

    # set on every block by diffusers' `enable_gradient_checkpointing`
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.ln_1 = nn.RMSNorm(width, EPS)
        self.attn = SelfAttention(width, heads, causal, dropout)
        self.ln_2 = nn.RMSNorm(width, EPS)
        self.mlp = MLP(width, mlp_ratio * width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotations: tuple[Rotation, Rotation] | None = None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Return features (B, m, width) of x (B, m, width); the backward pass may compute them again."""
        if self.gradient_checkpointing and torch.is_grad_enabled() and cache is None:
            return self._gradient_checkpointing_func(self.residual, x, rotations, None, layer)
        return self.residual(x, rotations, cache, layer)

    def residual(
        self, x: Tensor, rotations: tuple[Rotation, Rotation] | None, cache: Cache | None, layer: int
    ) -> Tensor:
        """Return features (B, m, width) of x (B, m, width). Arguments are those of `SelfAttention`."""
        x = x + self.drop(self.attn(self.ln_1(x), rotations, cache, layer))
        return x + self.drop(self.mlp(self.ln_2(x)))


class ImageTransformer(AutoregressiveNetwork):
    """Transformer over entries in [0, V - 1], in raster order over a `grid` of rows, columns and entries of a cell.

    Causal (ImageGPT, Chen et al. 2020): the inputs are a start, then the entries but the last, and each predicts the
    next entry. Not causal: entries are seen at once, those of value V are masked, and the logits are of all entries.

    `positions`: "learned", an embedding of each entry; or "rotary", where queries are rotated by the row and column
    that they predict and keys by those of their entry (Su et al. 2021, in two dimensions), beside embeddings of the
    row, of the column and of the entry in its cell. `tie_weights`: whether the embedding of entries also predicts them.
    Classes, `num_class_embeds`, take the place of the start. Texts, of `text_width` features, come before it. Raises
    ConfigError for impossible values.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ("ln_", "wte", "wpe")
    _no_split_modules = ("Block",)
    _repeated_blocks = ("Block",)

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 256,
        grid: tuple[int, int, int] = (8, 8, 1),
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        positions: str = "rotary",
        tie_weights: bool = False,
        causal: bool = True,
        num_class_embeds: int | None = None,
        text_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.vocab_size, self.causal = vocab_size, causal
        # inputs: entries and the start, or the mask; where they are; conditions
        self.wte = EntryEmbedding(vocab_size + 1, width)
        self.wpe = nn.Embedding(self.num_entries, width) if positions == "learned" else None
        self.axes = nn.ModuleList()
        if positions == "rotary":
            self.axes.extend(nn.Embedding(count, width) for count in self.grid)
        self.class_embedding = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.text_proj = nn.Linear(text_width, width) if text_width else None
        self.drop = nn.Dropout(dropout)
        # blocks
        self.h = nn.ModuleList([Block(width, heads, mlp_ratio, dropout, causal) for _ in range(layers)])
        # logits
        self.ln_f = nn.RMSNorm(width, EPS)
        self.lm_head = None if tie_weights else nn.Linear(width, vocab_size, bias=False)
        self.init_weights()

    def stock_settings(self) -> dict[str, Any] | None:
        """Return the settings of the `ImageGPTForCausalImageModeling` with these logits; None if there is none."""
        return stock_image_transformer.stock_settings(self.config)

    @classmethod
    def own_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Return the network's settings for those of transformers' class; ConfigError if there are none."""
        return stock_image_transformer.own_settings(config)

    def stock_tensors(self) -> dict[str, Tensor]:
        """Return the tensors under their names in transformers' class."""
        return stock_image_transformer.stock_tensors(self.state_dict())

    @classmethod
    def own_tensors(cls, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors of transformers' class, or their shapes, under the names in this one."""
        return stock_image_transformer.own_tensors(tensors)

    @property
    def grid(self) -> tuple[int, int, int]:                                              # type: ignore[override]
        """Return rows, columns, and entries in each cell."""
        rows, columns, cell = self.config["grid"]
        return rows, columns, cell

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights from N(0, 0.02^2), those that end a residual branch from N(0, 0.02^2 / (2 layers))."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                last = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=DEVIATION / (2 * len(self.h)) ** 0.5 if last else DEVIATION)

    def logits(
        self, entries: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, m, V) of m <= n entries. Causal: row i depends on the first i `entries`; else on all."""
        seen = entries[:, :-1] if self.causal else entries
        features = self.features(seen, class_labels, encoder_hidden_states)
        return self.head(features[:, features.shape[1] - entries.shape[1] :])

    @apply_forward_hook
    def next_logits(
        self,
        entries: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return the logits (B, V) of entry i, from the `entries` (B, i) before it; row by row they equal `logits`.

        With a cache of `new_cache` only the entries that it has not seen are run. Raises ConfigError for a network that
        is not causal, and for a cache of another batch or of more entries.
        """
        require(self.causal, "causal", False, "true to draw one entry after the other")
        return self.head(self.features(entries, class_labels, encoder_hidden_states, cache)[:, -1])

    def new_cache(self) -> Cache:
        """Return an empty cache of keys and values."""
        return Cache(len(self.h))

    def features(
        self, entries: Tensor, class_labels: Tensor | None, text: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """Return the features (B, m, width) of the inputs that the cache has not seen: texts, start, entries (B, i)."""
        self._check_inputs(entries, class_labels, text)
        # entries from the first new one on, with their places; the start has the place of the first entry
        L, seen = self._inputs_before(text), 0
        if cache is not None:
            seen = cache.begin(entries.shape[0], L + entries.shape[1], L + self.num_entries)
        new = entries[:, max(0, seen - L) :]
        first = max(0, seen - L) + self.causal
        x = self.wte(new) + self.places(torch.arange(first, first + new.shape[1], device=new.device))
        # all that comes before the entries
        if L and not seen:
            x = torch.cat([self._before(entries, class_labels, text), x], 1)             # (B, m, width)
        x = self.drop(x)
        # blocks
        rotations = self.rotations(seen - L, x)
        for layer, block in enumerate(self.h):
            x = block(x, rotations, cache, layer)
        if cache is not None:
            cache.length = seen + x.shape[1]
        return x

    def _inputs_before(self, text: Tensor | None) -> int:
        """Return the number of inputs before the entries: those of the text, and the class or the start."""
        tokens = 0 if text is None else text.shape[1]
        return tokens + (self.causal or self.class_embedding is not None)

    def _before(self, entries: Tensor, class_labels: Tensor | None, text: Tensor | None) -> Tensor:
        """Return the inputs (B, L, width) before the entries (B, i): the text's features, then the class or start."""
        parts = []
        if self.text_proj is not None:
            parts.append(self.text_proj(text))
        if self.class_embedding is not None:
            parts.append(self.class_embedding(class_labels)[:, None])
        elif self.causal:
            parts.append(self.wte(entries.new_full((entries.shape[0], 1), self.vocab_size)))
        if self.causal:
            parts[-1] = parts[-1] + self.places(entries.new_zeros(1))
        return torch.cat(parts, 1)

    def _check_inputs(self, entries: Tensor, labels: Tensor | None, text: Tensor | None) -> None:
        """Raise ConfigError for conditions that this network does not have or lacks, and for too many entries."""
        shape, high = tuple(entries.shape), self.num_entries - self.causal
        fits = len(shape) == 2 and shape[1] <= high
        require(fits, "entries", shape, f"(B, i), i in [0, {high}], that the network sees")
        check_conditions(self.config, labels, text)

    def places(self, indices: Tensor) -> Tensor:
        """Return the embedding (N, width) of the places of entries, `indices` (N,) in [0, n - 1]."""
        if self.wpe is not None:
            return self.wpe(indices)
        row, column, cell = self.axes
        r, c, e = self.located(indices)
        return row(r) + column(c) + cell(e)

    def located(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and number in its cell, (N,) each, of entries `indices` (N,)."""
        _, columns, cell = self.grid
        return indices // (columns * cell), indices // cell % columns, indices % cell

    def rotations(self, first: int, x: Tensor) -> tuple[Rotation, Rotation] | None:
        """Return the rotations of queries and keys of the inputs x (B, m, width), of which the first has the number
        `first`: 0 is the first entry, negative ones come before it. None for learned positions."""
        if self.wpe is not None:
            return None
        numbers = torch.arange(first, first + x.shape[1], device=x.device)
        keys = self.rotation(numbers, x)
        return (self.rotation(numbers + 1, x), keys) if self.causal else (keys, keys)

    def rotation(self, numbers: Tensor, x: Tensor) -> Rotation:
        """Return cosines and sines (N, d / 2) of the angles of entries `numbers` (N,): half by row, half by column.

        Entries have the rows and columns 1, 2, ...; inputs before the first entry are not rotated.
        """
        # frequencies of one axis
        d = self.config["width"] // self.config["heads"]
        count = d // 4
        frequencies = BASE ** (-torch.arange(count, device=x.device) / max(1, count))
        # angles of both axes
        r, c, _ = self.located(numbers.clamp(0, self.num_entries - 1))
        inside = (numbers >= 0).to(frequencies)
        angles = [((axis + 1) * inside)[:, None] * frequencies for axis in (r, c)]
        both = F.pad(torch.cat(angles, 1), (0, d // 2 - 2 * count))
        return both.cos().to(x.dtype), both.sin().to(x.dtype)

    def head(self, features: Tensor) -> Tensor:
        """Return logits (..., V) of features (..., width)."""
        h = self.ln_f(features)
        if self.lm_head is not None:
            return self.lm_head(h)
        return self.wte(h, predict=True)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Return x (B, heads, m, d) with each pair (x_j, x_{j + d/2}) rotated by its angle (Su et al. 2021, eq. 34)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible."""
    # the entries
    c = config
    require_int("vocab_size", c["vocab_size"], 2, 2**20)
    listed = isinstance(c["grid"], list | tuple) and len(c["grid"]) == 3
    require(listed, "grid", c["grid"], "three numbers: rows, columns, entries in each cell")
    for count in c["grid"]:
        require_int("grid", count, 1, 2**12)
    require(math.prod(c["grid"]) <= MAX_ENTRIES, "grid", c["grid"], f"of at most {MAX_ENTRIES:,} entries")
    # the sizes
    for field, high in (("width", 2**14), ("layers", 2**8), ("heads", 2**8), ("mlp_ratio", 64)):
        require_int(field, c[field], 1, high)
    require_choice("positions", c["positions"], POSITIONS)
    even = c["width"] % (2 * c["heads"]) == 0
    require(even, "heads", c["heads"], f"such that each has an even number of the {c['width']} features")
    # the conditions, and switches
    for field in ("num_class_embeds", "text_width"):
        if c[field] is not None:
            require_int(field, c[field])
    for field in ("tie_weights", "causal"):
        require(isinstance(c[field], bool), field, c[field], "true or false")
    require_number("dropout", c["dropout"], 0.0, 0.99)
