"""Helpers of several tests of schedulers."""

from torch import Tensor

SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    """Assert |ours - theirs| <= tolerance * max(1, |theirs|), NaN being equal to nothing."""
    error = (ours.double() - theirs.double()).abs() / theirs.double().abs().clamp(min=1)
    assert bool((error <= tolerance).all()), f"largest error {error.max():.2e}, allowed {tolerance:.0e}"
