"""An adaptive Runge-Kutta solver for tensors on any device: Dormand and Prince's pair of orders 5 and 4."""

from collections.abc import Callable

import torch
from torch import Tensor

from hfgen.errors import NonFiniteError

C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Tableau of Dormand and Prince 1980: times C, weights A of the slopes, weights E of the error (order 5 minus 4)."""

MAX_STEPS = 10_000


def solve(
    slope: Callable[[float, Tensor], Tensor], start: float, end: float, y: Tensor, rtol: float, atol: float
) -> tuple[Tensor, int]:
    """Return y(end) (B, D) and the number of evaluations of the slope, for dy/dt = slope(t, y) with y at `start`.

    The step size keeps the estimated error of the worst row at 1: the root mean square over D in units of
    atol + rtol |y|. Raises NonFiniteError after 10,000 steps.
    """
    t, h, sign = start, abs(end - start) / 50, 1.0 if end > start else -1.0
    first, evaluations = slope(t, y), 1
    for _ in range(MAX_STEPS):
        # evaluate the slopes of one step
        h = min(h, abs(end - t))
        slopes = [first]
        for c, row in zip(C[1:], A[1:], strict=True):
            stage = y + sign * h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros_like(y))
            slopes.append(slope(t + sign * h * c, stage))
        evaluations += 6
        # estimate the error of the worst row
        error = h * sum((e * k for e, k in zip(E, slopes, strict=True)), torch.zeros_like(y))
        scale = atol + rtol * torch.maximum(y.abs(), stage.abs())
        worst = float((error / scale).square().mean(1).sqrt().max())
        # accept the step; its last slope is the first of the next step
        if worst <= 1:
            t, y, first = t + sign * h, stage, slopes[-1]
            if abs(end - t) <= 1e-12 * max(1.0, abs(end - start)):
                return y, evaluations
        # adapt the step size
        h *= min(5.0, max(0.2, 0.9 * max(worst, 1e-10) ** -0.2)) if worst == worst else 0.2
    raise NonFiniteError(f"the ODE from {start:g} to {end:g} took {MAX_STEPS:,} steps to {t:g}; use larger tolerances")
