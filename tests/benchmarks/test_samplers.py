"""The benchmark of samplers, short: its measures against what is known, and its files."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hfgen import DDPMPipeline, MLPDenoiser, VPSDEScheduler

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")               # diffusers with numpy 2


def test_the_distance_is_that_of_a_shift_and_of_the_best_assignment() -> None:
    from tests.benchmarks.samplers import w2

    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    shuffled = points[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    assert w2(points, shuffled) < 1e-5
    assert abs(w2(points, shuffled + torch.tensor([3.0, 4.0])) - 5) < 1e-5
    a, b = torch.tensor([[0.0], [10.0]]), torch.tensor([[11.0], [0.0]])
    assert abs(w2(a, b) - 0.5**0.5) < 1e-6


@pytest.mark.parametrize(("name", "order"), [("ode_euler", 1), ("ddim", 1)])
def test_the_error_on_the_gaussian_falls_with_the_steps(name: str, order: int) -> None:
    from tests.benchmarks.samplers import gaussian_error

    (few, coarse), (many, fine) = (gaussian_error(name, n, 500) for n in (40, 160))
    assert many > 3 * few and coarse / fine > 3**order


@pytest.mark.parametrize(("name", "order"), [("ode_euler", 1), ("ddim", 1), ("ode_heun", 2), ("dpmpp_2m", 2)])
def test_on_the_way_to_a_little_noise_the_error_falls_with_the_order_of_the_method(name: str, order: int) -> None:
    from tests.benchmarks.samplers import order_error

    (few, coarse), (many, fine) = (order_error(name, n, 200) for n in (48, 96))
    assert abs(math.log(coarse / fine) / math.log(many / few) - order) < 0.3


def test_the_verdict_sets_the_recommended_sampler_at_few_evaluations_against_the_best_of_all() -> None:
    from tests.benchmarks.samplers import best_of, verdict

    made = {("dpmpp_2m", 20): 0.3, ("dpmpp_2m", 40): 0.21, ("ddpm", 1000): 0.25, ("ode_heun", 1001): 0.2,
            ("reverse_sde", 2000): 0.1}  # fmt: skip
    rows = [{"dataset": "moons", "sampler": s, "evaluations": n, "W2": d, "error": 0.01} for (s, n), d in made.items()]
    assert best_of(rows) is rows[3]
    found = verdict(rows[0], rows[3])
    assert found.startswith("moons: dpmpp_2m at 20 evaluations 0.3000 ± 0.0100, the best, ode_heun at 1001 evaluations")
    assert found.endswith("ratio 1.50")


def test_a_row_of_the_toys_has_the_mean_distance_of_several_draws_and_counts_evaluations(tmp_path: Path) -> None:
    from tests.benchmarks.samplers import sets, toy_row, w2

    pipe = DDPMPipeline(MLPDenoiser(hidden=8, layers=1).eval(), VPSDEScheduler())
    pipe.save_pretrained(tmp_path / "moons")
    pipe.set_progress_bar_config(disable=True)
    row = toy_row({"dataset": "moons", "sampler": "ode_heun", "steps": 2, "draws": 3, "seed": 7}, tmp_path)
    generator = torch.Generator().manual_seed(7)
    points = pipe(3000, num_steps=2, generator=generator, output_type="pt", sampler="ode_heun").images
    found = [w2(some, real) for some, real in zip(points.chunk(3), sets("moons", 3, 7), strict=True)]
    mean = sum(found) / 3
    assert row["evaluations"] == 5 and abs(row["W2"] - mean) < 1e-6
    assert abs(row["error"] - (sum((x - mean) ** 2 for x in found) / 2 / 3) ** 0.5) < 1e-6


def test_the_sets_of_another_seed_are_others() -> None:
    from tests.benchmarks.samplers import sets

    found = [*sets("moons", 2, 0), *sets("moons", 2, 1)]
    assert len({float(points[0, 0]) for points in found}) == 4


def test_evaluations_are_counted_as_each_sampler_plans_them() -> None:
    from tests.benchmarks.samplers import cost_row

    pipe = DDPMPipeline(MLPDenoiser(hidden=8, layers=1).eval(), VPSDEScheduler())
    pipe.set_progress_bar_config(disable=True)
    found = {name: cost_row(name, pipe, 10)["evaluations"] for name in ("ddim", "ode_heun", "predictor_corrector")}
    assert found == {"ddim": 10, "ode_heun": 21, "predictor_corrector": 21}


def test_the_price_is_the_median_of_three_after_a_warm_up_at_no_more_steps_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.benchmarks import samplers

    pipe = DDPMPipeline(MLPDenoiser(hidden=8, layers=1).eval(), VPSDEScheduler(num_train_timesteps=30))
    pipe.set_progress_bar_config(disable=True)
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(samplers, "time", SimpleNamespace(perf_counter=clock.__next__))
    assert samplers.cost_row("ddpm", pipe) == {"sampler": "ddpm", "steps": 30, "evaluations": 30, "seconds": 3.0}


def test_the_figure_of_the_gaussian_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from tests.benchmarks import samplers

    monkeypatch.setattr(samplers, "STEPS", (5, 10))
    monkeypatch.setattr(samplers, "ORDER_STEPS", (8, 24))
    samplers.gaussian(tmp_path / "order.png")
    with Image.open(tmp_path / "order.png") as figure:
        assert figure.size == (1800, 540)
