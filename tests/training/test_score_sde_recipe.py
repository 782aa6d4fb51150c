"""The score-SDE recipe: exact like all others, weighted as the paper says; and DDPM's learned variance."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hfgen import AutoPipeline, DDPMScheduler, VPSDEScheduler
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.schedulers.reverse import vlb_term
from hfgen.training import ddpm, score_sde
from hfgen.training.engine import state
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.noise import Noise
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import DDPM, SCORE_SDE

Train = Callable[..., Any]


def test_a_stopped_run_resumes_to_the_bits_of_the_uninterrupted_one(tmp_path: Path, start: Train, train: Train) -> None:
    arguments = ("--max-steps", "30", "--save-every", "10")
    train(tmp_path / "whole", *arguments, recipe="score_sde")
    process = start(tmp_path / "stopped", *arguments, recipe="score_sde")
    wait_for_step(tmp_path / "stopped", 12, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    train(tmp_path / "stopped", "--resume", recipe="score_sde")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    pipeline = AutoPipeline.from_pretrained(tmp_path / "stopped")
    assert type(pipeline.scheduler) is VPSDEScheduler and pipeline.scheduler.t_min == 1e-3


def test_two_processes_give_the_losses_of_one(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "10", "--importance-sampling", "--weighting", "likelihood")
    train(tmp_path / "one", *arguments, recipe="score_sde")
    done = train(tmp_path / "two", *arguments, processes=2, recipe="score_sde")
    assert "2 process(es)" in done.stdout
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5, (a, b)


@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_importance_sampling_leaves_the_expected_loss_as_it_is(weighting: str, schedule: str) -> None:
    sde = VPSDEScheduler(beta_schedule=schedule)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    found = []
    for importance in (False, True):
        settings = score_sde.ScoreSDESettings(
            output_dir=Path("unused"), weighting=weighting, importance_sampling=importance  # type: ignore[arg-type]
        )
        t = sde.time_drawn(u, importance)
        error = sde.sigma(t) * (1 + t)                         # a smooth error of the noise, as a function of time
        weights = score_sde.time_weights(settings, sde, t)
        assert abs(float(weights.mean()) - 1) < 2e-3
        found.append(float((weights * error).mean()))
    assert abs(found[0] / found[1] - 1) < 2e-3, found


def test_the_simple_weighting_is_the_loss_of_the_noise_at_uniform_times() -> None:
    trained = SCORE_SDE.engine()
    phase, batch = trained.recipe.phases[0], {"x": load_dataset("digits").tensor(16)}
    noise = Noise((0, 3, "score_sde", 0), 16, slice(0, 16))
    loss, _ = phase.loss(trained.nets, batch, noise, {})
    sde = VPSDEScheduler(beta_schedule="squaredcos_cap_v2")
    t, eps = noise.stratified("t").double() * 0.999 + 0.001, noise.normal("eps", 1, 8, 8)
    gamma, sigma = (f(t).float()[:, None, None, None] for f in (sde.gamma, sde.sigma))
    x_t = gamma * batch["x"] + sigma * eps
    with torch.no_grad():
        predicted = trained.nets["unet"](x_t, ((t - 0.001) / 0.999 * 999).float()).sample
    torch.testing.assert_close(loss, (predicted - eps).square().mean(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
def test_every_weighting_is_of_the_noise_whatever_is_predicted(weighting: str, importance: bool) -> None:
    batch, losses = {"x": load_dataset("digits").tensor(16)}, []
    for kind in ("epsilon", "v_prediction", "sample"):
        choices = {"weighting": weighting, "importance_sampling": importance, "prediction_type": kind}
        phase = SCORE_SDE.engine(**choices).recipe.phases[0]

        def meaning_the_same(x_t: torch.Tensor, timestep: torch.Tensor, kind: str = kind) -> SimpleNamespace:
            sde = VPSDEScheduler(beta_schedule="squaredcos_cap_v2")
            t = sde.time_of(timestep)
            gamma, sigma = (f(t)[:, None, None, None] for f in (sde.gamma, sde.sigma))
            eps, x = x_t.double().sin(), x_t.double()
            x_0 = (x - sigma * eps) / gamma
            return SimpleNamespace(sample={"epsilon": eps, "v_prediction": gamma * eps - sigma * x_0}.get(kind, x_0))

        noise = Noise((0, 3, "score_sde", 0), 16, slice(0, 16))
        losses.append(phase.loss({"unet": meaning_the_same}, batch, noise, {})[0])  # type: ignore[dict-item]
    torch.testing.assert_close(losses[1:], losses[:1] * 2, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("recipe", "shape", "given", "found"), [
    (score_sde, (2,), {}, "v_prediction"), (score_sde, (2,), {"prediction_type": "epsilon"}, "epsilon"),
    (score_sde, (1, 8, 8), {}, "epsilon"), (score_sde, (1, 28, 28), {}, "v_prediction"),
    (ddpm, (2,), {}, "epsilon"), (ddpm, (1, 8, 8), {}, "epsilon"), (ddpm, (3, 16, 8), {}, "v_prediction"),
    (ddpm, (3, 16, 16), {"weighting": "vlb"}, "epsilon"), (ddpm, (3, 64, 64), {"weighting": "min_snr"}, "v_prediction"),
    (ddpm, (3, 16, 16), {"prediction_type": "epsilon"}, "epsilon"),
])  # fmt: skip
def test_large_images_are_denoised_by_their_velocity_unless_said_otherwise(
    recipe: Any, shape: tuple[int, ...], given: dict[str, Any], found: str
) -> None:
    asked = recipe.RECIPE.settings(output_dir=Path("unused"), **given)
    assert recipe.RECIPE.recommended(asked, SimpleNamespace(shape=shape)).prediction_type == found


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("weighting", ["simple", "likelihood"])
def test_every_weighting_learns(weighting: str, importance: bool) -> None:
    trained = SCORE_SDE.engine(weighting=weighting, importance_sampling=importance)
    sde, t = VPSDEScheduler(beta_schedule="squaredcos_cap_v2"), torch.linspace(300, 700, 100)
    x_0, eps = load_dataset("digits").tensor(100), torch.randn(100, 1, 8, 8)

    def error() -> float:
        with torch.no_grad():
            return float((trained.nets["unet"](sde.add_noise(x_0, eps, t), t).sample - eps).square().mean())

    before = error()
    list(trained.train(0, 20, 20))
    assert error() < 0.8 * before


def test_points_train_and_samplers_of_all_kinds_land_on_the_modes() -> None:
    settings = score_sde.ScoreSDESettings(
        output_dir=Path("unused"), dataset="ring8", block_out_channels=(128,), layers_per_block=3, batch_size=256,
        max_steps=1500, learning_rate=2e-3,
    )  # fmt: skip
    dataset: Any = load_dataset("ring8")
    trained = Engine(settings, score_sde.RECIPE.create, dataset, Accelerator(cpu=True))
    list(trained.train(0, 1500, 1500))
    nets = state.served_networks(trained.nets, trained.averages)
    pipeline = trained.recipe.pipeline({name: net.eval() for name, net in nets.items()})
    pipeline.set_progress_bar_config(disable=True)
    for name, steps in (("reverse_sde", 200), ("ode_heun", 25), ("ddim", 50), ("predictor_corrector", 100)):
        generator = torch.Generator().manual_seed(0)
        points = pipeline(500, num_steps=steps, generator=generator, output_type="pt", sampler=name).images
        distance, nearest = torch.cdist(points, dataset.modes).min(1)
        close = distance < 0.15
        assert close.float().mean() > 0.9, (name, close.float().mean())
        assert len(set(nearest[close].tolist())) == 8


# DDPM's learned variance (Nichol and Dhariwal 2021)


def test_the_bound_trains_the_variance_and_leaves_the_mean_to_the_simple_loss() -> None:
    gradients = []
    for weight in (0.0, 10.0):
        hybrid = DDPM.engine(variance_type="learned_range", vlb_weight=weight)
        net = hybrid.nets["unet"]
        with torch.no_grad():
            net.conv_out.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, operator]
        assert hybrid.recipe.phases[0].loss.levels == 17                        # type: ignore[attr-defined]  # of digits
        noise = Noise((0, 3, "ddpm", 0), 16, slice(0, 16))
        hybrid.recipe.phases[0].loss(hybrid.nets, {"x": load_dataset("digits").tensor(16)}, noise, {})[0].backward()
        gradients.append(net.conv_out.weight.grad)  # type: ignore[union-attr]
    assert gradients[0].shape[0] == 2
    torch.testing.assert_close(gradients[0][0], gradients[1][0], atol=1e-7, rtol=0)
    assert not gradients[0][1].any() and bool(gradients[1][1].any())


def test_a_learned_variance_lowers_the_bound_of_the_same_mean_and_its_pipeline_samples() -> None:
    settings = {"variance_type": "learned_range", "vlb_weight": 1.0, "num_train_timesteps": 100}
    hybrid = DDPM.engine(**settings)
    lines = [hybrid.log.fetch(hybrid.accelerator) for _ in hybrid.train(0, 60, 60)]
    assert all(abs(line["loss"] - line["simple"] - line["vlb"]) < 1e-4 for line in lines)
    net, x_0, t = hybrid.nets["unet"].eval(), load_dataset("digits").tensor(100), torch.arange(100)
    scheduler = DDPMScheduler(num_train_timesteps=100, variance_type="learned_range")
    x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)), t)
    with torch.no_grad():
        output = net(x_t, t, return_dict=False)[0]
        start = torch.cat([output[:, :1], torch.zeros_like(x_0)], 1)     # an untrained network: midway in the range
        bounds = [float(vlb_term(scheduler, out, t, x_t, x_0, 17).mean()) for out in (start, output)]
    assert bounds[1] < 0.97 * bounds[0], bounds
    pipeline = hybrid.recipe.pipeline(hybrid.nets)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.out_channels == 2
    for sampler in ("ddpm", "ddim"):
        assert pipeline(2, num_steps=5, output_type="pt", sampler=sampler).images.shape == (2, 1, 8, 8)


def test_a_learned_variance_refuses_points_and_the_weights_of_a_fixed_one() -> None:
    with pytest.raises(ConfigError, match="--weighting vlb is of a fixed variance"):
        DDPM.engine(variance_type="learned_range", weighting="vlb")
    settings = ddpm.DDPMSettings(output_dir=Path("unused"), variance_type="learned_range", dataset="ring8")
    with pytest.raises(ConfigError, match="learned_range is for images"):
        ddpm.RECIPE.create(settings, load_dataset("ring8"))
