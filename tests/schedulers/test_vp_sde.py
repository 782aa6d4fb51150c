"""The VP-SDE in closed form: against quadrature, against DDPM's tables, and its own inverses; what is refused."""

import diffusers
import pytest
import torch

from hfgen import DDPMScheduler, VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.schedulers.vp_rates import Rate

SCHEDULES = ["linear", "squaredcos_cap_v2"]
TIMES = torch.linspace(0.001, 0.997, 250, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_integral_in_closed_form_is_that_by_quadrature(schedule):
    rate = VPSDEScheduler(beta_schedule=schedule).rate
    torch.testing.assert_close(rate.integral(TIMES), Rate.integral(rate, TIMES), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_inverse_in_closed_form_is_the_inverse_and_that_by_bisection(schedule):
    rate = VPSDEScheduler(beta_schedule=schedule).rate
    B = rate.integral(TIMES[::25])
    torch.testing.assert_close(rate.inverse(B), TIMES[::25], atol=1e-9, rtol=0)
    torch.testing.assert_close(Rate.inverse(rate, B), TIMES[::25], atol=1e-9, rtol=0)
    end = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(rate.inverse(rate.integral(end)), end, atol=1e-9, rtol=0)


def test_the_linear_rate_goes_from_a_tenth_to_twenty_and_its_gamma_is_the_papers():
    """Song et al. 2021, appendix C, eq. 33: gamma_t = exp(-t^2 (b_1 - b_0) / 4 - t b_0 / 2)."""
    sde = VPSDEScheduler()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.rate.beta(ends), ends.new_tensor([0.1, 20.0]), atol=1e-12, rtol=0)
    gamma = (-TIMES.square() * 19.9 / 4 - TIMES * 0.1 / 2).exp()
    torch.testing.assert_close(sde.gamma(TIMES), gamma, atol=1e-12, rtol=0)
    torch.testing.assert_close(sde.sigma(TIMES).square() + gamma.square(), torch.ones_like(gamma), atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_noise_at_whole_timesteps_is_that_of_ddpm(schedule):
    ours, ddpm = VPSDEScheduler(beta_schedule=schedule), DDPMScheduler(beta_schedule=schedule)
    t = torch.arange(1000)
    signal = ours.gamma(ours.time_of(t))
    torch.testing.assert_close(signal, ddpm.alpha_bar.sqrt(), atol=2e-3, rtol=0)
    exact = ours.discretised()
    torch.testing.assert_close(exact.alpha_bar.sqrt(), signal, atol=1e-12, rtol=0)
    x_0, eps = torch.randn(2, 4, 1, 8, 8)
    for method in ("add_noise", "get_velocity"):
        a, b = (getattr(s, method)(x_0, eps, torch.tensor([0, 10, 500, 999])) for s in (ours, exact))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_predictions_noise_score_and_tweedies_mean_say_the_same(kind):
    sde, t = VPSDEScheduler(prediction_type=kind), torch.tensor([0.5, 77.25, 500.0, 990.0])
    x_0, eps = torch.randn(2, 4, 2, dtype=torch.float64)
    x_t = sde.add_noise(x_0, eps, t)
    output = {"epsilon": eps, "sample": x_0, "v_prediction": sde.get_velocity(x_0, eps, t)}[kind]
    sigma, gamma = sde.sigma(sde.time_of(t))[:, None], sde.gamma(sde.time_of(t))[:, None]
    torch.testing.assert_close(sde.predict_x0(output, t, x_t), x_0, atol=1e-9, rtol=0)
    torch.testing.assert_close(sde.predict_eps(output, t, x_t), eps, atol=1e-9, rtol=0)
    score = sde.score(output, t, x_t)
    torch.testing.assert_close(score, -eps / sigma, atol=1e-9, rtol=0)
    torch.testing.assert_close((x_t + sigma**2 * score) / gamma, x_0, atol=1e-9, rtol=0)
    one = sde.score(output[:1], 0.5, x_t[:1])
    torch.testing.assert_close(one, score[:1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t_min", [1e-3, 1e-5])
def test_importance_sampling_draws_times_with_the_density_of_the_likelihood_weight(schedule, t_min):
    sde = VPSDEScheduler(beta_schedule=schedule, t_min=t_min)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t = sde.time_drawn(u, importance=True)
    mass = torch.cumulative_trapezoid(sde.likelihood_weight(t), t) / (1 - t_min)
    torch.testing.assert_close(mass, u[1:] - u[0], atol=1e-4, rtol=0)                 # the density's integral is u
    uniform = sde.time_drawn(u)
    assert float(uniform.min()) >= t_min and float(uniform.max()) <= 1
    assert torch.equal(sde.time_drawn(torch.zeros(1)), torch.tensor([t_min], dtype=torch.float64))
    back = sde.time_of(sde.timestep_of(t))
    torch.testing.assert_close(back, t, atol=1e-12, rtol=0)


def test_timesteps_span_those_of_training_and_each_method_evaluates_as_often_as_it_says():
    for method, per_step in (("reverse_sde", 1), ("ode_euler", 1), ("ode_heun", 2), ("predictor_corrector", 3)):
        sde = VPSDEScheduler(method=method, corrector_steps=2)
        assert sde.order == per_step
        sde.set_timesteps(7)
        assert len(sde.timesteps) == 7 * per_step + 1
        assert sde.timesteps[0] == 999 and sde.timesteps[-1] == 0
        assert bool((sde.timesteps.diff() <= 0).all())
    spaced = VPSDEScheduler(spacing="linspace", denoise=False)
    spaced.set_timesteps(9)
    torch.testing.assert_close(spaced.timesteps.diff(), torch.full((8,), -111.0), atol=1e-3, rtol=0)


def test_settings_travel_to_and_from_schedulers_of_diffusers():
    stock = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100, beta_end=0.03)
    ours = VPSDEScheduler.from_config(stock.config)
    assert (ours.config.beta_schedule, len(ours), ours.t_min) == ("squaredcos_cap_v2", 100, 0.01)
    back = DDPMScheduler.from_config(ours.config)
    torch.testing.assert_close(back.betas, stock.betas, atol=1e-6, rtol=0)


def test_steps_keep_the_dtype_and_a_sample_with_its_own_generator_does_not_depend_on_the_batch():
    for method in ("reverse_sde", "predictor_corrector"):
        sde = VPSDEScheduler(method=method)
        sde.set_timesteps(3)
        x, eps = torch.randn(2, 4, 1, 8, 8)
        seeded = [torch.Generator().manual_seed(i) for i in range(4)]
        together = sde.step(eps, 999.0, x, generator=seeded).prev_sample
        sde.set_timesteps(3)
        alone = sde.step(eps[2:3], 999.0, x[2:3], generator=[torch.Generator().manual_seed(2)])[0]
        assert torch.equal(together[2:3], alone) and together.dtype == torch.float32
        sde.set_timesteps(3)
        half = sde.step(eps.bfloat16(), 999.0, x.bfloat16(), generator=torch.Generator().manual_seed(0))
        assert half.prev_sample.dtype == half.pred_original_sample.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta_schedule": "steps"}, "beta_schedule must be one of linear, scaled_linear, .*, got 'steps'"),
        ({"method": "rk4"}, "method must be one of reverse_sde"), ({"spacing": "leading"}, "spacing must be one of"),
        ({"prediction_type": "flow"}, "prediction_type"), ({"num_train_timesteps": 1}, "num_train_timesteps"),
        ({"t_min": 0.0}, "t_min"), ({"corrector_steps": 0}, "corrector_steps"), ({"corrector_snr": 2}, "corrector_snr"),
        ({"beta_start": float("nan")}, "beta_start"), ({"lambda_min_clipped": 3}, "lambda_min_clipped"),
        ({"trained_betas": [0.1, 0.2, 1.5]}, r"betas must be .* in \(0, 1\]"),
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused_by_name(settings, words):
    with pytest.raises(ConfigError, match=words):
        VPSDEScheduler(**settings)


def test_steps_out_of_order_and_inverting_noise_are_refused():
    sde, x = VPSDEScheduler(), torch.zeros(1, 2)
    sde.set_timesteps(5)
    with pytest.raises(ConfigError, match="timestep 3 is not the next, 999"):
        sde.step(x, 3, x)
    with pytest.raises(ConfigError, match="only ode_euler and ode_heun"):
        sde.set_timesteps(5, inverse=True)
    with pytest.raises(ConfigError, match="num_inference_steps"):
        sde.set_timesteps(0)
