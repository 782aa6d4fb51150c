"""Processes with any drift and diffusion: stationary densities, orders of the steps, and the uses of both."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from hfgen import VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.schedulers.langevin import langevin, langevin_process, langevin_step
from hfgen.schedulers.processes import Process, one_step, ornstein_uhlenbeck, simulate, stationary_density

EDGES = torch.linspace(-3, 3, 31, dtype=torch.float64)
FINE = torch.linspace(-30, 30, 30_001, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student(x: Tensor) -> Tensor:
    """Return Student's density of 5 degrees of freedom, with scale 1 / sqrt(5): 8 / (3 pi (1 + x^2)^3)."""
    return 8 / (3 * math.pi * (1 + x**2) ** 3)


def two_wells(x: Tensor) -> Tensor:
    p = (-((x**2 - 1) ** 2)).exp()
    return p / torch.trapezoid((-((FINE**2 - 1) ** 2)).exp(), FINE)


def normal(x: Tensor, mean: float, variance: float) -> Tensor:
    return (-((x - mean) ** 2) / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)


PROCESSES = {
    "Ornstein-Uhlenbeck": (ornstein_uhlenbeck(2.0, 0.5, 0.8), lambda x: normal(x, 0.5, 0.4)),
    "Langevin in two wells": (langevin_process(lambda x: -4 * x * (x**2 - 1)), two_wells),
    # int f/D = -2 log(1 + x^2), and 1/D adds one power
    "a diffusion that grows with x": (Process(lambda x, t: -x, lambda x, t: 0.25 * (1 + x**2)), student),
}


def distance(x: Tensor, density: Tensor) -> float:
    """Return the total variation distance between a histogram of x and a density on FINE."""
    centres = torch.bucketize(FINE, EDGES)
    mass = density * (FINE[1] - FINE[0])
    expected = torch.zeros(len(EDGES) + 1, dtype=torch.float64).index_add(0, centres, mass)
    counts = torch.bincount(torch.bucketize(x, EDGES), minlength=len(EDGES) + 1)
    return float((counts / len(x) - expected).abs().sum() / 2)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_closed_form_of_the_stationary_density_is_that_of_known_processes(name: str) -> None:
    process, density = PROCESSES[name]
    torch.testing.assert_close(stationary_density(process, FINE), density(FINE), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["milstein", "euler_maruyama"])
@pytest.mark.parametrize("name", PROCESSES)
def test_histograms_of_simulated_states_are_the_stationary_density(name: str, method: str) -> None:
    process, density = PROCESSES[name]
    count, start = 20_000, torch.randn(20_000, dtype=torch.float64, generator=generator())
    *_, x = simulate(process, start, 400, 0.01, generator(1), method)
    # noise of the counts, E|n - np| ~ sqrt(2 np / pi) in each of 32 bins, and the error of the step
    assert distance(x, density(FINE)) < 0.5 * math.sqrt(2 * 32 / (math.pi * count)) + 0.012


def test_the_noise_is_that_of_ito_and_not_of_stratonovich() -> None:
    process, density = PROCESSES["a diffusion that grows with x"]
    stratonovich = density(FINE) * (1 + FINE**2).sqrt()                          # ~ D^-1/2 exp(int f/D)
    stratonovich = stratonovich / torch.trapezoid(stratonovich, FINE)
    start = torch.randn(20_000, dtype=torch.float64, generator=generator())
    *_, x = simulate(process, start, 300, 0.02, generator(1))
    assert distance(x, stratonovich) > 0.05 > 3 * distance(x, density(FINE))


def test_the_states_have_the_exact_moments_of_the_discrete_chain() -> None:
    rate, mean, D, eta, steps = 1.5, 2.0, 0.7, 0.2, 7
    x = torch.full((100_000,), -1.0, dtype=torch.float64)
    *_, x = simulate(ornstein_uhlenbeck(rate, mean, D), x, steps, eta, generator())
    a = 1 - rate * eta
    variance = 2 * eta * D * (1 - a ** (2 * steps)) / (1 - a**2)
    assert float(x.mean()) == pytest.approx(mean + a**steps * (-1 - mean), abs=4 * (variance / 100_000) ** 0.5)
    assert float(x.var()) == pytest.approx(variance, rel=4 * (2 / 100_000) ** 0.5)


@pytest.mark.parametrize(("method", "order"), [("milstein", 1.0), ("euler_maruyama", 0.5)])
def test_the_strong_order_on_geometric_brownian_motion_is_1_of_milstein_and_one_half_of_euler(
    method: str, order: float
) -> None:
    mu, sigma, finest = 0.5, 0.8, 512
    process = Process(lambda x, t: mu * x, lambda x, t: sigma**2 * x**2 / 2)
    z = torch.randn(finest, 2000, dtype=torch.float64, generator=generator())
    # exact at t = 1: exp((mu - sigma^2 / 2) + sigma W)
    exact = (mu - sigma**2 / 2 + sigma * z.sum(0) / finest**0.5).exp()
    errors = []
    for steps in (16, 32, 64, 128, 256, 512):
        # the same path in larger steps
        increments = z.view(steps, finest // steps, -1).sum(1) / (finest // steps) ** 0.5
        x = torch.ones_like(exact)
        for step in range(steps):
            x = one_step(process, x, step / steps, 1 / steps, increments[step], method)
        errors.append(float((x - exact).abs().mean()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert sum(slopes) / len(slopes) == pytest.approx(order, abs=0.1)


def test_milstein_and_euler_are_the_same_bits_where_the_diffusion_does_not_depend_on_the_state() -> None:
    for diffusion in (0.3, lambda x, t: 0.1 + t, lambda x, t: torch.full_like(x, 0.2)):
        process = Process(lambda x, t: torch.sin(x), diffusion)
        start = torch.randn(5, 3, generator=generator())
        ends = [list(simulate(process, start, 6, 0.1, generator(1), method))[-1]
                for method in ("milstein", "euler_maruyama")]  # fmt: skip
        assert torch.equal(*ends)


def test_steps_of_langevin_and_of_the_reverse_process_keep_their_bits() -> None:
    x, score, z = torch.randn(3, 4, 2, generator=generator())
    assert torch.equal(langevin_step(x, score, 0.03, z), x + 0.03 * score + (2 * 0.03) ** 0.5 * z)
    sde = VPSDEScheduler()
    s, t = sde.levels([0.6, 0.5])
    dB = 2 * math.log(t.gamma / s.gamma)
    assert torch.equal(sde._reverse_sde(score, s, t, x, z), x + (x / 2 + score) * dB + z * dB**0.5)
    # the walk draws one noise after the other
    draws, expected = generator(4), [x]
    for _ in range(3):
        noise = torch.randn(x.shape, generator=draws)
        expected.append(expected[-1] + 0.1 * -expected[-1] + (2 * 0.1) ** 0.5 * noise)
    assert torch.equal(torch.stack(list(langevin(lambda x: -x, x, 3, 0.1, generator(4)))), torch.stack(expected))


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_the_forward_process_of_diffusion_has_the_marginals_of_the_scheduler(schedule: str) -> None:
    sde = VPSDEScheduler(beta_schedule=schedule)
    x = torch.full((20_000,), 0.7, dtype=torch.float64)
    *_, x = simulate(sde.forward_process(), x, 800, 0.8 / 800, generator())
    gamma, sigma = (float(value) for value in (sde.gamma(torch.tensor(0.8)), sde.sigma(torch.tensor(0.8))))
    assert float(x.mean()) == pytest.approx(0.7 * gamma, abs=4 * sigma / 20_000**0.5 + 2e-3)
    assert float(x.std()) == pytest.approx(sigma, rel=4 / 40_000**0.5 + 2e-3)


def test_the_reverse_process_of_diffusion_leads_noise_to_gaussian_data() -> None:
    sde, mean, std = VPSDEScheduler(), 0.4, 0.3

    def score(x: Tensor, t: float) -> Tensor:
        gamma = float(sde.gamma(torch.tensor(t, dtype=torch.float64)))
        return -(x - gamma * mean) / (1 + gamma**2 * (std**2 - 1))

    x = torch.randn(20_000, dtype=torch.float64, generator=generator())
    *_, x = simulate(sde.reverse_process(score), x, 1000, 1e-3, generator(1))
    assert float(x.mean()) == pytest.approx(mean, abs=4 * std / 20_000**0.5 + 5e-3)
    assert float(x.std()) == pytest.approx(std, rel=0.04)


def test_each_sample_has_its_own_noise_whatever_the_batch() -> None:
    process, x = PROCESSES["a diffusion that grows with x"][0], torch.randn(3, 2, generator=generator())
    *_, whole = simulate(process, x, 5, 0.1, [generator(seed) for seed in range(3)])
    *_, last = simulate(process, x[2:], 5, 0.1, [generator(2)])
    torch.testing.assert_close(whole[2:], last, atol=1e-6, rtol=0)


def test_a_diffusion_of_several_entries_is_refused_by_milstein_and_walked_by_euler() -> None:
    x = torch.randn(4, 2, generator=generator())
    mixed = Process(lambda x, t: -x, lambda x, t: 1 + x.flip(1) ** 2)
    for diffusion, message in (
        (mixed.diffusion, "an entry depends on other entries"),
        (lambda x, t: x.square().sum(1, keepdim=True), "diffusion must have the shape of x"),
    ):
        process = Process(lambda x, t: -x, diffusion)
        with pytest.raises(ConfigError, match=message):
            list(simulate(process, x, 2, 0.1))
        assert list(simulate(process, x, 2, 0.1, method="euler_maruyama"))[-1].isfinite().all()
    for wrong in ({"method": "heun"}, {"num_steps": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            list(simulate(mixed, x, **{"num_steps": 2, "step_size": 0.1, **wrong}))
