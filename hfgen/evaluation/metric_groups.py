"""The groups of metrics by name: each computes a result from its context, or gives the reason why it does not apply."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from hfgen.data.toy import Toy
from hfgen.evaluation.context import MetricContext, MetricResult
from hfgen.evaluation.features import GRID_IMAGES, IMAGE_BYTES, LARGEST_DIM
from hfgen.evaluation.likelihood import likelihood
from hfgen.metrics.bootstrap import (
    Estimate,
    frechet_estimate,
    kid_estimate,
    prdc_estimates,
)
from hfgen.metrics.cost import TrainingCost, sampling_cost, training_cost
from hfgen.metrics.distances import Moments, frechet_distance_of_moments
from hfgen.metrics.halving import HALVINGS
from hfgen.metrics.memorisation import memorisation
from hfgen.metrics.modes import Coverage, label_report, toy_report
from hfgen.metrics.usefulness import PER_CLASS, Training, Usefulness, augmentation_gain, classifier_accuracy_score


def frechet(context: MetricContext) -> MetricResult:
    """Return the Fréchet distance (Heusel et al. 2017), with an interval if all features are in memory."""
    # compare the features in memory, at equal counts and with an interval
    samples, reference = context.samples, context.reference_features
    dim = samples.features.shape[1]
    if dim > LARGEST_DIM:
        return MetricResult(none={"frechet": f"a covariance of {dim:,} features is out of reach (at most "
                                             f"{LARGEST_DIM:,}); choose an extractor with --features"})  # fmt: skip
    seed = context.settings.seed
    estimate = frechet_estimate(context.compared, samples.features, context.resamples, seed=seed)
    row = estimate_row(estimate, context)
    row["without_bias"] = list(estimate.without_bias)
    if samples.moments is None:
        return MetricResult({"frechet": row})

    # compare the moments of all features instead, without an interval
    moments, count = reference.moments, reference.count
    if moments is None:
        moments, count = Moments.of(context.compared), len(context.compared)
    both = (samples.moments.mean, samples.moments.covariance, moments.mean, moments.covariance)
    row |= dict.fromkeys(("low", "high", "bias", "without_bias")) | {"value": frechet_distance_of_moments(*both)}
    row["used"] = {"samples": samples.count, "real": count}
    row["interval"] = f"none: only {len(samples.features):,} of {samples.count:,} features fit in memory"
    return MetricResult({"frechet": row})


def kid(context: MetricContext) -> MetricResult:
    """Return the kernel distance (Bińkowski et al. 2018)."""
    seed = context.settings.seed
    estimate = kid_estimate(context.compared, context.samples.features, context.resamples, seed=seed)
    return MetricResult({"kid": estimate_row(estimate, context)})


def prdc(context: MetricContext) -> MetricResult:
    """Return precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""
    s = context.settings
    halvings = min(context.resamples, HALVINGS)
    estimates = prdc_estimates(context.compared, context.samples.features, s.neighbours, halvings, seed=s.seed)
    return MetricResult({name: estimate_row(one, context) | {"k": s.neighbours} for name, one in estimates.items()})


def estimate_row(estimate: Estimate, context: MetricContext) -> dict[str, Any]:
    """Return an estimate as a row of a result; `used`: the numbers of samples and of reference items in memory."""
    used = {"samples": len(context.samples.features), "real": len(context.compared)}
    at_floor = estimate.floor_low <= estimate.matched <= estimate.floor_high
    return asdict(estimate) | {"at_floor": at_floor, "used": used}


def diversity(context: MetricContext) -> MetricResult:
    """Return the coverage of the modes of a toy set, or of the classes that a classifier predicts."""
    # count modes of a toy set
    data, samples = context.reference.data, context.samples
    if isinstance(data, Toy):
        if data.modes is None:
            return MetricResult(none={"diversity": f"{data.name} has no modes to count"})
        report = toy_report(samples.features, data.modes, data.sigma, context.compared)
        return MetricResult(_coverage_rows(report, "modes_covered", "mode_kl", None))
    # count classes that a classifier predicts
    if context.classifier is None or samples.seen is None or context.reference_features.seen is None:
        return MetricResult(none={"diversity": "needs a classifier to see classes: --classifier MODEL, or --features "
                                               "classifier:MODEL; train one with hfgen train classifier"})  # fmt: skip
    report = label_report(samples.seen, context.classifier.num_classes, context.reference_features.seen)
    names = context.classifier.classifier.config.get("class_names") or data.class_names
    return MetricResult(_coverage_rows(report, "classes_covered", "label_kl", names))


def _coverage_rows(
    report: Coverage, covered: str, kl: str, names: list[str] | None
) -> dict[str, dict[str, Any]]:
    """Return the coverage of modes or classes as rows; missing classes stand by name if they have `names`."""
    missing = [names[i] if names and len(names) > i else i for i in report.missing]
    rows: dict[str, dict[str, Any]] = {
        covered: {"value": report.covered, "of": report.modes, "missing": missing, "floor": report.modes},
        kl: {"value": report.kl, "floor": report.kl_floor, "unit": "nats"},
    }
    if report.high_quality is not None:
        rows["high_quality"] = {"value": report.high_quality, "floor": report.high_quality_floor}
    return rows


def privacy(context: MetricContext) -> MetricResult:
    """Return the distances of samples to the training data, in relation to those of data that were held out."""
    if context.reference.points:
        return MetricResult(none={"privacy": "points are no pictures of anybody"})

    # find the nearest training items
    training, samples, held_out = context.reference_features.features, context.samples.features, None
    used, nearest = {"samples": len(samples), "real": len(training)}, "training data, each to another"
    if context.held_out_features is not None:
        held_out, nearest = context.held_out_features.features, "held-out data"
        used["held_out"] = len(held_out)
    result = memorisation(samples, training, held_out, resamples=context.resamples, seed=context.settings.seed)
    items = context.reference.indices
    pairs = [[sample, int(items[near]), distance] for sample, near, distance in result.pairs]

    # report near-copies, distances, and the ratio if there are held-out data
    rows: dict[str, dict[str, Any]] = {
        "near_copies": {
            "value": result.near_copies, "floor": result.expected, "threshold": result.threshold, "pairs": pairs,
            "used": used, "threshold_of": nearest,
        },
        "nearest_distance": {"value": float(result.distances.median()), "of": "median over samples", "used": used},
    }  # fmt: skip
    if result.ratio is None:
        return MetricResult(rows, {"memorisation_ratio": "needs real data that the model has not seen: --held-out or "
                                                         "--held-out-split"})  # fmt: skip
    ratio = {"value": result.ratio, "low": result.ratio_low, "high": result.ratio_high, "floor": 1.0, "used": used}
    return MetricResult(rows | {"memorisation_ratio": ratio})


def usefulness(context: MetricContext) -> MetricResult:
    """Return the accuracies of classifiers that are trained on the samples alone, or beside few reference images."""
    reference, held_out, settings = context.reference, context.held_out, context.settings
    reason = _unusable(context)
    labels, sample_labels = reference.labels(), context.generator.conditions.labels
    if reason or labels is None or sample_labels is None or held_out is None:
        return MetricResult(none={"usefulness": reason or "needs labels"})

    # choose samples, reference images in equal number, and test images
    number = len(context.samples.images)
    synthetic = (context.samples.images, sample_labels[:number])
    count = min(number, reference.count)
    real = (reference(range(count)), labels[:count])
    test_count = min(held_out.count, max(GRID_IMAGES, IMAGE_BYTES // (4 * synthetic[0][0].numel())))
    test_labels = held_out.labels(test_count)
    assert test_labels is not None                                          # it has the classes of the reference data
    test = (held_out(range(test_count)), test_labels)

    # measure the accuracy of a classifier of samples (Ravuri and Vinyals 2019)
    training = Training(steps=settings.classifier_steps)
    classes, seed, shown = reference.data.num_classes or 0, settings.seed, context.progress.shown
    facts = {"synthetic": number, "steps": training.steps, "seeds": training.seeds, "test": len(test[1])}
    score = classifier_accuracy_score(synthetic, real, test, classes, training, seed, shown)
    rows = {"accuracy_score": {**_interval(score.other), "floor": score.real[0], **_accuracies(score), **facts}}

    # measure the gain from samples beside few reference images of each class
    few_each = torch.cat([(labels == c).nonzero().flatten()[: max(PER_CLASS)] for c in labels.unique()])
    several = (reference(few_each.tolist()), labels[few_each])
    gains = augmentation_gain(synthetic, several, test, classes, PER_CLASS, training, seed, shown)
    for few, gain in gains.items():
        rows[f"augmentation_gain_{few}"] = {**_interval(gain.gain), "floor": 0.0, **_accuracies(gain), **facts}
    return MetricResult(rows)


def _interval(estimate: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), estimate, strict=True))


def _accuracies(result: Usefulness) -> dict[str, Any]:
    """Return the accuracies of the classifiers of both sides, and the number of reference images."""
    return {
        "on_real": list(result.real), "on_other": list(result.other), "gain": list(result.gain), "real": result.images,
    }  # fmt: skip


def _unusable(context: MetricContext) -> str | None:
    """Return the reason why usefulness does not apply; None if it does."""
    reference, held_out = context.reference, context.held_out
    if reference.points:
        return "points are not classified"
    if reference.data.num_classes is None or context.generator.conditions.labels is None:
        return "the model must make classes, and the data have labels"
    if held_out is None or held_out.data.num_classes != reference.data.num_classes:
        return "needs labelled real images of the same classes, not trained on: --held-out or --held-out-split"
    return None


def cost(context: MetricContext) -> MetricResult:
    """Return the cost of a model: parameters, evaluations, seconds and memory of 64 samples, and its training."""
    # measure sampling
    model = context.model
    if model.given is not None:
        return MetricResult(none={"cost": "the samples were there already"})
    sampled = sampling_cost(lambda n: context.generator(range(n)), model.networks)
    rows: dict[str, dict[str, Any]] = {
        "seconds_per_64": {"value": sampled.seconds, "device": sampled.device, "threads": torch.get_num_threads()},
        "peak_bytes_per_64": {"value": sampled.peak_bytes, "of": sampled.peak_of, "device": sampled.device},
    }
    none = {}
    if sampled.parameters:
        rows["evaluations_per_image"] = {"value": max(sampled.evaluations.values()), "by_network": sampled.evaluations}
        rows["parameters"] = {"value": sum(sampled.parameters.values()), "by_network": sampled.parameters}
    else:
        none = dict.fromkeys(("evaluations_per_image", "parameters"), f"{model.family} tells no components")

    # read training, as the run folder records it
    trained = TrainingCost() if model.run is None else training_cost(model.run)
    for name, value in (("training_steps", trained.steps), ("training_seconds", trained.seconds)):
        if value is None:
            none[name] = "the model lies in no run folder that tells it"
        else:
            rows[name] = {"value": value, "hardware": trained.hardware, "budget": trained.budget}
    if trained.autoencoder is not None and trained.seconds is not None:
        before = training_cost(trained.autoencoder).seconds
        rows["training_seconds"] |= {"value": trained.seconds + (before or 0.0), "autoencoder_seconds": before}
    return MetricResult(rows, none)


class Metric(NamedTuple):
    """A group of metrics: its function, and the names of the settings that it depends on beside those of the samples.

    The function sees these settings and the seed alone, and the cache key of its result holds all of them.
    """

    compute: Callable[[MetricContext], MetricResult]
    settings: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    "frechet": Metric(frechet, ("resamples",)),
    "kid": Metric(kid, ("resamples",)),
    "prdc": Metric(prdc, ("resamples", "neighbours")),
    "diversity": Metric(diversity),
    "likelihood": Metric(likelihood, ("resamples", "likelihood_images", "likelihood_seconds", "importance_samples")),
    "usefulness": Metric(usefulness, ("classifier_steps",)),
    "privacy": Metric(privacy, ("resamples",)),
    "cost": Metric(cost),
}
"""The groups of `hfgen.evaluation.settings.GROUPS`."""
