"""Each sampler's steps against diffusers' own on the same noise levels, and the estimates of x_0 that they clip."""

import diffusers
import pytest
import torch

from hfgen import DDPMScheduler, VPSDEScheduler
from hfgen.schedulers.samplers import SAMPLERS, betas_of, make_sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")               # diffusers with numpy 2

STOCK = {
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"lower_order_final": False, "final_sigmas_type": "zero"}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False, "final_sigmas_type": "zero"},
    ),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "lower_order_final": False, "final_sigmas_type": "zero"}),
}  # fmt: skip


def predict(x: torch.Tensor) -> torch.Tensor:
    """Return some smooth function of the state in the place of a network's eps."""
    return torch.tanh(1.7 * x) + 0.3 * x.cos()


def follow(scheduler, x, **choices):
    """Return every state from x on."""
    found = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(predict(x), timestep, x, **choices).prev_sample
        found.append(x)
    return found


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", STOCK)
def test_multistep_samplers_equal_those_of_diffusers_at_every_step(name, schedule):
    kind, settings = STOCK[name]
    trained = DDPMScheduler(beta_schedule=schedule, clip_sample=False)
    ours = make_sampler(name, trained)
    ours.set_timesteps(12)
    stock = getattr(diffusers, kind).from_config(trained.config, variance_type=None, **settings)
    stock.set_timesteps(12)
    levels = [(stage.s.sigma / stage.s.gamma) for stage in ours._stages]
    stock.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
    stock.timesteps = torch.arange(12, 0, -1)                            # names of the steps: all that stock needs
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    choices = [{"generator": torch.Generator().manual_seed(1)} if "sde" in name else {} for _ in range(2)]
    states = zip(follow(ours, x, **choices[0]), follow(stock, x, **choices[1]), strict=True)
    for mine, theirs in list(states)[:-1]:                               # at sigma = 0 stock's UniPC is infinite
        scale = max(1.0, float(theirs.abs().max()))                      # with noise, from a bad predictor, up to 1e4
        torch.testing.assert_close(mine / scale, theirs / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_equals_that_of_diffusers_at_every_step(eta, clip):
    trained = DDPMScheduler(beta_schedule="squaredcos_cap_v2" if clip else "linear", clip_sample=clip)
    table = {"trained_betas": betas_of(trained), "spacing": "linspace", "lambda_min_clipped": None}
    ours = VPSDEScheduler.from_config(make_sampler("ddim", trained).config, **table)
    ours.set_timesteps(28)                                               # 999, 962, ..., 0
    stock = diffusers.DDIMScheduler.from_config(trained.config)
    stock.set_timesteps(27)                                              # 37 timesteps a step
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    x = y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for timestep in ours.timesteps.tolist():
        x = ours.step(predict(x), timestep, x, eta=eta, generator=generators[0]).prev_sample
        choices = {"eta": eta, "generator": generators[1], "use_clipped_model_output": True}
        y = stock.step(predict(y), round(timestep), y, **choices).prev_sample
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)           # stock's tables are float32


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ddpm"])
def test_every_estimate_of_x_0_is_clipped_where_training_says_so(name):
    sampler = make_sampler(name, DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample_range=0.5))
    sampler.set_timesteps(10)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for timestep in sampler.timesteps.tolist():
        x, x_0 = sampler.step(torch.zeros_like(x), timestep, x, return_dict=False)
        assert float(x_0.abs().max()) <= 0.5
    assert float(x.abs().max()) <= 0.5


def test_a_small_error_at_the_noisiest_times_does_not_reach_the_samples():
    """An eps that is off by 0.03 at the end of the cosine schedule, as trained networks are, moves x_0 by 30 there."""
    for name, sampler in SAMPLERS.items():
        scheduler = make_sampler(name, DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
        scheduler.set_timesteps(min(sampler.steps, 100))
        generator = torch.Generator().manual_seed(0)
        noisy = name in ("ddpm", "dpmpp_2m_sde", "reverse_sde", "predictor_corrector")
        choices = {"generator": generator} if noisy else {}
        x = torch.randn(2000, 1, generator=generator)
        for timestep in scheduler.timesteps.tolist():
            alpha_bar = float(scheduler.snr(timestep) / (1 + scheduler.snr(timestep)))
            eps = (1 - alpha_bar) ** 0.5 * x / (alpha_bar * 0.09 + 1 - alpha_bar)
            error = 0.03 if timestep > 900 else 0.0
            x = scheduler.step(eps + error, timestep, x, **choices).prev_sample
        assert abs(float(x.mean())) < 0.1 and abs(float(x.std()) - 0.3) < 0.05, (name, x.mean(), x.std())


@pytest.mark.parametrize("method", ["dpmpp_2m", "unipc", "ddim", "ode_euler", "ode_heun"])
def test_only_networks_that_amplify_errors_of_eps_start_late(method):
    def start(**settings):
        trained = DDPMScheduler(beta_schedule="squaredcos_cap_v2", **settings)
        return make_sampler(method, trained).config.lambda_min_clipped

    assert start(clip_sample=True) is None                         # images: their brightness is decided before
    assert start(clip_sample=False, prediction_type="v_prediction") is None
    assert start(clip_sample=False) == -3.5
