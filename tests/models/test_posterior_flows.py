"""Flows of posteriors against autograd's Jacobian, inverses by brute force, and densities in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hfgen.losses.elbo import log_normal
from hfgen.metrics.likelihood import elbo, log_likelihood
from hfgen.models.posterior_flows import FLOWS, SMALLEST_SLOPE, InverseAutoregressiveFlow, PlanarFlow
from hfgen.models.vae import VAE

D, STEPS, WIDTH = 5, 3, 12
F64 = torch.float64


def make(name: Any, dim: int = D, steps: int = STEPS) -> Any:
    """Return a flow in float64 whose every weight matters."""
    flow = FLOWS[name](dim, steps, WIDTH)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return flow.double()


def inputs(flow: Any, batch: int = 3, k: int = 2, dim: int = D) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, k, dim, dtype=F64), torch.randn(batch, 1, flow.context, dtype=F64)


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_the_log_determinant_is_that_of_autograds_jacobian(name: Any) -> None:
    flow = make(name)
    z, h = inputs(flow)
    f, log_det = flow(z, h)
    assert f.shape == z.shape and log_det.shape == (3, 2) and log_det.std() > 0.1
    for i in range(3):
        for j in range(2):
            jacobian = torch.autograd.functional.jacobian(lambda point: flow(point[None, None], h[i : i + 1])[0][0, 0],  # noqa: B023
                                                          z[i, j])  # fmt: skip
            expected = torch.linalg.slogdet(jacobian)
            assert expected.sign == (1 if name == "planar" or STEPS * (D // 2) % 2 == 0 else -1)
            torch.testing.assert_close(log_det[i, j], expected.logabsdet, atol=1e-9, rtol=0)


def invert_autoregressive(flow: InverseAutoregressiveFlow, z: Tensor, h: Tensor) -> Tensor:
    """Return f^-1(z; h): one latent after the other is solved for, from the last step to the first."""
    for step in reversed(flow.steps):
        z, found = z.flip(-1), torch.zeros_like(z)
        for i in range(z.shape[-1]):
            m, s = step(found, h)                                  # of the latents that are known so far
            found[..., i] = (z - (1 - s.sigmoid()) * m)[..., i] / s.sigmoid()[..., i]
        z = found
    return z


def invert_planar(flow: PlanarFlow, z: Tensor, h: Tensor) -> Tensor:
    """Return f^-1(z; h): the component along w by bisection, the others directly, from the last step to the first."""
    for step in reversed(h.chunk(flow.steps, -1)):
        u, w, b = step.split([flow.dim, flow.dim, 1], -1)
        inner = (u * w).sum(-1, keepdim=True)
        u = u + (torch.log1p(torch.exp(inner)) + SMALLEST_SLOPE - 1 - inner) * w / (w * w).sum(-1, keepdim=True)
        along, wu = (w * z).sum(-1, keepdim=True), (w * u).sum(-1, keepdim=True)
        low, high = along - wu.abs(), along + wu.abs()
        for _ in range(200):
            middle = (low + high) / 2
            below = middle + wu * torch.tanh(middle + b) < along
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        z = z - u * torch.tanh(low + b)
    return z


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_every_point_is_found_again_from_the_one_it_is_mapped_to(name: Any) -> None:
    flow = make(name)
    z, h = inputs(flow, batch=20, k=4)
    invert: Any = invert_planar if name == "planar" else invert_autoregressive
    with torch.no_grad():
        f, _ = flow(z, h)
        torch.testing.assert_close(invert(flow, f, h), z, atol=1e-8, rtol=0)
    assert (f - z).abs().min() > 1e-6


def test_a_planar_step_that_would_fold_space_is_made_invertible() -> None:
    """With w u < -1 a step folds (Rezende and Mohamed 2015, appendix A.1); the context asks for w u = -40."""
    flow = PlanarFlow(2, 1).double()
    h = torch.tensor([[[-20.0, 0.0, 2.0, 0.0, 0.3]]], dtype=F64)
    line = torch.stack([torch.linspace(-4, 4, 4001, dtype=F64), torch.zeros(4001, dtype=F64)], -1)[None]
    f, log_det = flow(line, h)
    assert f[0, :, 0].diff().min() > 0 and log_det.isfinite().all()
    folded = line[0, :, 0] - 20 * torch.tanh(2 * line[0, :, 0] + 0.3)
    assert folded.diff().min() < 0


def test_each_autoregressive_output_depends_on_the_inputs_below_it_and_on_the_context() -> None:
    (step,) = make("inverse_autoregressive", steps=1).steps
    z, h = torch.randn(D, dtype=F64), torch.randn(WIDTH, dtype=F64)
    for part in (0, 1):                                                                  # m, then s
        of_z, of_h = torch.autograd.functional.jacobian(lambda z, h: step(z[None, None], h[None, None])[part][0, 0],  # noqa: B023
                                                        (z, h))  # fmt: skip
        below = torch.ones(D, D).tril(-1).bool()
        assert (of_z[below] != 0).all() and (of_z[~below] == 0).all()
        assert (of_h != 0).any(1).all()


def wide_posterior(name: Any) -> Any:
    """Return a model of 4x4 pixels and two latents whose flow starts from a distribution wider than the prior."""
    torch.manual_seed(0)
    net: Any = VAE(resolution=4, hidden=(8,), latent_dim=2, posterior=name, flow_steps=2, flow_width=8).double()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    net.encoder[-1].bias.data[2:4] = 1.5
    return net


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_a_posterior_with_a_flow_is_a_density_whose_kl_is_the_mean_of_its_log_ratio(name: Any) -> None:
    """E_q[p(z) / q(z|x)] = 1 for any density q that is positive where p is."""
    net = wide_posterior(name)
    with torch.no_grad():
        terms = net(torch.randn(1, 1, 4, 4, dtype=F64), [torch.randn(1, 400_000, 2, dtype=F64)])
    assert float(torch.exp(-terms.log_ratio).mean()) == pytest.approx(1, abs=0.03)
    assert terms.kl[0].shape == (1, 400_000, 1) and float(terms.kl[0].mean()) > 0.05
    torch.testing.assert_close(terms.kl[0][..., 0], terms.log_ratio, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_the_importance_weighted_likelihood_is_that_of_the_integral_over_latents(name: Any) -> None:
    net = wide_posterior(name)
    x = torch.randn(3, 1, 4, 4, dtype=F64).sign()
    axis = torch.linspace(-7, 7, 281, dtype=F64)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        joint = net.log_likelihood(x, z.expand(3, -1, -1)) + log_normal(z).sum(-1)
    exact = torch.logsumexp(joint, 1) + 2 * math.log(14 / 280)
    estimate = log_likelihood(net, x, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)
    bound = elbo(net, x, 5000, torch.Generator().manual_seed(0))
    assert (bound < exact).all()


def test_an_autoregressive_flow_fits_a_bent_posterior_that_no_diagonal_one_fits() -> None:
    """z_1 ~ N(0, 1), z_2 | z_1 ~ N(z_1^2 - 1, 0.3^2): KL(q || p) is 0 for the best flow, above 0.5 without one."""

    def kl(name: Any) -> float:
        torch.manual_seed(0)
        mu, log_var = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        flow = FLOWS[name](2, 2, 32) if name else None
        optimizer = torch.optim.Adam([mu, log_var, *(flow.parameters() if flow is not None else ())], lr=1e-2)
        values = []
        for _ in range(600):
            eps = torch.randn(1, 128, 2)
            z, log_det = mu + torch.exp(log_var / 2) * eps, torch.zeros(1, 128)
            if flow is not None:
                z, log_det = flow(z, torch.zeros(1, 1, 32))
            log_q = (log_normal(eps) - log_var / 2).sum(-1) - log_det
            log_p = log_normal(z[..., 0]) + log_normal(z[..., 1], z[..., 0] ** 2 - 1, math.log(0.09))
            loss = (log_q - log_p).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return sum(values[-100:]) / 100

    assert kl("inverse_autoregressive") < 0.15 and kl(None) > 0.5
