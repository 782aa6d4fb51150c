"""Adversarial losses against their definitions, and the lecture's claim about their gradients."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from hfgen.losses import adversarial as loss
from hfgen.training.settings import gan
from hfgen.training.settings.shared import AdversarialLoss

REAL = torch.tensor([1.3, -0.4, 0.2, 3.0], dtype=torch.float64)
FAKE = torch.tensor([-2.0, 0.7, 0.1, -0.5], dtype=torch.float64)


def close(a: Tensor, b: Tensor | float, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a.double(), torch.as_tensor(b, dtype=torch.float64), atol=atol, rtol=0)


def test_losses_are_what_their_papers_define_in_terms_of_probabilities() -> None:
    D, D_fake = REAL.sigmoid(), FAKE.sigmoid()
    close(loss.minimax_d(REAL, FAKE), -(D.log().mean() + (1 - D_fake).log().mean()))
    close(loss.minimax_g(FAKE), (1 - D_fake).log().mean())
    close(loss.non_saturating_g(FAKE), -D_fake.log().mean())
    close(loss.least_squares_d(REAL, FAKE), 0.5 * ((REAL - 1) ** 2).mean() + 0.5 * (FAKE**2).mean())
    close(loss.least_squares_g(FAKE), 0.5 * ((FAKE - 1) ** 2).mean())
    close(loss.hinge_d(REAL, FAKE), (1 - REAL).clamp(min=0).mean() + (1 + FAKE).clamp(min=0).mean())
    close(loss.wasserstein_d(REAL, FAKE), FAKE.mean() - REAL.mean())
    close(loss.wasserstein_g(FAKE), -FAKE.mean())
    close(loss.hinge_g(FAKE), -FAKE.mean())
    close(loss.relativistic_d(REAL, FAKE), -((REAL - FAKE).sigmoid().log()).mean())
    close(loss.relativistic_g(FAKE, REAL), -((FAKE - REAL).sigmoid().log()).mean())


def test_at_the_optimal_discriminator_the_losses_are_their_known_divergences() -> None:
    """p = (0.7, 0.3), q = (0.2, 0.8): minimax gives log 4 - 2 JSD (Goodfellow et al. 2014, theorem 1); least squares
    with (a, b) = (0, 1) gives 1/2 sum pq / (p + q)."""
    p, q = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.2, 0.8]).double()
    optimal = p / (p + q)
    draws = 100_000                                       # expectations as exact counts
    real = optimal.repeat_interleave((p * draws).round().long())
    fake = optimal.repeat_interleave((q * draws).round().long())
    mean = (p + q) / 2
    jsd = 0.5 * (p * (p / mean).log()).sum() + 0.5 * (q * (q / mean).log()).sum()
    close(loss.minimax_d(real.logit(), fake.logit()), math.log(4) - 2 * jsd, atol=1e-5)
    close(loss.least_squares_d(real, fake), 0.5 * (p * q / (p + q)).sum(), atol=1e-5)


@pytest.mark.parametrize("logit", [-2.0, -5.0, -10.0, -50.0, -500.0])
def test_the_saturating_gradient_vanishes_when_the_discriminator_wins_and_the_other_does_not(logit: float) -> None:
    """d/dl log(1 - D) = -D and d/dl (-log D) = D - 1, with D = sigmoid(l)."""
    D = 1 / (1 + math.exp(-logit))
    for function, closed_form in ((loss.minimax_g, -D), (loss.non_saturating_g, D - 1)):
        l_fake = torch.tensor([logit], requires_grad=True)
        function(l_fake).backward()  # type: ignore[operator]
        assert l_fake.grad is not None and l_fake.grad.isfinite().all()
        assert math.isclose(float(l_fake.grad), closed_form, rel_tol=1e-5, abs_tol=1e-30)
    assert abs(D) < 0.12 and abs(D - 1) > 0.88


def test_a_generator_behind_a_winning_discriminator_learns_from_the_log_d_trick_only() -> None:
    """Through a discriminator D(x) = sigmoid(w x - 40): the gradients in G's parameter differ by (1 - D) / D."""
    gradients = {}
    for name in ("minimax", "non_saturating"):
        theta = torch.zeros((), requires_grad=True)
        fake = 3.0 * theta - 40.0
        loss.OBJECTIVES[name].g(fake[None], fake[None]).backward()
        gradients[name] = float(theta.grad)  # type: ignore[arg-type]
    assert math.isclose(gradients["minimax"], -3.0 * math.exp(-40.0), rel_tol=1e-4)
    assert math.isclose(gradients["non_saturating"], -3.0, rel_tol=1e-6)


@pytest.mark.parametrize("name", sorted(loss.OBJECTIVES))
def test_every_objective_is_finite_in_half_precision_and_at_extreme_logits(name: str) -> None:
    game = loss.OBJECTIVES[name]
    far = 80.0 if name in ("kl", "reverse_kl", "squared_hellinger") else 300.0                # these bounds are e^v
    real, fake = torch.tensor([far, -far]).bfloat16(), torch.tensor([-far, far]).bfloat16()
    for value in (game.d(real, fake), game.g(fake, real), *game.verdict(real, fake)):
        assert value.isfinite() and value.dtype == torch.float32


def test_verdicts_are_probabilities_comparisons_or_raw_outputs() -> None:
    D_x, D_g = loss.OBJECTIVES["non_saturating"].verdict(REAL, FAKE)
    close(D_x, REAL.sigmoid().mean()), close(D_g, FAKE.sigmoid().mean())
    D_x, D_g = loss.OBJECTIVES["relativistic"].verdict(REAL, FAKE)
    close(D_x + D_g, 1.0), close(D_x, (REAL - FAKE).sigmoid().mean())
    D_x, D_g = loss.OBJECTIVES["wasserstein_gp"].verdict(REAL, FAKE)
    close(D_x, REAL.mean()), close(D_g, FAKE.mean())


def test_the_gradient_penalty_of_a_linear_critic_is_its_slope_less_one_squared() -> None:
    w = torch.randn(3, 4, 4)
    real, fake, eta = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.rand(5)
    found = loss.gradient_penalty(lambda x: (x * w).flatten(1).sum(1), real, fake, eta)
    close(found, (float(w.norm()) - 1) ** 2, atol=1e-4)


def test_the_gradient_penalty_looks_where_eta_says() -> None:
    """f(x) = |x|^2 / 2 has the gradient x: the penalty is E (|eta x + (1 - eta) g| - 1)^2."""
    real, fake, eta = torch.randn(6, 2), torch.randn(6, 2), torch.rand(6)
    found = loss.gradient_penalty(lambda x: x.square().sum(1) / 2, real, fake, eta)
    between = eta[:, None] * real + (1 - eta[:, None]) * fake
    close(found, (between.norm(dim=1) - 1).square().mean(), atol=1e-5)
    only_real = loss.gradient_penalty(lambda x: x.square().sum(1) / 2, real, fake, torch.ones(6))
    close(only_real, (real.norm(dim=1) - 1).square().mean(), atol=1e-5)


def test_the_zero_centred_penalty_is_half_the_mean_squared_gradient_and_trains_the_network() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(7, 2)
    penalty = loss.zero_centred_penalty(lambda v: net(v).flatten(), x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: net(v)[0]))(x)
    close(penalty, jacobian.square().sum(1).mean() / 2, atol=1e-6)
    penalty.backward()
    assert all(p.grad is not None for p in (net[0].weight, net[2].weight)) and net[0].weight.grad.abs().sum() > 0


def test_a_packed_discriminator_is_penalised_for_all_samples_that_it_sees() -> None:
    """f of pairs, f(x1, x2) = a.x1 + b.x2: the squared gradient is |a|^2 + |b|^2, once a pair."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    found = loss.squared_gradient(lambda x: x.reshape(-1, 4) @ torch.cat([a, b]), torch.randn(6, 2))
    close(found, torch.full((3,), 30.0), atol=1e-4)


def test_penalties_are_float32_under_autocast_and_work_without_gradients_outside() -> None:
    net = nn.Linear(4, 1)
    seen: list[torch.dtype] = []

    def judge(x: Tensor) -> Tensor:
        seen.append(net(x).dtype)
        return net(x).flatten()

    x = torch.randn(3, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = loss.zero_centred_penalty(judge, x.bfloat16())
    assert seen == [torch.float32] and found.dtype == torch.float32
    close(found, net.weight.detach().double().square().sum() / 2, atol=1e-6)


def test_clipping_puts_every_parameter_into_the_box_and_leaves_the_others() -> None:
    net = nn.Linear(10, 10)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    loss.clip_weights(net, 0.05)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name].clamp(-0.05, 0.05)) and (p.abs().max() == 0.05)


def test_the_critic_that_maximises_under_the_penalty_measures_the_distance() -> None:
    """Two points 3 apart: the best critic has slope close to 1 between them, and its loss is close to -3."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    nn.init.zeros_(net[2].weight)                        # flat: the penalty has a second well, at the slope -1 + 3/20
    judge: Callable[[Tensor], Tensor] = lambda v: net(v).flatten()  # noqa: E731
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    real, fake = torch.full((64, 1), 1.5), torch.full((64, 1), -1.5)
    for _ in range(400):
        optimizer.zero_grad()
        value = loss.wasserstein_d(judge(real), judge(fake))
        (value + 10 * loss.gradient_penalty(judge, real, fake, torch.rand(64))).backward()
        optimizer.step()
    assert abs(-value.item() - 3 * (1 + 3 / 20)) < 0.1                   # slope 1 + distance / (2 lambda)


DIVERGENCES = sorted(loss.F_DIVERGENCES)
P, Q = (0.5, 1.0), (-0.3, 1.2)
"""Mean and standard deviation of two Gaussians."""


def gaussian(x: Tensor, mean: float, sigma: float) -> Tensor:
    return (-((x - mean) / sigma) ** 2 / 2).exp() / (sigma * math.sqrt(2 * math.pi))


def kl_of_gaussians(p: tuple[float, float], q: tuple[float, float]) -> float:
    (a, s), (b, t) = p, q
    return math.log(t / s) + (s**2 + (a - b) ** 2) / (2 * t**2) - 0.5


def closed_form(name: str) -> float | None:
    """Return D_f(P|Q) of the two Gaussians; None for Jensen-Shannon, which has no closed form."""
    (a, s), (b, t) = P, Q
    affinity = math.sqrt(2 * s * t / (s**2 + t**2)) * math.exp(-((a - b) ** 2) / (4 * (s**2 + t**2)))
    width = 2 * t**2 - s**2                                           # int p^2 / q converges where it is positive
    square = t**2 / (s * math.sqrt(width)) * math.exp((a - b) ** 2 / width)
    return {"kl": kl_of_gaussians(P, Q), "reverse_kl": kl_of_gaussians(Q, P), "pearson": square - 1,
            "squared_hellinger": 2 - 2 * affinity}.get(name)  # fmt: skip


def optimal_output(name: str, log_ratio: Tensor) -> Tensor:
    """Return V with g_f(V) = f'(p/q), solved by hand from the paper's table 1 and 6."""
    return {"kl": 1 + log_ratio, "reverse_kl": log_ratio, "jensen_shannon": log_ratio,
            "pearson": 2 * (log_ratio.exp() - 1), "squared_hellinger": log_ratio / 2}[name]  # fmt: skip


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_conjugate_at_the_activation_is_the_supremum_over_all_ratios(name: str) -> None:
    """f*(t) = sup_u (u t - f(u)) over u > 0 (Nowozin et al. 2016, eq. 2), by brute force."""
    f = loss.F_DIVERGENCES[name]
    assert float(f.divergence(torch.ones(()))) == 0 and abs(float(f.divergence(torch.tensor(0.3)))) > 0.1
    u = torch.logspace(-9, 9, 400_001, dtype=torch.float64)
    for v in torch.tensor([-1.5, -0.4, 0.0, 0.3, 1.2, 2.5], dtype=torch.float64):
        supremum = (u * f.activation(v) - f.divergence(u)).max()
        close(f.conjugate(v), supremum, atol=1e-6)
        best = u[(u * f.activation(v) - f.divergence(u)).argmax()]
        close(f.log_ratio(v), best.log(), atol=2e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_bound_with_the_optimal_discriminator_is_the_divergence_of_two_gaussians_and_no_other_exceeds_it(
    name: str,
) -> None:
    # densities on a grid: the trapezium rule is exact to rounding for such functions
    f = loss.F_DIVERGENCES[name]
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p, q, step = gaussian(x, *P), gaussian(x, *Q), 24 / 200_000
    divergence = float((q * f.divergence(p / q)).sum()) * step
    known = closed_form(name)
    if known is not None:
        assert divergence == pytest.approx(known, abs=1e-9)
    # the bound at the optimal outputs, and at others
    best = optimal_output(name, (p / q).log())

    def bound(v: Tensor) -> float:
        return float((p * f.activation(v) - q * f.conjugate(v)).sum()) * step

    assert bound(best) == pytest.approx(divergence, abs=1e-9)
    for other in (best + 0.1, best - 0.1, 0.9 * best, best + 0.1 * x.sin()):
        assert bound(other) < divergence - 1e-4


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "pearson"])
def test_a_discriminator_that_minimises_its_loss_finds_the_divergence_of_two_gaussians(name: str) -> None:
    """The log ratio of Gaussians is a quadratic, and V is that or half of it: three numbers are enough."""
    f = loss.F_DIVERGENCES[name]
    quantiles = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    unit = math.sqrt(2) * torch.special.erfinv(2 * quantiles - 1)
    real, fake = (mean + sigma * unit for mean, sigma in (P, Q))
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def output(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x), x, x * x], 1) @ weights

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = f.conjugate(output(fake)).mean() - f.activation(output(real)).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    found = -float(loss.OBJECTIVES[name].d(output(real).detach(), output(fake).detach()))
    x = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    p, q = gaussian(x, *P), gaussian(x, *Q)
    assert found == pytest.approx(float((q * f.divergence(p / q)).sum()) * 16 / 100_000, rel=5e-3)


def test_the_settings_offer_every_objective_and_know_which_are_f_divergences() -> None:
    assert set(get_args(AdversarialLoss)) == loss.OBJECTIVES.keys()
    assert tuple(loss.F_DIVERGENCES) == gan.F_DIVERGENCES


def test_jensen_shannon_is_the_game_of_goodfellow_up_to_constants() -> None:
    game = loss.F_DIVERGENCES["jensen_shannon"]
    close(game.d(REAL, FAKE), loss.minimax_d(REAL, FAKE) - 2 * math.log(2))
    close(game.minimax_g(FAKE), loss.minimax_g(FAKE) + math.log(2))
    close(game.non_saturating_g(FAKE), loss.non_saturating_g(FAKE) - math.log(2))
    assert game.verdict(REAL, FAKE) == loss.OBJECTIVES["minimax"].verdict(REAL, FAKE)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_both_losses_of_a_generator_ask_for_larger_outputs_and_the_bound_is_a_game_of_sum_zero(name: str) -> None:
    f, fake = loss.F_DIVERGENCES[name], (FAKE / 3).requires_grad_()
    for objective in (f.objective(saturating=True), f.objective()):
        (gradient,) = torch.autograd.grad(objective.g(fake, fake), fake)
        assert (gradient < 0).all(), gradient
    close(f.d(REAL, FAKE), -f.activation(REAL).mean() - f.objective(saturating=True).g(FAKE, REAL))
    D_x, D_g = f.verdict(optimal_output(name, REAL), optimal_output(name, FAKE))
    close(D_x, REAL.sigmoid().mean(), atol=1e-5), close(D_g, FAKE.sigmoid().mean(), atol=1e-5)
