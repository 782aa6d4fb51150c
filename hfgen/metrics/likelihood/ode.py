"""Exact likelihood of a diffusion model by its probability-flow ODE (Song et al. 2021, appendix D.2)."""

from typing import NamedTuple

import torch
from torch import Tensor

from hfgen.checks import require_int
from hfgen.errors import ConfigError
from hfgen.losses.elbo import log_normal
from hfgen.metrics.likelihood.bound import Predict
from hfgen.metrics.likelihood.units import bits_per_dim, dequantised
from hfgen.metrics.runge_kutta import solve
from hfgen.schedulers import solvers
from hfgen.schedulers.vp_sde import VPSDEScheduler


class ODELikelihood(NamedTuple):
    """`log_prob` (B,) in nats, float64; `latents` x_T, shape of x; number of `evaluations` of the network."""

    log_prob: Tensor
    latents: Tensor
    evaluations: int


def ode_log_likelihood(
    predict: Predict,
    scheduler: VPSDEScheduler,
    x: Tensor,
    generator: torch.Generator | None = None,
    probes: int | None = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> ODELikelihood:
    """Return log p(x) in nats of items `x` (B, ...); p is the distribution of the ODE's states at t_min.

    log p(x) = log N(x_T; 0, I) + int div f dy along dx/dy = f (Song et al. 2021, eq. 39), y = log(sigma / gamma).
    `probes`: number of random sign vectors e of Hutchinson's estimate of the divergence, the mean of e^T (df/dx) e.
    They are drawn once for the whole path, so the expectation is exact. None: the exact trace, one gradient per
    dimension. `rtol`, `atol`: tolerances of the Dormand-Prince solver. With a smaller `t_min` of the scheduler, x is
    nearer to data without noise. Raises ConfigError for probes below 1, NonFiniteError for more than 10,000 steps.
    """
    if probes is not None:
        require_int("probes", probes)
    dim = x[0].numel()
    signs = _probes(x, probes, generator)                                               # (K, B, D)

    def slope(y: float, state: Tensor) -> Tensor:
        with torch.enable_grad():
            at = state[:, :dim].to(x.dtype).detach().requires_grad_()
            f = _drift(predict, scheduler, y, at.view(x.shape)).flatten(1)
            divergence = _divergences(f, at, signs)
        total = divergence.sum(0) if probes is None else divergence.mean(0)
        return torch.cat([f.detach().double(), total[:, None]], 1)

    # integrate state and divergence from t_min to 1
    ends = torch.tensor([scheduler.t_min, 1.0], dtype=torch.float64)
    start, end = (-scheduler.log_snr(ends) / 2).tolist()
    state = torch.cat([x.flatten(1).double(), x.new_zeros(len(x), 1, dtype=torch.float64)], 1)
    state, evaluations = solve(slope, start, end, state, rtol, atol)
    # change of variables
    latents, change = state[:, :dim], state[:, dim]
    return ODELikelihood(log_normal(latents).sum(1) + change, latents.view(x.shape).to(x.dtype), evaluations)


def _drift(predict: Predict, scheduler: VPSDEScheduler, y: float, x_t: Tensor) -> Tensor:
    """Return f = dx/dy of x_t (B, C, ...), y = log(sigma / gamma); the negative of the solvers' slope in lambda."""
    # time of y
    t = scheduler.time_of_log_snr(torch.tensor(-2 * y, dtype=torch.float64)).clamp(scheduler.t_min, 1)
    tau = float(scheduler.timestep_of(t))
    # slope from the predicted noise
    output = predict(x_t, torch.full((len(x_t),), tau, device=x_t.device))[:, : x_t.shape[1]]
    eps, sigma = scheduler.predict_eps(output, tau, x_t), float(scheduler.sigma(t))
    return -solvers.slope(x_t, eps, sigma)


def _divergences(f: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """Return e^T (df/dx) e for each of the vectors e (K, B, D), (K, B) float64; frees the graph of f (B, D)."""
    parts = []
    for number, e in enumerate(vectors, 1):
        gradient = torch.autograd.grad(f, x, e, retain_graph=number < len(vectors))[0]
        parts.append((gradient * e).sum(1))
    return torch.stack(parts).double()


def ode_bits_per_dim(
    predict: Predict,
    scheduler: VPSDEScheduler,
    x: Tensor,
    generator: torch.Generator | None = None,
    levels: int = 256,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Return bits per dimension, (B,) float64, of pixels x (B, ...) at `levels` even levels in [-1, 1].

    -log2 of the density at x + u, u uniform in a bin, times the volume of the bin: its expectation is an upper bound on
    the bits of the levels (Theis et al. 2016, section 3.1). One probe per item. Raises ConfigError for pixels outside
    [-1, 1].
    """
    if float(x.abs().max()) > 1 + 1e-6:
        raise ConfigError(f"x must be in [-1, 1], found {float(x.min()):g} to {float(x.max()):g}")
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    likelihood = ode_log_likelihood(predict, scheduler, dequantised(x, u, levels), generator, 1, rtol, atol)
    return torch.as_tensor(bits_per_dim(likelihood.log_prob, x[0].numel(), 2 / (levels - 1)))


def _probes(x: Tensor, probes: int | None, generator: torch.Generator | None) -> Tensor:
    """Return the vectors e (K, B, D): random signs for Hutchinson's estimate, or for None the unit vectors, K = D."""
    rows, dim = len(x), x[0].numel()
    if probes is None:
        return torch.eye(dim, dtype=x.dtype, device=x.device)[:, None].expand(dim, rows, dim)
    signs = torch.randint(0, 2, (probes, rows, dim), generator=generator) * 2 - 1
    return signs.to(x.device, x.dtype)
