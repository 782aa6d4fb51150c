"""Draws of one entry from its distribution: temperature, the k likeliest values, the nucleus of probability p."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfgen.checks import check_int, require_number


@dataclass(frozen=True)
class Categorical:
    """The distribution softmax(logits / `temperature`), restricted to likely values.

    `top_k`: the k likeliest values (Fan et al. 2018). `top_p`: the nucleus, the smallest set of likeliest values whose
    probabilities sum to p or more (Holtzman et al. 2020, eq. 2). None: all values. Raises ConfigError for a temperature
    that is not positive, k < 1 and p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        require_number("temperature", self.temperature, 0, math.inf, "()")
        if self.top_k is not None:
            check_int("top_k", self.top_k, 1)
        if self.top_p is not None:
            require_number("top_p", self.top_p, 0, 1, "(]")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (B, V) float64 on the CPU, each row in [0, 1] with the sum 1, of logits (B, V)."""
        p = (logits.detach().cpu().double() / self.temperature).softmax(-1)
        if self.top_k is None and self.top_p is None:
            return p
        # keep the likeliest values
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        kept = torch.ones_like(ordered, dtype=torch.bool)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        if self.top_p is not None:
            kept &= ordered.cumsum(-1) - ordered < self.top_p                            # the mass before a value
        # scale them to the sum 1
        ordered = ordered * kept
        return torch.zeros_like(p).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        """Return one value of each row, (B,) int64 on the CPU, by the inverse distribution function at `u`.

        `logits`: (B, V). `u`: (B,) float64 in [0, 1): a value x is drawn if F(x - 1) <= u < F(x).
        """
        return self.inverse(self.probabilities(logits), u)

    @staticmethod
    def inverse(p: Tensor, u: Tensor) -> Tensor:
        """Return the values (B,) that `draw` takes at `u` (B,) from probabilities p (B, V)."""
        F = p.cumsum(-1)
        values = (u[:, None] * F[:, -1:] >= F).sum(-1)
        return values.minimum(_last(p > 0))                                              # where u F rounds up to F


def _last(mask: Tensor) -> Tensor:
    """Return the index of the last True of each row, (B,), of a mask (B, V)."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def uniforms(count: int, n: int, generator: Any) -> Tensor:
    """Return draws uniform in [0, 1), (count, n) float64 on the CPU.

    `generator`: None, one, or a list with one for each row, whose draws then do not depend on the other rows.
    """
    if isinstance(generator, list):
        return torch.stack([uniforms(1, n, one)[0] for one in generator])
    device = None if generator is None else generator.device
    if device is not None and device.type != "cpu":
        return torch.rand(count, n, generator=generator, device=device).double().cpu()
    return torch.rand(count, n, generator=generator, dtype=torch.float64)
