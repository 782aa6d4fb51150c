"""Scaling of the loss, so that small gradients do not vanish in float16 (Micikevicius et al. 2018, section 3.2)."""

import torch
from torch import Tensor

FIRST = 2.0**16
"""Scale at the first step; it halves until the gradients are finite."""

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000
"""Factor after INTERVAL finite steps in a row, and factor after a step that is not finite."""


class LossScale:
    """The factor of one phase's loss and gradients, a power of two on the device, which is never waited for."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), FIRST, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, finite: Tensor) -> None:
        """Double the scale after 2,000 finite steps, halve it after another one; `finite`: 1.0 or 0.0, of shape ()."""
        torch._amp_update_scale_(self.value, self.finite_steps, 1 - finite, GROWTH, BACKOFF, INTERVAL)

    def state(self) -> list[float]:
        """Return scale and number of finite steps, for a checkpoint."""
        return [float(self.value), int(self.finite_steps)]

    def restore(self, state: list[float]) -> None:
        """Continue from the numbers that `state` returned."""
        self.value.fill_(state[0])
        self.finite_steps.fill_(int(state[1]))
