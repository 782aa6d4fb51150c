"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class EMA:
    """A copy of a network whose floating-point state follows the network's: ema <- ema + (1 - decay) (net - ema).

    The decay is min(decay, (1 + step) / (10 + step)), so that the start is forgotten quickly. Integer buffers and the
    power-iteration vectors of spectral norm are copied. The average is never put into the network that trains.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        mine, theirs = self.net.state_dict(keep_vars=True), net.state_dict(keep_vars=True)
        follows = [n for n, v in mine.items() if v.is_floating_point() and not n.endswith(("._u", "._v"))]
        copied = [n for n in mine if n not in set(follows)]
        self._mine, self._theirs = [mine[n].data for n in follows], [theirs[n].data for n in follows]
        self._mine_copied, self._theirs_copied = [mine[n].data for n in copied], [theirs[n].data for n in copied]

    @torch.no_grad()
    def update(self, step: int, finite: torch.Tensor) -> None:
        """Move one step towards the network; not at all where the 0-dim float `finite` is 0 (no host sync)."""
        weight = finite * (1 - min(self.decay, (1 + step) / (10 + step)))
        torch._foreach_lerp_(self._mine, self._theirs, [weight] * len(self._mine))
        if self._mine_copied:
            torch._foreach_copy_(self._mine_copied, self._theirs_copied)
