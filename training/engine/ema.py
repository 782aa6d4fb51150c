"""Exponential moving average of a network's weights."""

import copy
from functools import cached_property

import torch
from torch import nn


class EMA:
    """A copy of a network whose floating-point state follows the network's: ema <- ema + (1 - decay) (net - ema).

    The decay is min(decay, (1 + step) / (10 + step)), so that the start is forgotten quickly. Integer buffers and the
    power-iteration vectors of spectral norm are copied. The average is never put into the network that trains.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.decay = decay
        self.net, self._live = copy.deepcopy(net).eval().requires_grad_(False), net

    @cached_property
    def _pairs(self) -> tuple[list[torch.Tensor], ...]:
        """Return averaged tensors, the tensors they follow, copied buffers and their sources.

        Looked up at the first update: wrapping a network for several processes gives its parameters new memory.
        """
        # sort the tensors by the way that they follow
        averaged, live = list[torch.Tensor](), list[torch.Tensor]()
        copies, originals = list[torch.Tensor](), list[torch.Tensor]()
        sources = self._live.state_dict(keep_vars=True)
        for name, tensor in self.net.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and not name.endswith(("._u", "._v")):
                averaged.append(tensor)
                live.append(sources[name])
            else:
                copies.append(tensor)
                originals.append(sources[name])
        return averaged, live, copies, originals

    @torch.no_grad()
    def update(self, step: int, finite: torch.Tensor) -> None:
        """Move one step towards the network; not at all where the float scalar `finite` is 0 (no host sync).

        `step` counts from 0.
        """
        # average
        weight = finite * (1 - min(self.decay, (1 + step) / (10 + step)))
        averaged, live, copies, originals = self._pairs
        torch._foreach_lerp_(averaged, live, [weight] * len(averaged))
        # copy
        if copies:
            torch._foreach_copy_(copies, originals)
