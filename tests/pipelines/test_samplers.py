"""Generation methods by name: the same images as diffusers' own pipelines, any training, saved and loaded."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from hfgen import AutoPipeline, DDPMPipeline, DDPMScheduler, MLPDenoiser, VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.schedulers.samplers import CLOSED_FORM, SAMPLERS, described, make_sampler
from hfgen.schedulers.vp_rates import RATES
from tests.helpers import seed

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")               # diffusers with numpy 2


@pytest.fixture
def sde_pipeline(make_pipeline):
    """Return a pipeline whose scheduler is the SDE's."""
    pipe = make_pipeline()
    pipe = DDPMPipeline(pipe.unet, VPSDEScheduler(num_train_timesteps=20))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_under_every_training_and_its_noise_does_not_depend_on_the_batch(
    make_pipeline, sde_pipeline, plane_pipeline, name
):
    for pipe in (make_pipeline(), sde_pipeline, plane_pipeline):
        together = list(pipe.states(2, num_steps=6, generator=seed(5, 6), sampler=name))
        alone = list(pipe.states(1, num_steps=6, generator=seed(6), sampler=name))
        assert torch.equal(together[0][1:], alone[0])
        torch.testing.assert_close(together[-1][1:], alone[-1], atol=1e-4, rtol=1e-4)
        assert bool(together[-1].isfinite().all())


def test_ancestral_sampling_by_name_is_the_pipelines_own(make_pipeline):
    pipe = make_pipeline()
    ours = pipe(2, num_steps=7, generator=seed(0), output_type="np").images
    named = pipe(2, num_steps=7, generator=seed(0), output_type="np", sampler="ddpm").images
    np.testing.assert_array_equal(ours, named)
    assert type(pipe.scheduler) is DDPMScheduler and len(pipe.scheduler.timesteps) == 7


def test_a_network_with_a_learned_variance_runs_under_every_sampler(make_pipeline):
    pipe = make_pipeline(out_channels=2, scheduler={"variance_type": "learned_range"})
    plain = make_pipeline()
    with torch.no_grad():
        for key, value in plain.unet.state_dict().items():
            value.copy_(pipe.unet.state_dict()[key][: len(value)] if value.ndim else pipe.unet.state_dict()[key])
    for name in SAMPLERS:
        images = pipe(2, num_steps=4, generator=seed(0), output_type="pt", sampler=name).images
        assert images.shape == (2, 1, 8, 8)
        if name != "ddpm":
            expected = plain(2, num_steps=4, generator=seed(0), output_type="pt", sampler=name).images
            torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_an_sde_pipeline_is_saved_with_its_scheduler_and_comes_back_bit_for_bit(sde_pipeline, tmp_path):
    sde_pipeline.save_pretrained(tmp_path / "saved")
    again = AutoPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is VPSDEScheduler and again.scheduler.config.num_train_timesteps == 20
    images = [p(2, num_steps=5, generator=seed(0), output_type="np").images for p in (sde_pipeline, again)]
    np.testing.assert_array_equal(*images)
    assert (tmp_path / "saved/pipeline.py").exists() and (tmp_path / "saved/scheduler/hfgen_shim.py").exists()


def test_a_ddpm_checkpoint_runs_under_the_sde_and_back(make_pipeline):
    pipe = make_pipeline(scheduler={"beta_end": 0.3})
    ours = pipe(3, num_steps=20, generator=seed(0), output_type="pt").images
    sde = DDPMPipeline(pipe.unet, VPSDEScheduler.from_config(pipe.scheduler.config))
    sde.set_progress_bar_config(disable=True)
    more = sde(3, num_steps=60, generator=seed(0), output_type="pt").images              # more steps than training
    assert more.shape == ours.shape
    back = DDPMPipeline(pipe.unet, DDPMScheduler.from_config(sde.scheduler.config))
    back.set_progress_bar_config(disable=True)
    again = back(3, num_steps=20, generator=seed(0), output_type="pt").images
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)


def test_usual_steps_are_those_of_the_table_and_never_more_than_there_are(make_pipeline, sde_pipeline):
    pipe = make_pipeline()
    assert len(list(pipe.states(sampler="ddim"))) == 20 + 1
    assert len(list(pipe.states(sampler="ode_heun"))) == min(20, SAMPLERS["ode_heun"].steps) * 2 + 2
    assert len(list(sde_pipeline.states(num_steps=33))) == 33 + 2


def test_given_latents_take_the_place_of_noise(make_pipeline):
    pipe, x_T = make_pipeline(), torch.randn(2, 1, 8, 8, generator=seed(4))
    ours = pipe(2, num_steps=5, generator=seed(9), output_type="pt", sampler="ode_euler", latents=x_T).images
    drawn = pipe(2, num_steps=5, generator=seed(4), output_type="pt", sampler="ode_euler").images
    torch.testing.assert_close(ours, drawn)


def test_classes_reach_the_network_under_every_sampler(make_pipeline):
    pipe = make_pipeline(unet=MLPDenoiser(num_class_embeds=2).eval())
    for name in SAMPLERS:
        first, second = (
            pipe(8, num_steps=5, class_labels=label, generator=seed(0), sampler=name).images for label in (0, 1)
        )
        assert np.abs(first - second).max() > 1e-5, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim"),
        ({"sampler": "ddim", "eta": 1.5}, r"eta .*\[0, 1\], got 1.5"),
        ({"eta": 0.5}, "eta is the noise of DDIM: DDPMScheduler has none"), ({"sampler": "ddim", "eta": True}, "eta"),
        ({"sampler": "ddpm", "num_steps": 21}, r"num_steps must be an int in \[1, 20\]"),
        ({"sampler": "dpmpp_2m", "eta": 0.5}, "eta is the noise of DDIM: VPSDEScheduler has none"),
        ({"sampler": "ode_heun", "num_steps": 0}, "num_steps"),
        ({"latents": torch.zeros(2, 1, 8, 9)}, r"latents must be a tensor of shape \[2, 1, 8, 8\], got \[2, 1, 8, 9\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(make_pipeline, arguments, words):
    with pytest.raises(ConfigError, match=words):
        make_pipeline()(**arguments)


@pytest.mark.parametrize(
    "settings",
    [{"beta_schedule": "scaled_linear"}, {"beta_schedule": "sigmoid"}, {"trained_betas": [0.1] * 20},
     {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}],
)  # fmt: skip
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_the_noise_levels_of_every_schedule_at_whole_timesteps(settings, name):
    trained = DDPMScheduler(num_train_timesteps=20, **settings)
    sampler = make_sampler(name, trained)
    x_0, eps, t = torch.ones(20, 1), torch.full((20, 1), 2.0), torch.arange(20)
    torch.testing.assert_close(sampler.add_noise(x_0, eps, t), trained.add_noise(x_0, eps, t), atol=1e-5, rtol=0)
    sampler.set_timesteps(7)
    x = torch.randn(2, 1, 8, 8, generator=seed(0))
    for timestep in sampler.timesteps.tolist():
        x = sampler.step(torch.zeros_like(x), timestep, x).prev_sample
        assert bool(x.isfinite().all())


def test_a_scheduler_without_a_table_of_noise_levels_is_refused_by_name():
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler has no table of noise levels"):
        make_sampler("ode_heun", diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_samplers_by_name_take_their_noise_levels_from_any_stock_scheduler(kind):
    stock = getattr(diffusers, kind)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    sampler, t = make_sampler("dpmpp_2m", stock), torch.arange(1000)
    signal = sampler.gamma(sampler.time_of(t)).float()
    torch.testing.assert_close(signal, stock.alphas_cumprod.sqrt(), atol=1e-5, rtol=0)


def test_the_table_names_schedulers_that_exist_with_settings_that_they_have():
    for name, sampler in SAMPLERS.items():
        scheduler = make_sampler(name, DDPMScheduler())
        assert type(scheduler).__name__ == sampler.scheduler and name in described()
        assert sampler.settings.keys() <= inspect.signature(type(scheduler).__init__).parameters.keys()


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_as_many_steps_as_timesteps_are_refused_where_a_stock_scheduler_would_visit_one_twice(kind: str) -> None:
    pipe = DDPMPipeline(MLPDenoiser(), DDPMScheduler(num_train_timesteps=50, clip_sample=False))
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, lambda_min_clipped=-5.1)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ConfigError, match=r"num_steps must be smaller with .*MultistepScheduler, got 50"):
        pipe(2, num_steps=50)
    assert pipe(2, num_steps=48, output_type="pt").images.isfinite().all()


def test_the_schedules_with_a_closed_form_are_those_of_the_continuous_rates():
    assert set(CLOSED_FORM) == set(RATES)
    for name, rate in RATES.items():
        assert type(make_sampler("dpmpp_2m", DDPMScheduler(beta_schedule=name)).rate) is rate
