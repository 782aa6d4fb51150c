"""The benchmark of samplers, short: its measures against what is known, and its files."""

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
    samplers.gaussian(tmp_path / "order.png")
    with Image.open(tmp_path / "order.png") as figure:
        assert figure.size == (1320, 540)
