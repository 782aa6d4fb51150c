"""One evaluation from end to end: reference data, extractor and settings stay, models change."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfgen.errors import ConfigError
from hfgen.evaluation.cache import Cache, key_of, versions
from hfgen.evaluation.context import MetricContext, MetricResult
from hfgen.evaluation.distributed import Processes, device
from hfgen.evaluation.features import GRID_IMAGES, FeatureExtraction, Features
from hfgen.evaluation.generate import SampleGenerator, conditions_for, identity_of, reporting
from hfgen.evaluation.likelihood import is_timed
from hfgen.evaluation.metric_groups import METRICS
from hfgen.evaluation.model import EvaluatedModel, load_model
from hfgen.evaluation.pictures import draw
from hfgen.evaluation.progress import Progress
from hfgen.evaluation.reference import ReferenceData, open_data, open_held_out
from hfgen.evaluation.result import Evaluation
from hfgen.evaluation.settings import EvaluationArguments
from hfgen.metrics.cost import training_cost
from hfgen.metrics.features import ClassifierFeatures, load_extractor
from hfgen.training.engine.record import device_name

SECONDS = {
    "evaluation": 0.001, "frechet": 5.0, "kid": 2.0, "prdc": 3.0, "likelihood": 5.0, "usefulness": 120.0,
}  # fmt: skip
"""Expected seconds on two cores: of one sample through a small network, and of groups for the digits' 1,797 samples."""

DIGITS = 1797

OF_SAMPLES = {"frechet", "kid", "prdc", "diversity", "usefulness", "privacy"}
OF_HELD_OUT = {"privacy"}
"""Groups that need all the samples, and the features of held-out data."""


class Evaluator:
    """Evaluation of models by the same data, seed, extractor and settings; arguments and errors as in `hfgen.evaluate`.

    `options`: further arguments of `load_dataset`.
    """

    def __init__(self, dataset: Any, settings: EvaluationArguments, **options: Any) -> None:
        # create processes, bar and cache
        self.settings, self.processes = settings, Processes()
        self.progress = Progress(settings.progress and self.processes.first)
        self.cache = Cache(settings.cache)

        # open reference data and held-out data
        options = {**settings.reading, **options}
        data = open_data(dataset, split=settings.split, **options)
        self.dataset = str(dataset) if isinstance(dataset, str | Path) else data.name
        self.reference = ReferenceData(data, settings.seed)
        self.held_out = open_held_out(dataset, self.reference, settings.seed, settings, options)
        settings.check_counts(self.reference.count, settings.count(self.reference.count))

        # load feature extractor and classifier
        if self.reference.points and (settings.features != "pixels" or settings.classifier is not None):
            raise ConfigError(f"{data.name} is a set of points: its features are pixels, and no classifier sees them")
        self.extractor = classifier = load_extractor(settings.features, device())
        if settings.classifier is not None:
            classifier = load_extractor(f"classifier:{settings.classifier}", device())
        self.classifier = classifier if isinstance(classifier, ClassifierFeatures) else None
        self.extraction = FeatureExtraction(
            self.extractor, self.classifier, data.shape, self.processes, self.cache, self.progress
        )
        self._features: dict[str, Features | None] = {}
        self._planned = set[str]()

    def __call__(self, model: Any, lenient: bool = False) -> Evaluation:
        """Return the evaluation of a model. `lenient`: settings that a model does not take do not apply to it."""
        # generate samples
        generator, count = self.generator(model, lenient)
        name = generator.model.name
        key = self._sample_key(generator, count)
        items = reporting(generator, count, self.reference.data, self.progress)
        samples = self.extraction.cached(
            key, items, generator.batches(count), "sampling", f"{name}: sampling", keep_images=True
        )

        # extract reference features
        reference = self._reference_features("real data", self.reference)
        held_out = self._reference_features("held-out data", self.held_out)

        # compute the metrics, in the first process
        def evaluation() -> Evaluation:
            assert samples is not None and reference is not None
            context = MetricContext(
                generator.model, generator, self.settings, self.extractor, self.classifier, self.reference,
                self.held_out, samples, reference, held_out, self.progress,
            )  # fmt: skip
            return self._evaluation(context, key)

        return self.processes.from_first(evaluation)

    def generator(self, model: Any, lenient: bool = False) -> tuple[SampleGenerator, int]:
        """Return the generator of a model's samples, and their number: a few if no metric is computed from samples.

        Raises ConfigError for impossible settings, if they are known to be so before a sample is generated.
        """
        # load the model, count its samples
        evaluated, s, data = load_model(model), self.settings, self.reference.data
        count = s.count(self.reference.count)
        if evaluated.given is not None:
            count = s.count_of(len(evaluated.given))
            s.check_counts(self.reference.count, count)
        if not (OF_SAMPLES & {*s.metric_groups} or (self.reference.points and "likelihood" in s.metric_groups)):
            count = min(count, GRID_IMAGES)

        # collect the arguments of its call
        choices: dict[str, Any] = {"num_steps": s.num_steps, "guidance_scale": s.guidance_scale, "sampler": s.sampler}
        if lenient and evaluated.steps is None:
            choices.pop("num_steps")
        if lenient and "sampler" not in evaluated.parameters:
            choices.pop("sampler")
        if lenient and not evaluated.guidable:
            choices.pop("guidance_scale")
        if evaluated.shape is not None:
            evaluated.check_shape(evaluated.shape, data)
        conditions = conditions_for(evaluated, data, max(count, GRID_IMAGES), s.seed)
        generator = SampleGenerator(evaluated, conditions, s.seed, s.batch_size, **choices)
        generator.check()
        return generator, count

    def plan(self, model: Any, lenient: bool = False) -> None:
        """Check the settings for a model, as `generator` does, and plan its stages in the bar."""
        # plan sampling
        generator, count = self.generator(model, lenient)
        evaluated, s = generator.model, self.settings
        evaluations = 1
        if evaluated.steps is not None:
            evaluations = generator.steps or 50
        sampling = evaluations * count * SECONDS["evaluation"]
        self.progress.plan("sampling", sampling)

        # plan metrics
        for name in s.metric_groups:
            seconds = SECONDS.get(name, 0.1) * count / DIGITS
            if name == "likelihood" and is_timed(evaluated.pipeline):
                seconds = 2 * s.likelihood_seconds
            if name == "cost":
                seconds = 4 * 64 / count * sampling
            self.progress.plan(name, seconds)

        # plan features of reference data, once for all models
        seconds = 1e-5
        if self.extractor.weights_hash != "none" or self.classifier is not None:
            seconds = 0.02
        for stage, reference in (("real data", self.reference), ("held-out data", self.held_out)):
            if reference is not None and self._needs(reference) and stage not in self._planned:
                self.progress.plan(stage, seconds * reference.count)
                self._planned.add(stage)

    def _needs(self, reference: ReferenceData) -> bool:
        """Return whether features of these data are computed: held-out data serve some groups only."""
        return reference is self.reference or bool(OF_HELD_OUT & {*self.settings.metric_groups})

    def _reference_features(self, name: str, reference: ReferenceData | None) -> Features | None:
        """Return the features of reference data, extracted once for all models; None if they are not needed."""
        if reference is None or not self._needs(reference):
            return None
        if name not in self._features:
            self._features[name] = self.extraction.of_reference(reference, self.settings.seed, name)
        return self._features[name]

    def _sample_key(self, generator: SampleGenerator, count: int) -> str | None:
        """Return the key of the samples and their features; None for a model that cannot be identified."""
        # identify the model
        if not self.cache.on:
            return None
        identity = self.processes.from_first(lambda: identity_of(generator))
        if identity is None:
            return None
        # collect conditions, and everything else
        s, data, conditions = self.settings, self.reference.data, None
        if generator.conditions.labels is not None or generator.conditions.captions is not None:
            conditions = [data.fingerprint, generator.conditions.source]
        parts = {
            "model": identity, "on": generator.model.device, "told": generator.arguments, "seed": s.seed,
            "count": count, "batch_size": s.batch_size, "conditions": conditions, "shape": list(data.shape),
        }  # fmt: skip
        return key_of("samples", **parts, **self.extraction.identity)

    def _evaluation(self, context: MetricContext, key: str | None) -> Evaluation:
        """Return the metrics and pictures of a model, and everything that they depend on."""
        # compute metrics and pictures
        metrics, none = dict[str, dict[str, Any]](), dict[str, str]()
        for name in self.settings.metric_groups:
            result = self._result(name, context, key)
            metrics, none = metrics | result.metrics, none | result.none
        pictures = self._pictures(context, key, metrics.get("near_copies"))

        # collect counts and fingerprints
        data, model, generator = self.reference.data, context.model, context.generator
        samples = {
            "count": context.samples.count, "features": len(context.samples.features), "told": generator.arguments,
            "conditions": generator.conditions.source, "each_by_its_own_seed": model.takes_generators,
            "weights_hash": model.fingerprint,
        }  # fmt: skip
        real = {
            "items": len(data), "looked_at": self.reference.count, "compared": len(context.compared),
            "fingerprint": data.fingerprint,
        }  # fmt: skip
        held_out = classifier = None
        if self.held_out is not None:
            data = self.held_out.data
            held_out = {"name": data.name, "count": self.held_out.count, "fingerprint": data.fingerprint}
        if self.classifier is not None:
            classifier = self.classifier.describe()
        return Evaluation(
            model.name, model.family, self.dataset, self.settings.split, metrics, none, self.extractor.describe(),
            classifier, samples, real, held_out, self.settings.decisive, versions(), self.processes.count, pictures,
        )  # fmt: skip

    def _result(self, name: str, context: MetricContext, key: str | None) -> MetricResult:
        """Return the result of a group, from the cache or computed now."""
        # collect everything that the group depends on
        metric = METRICS[name]
        visible = self.settings.only(("seed", *metric.settings))
        parts: dict[str, Any] = {**vars(visible), "held_out": None}
        if self.held_out is not None:
            parts["held_out"] = self.held_out.key()
        if name == "cost":
            parts |= _cost_parts(context.model)
        entry_key = None
        if key is not None:
            entry_key = key_of(name, samples=key, real=self.reference.key(), **parts)

        # look in the cache
        if entry := self.cache.get(entry_key):
            self.progress.skip(name)
            return MetricResult(**entry[0])

        # compute now
        with self.progress.stage(name, f"{context.model.name}: {name}"):
            result = metric.compute(dataclasses.replace(context, settings=visible))
        self.cache.put(entry_key, dataclasses.asdict(result))
        return result

    def _pictures(
        self, context: MetricContext, key: str | None, near_copies: dict[str, Any] | None
    ) -> dict[str, Image.Image]:
        """Return the pictures, from the cache or drawn now."""
        # look in the cache
        entry_key, pairs = None, (near_copies or {}).get("pairs")
        if key is not None:
            entry_key = key_of("pictures", samples=key, real=self.reference.key(), pairs=pairs)
        if entry := self.cache.get(entry_key):
            return {name: Image.fromarray(tensor.numpy()) for name, tensor in entry[1].items()}
        # draw now
        pictures = draw(context, pairs)
        arrays = {name: torch.from_numpy(np.array(picture)) for name, picture in pictures.items()}
        self.cache.put(entry_key, {}, arrays)
        return pictures


def _cost_parts(model: EvaluatedModel) -> dict[str, Any]:
    """Return everything beside settings and samples that the cost of a model depends on: its training, the machine."""
    parts: dict[str, Any] = {"trained": None, "threads": torch.get_num_threads()}
    parts["hardware"] = [device_name(torch.device("cpu")), device_name(device())]
    if model.run is not None:
        parts["trained"] = dataclasses.asdict(training_cost(model.run))
    return parts
