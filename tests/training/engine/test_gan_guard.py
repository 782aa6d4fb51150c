"""The guard of GANs on histories of a log: silent where a run is healthy, once where a trouble begins."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from hfgen.data import load_dataset
from hfgen.training.engine.gan_guard import guard
from hfgen.training.engine.log import Log
from hfgen.training.settings.gan import GANSettings, recommended

Line = dict[str, float]
FAIR: Line = {
    "real_variance": 0.29, "sample_variance": 0.28, "energy_distance": 0.01, "rank_accuracy": 0.7, "D(x)": 0.55,
    "D(G(z))": 0.45,
}  # fmt: skip
ALIKE = {**FAIR, "sample_variance": 0.01, "energy_distance": 0.6}
WON = {**FAIR, "sample_variance": 0.2, "energy_distance": 0.5, "rank_accuracy": 0.999, "D(x)": 0.96, "D(G(z))": 0.03}
FAR = {**FAIR, "sample_variance": 0.2, "energy_distance": 0.4}
BETWEEN = {**FAIR, "near_modes": 0.02, "rank_accuracy": 0.6}


def completed(dataset: str = "digits", **fields: Any) -> GANSettings:
    settings = GANSettings(output_dir=Path("unused"), dataset=dataset, **fields)
    return recommended(settings, load_dataset(dataset))


def warned(
    lines: list[Line], every: int = 50, stored: bool = False, points: bool = False, **fields: Any
) -> list[tuple[int, str]]:
    """Return the step and the text of each warning; with `stored` the memory goes through a checkpoint at each line."""
    settings = completed("ring8" if points else "digits", **fields)
    memory: dict[str, Any] = {}
    found = []
    for i, line in enumerate(lines):
        memory, text = guard(memory, {"step": (i + 1) * every, **line}, settings, points)
        memory = json.loads(json.dumps(memory)) if stored else memory
        if text is not None:
            found.append(((i + 1) * every, text))
    return found


def test_a_grey_start_is_no_collapse_and_one_that_lasts_is_said_once() -> None:
    assert warned([ALIKE] * 4 + [FAIR] * 40) == []
    ((step, text),) = warned([ALIKE] * 40)
    assert step == 500 and "collapsed: its samples vary by 0.01, real ones by 0.29" in text


@pytest.mark.parametrize(("line", "text"), [(WON, "discriminator has won"), (FAR, "stay far from the data"),
                                             (BETWEEN, "lie between the modes")])  # fmt: skip
def test_each_trouble_has_its_name(line: Line, text: str) -> None:
    ((_, said),) = warned([FAIR] * 10 + [line] * 10)
    assert text in said


def test_a_discriminator_that_is_sure_of_samples_near_the_data_has_not_won() -> None:
    assert warned([{**WON, "sample_variance": 0.28, "energy_distance": 0.01}] * 40) == []


def test_a_generator_that_slowly_comes_nearer_to_the_data_has_not_collapsed() -> None:
    falling = [{**ALIKE, "energy_distance": 0.7 * 0.93**i} for i in range(30)]
    assert warned(falling) == [] and len(warned(falling[:5] + [falling[5]] * 12)) == 1


def test_a_wasserstein_critic_that_ranks_every_pair_well_has_not_won() -> None:
    line = {**WON, "energy_distance": 0.15}
    assert len(warned([line] * 12)) == 1 and warned([line] * 40, loss="wasserstein_gp") == []


def test_samples_between_the_modes_are_left_to_a_discriminator_that_sees_them() -> None:
    assert warned([{**BETWEEN, "rank_accuracy": 0.8}] * 40, points=True) == []
    assert warned([{**BETWEEN, "near_modes": 0.3}] * 40, points=True) == []


def test_no_run_is_stopped_for_samples_between_the_modes_since_that_may_pass() -> None:
    assert len(warned([BETWEEN] * 40, points=True)) == 1
    assert warned([BETWEEN] * 40, points=True, stop_on_collapse=True) == []
    assert len(warned([FAR] * 40, points=True, stop_on_collapse=True)) == 1


def test_a_collapse_between_the_modes_is_said_as_one_trouble() -> None:
    both = {**BETWEEN, "sample_variance": 0.01, "energy_distance": 0.6}
    ((_, text),) = warned([FAIR] * 10 + [both] * 40, points=True)
    assert "has collapsed" in text and "between" not in text


def test_classes_that_have_collapsed_are_said_though_the_samples_together_vary() -> None:
    line = {**FAIR, "real_class_variance": 0.02, "sample_class_variance": 0.001}
    ((_, said),) = warned([line] * 10, class_conditional=True, latent_dim=2)
    assert "collapsed in its classes" in said and "--latent-dim 64" in said
    assert warned([{**line, "real_class_variance": 0.0, "sample_class_variance": 0.0}] * 10) == []


def test_a_trouble_that_comes_back_after_a_recovery_is_said_again() -> None:
    lines = [ALIKE] * 12 + [FAIR] * 10 + [ALIKE] * 12
    steps = [step for step, _ in warned(lines)]
    assert len(steps) == 2 and steps[0] == 500 and 1100 < steps[1] < 1500
    assert len(warned([ALIKE] * 12 + [FAIR] * 2 + [ALIKE] * 12)) == 1             # no recovery
    assert len(warned([FAIR] * 4 + [FAR] * 12 + [ALIKE] * 12)) == 2               # another trouble


@pytest.mark.parametrize("every", [1, 10, 100, 500])
def test_a_verdict_needs_some_300_steps_and_three_lines_however_often_the_log_is_written(every: int) -> None:
    fair, alike = [FAIR] * (500 // every), [ALIKE] * max(8, 1000 // every)
    ((step, _),) = warned(fair + alike, every)
    assert 500 + max(340, 2 * every) < step <= 500 + max(400, 3 * every)


def test_a_stored_memory_gives_the_same_warnings() -> None:
    lines = [ALIKE] * 12 + [FAIR] * 10 + [WON] * 12
    assert warned(lines, stored=True) == warned(lines) != []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*FAIR, "near_modes", "sample_class_variance", "real_class_variance"])
def test_a_line_read_back_from_the_log_leaves_the_memory_of_the_live_one(
    name: str, value: float, tmp_path: Path
) -> None:
    classes = {"sample_class_variance": 0.001, "real_class_variance": 0.02}
    live, settings, accelerator = {**BETWEEN, **classes, name: value}, completed(), Accelerator(cpu=True)
    log = Log(tmp_path / "metrics.jsonl", accelerator, 0, 1000)
    log.write(500, live)
    log.close()
    log = Log(tmp_path / "metrics.jsonl", accelerator, 500, 1000)
    log.close()
    assert log.last[name] is None                                                 # JSON has no NaN and no infinity
    memory, _ = guard({}, {"step": 450, **BETWEEN, **classes}, settings)
    resumed, _ = guard(memory, log.last, settings)
    assert memory["step"] == 450 and resumed == guard(memory, {"step": 500, **live}, settings)[0]
    assert json.loads(json.dumps(resumed, allow_nan=False)) == resumed


def test_lines_without_numbers_are_passed_over_in_silence() -> None:
    """Micro-batches of 1 have no pairs, and so neither variances nor a distance."""
    nothing = {**ALIKE, "real_variance": math.nan, "sample_variance": math.nan, "energy_distance": math.nan}
    assert warned([nothing] * 40) == []
    falling = [{**ALIKE, "energy_distance": 0.7 * 0.93**i} for i in range(30)]
    assert warned([nothing] * 10 + falling) == [] and len(warned([nothing] * 10 + [ALIKE] * 12)) == 1


def test_lines_of_an_evaluation_alone_and_of_the_warmup_do_not_count() -> None:
    assert warned([{"modes": 3.0}] * 20) == []
    assert warned([ALIKE] * 20, warmup_steps=1000) == []


@pytest.mark.parametrize(
    ("line", "fields", "advised", "not_advised"),
    [
        (ALIKE, {}, ["--loss wasserstein_gp", "--pack 4", "--r1 0.1", "--learning-rate 0.0005"], []),
        (ALIKE, {"loss": "wasserstein_gp"}, ["--pack 4"], ["--loss", "--r1"]),
        (ALIKE, {"loss": "wasserstein_gp", "gradient_penalty": 0.0}, ["--gradient-penalty 10"], ["--loss"]),
        (ALIKE, {"pack": 4, "r1": 1.0, "learning_rate": 1e-4}, ["--loss wasserstein_gp"], ["--pack", "--r1", "rate"]),
        (ALIKE, {"learning_rate": 1e-9}, ["--learning-rate 2e-4"], []),
        (WON, {"loss": "minimax", "discriminator_steps": 5}, ["--loss non_saturating", "--discriminator-steps 1"], []),
        (ALIKE, {"loss": "began", "gamma": 0.5}, ["--gamma 0.7", "--loss wasserstein_gp"], ["--pack", "--r1"]),
        (ALIKE, {"loss": "began", "gamma": 0.8}, ["--loss wasserstein_gp"], ["--gamma"]),
        (WON, {"loss": "kl", "generator_loss": "minimax"}, ["--generator-loss non_saturating"], ["--loss"]),
        (WON, {}, ["--r1 0.1", "--discriminator-learning-rate 0.0005"],
         ["--loss", "--generator-loss", "--discriminator-steps"]),
        (FAR, {"loss": "wasserstein_gp", "pack": 4, "learning_rate": 1e-4}, ["--batch-size 128"], ["--loss", "--pack"]),
    ],
)  # fmt: skip
def test_advice_names_only_what_differs_from_the_run(
    line: Line, fields: dict[str, Any], advised: list[str], not_advised: list[str]
) -> None:
    ((_, text),) = warned([line] * 12, **fields)
    for word in advised:
        assert word in text
    for word in not_advised:
        assert word not in text


def test_points_are_advised_the_recipe_that_is_recommended_for_them() -> None:
    ((_, text),) = warned([FAR] * 12, points=True, loss="non_saturating")
    assert "--loss relativistic --r1 1 --r2 1" in text
    ((_, text),) = warned([FAR] * 12, points=True)
    assert "--loss" not in text and "--r1" not in text
    ((_, text),) = warned([BETWEEN] * 12, points=True, loss="non_saturating")
    assert "--loss relativistic --r1 1 --r2 1" in text and "--frequencies 32" in text
    ((_, text),) = warned([BETWEEN] * 12, points=True)
    assert "--loss" not in text and "--frequencies" not in text
