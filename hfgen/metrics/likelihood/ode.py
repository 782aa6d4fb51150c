"""Exact likelihood of a diffusion model through its probability-flow ODE (Song et al. 2021, appendix D.2)."""

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
    """`log_prob` (B,) in nats, float64; `latents`, x_T like x; `evaluations` of the network."""

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
    """Return log p(x) of items `x` (B, ...) under the samples that the ODE makes, its states at t_min.

    log p(x) = log N(x_T; 0, I) + int div f dy along dx/dy = f (Song et al. 2021, eq. 39), y = log(sigma / gamma). The
    divergence is e^T (df/dx) e with signs e (Hutchinson), the mean over `probes` of them drawn once for the whole path,
    so that its expectation is exact; with None it is the trace itself, one gradient a dimension. Dormand-Prince with
    the tolerances `rtol` and `atol`. The smaller the scheduler's `t_min`, the nearer x is to data without noise.
    """
    if probes is not None:
        require_int("probes", probes)
    shape, dim = x.shape, x[0].numel()
    signs = _probes(x, probes, generator)                                               # (K, B, D)
    ends = torch.tensor([scheduler.t_min, 1.0], dtype=torch.float64)
    start, end = (-scheduler.log_snr(ends) / 2).tolist()

    def slope(y: float, state: Tensor) -> Tensor:
        t = scheduler.time_of_log_snr(torch.tensor(-2 * y, dtype=torch.float64)).clamp(scheduler.t_min, 1)
        tau = float(scheduler.timestep_of(t))
        with torch.enable_grad():
            at = state[:, :dim].to(x.dtype).detach().requires_grad_()
            x_t = at.view(shape)
            output = predict(x_t, torch.full((len(x),), tau, device=x.device))[:, : shape[1]]
            eps, sigma = scheduler.predict_eps(output, tau, x_t), float(scheduler.sigma(t))
            f = -solvers.slope(x_t, eps, sigma).flatten(1)                         # dx/dy, y = -lam
            last = len(signs) - 1
            parts = [
                (torch.autograd.grad(f, at, e, retain_graph=i < last)[0] * e).sum(1) for i, e in enumerate(signs)
            ]
        divergence = torch.stack(parts).double()
        total = divergence.sum(0) if probes is None else divergence.mean(0)
        return torch.cat([f.detach().double(), total[:, None]], 1)

    state = torch.cat([x.flatten(1).double(), x.new_zeros(len(x), 1, dtype=torch.float64)], 1)
    state, evaluations = solve(slope, start, end, state, rtol, atol)
    latents, change = state[:, :dim], state[:, dim]
    return ODELikelihood(log_normal(latents).sum(1) + change, latents.view(shape).to(x.dtype), evaluations)


def ode_bits_per_dim(
    predict: Predict,
    scheduler: VPSDEScheduler,
    x: Tensor,
    generator: torch.Generator | None = None,
    levels: int = 256,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Return bits per dimension, (B,) float64, of pixels at `levels` even steps in [-1, 1], by uniform dequantisation.

    -log2 of the density at x + u, u uniform in a bin, as a probability of bins: in expectation an upper bound on that
    of the levels (Theis et al. 2016, section 3.1). One probe for each item. ConfigError for pixels outside [-1, 1].
    """
    if float(x.abs().max()) > 1 + 1e-6:
        raise ConfigError(f"x must be in [-1, 1], found {float(x.min()):g} to {float(x.max()):g}")
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    found = ode_log_likelihood(predict, scheduler, dequantised(x, u, levels), generator, 1, rtol, atol)
    return torch.as_tensor(bits_per_dim(found.log_prob, x[0].numel(), 2 / (levels - 1)))


def _probes(x: Tensor, probes: int | None, generator: torch.Generator | None) -> Tensor:
    """Return the vectors e (K, B, D) of Hutchinson's estimate, random signs, or for None the unit vectors, K = D."""
    rows, dim = len(x), x[0].numel()
    if probes is None:
        return torch.eye(dim, dtype=x.dtype, device=x.device)[:, None].expand(dim, rows, dim)
    signs = torch.randint(0, 2, (probes, rows, dim), generator=generator) * 2 - 1
    return signs.to(x.device, x.dtype)
