"""Simulation of the general process dx = f(x, t) dt + sqrt(2 D(x, t)) dW, with any drift f and any diffusion D >= 0.

The noise is that of Ito: x_{t+1} = x_t + eta f + N(0, 2 eta D), D at the start of the step. So the stationary density
in one dimension is p(x) ~ 1/D exp(int f/D), which has no flow: f p = d(D p)/dx (Risken 1989, eq. 5.13).
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hfgen.checks import check_int, require_choice
from hfgen.errors import ConfigError

Generators = torch.Generator | list[torch.Generator] | None
Diffusion = float | Tensor
METHODS = ("milstein", "euler_maruyama")


class Process(NamedTuple):
    """The process dx = f(x, t) dt + sqrt(2 D(x, t)) dW of states x (B, ...), with t a float.

    `drift`: f, (x, t) -> (B, ...). `diffusion`: D >= 0, a number, or (x, t) -> a number or a tensor that broadcasts to
    x, such as D (B, ...) of each entry.
    """

    drift: Callable[[Tensor, float], Tensor]
    diffusion: Diffusion | Callable[[Tensor, float], Diffusion]


def ornstein_uhlenbeck(rate: float, mean: float = 0.0, diffusion: float = 1.0) -> Process:
    """Return the process dx = -rate (x - mean) dt + sqrt(2 D) dW, whose stationary density is N(mean, D / rate)."""
    return Process(lambda x, t: (mean - x) * rate, diffusion)


def euler_maruyama_step(x: Tensor, f: Tensor, D: Diffusion, eta: float, z: Tensor) -> Tensor:
    """Return x + eta f + sqrt(2 eta D) z, of strong order 1/2, or 1 where D does not depend on x.

    (Kloeden and Platen 1992, eq. 10.2.4.) `x`, `f` and the standard normal `z`: (B, ...). `D`: at least 0, a number or
    a tensor that broadcasts to x. `eta`: the step in time, positive.
    """
    return x + f * eta + z * (2 * eta * D) ** 0.5


def milstein_step(x: Tensor, f: Tensor, D: Tensor, slope: Tensor, eta: float, z: Tensor) -> Tensor:
    """Return the step of Euler-Maruyama plus eta/2 (z^2 - 1) dD/dx, of strong order 1.

    (Kloeden and Platen 1992, eq. 10.3.1, with b = sqrt(2 D) and b b' = D'.) `slope`: the derivative of each entry of D
    by the same entry of x. All tensors are (B, ...).
    """
    return euler_maruyama_step(x, f, D, eta, z) + slope * (z * z - 1) * (eta / 2)


@torch.no_grad()
def simulate(
    process: Process,
    x: Tensor,
    num_steps: int,
    step_size: float,
    generator: Generators = None,
    method: str = "milstein",
    start: float = 0.0,
) -> Iterator[Tensor]:
    """Yield x (B, ...) at the time `start`, and the state after each of `num_steps` steps of `step_size` > 0.

    `method`: "milstein", which differs from "euler_maruyama" only where D depends on x, and differentiates D there.
    `generator`: one, or a list with one per sample. Raises ConfigError for "milstein" if an entry of D depends on other
    entries of x, for another method, and for fewer than 0 steps.
    """
    # check the arguments
    check_int("num_steps", num_steps, 0, 2**31)
    require_choice("method", method, METHODS)
    if method == "milstein":
        _check_separate(process, x[:2], start)
    # walk
    yield x
    for step in range(num_steps):
        z = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = one_step(process, x, start + step * step_size, step_size, z, method)
        yield x


def one_step(process: Process, x: Tensor, t: float, eta: float, z: Tensor, method: str = "milstein") -> Tensor:
    """Return the state at t + eta of a process that is in x (B, ...) at t, for a standard normal z (B, ...)."""
    f = process.drift(x, t)
    # a diffusion without a slope
    if method == "euler_maruyama" or not callable(process.diffusion):
        return euler_maruyama_step(x, f, _diffusion(process, x, t), eta, z)
    # Milstein's correction where there is one
    D, (slope,) = _with_slopes(process, x, t, [torch.ones_like(x)])
    if slope is None or not isinstance(D, Tensor):
        return euler_maruyama_step(x, f, D, eta, z)
    return milstein_step(x, f, D, slope, eta, z)


def stationary_density(process: Process, grid: Tensor) -> Tensor:
    """Return p(x) ~ 1/D exp(int f/D) on an increasing `grid` (N,), in the shape of the grid, with integral 1.

    (Risken 1989, eq. 5.13.) f and D are those at t = 0; the integrals are trapezoids. The density is that of a process
    in one dimension that does not leave the grid.
    """
    # log density up to a constant
    D = torch.as_tensor(_diffusion(process, grid, 0.0)).to(grid).expand_as(grid)
    exponent = torch.cumulative_trapezoid(process.drift(grid, 0.0) / D, grid)
    log_p = torch.cat([exponent.new_zeros(1), exponent]) - D.log()
    # normalise
    p = (log_p - log_p.max()).exp()
    return p / torch.trapezoid(p, grid)


def _diffusion(process: Process, x: Tensor, t: float) -> Diffusion:
    """Return D at x and t."""
    return process.diffusion(x, t) if callable(process.diffusion) else process.diffusion


@torch.enable_grad()
def _with_slopes(
    process: Process, x: Tensor, t: float, weights: list[Tensor]
) -> tuple[Diffusion, list[Tensor] | list[None]]:
    """Return D at x and t, and the gradient of the sum of weight * D for each of `weights`; None if D has no slope."""
    leaf = x.detach().requires_grad_()
    D = _diffusion(process, leaf, t)
    if not isinstance(D, Tensor) or not D.requires_grad:
        return D, [None] * len(weights)
    if D.shape != x.shape:
        raise ConfigError(f"diffusion must have the shape of x, {tuple(x.shape)}, got {tuple(D.shape)}; "
                          "or choose method='euler_maruyama'")  # fmt: skip
    slopes = [torch.autograd.grad((weight * D).sum(), leaf, retain_graph=True)[0] for weight in weights]
    return D.detach(), slopes


def _check_separate(process: Process, x: Tensor, t: float) -> None:
    """Raise ConfigError unless each entry of D depends on the same entry of x alone."""
    weight = torch.linspace(1, 2, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
    _, (slope, weighted) = _with_slopes(process, x, t, [torch.ones_like(x), weight])
    if slope is not None and weighted is not None and not torch.allclose(weighted, weight * slope, rtol=1e-3):
        raise ConfigError("diffusion: an entry depends on other entries of x, where Milstein's step needs more than "
                          "normal draws; choose method='euler_maruyama'")  # fmt: skip
