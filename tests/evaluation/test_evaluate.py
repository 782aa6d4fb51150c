"""`hfgen.evaluate` on planted cases: reference data at the floor, copies, missing classes and modes, closed forms."""

import io
import math
import re
import sys
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfgen
from hfgen.data import load_dataset
from hfgen.evaluation import features
from hfgen.evaluation.cache import Cache
from hfgen.evaluation.distributed import Processes
from hfgen.evaluation.evaluator import Evaluator
from hfgen.evaluation.progress import Progress
from hfgen.evaluation.settings import EvaluationArguments
from hfgen.metrics.features import load_extractor
from tests.cards.helpers import MAKERS
from tests.evaluation.judged import QUICK, Given, digits_classifier, shares


def test_held_out_real_images_as_a_model_score_at_the_floor() -> None:
    real, fresh, held_out = shares(900, 450, 447)
    found = hfgen.evaluate(Given(fresh.tensor()), real, held_out=held_out, num_samples=450, **QUICK)
    metrics = found.metrics
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage"):
        row = metrics[name]
        assert row["at_floor"], (name, row)
        assert row["low"] <= row["value"] <= row["high"]
    assert metrics["memorisation_ratio"]["low"] < 1 < metrics["memorisation_ratio"]["high"]
    assert found.samples["count"] == 450 and found.real["items"] == 900 and found.extractor["name"] == "pixels"
    assert found.none["likelihood"] == "how Given makes its samples is not known"


def test_noise_as_a_model_is_far_from_the_floor_and_its_interval_lies_above() -> None:
    noise = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = hfgen.evaluate(Given(noise), "digits", num_samples=300, metrics="frechet,kid,prdc", **QUICK).metrics
    for name in ("frechet", "kid"):
        assert not found[name]["at_floor"] and found[name]["low"] > 5 * found[name]["floor_high"]
    assert found["precision"]["value"] == 0 and found["coverage"]["value"] == 0


def test_a_planted_copy_is_the_closest_pair_and_stands_in_the_picture() -> None:
    data, others, held_out = shares(650, 450, 650)
    train, fresh = data.tensor(), others.tensor()
    fresh[7] = train[123]
    settings: dict[str, Any] = {"held_out": held_out, "metrics": ["privacy"], **QUICK}
    found = hfgen.evaluate(Given(fresh), data, num_samples=len(fresh), **settings)
    row = found.metrics["near_copies"]
    assert row["pairs"][0][:2] == [7, 123] and row["pairs"][0][2] < 1e-5 < row["pairs"][1][2]
    assert row["value"] >= 1 / len(fresh)
    low, high = (found.metrics["memorisation_ratio"][edge] for edge in ("low", "high"))
    assert low < 1.05 and high > 0.95
    copies = hfgen.evaluate(Given(train), data, num_samples=200, **settings)
    assert copies.metrics["memorisation_ratio"]["high"] < 1e-4 and copies.metrics["near_copies"]["value"] == 1
    sheet = found.pictures["closest"]                                                   # the first pair, 4 times larger
    copy, original = (np.asarray(sheet.crop((x, 2, x + 32, 34))) for x in (2, 36))
    assert np.array_equal(copy, original) and copy.max() > 200


def test_a_planted_missing_class_is_found_by_coverage_and_by_the_classes(tmp_path: Path) -> None:
    data = load_dataset("digits")
    labels = data.labels()
    assert labels is not None
    model = Given(data.tensor()[labels != 3])
    classifier = digits_classifier(tmp_path / "classifier")
    found = hfgen.evaluate(
        model, "digits", num_samples=800, classifier=classifier, metrics="prdc,diversity", **QUICK
    ).metrics
    assert found["classes_covered"]["missing"] == ["3"] and found["classes_covered"]["value"] == 9
    kl = found["label_kl"]
    assert kl["value"] == pytest.approx(math.log(1797 / 1614), abs=0.02) and kl["value"] > 5 * kl["floor"]
    assert found["coverage"]["matched"] < found["coverage"]["floor_low"]
    same = hfgen.evaluate(
        model, "digits", num_samples=200, features=f"classifier:{classifier}", metrics="diversity", **QUICK
    )  # fmt: skip
    assert same.metrics["classes_covered"]["missing"] == ["3"] and same.extractor["weights_hash"] != "none"


def test_a_planted_missing_mode_of_a_toy_set_is_found_and_its_log_p_is_that_of_the_set() -> None:
    ring = load_dataset("ring8")
    points = ring.sample(4000, 5)  # type: ignore[attr-defined]
    angle = torch.atan2(points[:, 1], points[:, 0])
    model, wanted = Given(points[angle.abs() > 0.1]), "frechet,diversity,likelihood,privacy"
    found = hfgen.evaluate(model, "ring8", num_samples=600, metrics=wanted, **QUICK)
    assert found.metrics["modes_covered"]["missing"] == [0] and found.metrics["modes_covered"]["value"] == 7
    assert found.metrics["high_quality"]["value"] > 0.97
    entropy = math.log(8) + 1 + math.log(2 * math.pi * 0.01**2)                          # of the set itself
    assert found.metrics["log_p"]["value"] == pytest.approx(-entropy, abs=0.15)
    assert found.metrics["log_p"]["floor_low"] < -entropy < found.metrics["log_p"]["floor_high"]
    assert found.none["privacy"] == "points are no pictures of anybody" and "closest" not in found.pictures


def test_the_likelihood_of_a_vae_of_points_is_a_density_in_data_coordinates() -> None:
    coordinates: dict[str, Any] = {"data_mean": [1.0, 2.0], "data_std": 3.0}
    net = hfgen.VAE(dim=2, hidden=(4,), latent_dim=2, likelihood="gaussian", sigma=0.5, **coordinates)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)                                                  # then x ~ N(mean, (3/2)^2 I)
    found = hfgen.evaluate(hfgen.VAEPipeline(net.eval()), "moons", metrics=["likelihood"], num_samples=64, **QUICK)
    points = load_dataset("moons").tensor()
    square = (points - torch.tensor([1.0, 2.0])).square().sum(1).mean()
    expected = float(-square / (2 * 1.5**2) - math.log(2 * math.pi * 1.5**2))
    for name in ("elbo", "log_likelihood"):
        row = found.metrics[name]
        assert row["value"] == pytest.approx(expected, abs=0.05) and row["low"] < expected < row["high"]


def test_features_beyond_memory_leave_the_same_frechet_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    real, data = shares(800, 400)
    fresh = data.tensor()
    settings: dict[str, Any] = {"metrics": "frechet", "num_samples": 400, **QUICK}
    whole = hfgen.evaluate(Given(fresh), real, **settings).metrics["frechet"]
    monkeypatch.setattr(features, "FEATURE_BYTES", 200 * 64 * 4)
    found = hfgen.evaluate(Given(fresh), real, cache=False, **settings)
    row = found.metrics["frechet"]
    assert row["value"] == pytest.approx(whole["value"], rel=1e-7) and row["low"] is None
    assert row["interval"] == "none: only 200 of 400 features fit in memory" and found.samples["features"] == 200
    assert row["used"] == {"samples": 400, "real": 800}


def test_metrics_of_the_features_that_fit_in_memory_say_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    real, data, held_out = shares(800, 400, 300)
    settings: dict[str, Any] = {"metrics": "kid,prdc,privacy", "num_samples": 400, "held_out": held_out, **QUICK}
    names = ["kid", "precision", "recall", "density", "coverage"]
    near = ["near_copies", "nearest_distance", "memorisation_ratio"]
    for fitting, used in ((1000, (400, 800, 300)), (200, (200, 200, 200))):
        monkeypatch.setattr(features, "FEATURE_BYTES", fitting * 64 * 4)
        found = hfgen.evaluate(Given(data.tensor()), real, cache=False, **settings)
        for name in names:
            assert found.metrics[name]["used"] == dict(zip(("samples", "real"), used[:2], strict=True))
        for name in near:
            assert found.metrics[name]["used"] == dict(zip(("samples", "real", "held_out"), used, strict=True))
        assert ("400 samples (features of 200 kept)" in found.table()) == (fitting == 200)


def test_what_stays_of_the_samples_does_not_grow_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "FEATURE_BYTES", 300 * 64 * 4)
    monkeypatch.setattr(features, "IMAGE_BYTES", 100 * 64 * 4)
    made: list[weakref.ref[torch.Tensor]] = []
    most = []

    def make(rows: range) -> torch.Tensor:
        most.append(sum(one() is not None for one in made))
        items = torch.rand(len(rows), 1, 8, 8)
        made.append(weakref.ref(items))
        return items

    extraction = features.FeatureExtraction(
        load_extractor("pixels"), None, (1, 8, 8), Processes(), Cache(on=False), Progress(shown=False)
    )
    sizes = []
    for count in (320, 3200):
        found = extraction(make, [range(i, i + 32) for i in range(0, count, 32)], keep_images=True)
        assert found is not None and found.count == count and found.moments is not None
        sizes.append({name: tuple(tensor.shape) for name, tensor in found.packed().items()})
    assert sizes[0] == sizes[1] and sizes[1]["features"] == (300, 64) and sizes[1]["images"] == (100, 1, 8, 8)
    assert max(most) <= 1                                                               # the batch before, at most


def test_few_real_images_gain_from_a_model_of_classes_and_useless_ones_say_why() -> None:
    class Conditional(Given):
        """Gives real digits of the classes asked for."""

        def __call__(self, batch_size: int, class_labels: list[int], **unused: Any) -> torch.Tensor:
            chosen = [self.of[c][(self.calls + i) % len(self.of[c])] for i, c in enumerate(class_labels)]
            self.calls += batch_size
            return torch.stack(chosen) / 2 + 0.5

    real, data, held_out = shares(900, 500, 397)
    labels = data.labels()
    assert labels is not None
    model = Conditional(data.tensor())
    model.of = [data.tensor()[labels == c] for c in range(10)]  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"metrics": "usefulness", "num_samples": 448, "classifier_steps": 40, **QUICK}
    found = hfgen.evaluate(model, real, held_out=held_out, **settings)
    score, gain = found.metrics["accuracy_score"], found.metrics["augmentation_gain_10"]
    assert score["value"] > 0.7 and abs(score["value"] - score["floor"]) < 0.15
    assert gain["real"] == 100 and gain["low"] > 0.02 and set(found.metrics) == {
        "accuracy_score", "augmentation_gain_10", "augmentation_gain_50", "augmentation_gain_200"
    }  # fmt: skip
    plain = hfgen.evaluate(Given(data.tensor()), real, **settings)
    assert plain.metrics == {} and plain.none == {"usefulness": "the model must make classes, and the data have labels"}


def test_long_groups_show_how_far_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = hfgen.VAEPipeline(hfgen.VAE(8, 1, hidden=(4,), latent_dim=2, num_classes=10).eval())
    settings: dict[str, Any] = {"metrics": "likelihood,usefulness", "split": "train[:300]", "num_samples": 40}
    settings |= {"held_out_split": "train[300:400]", "classifier_steps": 1, "importance_samples": 2, "resamples": 20}
    hfgen.evaluate(model, "digits", **settings, cache=False)
    shown = capsys.readouterr().err
    for title in ("starting:", "classifiers of 40 images:", "classifiers of 100 + 40 images:"):
        assert title in shown
    hfgen.evaluate(model, "digits", **settings, cache=False, progress=False)
    assert capsys.readouterr().err == ""


class Stream(io.StringIO):
    """Notes when, and that, something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, text: str) -> int:
        self.times.append(time.monotonic())
        return super().write(text)


def test_the_bar_of_a_slow_model_moves_every_second_and_shows_the_time_left_of_the_whole(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline: Any = MAKERS["DDPMPipeline"]()
    pipeline.scheduler = hfgen.DDPMScheduler(num_train_timesteps=40)
    pipeline.unet.register_forward_pre_hook(lambda *_: time.sleep(0.15))
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    begun = time.monotonic()
    hfgen.evaluate(pipeline, "digits", metrics="frechet", num_samples=40, batch_size=20, resamples=20, cache=False)
    took = time.monotonic() - begun
    waits = np.diff([begun + 1.5, *(one for one in stream.times if one > begun + 1.5)])
    assert took > 2 * 20 * 0.15 and waits.max() < 1.5                                   # two batches of 20 steps
    found = re.findall(r"DDPMPipeline: sampling: +(\d+)%.*?, (\d\d:\d\d) left", stream.getvalue())
    shares, left = [int(share) for share, _ in found], [int(text[-2:]) for _, text in found]
    assert len(found) >= 8 and shares == sorted(shares) and len(set(shares)) >= 6
    assert shares[1] < 40 < 70 < shares[-1] and left[-1] <= 2                           # within the first batch too
    assert max(left) <= 3 * took


def test_what_a_stage_took_corrects_the_planned_stages_of_its_kind() -> None:
    progress = Progress(shown=False)
    for seconds in (0.2, 0.2, 0.4):
        progress.plan("sampling", seconds)
    progress.plan("kid", 6.0)
    progress.plan("cost", 1.0)
    assert progress.left == pytest.approx(7.8, abs=0.1)
    with progress.stage("sampling", "a"):
        time.sleep(0.4)
        progress.tick(0.5)
        assert progress.left == pytest.approx(8.0, abs=0.15)                              # 0.4, 0.2, 0.4, 6 and 1
        progress.tick(1.0)
    assert progress.left == pytest.approx(6 + 2 * 1.6, abs=0.3)                           # twice as slow as expected
    progress.skip("sampling")
    assert progress.left == pytest.approx(6 + 2 * 1.4, abs=0.3)


def test_no_time_is_left_when_every_model_is_judged_computed_or_from_the_cache() -> None:
    models = [MAKERS[name]() for name in ("DDPMPipeline", "GANPipeline", "VAEPipeline")]
    for again in (False, True):
        few = {"num_samples": 20, "resamples": 20, "num_steps": 2, "likelihood_images": 2, "importance_samples": 2}
        splits = {"split": "train[:80]", "held_out_split": "train[80:120]"}
        evaluator = Evaluator("digits", EvaluationArguments(**few, **splits, progress=False))  # type: ignore[arg-type]
        for model in models:
            evaluator.plan(model, lenient=True)
        planned = evaluator.progress.left
        for model in models:
            evaluator(model, lenient=True)
        assert planned > 20 and evaluator.progress.left == pytest.approx(0, abs=1e-6), again


def test_no_warning_is_given_for_a_model_that_draws_from_the_global_generator() -> None:
    def model(batch_size: int) -> torch.Tensor:
        return torch.rand(batch_size, 1, 8, 8)

    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [hfgen.evaluate(model, "digits", num_samples=20, metrics="frechet", seed=s, **QUICK) for s in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    values = [row.metrics["frechet"]["value"] for row in rows]
    assert values[0] == values[1] != values[2]
