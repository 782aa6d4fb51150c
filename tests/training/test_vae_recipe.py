"""The VAE recipe: bounds and their schedules, diagnostics, exact resume, two processes, and what it refuses."""

import subprocess
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from hfgen import AutoPipeline, evaluate
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.losses.elbo import binarised, free_bits, log_mean_exp
from hfgen.models.vae import VAE, HierarchicalVAE
from hfgen.training.engine.noise import Noise
from hfgen.training.settings.vae import recommended
from hfgen.training.vae import RECIPE, VAELoss, VAESettings, by_dimension, diagnose
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import VAE as TINY
from tests.training.tiny import run

Train = Callable[..., subprocess.CompletedProcess]
NAMES = {"step", "loss", "elbo", "reconstruction", "kl", "grad_norm", "learning_rate"}
settings, engine = TINY.settings, TINY.engine
train_here = partial(runs.train_here, "vae")


def bound_of(step: int = 0, **changes: Any) -> tuple[float, dict[str, Any], Any]:
    """Return the recipe's loss on a batch of digits, its scalars, and the terms that the model gave for it."""
    dataset = load_dataset("digits")
    s = recommended(settings(**changes), dataset)
    net: Any = RECIPE.create(s, dataset).nets["vae"]
    batch = next(dataset.batches(seed=0, batch_size=16))
    seen = []
    nets = {"vae": lambda *given: seen.append((given, net(*given))) or seen[0][1]}
    loss, scalars = VAELoss(s, net.sizes)(nets, batch, Noise((0, step, "vae", 0), 16, slice(16)), {})  # type: ignore[arg-type]
    return loss.item(), scalars, seen[0]


CHOICES: list[dict[str, Any]] = [
    {"likelihood": "bernoulli"},
    {"likelihood": "continuous_bernoulli", "body": "conv", "hidden": (4, 8)},
    {"likelihood": "gaussian", "free_bits": 0.2},
    {"importance_samples": 5},
    {"latent_dim": (6, 3), "upper_hidden": (7,), "importance_samples": 2},
    {"class_conditional": True, "beta": 4.0, "beta_warmup_steps": 10},
    {"posterior": "planar", "flow_steps": 3},
    {"sigma_per_pixel": True, "likelihood": "discretised_logistic", "importance_samples": 2},
    {"posterior": "inverse_autoregressive", "flow_width": 8, "importance_samples": 3, "class_conditional": True},
]


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: " ".join(map(str, c)))
def test_micro_batches_give_the_numbers_of_the_whole_batch(choices: dict[str, Any]) -> None:
    whole, parts = engine(**choices), engine(micro_batch_size=4, **choices)
    lines = run(whole, 4)
    for a, b in zip(lines, run(parts, 4), strict=True):
        expected = NAMES - {"step", "learning_rate"} | ({"iwae"} if "importance_samples" in choices else set())
        assert set(a) == set(b) == expected
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-5), name
    assert lines[-1]["loss"] != lines[0]["loss"]


def test_the_loss_is_the_negated_elbo_in_nats_and_its_parts_are_logged() -> None:
    loss, scalars, (_, terms) = bound_of()
    log_px, kl = terms.log_px_z.mean().item(), terms.kl[0].sum(-1).mean().item()
    assert loss == pytest.approx(kl - log_px, abs=1e-3) and float(scalars["elbo"]) == pytest.approx(-loss, abs=1e-3)
    assert float(scalars["reconstruction"]) == pytest.approx(-log_px, abs=1e-3)
    assert float(scalars["kl"]) == pytest.approx(kl, abs=1e-4) and kl > 0.01


def test_beta_rises_over_its_warmup_steps_and_stays() -> None:
    for step, beta in ((0, 0.4), (4, 2.0), (9, 4.0), (500, 4.0)):
        loss, scalars, _ = bound_of(step, beta=4.0, beta_warmup_steps=10)
        expected = float(scalars["reconstruction"]) + beta * float(scalars["kl"])
        assert loss == pytest.approx(expected, rel=1e-5), step
        assert float(scalars["elbo"]) == pytest.approx(-float(scalars["reconstruction"] + scalars["kl"]), rel=1e-5)


def test_k_draws_give_the_bound_of_burda_and_free_bits_are_counted_image_by_image() -> None:
    loss, scalars, (_, terms) = bound_of(importance_samples=5)
    assert terms.log_weights.shape == (16, 5)
    assert loss == pytest.approx(-log_mean_exp(terms.log_weights).mean().item(), rel=1e-5)
    assert float(scalars["iwae"]) == pytest.approx(-loss, rel=1e-5) and scalars["iwae"] > scalars["elbo"]
    loss, scalars, (_, terms) = bound_of(free_bits=0.3)
    assert loss == pytest.approx((free_bits(terms.kl[0], 0.3)[:, 0] - terms.log_px_z[:, 0]).mean().item(), rel=1e-5)
    assert loss > -float(scalars["elbo"]) + 0.01


@pytest.mark.parametrize("posterior", ["planar", "inverse_autoregressive"])
def test_the_loss_of_a_flow_is_the_bound_at_its_own_draws_and_active_units_are_counted(posterior: str) -> None:
    loss, scalars, (_, terms) = bound_of(posterior=posterior)
    assert terms.kl[0].shape == (16, 1, 1)
    assert loss == pytest.approx(-terms.log_weights.mean().item(), rel=1e-5) == -float(scalars["elbo"])
    recipe = RECIPE.create(settings(posterior=posterior, eval_split="train[:700]"), load_dataset("digits"))
    assert recipe.evaluate is not None
    assert set(recipe.evaluate(recipe.nets)) == {"active_units", "eval_elbo"}


def test_the_command_line_trains_a_flow_and_its_folder_samples_encodes_and_is_judged(tmp_path: Path) -> None:
    words = "--split train[:80%] --eval-split train[80%:] --likelihood bernoulli --max-steps 200 --warmup-steps 10"
    flow = "--posterior inverse_autoregressive --flow-width 16 --learning-rate 5e-3"
    log = train_here(tmp_path, *words.split(), *flow.split())
    assert log[-1]["elbo"] > log[0]["elbo"] + 1.5
    pipeline: Any = AutoPipeline.from_pretrained(tmp_path)
    assert pipeline.vae.config["posterior"] == "inverse_autoregressive" and len(pipeline.vae.flow.steps) == 2
    images = pipeline(4, output_type="pt").images
    assert pipeline.encode(images, sample=True).shape == pipeline.encode(images).shape == (4, 16)
    judged = evaluate(tmp_path, "digits", metrics="likelihood", split="train[:50]").metrics
    assert judged["log_likelihood"]["value"] > judged["elbo"]["value"]


def test_a_bernoulli_model_sees_pixels_drawn_anew_at_every_step_by_their_brightness() -> None:
    _, _, ((x, _, _), _) = bound_of(likelihood="bernoulli")
    grey = next(load_dataset("digits").batches(seed=0, batch_size=16))["x"]
    u = Noise((0, 0, "vae", 0), 16, slice(16)).uniform("pixels", 1, 8, 8)
    assert torch.equal(x, binarised(grey, u)) and set(x.unique().tolist()) == {-1.0, 1.0}
    _, _, ((later, _, _), _) = bound_of(1, likelihood="bernoulli")
    assert 0.05 < (x != later).float().mean() < 0.5
    _, _, ((plain, _, _), _) = bound_of(likelihood="bernoulli", binarise=False)
    assert torch.equal(plain, grey)


def test_the_model_fits_the_data_its_shape_its_levels_and_its_mean() -> None:
    digits = load_dataset("digits")
    net: Any = RECIPE.create(settings(likelihood="discretised_logistic"), digits).nets["vae"]
    assert isinstance(net, VAE) and net.config["levels"] == 17 and net.config["learned_sigma"]
    torch.testing.assert_close(net.centre, digits.tensor().mean(0), atol=1e-6, rtol=0)
    two: Any = RECIPE.create(settings(latent_dim=(6, 4, 2), upper_hidden=(5,), sigma=0.2), digits).nets["vae"]
    assert isinstance(two, HierarchicalVAE) and two.sizes == (6, 4, 2) and two.config["sigma"] == 0.2
    assert not two.config["learned_sigma"] and two.config["hidden"] == ((16,), (5,), (5,))
    ring: Any = RECIPE.create(settings(), load_dataset("ring8")).nets["vae"]
    assert ring.shape == (2,) and ring.config["likelihood"] == "gaussian" and len(ring.config["data_mean"]) == 2


def test_the_floor_of_a_pixels_scale_is_the_deviation_of_rounding_to_the_datas_levels() -> None:
    def of(name: str, **changes: Any) -> Any:
        return RECIPE.create(settings(sigma_per_pixel=True, **changes), load_dataset(name)).nets["vae"]

    rounding = (torch.rand(100_000) - 0.5) * 2 / 16                        # digits have 17 levels in [-1, 1]
    assert of("digits").config["min_sigma"] == pytest.approx(float(rounding.std()), rel=0.01)
    assert of("digits", min_sigma=0.07).config["min_sigma"] == 0.07
    assert of("ring8").config["min_sigma"] == 0.01
    torch.testing.assert_close(of("digits").pixel_scales(torch.zeros(1, 3)).mean(), torch.tensor(0.3), atol=0.2, rtol=0)


def test_the_command_line_trains_a_scale_for_each_pixel_which_is_smallest_where_all_digits_agree(
    tmp_path: Path,
) -> None:
    train_here(tmp_path, *"--sigma-per-pixel --max-steps 300 --batch-size 64 --learning-rate 1e-2".split())
    pipeline: Any = AutoPipeline.from_pretrained(tmp_path)
    scales = pipeline.vae.pixel_scales(torch.randn(64, 16)).detach().mean(0)[0]            # (8, 8)
    edges, middle = scales[:, [0, 7]].mean(), scales[2:6, 2:6].mean()
    assert float(scales.min()) > 0.036 and float(middle) > 2 * float(edges)
    judged = evaluate(pipeline, "digits", metrics="likelihood", split="train[:50]").metrics
    assert judged["log_likelihood"]["value"] > judged["elbo"]["value"]


def test_what_is_recommended_fits_the_data_and_gives_way_to_what_is_asked(tmp_path: Path) -> None:
    def of(side: int, mode: str, **asked: Any) -> VAESettings:
        for i in range(2):
            Image.new(mode, (side, side)).save(tmp_path / f"{i}.png")
        return recommended(VAESettings(output_dir=Path("unused"), **asked), load_dataset(tmp_path))

    assert (of(28, "L").likelihood, of(28, "L").hidden, of(28, "L").latent_dim) == ("bernoulli", (200, 200), (50,))
    assert (of(32, "RGB").body, of(32, "RGB").hidden) == ("conv", (64, 128, 256))
    assert of(28, "RGB").hidden == (64, 128) and of(28, "L", body="conv").hidden == (32, 64)
    assert of(28, "L", latent_dim=(7, 2), learning_rate=1.0).latent_dim == (7, 2)
    assert of(28, "L", learning_rate=1.0).learning_rate == 1.0 and of(28, "L").sigma is None


def test_a_short_run_on_digits_learns_uses_its_latents_and_shows_their_plane(tmp_path: Path) -> None:
    words = "--split train[:80%] --eval-split train[80%:] --hidden 64 --latent-dim 2 --max-steps 200 --batch-size 64"
    log = train_here(tmp_path, *words.split(), "--learning-rate", "5e-3", "--warmup-steps", "10")
    last = log[-1]
    assert set(last) == NAMES | {"active_units", "kl_0", "kl_1", "eval_elbo"}
    assert last["active_units"] == 2 and min(last["kl_0"], last["kl_1"]) > 1.0
    assert last["elbo"] > log[0]["elbo"] + 15
    assert last["eval_elbo"] == pytest.approx(sum(line["elbo"] for line in log[-20:]) / 20, abs=8)
    pipeline = AutoPipeline.from_pretrained(tmp_path)
    drawn = Image.open(tmp_path / "samples" / "step-00000200.png")
    assert ImageChops.difference(drawn, pipeline.manifold(20)).getbbox() is None
    cells = pipeline(latents=torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), output_type="pt").images
    assert torch.pdist(cells.flatten(1)).min() > 0.5                        # ends of the plane differ


def test_evaluation_is_the_same_every_time_and_names_layers_and_dimensions() -> None:
    recipe = RECIPE.create(settings(latent_dim=(12, 6), eval_split="train[:700]"), load_dataset("digits"))
    assert recipe.evaluate is not None
    first, second = recipe.evaluate(recipe.nets), recipe.evaluate(recipe.nets)
    assert first["active_units"] == first["active_units_1"] + first["active_units_2"] <= 18
    summary = {"kl_min", "kl_mean", "kl_max", "eval_elbo"}
    assert set(first) == {"active_units", "active_units_1", "active_units_2"} | summary
    assert first == second and first["kl_min"] < first["kl_mean"] < first["kl_max"]


def test_the_kl_by_dimension_is_listed_or_summed_up() -> None:
    assert by_dimension(torch.tensor([0.5, 2.0])) == {"kl_0": 0.5, "kl_1": 2.0}
    assert by_dimension(torch.arange(17.0)) == {"kl_min": 0.0, "kl_mean": 8.0, "kl_max": 16.0}


def test_a_collapsed_posterior_is_said_once_with_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--max-steps", "120", "--beta", "1e4", "--learning-rate", "0.02", "--ema-decay", "0")
    log = train_here(tmp_path, *words, "--sample-every", "40")
    printed = capsys.readouterr().out
    assert printed.count("warning: step") == 1 and "the posterior has collapsed:" in printed
    assert log[-1]["active_units"] == 0
    fine = {"kl": 12.0, "active_units": 3.0, "active_units_1": 2.0, "active_units_2": 1.0}
    assert diagnose(fine) is None and diagnose({"kl": 0.0}) is None
    assert "has collapsed in layer 2:" in str(diagnose({**fine, "active_units_2": 0.0}))
    said = str(diagnose({"kl": 0.003, "active_units": 0.0}))
    assert "has collapsed:" in said and "KL 0.003 nats" in said and "--beta-warmup-steps" in said


@pytest.mark.parametrize("choices", [
    "--likelihood bernoulli --latent-dim 6 3 --importance-samples 3",
    "--likelihood gaussian --sigma-per-pixel --posterior inverse_autoregressive --flow-width 16",
])  # fmt: skip
def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train, choices: str
) -> None:
    arguments = ("--max-steps", "40", "--save-every", "7", *choices.split(),
                 "--beta-warmup-steps", "30", "--class-conditional")  # fmt: skip
    train(tmp_path / "whole", *arguments, recipe="vae")
    process = start(tmp_path / "killed", *arguments, recipe="vae")
    wait_for_step(tmp_path / "killed", 16, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--resume", recipe="vae")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring8", "class_conditional": True}, "--class-conditional: the dataset 'ring8' has no labels"),
        ({"dataset": "ring8", "likelihood": "bernoulli"}, "--likelihood must be gaussian for points"),
        ({"dataset": "ring8", "eval_split": "test"}, "ring8 is a set of points"),
        ({"latent_dim": ()}, "--latent-dim must be one number"),
        ({"importance_samples": 0}, "--importance-samples must be at least 1, got 0"),
        ({"beta": -1.0}, "--beta must not be negative, got -1.0"),
        ({"free_bits": 0.1, "importance_samples": 2}, "--free-bits needs the KL in closed form"),
        ({"free_bits": 0.1, "latent_dim": (4, 2)}, "--free-bits needs the KL in closed form"),
        ({"free_bits": 0.1, "posterior": "planar"}, "--free-bits needs the KL in closed form"),
        ({"latent_dim": (4, 2), "posterior": "planar"}, "--posterior planar is for one --latent-dim, got 2"),
        ({"likelihood": "bernoulli", "sigma_per_pixel": True}, "--sigma-per-pixel: .* bernoulli has no scale"),
        ({"sigma": 0.1, "sigma_per_pixel": True}, "--sigma 0.1 is one scale for all pixels"),
        ({"min_sigma": 0.1}, "--min-sigma must be between 0 and 0.3, with --sigma-per-pixel, got 0.1"),
        ({"flow_steps": 3}, "--flow-steps 3: --posterior normal has none"),
        ({"posterior": "planar", "flow_width": 9}, "--flow-width 9: --posterior planar has none"),
        ({"posterior": "planar", "flow_steps": 0}, "--flow-steps must be at least 1, got 0"),
        ({"likelihood": "bernoulli", "sigma": 0.1}, "--sigma 0.1: --likelihood bernoulli has none"),
        ({"body": "conv", "hidden": (4, 4, 4, 4)}, "resolution must have height and width divisible by 16"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RECIPE.create(settings(**changes), load_dataset(changes.get("dataset", "digits")))


def test_steps_of_points_and_of_streams_are_judged_by_the_first_batches() -> None:
    recipe = RECIPE.create(settings(batch_size=300), load_dataset("ring8"))
    assert recipe.evaluate is not None
    assert set(recipe.evaluate(recipe.nets)) == {"active_units", "kl_0", "kl_1", "kl_2"}
    batches = list(islice(load_dataset("ring8").batches(seed=0, batch_size=300), 7))
    means = torch.cat([recipe.nets["vae"].means(batch["x"])[0] for batch in batches])  # type: ignore[operator]
    assert recipe.evaluate(recipe.nets)["active_units"] == int((means.var(0, unbiased=False) > 0.01).sum())
