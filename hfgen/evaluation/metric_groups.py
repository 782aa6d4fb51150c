"""The groups of metrics by name: each looks at a case and says what it has found, or why it does not apply."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from hfgen.data.toy import Toy
from hfgen.evaluation.context import Case, Found
from hfgen.evaluation.features import IMAGE_BYTES, LARGEST_DIM, SHOWN
from hfgen.evaluation.likelihood import likelihood
from hfgen.metrics.bootstrap import (
    Estimate,
    frechet_estimate,
    kid_estimate,
    prdc_estimates,
)
from hfgen.metrics.cost import TrainingCost, networks_of, sampling_cost, training_cost
from hfgen.metrics.distances import Moments, frechet_distance_of_moments
from hfgen.metrics.halving import HALVINGS
from hfgen.metrics.memorisation import memorisation
from hfgen.metrics.modes import Coverage, label_report, toy_report
from hfgen.metrics.usefulness import PER_CLASS, Training, Usefulness, augmentation_gain, classifier_accuracy_score


def frechet(case: Case) -> Found:
    """Return the Fréchet distance; without an interval, and to all real items, where features do not fit in memory."""
    samples, real = case.samples, case.real_features
    dim = samples.features.shape[1]
    if dim > LARGEST_DIM:
        return Found(none={"frechet": f"a covariance of {dim:,} features is out of reach (at most {LARGEST_DIM:,}); "
                                      "choose an extractor with --features"})  # fmt: skip
    found = frechet_estimate(case.compared, samples.features, case.resamples, seed=case.settings.seed)
    row = estimate_row(found, case)
    row["without_bias"] = list(found.without_bias)
    if samples.moments is not None:
        other = Moments.of(case.compared) if real.moments is None else real.moments
        both = (samples.moments.mean, samples.moments.covariance, other.mean, other.covariance)
        whole = frechet_distance_of_moments(*both)
        row |= dict.fromkeys(("low", "high", "bias", "without_bias")) | {"value": whole}
        row["used"] = {"samples": samples.count, "real": len(case.compared) if real.moments is None else real.count}
        row["interval"] = f"none: only {len(samples.features):,} of {samples.count:,} features fit in memory"
    return Found({"frechet": row})


def kid(case: Case) -> Found:
    """Return the kernel distance."""
    found = kid_estimate(case.compared, case.samples.features, case.resamples, seed=case.settings.seed)
    return Found({"kid": estimate_row(found, case)})


def prdc(case: Case) -> Found:
    """Return precision, recall, density and coverage."""
    s = case.settings
    halvings = min(case.resamples, HALVINGS)
    found = prdc_estimates(case.compared, case.samples.features, s.neighbours, halvings, seed=s.seed)
    return Found({name: estimate_row(one, case) | {"k": s.neighbours} for name, one in found.items()})


def estimate_row(found: Estimate, case: Case) -> dict[str, Any]:
    """Return an estimate as it stands in a result; `used`: of how many samples and real items, which fit in memory."""
    used = {"samples": len(case.samples.features), "real": len(case.compared)}
    return asdict(found) | {"at_floor": found.floor_low <= found.matched <= found.floor_high, "used": used}


def diversity(case: Case) -> Found:
    """Return which modes of a toy set, or classes as a classifier sees them, the samples reach, and how evenly."""
    data = case.real.data
    if isinstance(data, Toy):
        if data.modes is None:
            return Found(none={"diversity": f"{data.name} has no modes to count"})
        points = case.samples.features
        report = toy_report(points, data.modes, data.sigma, case.compared)
        return Found(_coverage_rows(report, "modes_covered", "mode_kl", None))
    if case.classifier is None or case.samples.seen is None or case.real_features.seen is None:
        return Found(none={"diversity": "needs a classifier to see classes: --classifier MODEL, or --features "
                                        "classifier:MODEL; train one with hfgen train classifier"})  # fmt: skip
    report = label_report(case.samples.seen, case.classifier.num_classes, case.real_features.seen)
    names = case.classifier.classifier.config.get("class_names") or data.class_names
    return Found(_coverage_rows(report, "classes_covered", "label_kl", names))


def _coverage_rows(
    report: Coverage, covered: str, kl: str, names: list[str] | None
) -> dict[str, dict[str, Any]]:
    missing = [names[i] if names and len(names) > i else i for i in report.missing]
    rows: dict[str, dict[str, Any]] = {
        covered: {"value": report.covered, "of": report.modes, "missing": missing, "floor": report.modes},
        kl: {"value": report.kl, "floor": report.kl_floor, "unit": "nats"},
    }
    if report.high_quality is not None:
        rows["high_quality"] = {"value": report.high_quality, "floor": report.high_quality_floor}
    return rows


def privacy(case: Case) -> Found:
    """Return how near samples are to the real data that the model was trained on, against data that it has not seen."""
    if case.real.in_plane:
        return Found(none={"privacy": "points are no pictures of anybody"})
    held_out = None if case.held_out_features is None else case.held_out_features.features
    real, s = case.real_features.features, case.settings
    found = memorisation(case.samples.features, real, held_out, resamples=case.resamples, seed=s.seed)
    items = case.real.indices
    pairs = [[sample, int(items[near]), distance] for sample, near, distance in found.pairs]
    used = {"samples": len(case.samples.features), "real": len(real)}
    used |= {} if held_out is None else {"held_out": len(held_out)}
    rows: dict[str, dict[str, Any]] = {
        "near_copies": {
            "value": found.near_copies, "floor": found.expected, "threshold": found.threshold, "pairs": pairs,
            "used": used,
            "threshold_of": "held-out data" if held_out is not None else "training data, each to another",
        },
        "nearest_distance": {"value": float(found.distances.median()), "of": "median over samples", "used": used},
    }  # fmt: skip
    if found.ratio is None:
        return Found(rows, {"memorisation_ratio": "needs real data that the model has not seen: --held-out or "
                                                  "--held-out-split"})  # fmt: skip
    ratio = {"value": found.ratio, "low": found.ratio_low, "high": found.ratio_high, "floor": 1.0, "used": used}
    return Found(rows | {"memorisation_ratio": ratio})


def usefulness(case: Case) -> Found:
    """Return how well classifiers do that learn from the samples, alone or beside few real images."""
    reason = _useless(case)
    labels, asked = case.real.labels(), case.asking.conditions.labels
    if reason or labels is None or asked is None or case.held_out is None:
        return Found(none={"usefulness": reason or "needs labels"})
    number = len(case.samples.images)
    synthetic = (case.samples.images, asked[:number])
    real_count = min(number, case.real.count)
    real = (case.real(range(real_count)), labels[:real_count])
    test_count = min(case.held_out.count, max(SHOWN, IMAGE_BYTES // (4 * synthetic[0][0].numel())))
    test_labels = case.held_out.labels(test_count)
    assert test_labels is not None                                          # it has as many classes as the real data
    test = (case.held_out(range(test_count)), test_labels)
    classes, seed = case.real.data.num_classes or 0, case.settings.seed
    training = Training(steps=case.settings.classifier_steps)
    facts = {"synthetic": number, "steps": training.steps, "seeds": training.seeds, "test": len(test[1])}
    score = classifier_accuracy_score(synthetic, real, test, classes, training, seed, case.progress.shown)
    rows = {"accuracy_score": {**_interval(score.other), "floor": score.real[0], **_use(score), **facts}}
    few_each = torch.cat([(labels == c).nonzero().flatten()[: max(PER_CLASS)] for c in labels.unique()])
    several = (case.real(few_each.tolist()), labels[few_each])
    gains = augmentation_gain(synthetic, several, test, classes, PER_CLASS, training, seed, case.progress.shown)
    for few, gain in gains.items():
        rows[f"augmentation_gain_{few}"] = {**_interval(gain.gain), "floor": 0.0, **_use(gain), **facts}
    return Found(rows)


def _interval(found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), found, strict=True))


def _use(found: Usefulness) -> dict[str, Any]:
    return {"on_real": list(found.real), "on_other": list(found.other), "gain": list(found.gain), "real": found.images}


def _useless(case: Case) -> str | None:
    """Return why usefulness does not apply; None if it does."""
    if case.real.in_plane:
        return "points are not classified"
    if case.real.data.num_classes is None or case.asking.conditions.labels is None:
        return "the model must make classes, and the data have labels"
    if case.held_out is None or case.held_out.data.num_classes != case.real.data.num_classes:
        return "needs labelled real images of the same classes, not trained on: --held-out or --held-out-split"
    return None


def cost(case: Case) -> Found:
    """Return what the model costs: parameters, evaluations, seconds and memory of 64 samples, and its training."""
    sampled = sampling_cost(lambda n: case.asking(range(n)), _networks(case.subject.pipeline))
    rows: dict[str, dict[str, Any]] = {
        "seconds_per_64": {"value": sampled.seconds, "device": sampled.device, "threads": torch.get_num_threads()},
        "peak_bytes_per_64": {"value": sampled.peak_bytes, "of": sampled.peak_of, "device": sampled.device},
    }
    none = {}
    if sampled.parameters:
        rows["evaluations_per_image"] = {"value": max(sampled.evaluations.values()), "by_network": sampled.evaluations}
        rows["parameters"] = {"value": sum(sampled.parameters.values()), "by_network": sampled.parameters}
    else:
        none = dict.fromkeys(("evaluations_per_image", "parameters"), f"{case.subject.family} tells no components")
    folder = case.subject.run
    trained = TrainingCost() if folder is None else training_cost(folder)
    for name in ("steps", "seconds"):
        if (value := getattr(trained, name)) is None:
            none[f"training_{name}"] = "the model lies in no run folder that tells it"
        else:
            rows[f"training_{name}"] = {"value": value, "hardware": trained.hardware, "budget": trained.budget}
    if trained.autoencoder is not None and trained.seconds is not None:
        before = training_cost(trained.autoencoder).seconds
        rows["training_seconds"] |= {"value": trained.seconds + (before or 0.0), "autoencoder_seconds": before}
    return Found(rows, none)


def _networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    return networks_of(pipeline) if hasattr(pipeline, "components") else {}


COMPUTE: dict[str, Callable[[Case], Found]] = {
    "frechet": frechet, "kid": kid, "prdc": prdc, "diversity": diversity, "likelihood": likelihood,
    "usefulness": usefulness, "privacy": privacy, "cost": cost,
}  # fmt: skip
"""The function of each of `hfgen.evaluation.settings.GROUPS`."""

DEPENDS: dict[str, tuple[str, ...]] = {
    "frechet": ("resamples",), "kid": ("resamples",), "prdc": ("resamples", "neighbours"), "diversity": (),
    "likelihood": ("resamples", "likelihood_images", "likelihood_seconds", "importance_samples"),
    "usefulness": ("classifier_steps",),
    "privacy": ("resamples",), "cost": (),
}  # fmt: skip
"""The settings that each depends on, beside those of the samples: it is given no others."""
