"""The interface of autoregressive networks: the distribution of each entry, conditioned on all before it."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hfgen.checks import require
from hfgen.loading.mixins import ModelMixin
from hfgen.models.outputs import LogitsOutput, LogProbOutput


class AutoregressiveNetwork(ModelMixin):
    """Base of the networks that model p(x|y) = prod_i p(x_i | x_1, ..., x_{i-1}, y), with entries x_i in [0, V - 1].

    Conditions y are `class_labels` (B,) int64 and `encoder_hidden_states` (B, L, text_width), for a network that has
    them. Attributes: `vocab_size`, V; `num_entries`, n; `grid`: rows, columns, and entries in each cell.
    """

    _no_split_modules: Any = None
    _repeated_blocks: Any = ()
    _skip_layerwise_casting_patterns: Any = None
    vocab_size: int
    grid: tuple[int, int, int]

    @property
    def num_entries(self) -> int:
        """Return n, the number of entries of an image."""
        rows, columns, cell = self.grid
        return rows * columns * cell

    def logits(
        self, entries: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, n, V); row i depends on the first i `entries`, of (B, n) int64, and the conditions."""
        raise NotImplementedError

    def next_logits(
        self,
        entries: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Return the logits (B, V) of entry i, from the `entries` (B, i) before it.

        `cache`: one of `new_cache`, used for all entries of one batch in turn.
        """
        raise NotImplementedError

    def new_cache(self) -> Any:
        """Return an empty cache for `next_logits`; None for a network without one."""
        return None

    def forward(
        self,
        entries: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        log_prob: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """Return the logits (B, n, V), `.logits`, of `entries` (B, n), int64; with `log_prob` instead `.log_prob`.

        `log_prob` (B, n), float32, in nats: log p(x_i | x_1, ..., x_{i-1}, y). Row i depends only on the first i
        entries.
        """
        if log_prob:
            values = self.log_probabilities(entries, class_labels, encoder_hidden_states)
            return LogProbOutput(log_prob=values) if return_dict else (values,)
        logits = self.logits(entries, class_labels, encoder_hidden_states)
        return LogitsOutput(logits=logits) if return_dict else (logits,)

    def log_probabilities(
        self, entries: Tensor, class_labels: Tensor | None = None, encoder_hidden_states: Tensor | None = None
    ) -> Tensor:
        """Return log p(x_i | x_1, ..., x_{i-1}, y) <= 0 of `entries` (B, n), in nats, (B, n) float32."""
        logits = self.logits(entries, class_labels, encoder_hidden_states)
        return -F.cross_entropy(logits.float().transpose(1, 2), entries, reduction="none")


def check_conditions(config: Any, class_labels: Tensor | None, text: Tensor | None) -> None:
    """Raise ConfigError for conditions that a network does not have or lacks, and for a text of another width.

    `config`: the network's settings, with `num_class_embeds` and `text_width`.
    """
    width = config["text_width"]
    for name, given, taken in (
        ("class_labels", class_labels, config["num_class_embeds"]), ("encoder_hidden_states", text, width)
    ):
        allowed = "left out: this network is not conditioned on it"
        if taken:
            allowed = "given: this network is conditioned on it"
        require((given is None) == (not taken), name, given if given is None else "a tensor", allowed)
    if text is not None:
        require(text.shape[-1] == width, "encoder_hidden_states", tuple(text.shape), f"of {width} features")
