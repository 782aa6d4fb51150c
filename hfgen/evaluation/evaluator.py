"""One evaluation from end to end: the real data, the extractor and the settings stay, models come and go."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hfgen.data.dataset import Dataset
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError
from hfgen.evaluation.cache import Cache, key_of, versions
from hfgen.evaluation.context import Case, Found
from hfgen.evaluation.distributed import Processes, device
from hfgen.evaluation.features import SHOWN, Collected, Collector
from hfgen.evaluation.generate import Asking, conditions_for, identity_of
from hfgen.evaluation.metric_groups import COMPUTE, DEPENDS
from hfgen.evaluation.model import Subject, open_subject
from hfgen.evaluation.pictures import draw
from hfgen.evaluation.progress import Progress, each_call
from hfgen.evaluation.reference import Fresh, Real, held_out_of, open_data
from hfgen.evaluation.result import Evaluation
from hfgen.evaluation.settings import AT_MOST, Settings
from hfgen.metrics.cost import networks_of, training_cost
from hfgen.metrics.features import ClassifierFeatures, Extractor, load_extractor
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.training.engine.record import device_name

AT_ONCE = 256
"""Real items that go through an extractor together."""

SECONDS = {
    "evaluation": 0.001, "frechet": 5.0, "kid": 2.0, "prdc": 3.0, "likelihood": 5.0, "usefulness": 120.0,
}  # fmt: skip
"""Expected seconds on two cores: of one sample through a small network, and of groups for the digits' 1,797 samples."""

OF_SAMPLES = {"frechet", "kid", "prdc", "diversity", "usefulness", "privacy"}
OF_HELD_OUT = {"privacy"}
"""Groups that need all the samples, and the features of held-out data."""


class Evaluator:
    """Judges models by the same data, seed, extractor and settings; arguments and errors as of `hfgen.evaluate`."""

    def __init__(
        self,
        dataset: Any,
        settings: Settings,
        split: str = "train",
        held_out: Any = None,
        held_out_split: str | None = None,
        cache: bool = True,
        progress: bool = True,
        **options: Any,
    ) -> None:
        self.settings, self.processes = settings, Processes()
        self.progress = Progress(progress and self.processes.first)
        self.cache = Cache(cache)
        data = open_data(dataset, split=split, **options)
        self.dataset, self.split = (str(dataset) if data is not dataset else data.name), split
        self.real = Real(data, settings.seed)
        self.held_out = self._held_out(held_out_of(dataset, split, held_out, held_out_split), options)
        settings.check_counts(self.real.count)
        if self.real.in_plane and (settings.features != "pixels" or settings.classifier is not None):
            raise ConfigError(f"{data.name} is a set of points: its features are pixels, and no classifier sees them")
        self.extractor = load_extractor(settings.features, device())
        self.classifier = self._classifier()
        self.collector = Collector(self.extractor, self.classifier, data.shape, self.processes)
        self._features: dict[str, Collected | None] = {}
        self._planned = set[str]()

    def __call__(self, model: Any, lenient: bool = False) -> Evaluation:
        """Return what a model scores; `lenient`: settings of several steps do not reach models of one."""
        asking, count = self.asking(model, lenient)
        subject = asking.subject
        key = self._sample_key(subject, asking, count)
        make, batches = self._checked(asking, count), asking.batches(count)
        samples = self._collected(key, make, batches, "sampling", f"{subject.name}: sampling", images=True)
        real = self._real_features("real", self.real)
        needed = self.held_out is not None and OF_HELD_OUT & {*self.settings.metrics}
        held_out = self._real_features("held-out", self.held_out) if needed and self.held_out else None

        def compute() -> Evaluation:
            assert samples is not None and real is not None                             # in the first process
            case = Case(
                subject, asking, self.settings, self.extractor, self.classifier, self.real, self.held_out, samples,
                real, held_out, self.progress,
            )  # fmt: skip
            return self._judged(case, key)

        return self.processes.from_first(compute)

    def plan(self, model: Any, lenient: bool = False) -> None:
        """Check that a model can be asked, as `asking` does, and expect its stages in the bar."""
        asking, count = self.asking(model, lenient)
        s, share = self.settings, count / 1797                                          # of the digits
        evaluations = 1 if asking.subject.steps is None else asking.told.get(asking.subject.steps, 50)
        sampling = evaluations * count * SECONDS["evaluation"]
        self.progress.plan("sampling", sampling)
        for name in s.metrics:
            seconds = SECONDS.get(name, 0.1) * share
            if name == "likelihood" and isinstance(asking.subject.pipeline, DDPMPipeline):
                seconds = 2 * s.likelihood_seconds
            self.progress.plan(name, 4 * 64 / count * sampling if name == "cost" else seconds)
        networks = [self.extractor, self.classifier]
        slow = 0.02 if any(one is not None and one.weights_hash != "none" for one in networks) else 1e-5
        needed = {"real": self.real} | ({"held-out": self.held_out} if OF_HELD_OUT & {*s.metrics} else {})
        for which, real in needed.items():
            if real is not None and which not in self._planned:
                self.progress.plan(f"{which} data", slow * real.count)
                self._planned.add(which)

    def _held_out(self, asked: tuple[Any, str] | None, options: dict[str, Any]) -> Real | None:
        data, seed = self.real.data, self.settings.seed
        if asked is None:
            return Fresh(data, seed, AT_MOST) if isinstance(data, Toy) else None
        shaped = {} if self.real.in_plane else {"resolution": tuple(data.shape[1:]), "channels": data.shape[0]}
        by_name = not isinstance(asked[0], Dataset)
        found = open_data(asked[0], split=asked[1], **({**options, **shaped} if by_name else {}))
        if found.shape != data.shape:
            words = f"{found.describe()}, and the dataset is {data.describe()}"
            raise ConfigError(f"held_out: {words}; their shapes must agree")
        return Real(found, seed)

    def _classifier(self) -> ClassifierFeatures | None:
        if self.settings.classifier is None:
            return self.extractor if isinstance(self.extractor, ClassifierFeatures) else None
        found = load_extractor(f"classifier:{self.settings.classifier}", device())
        assert isinstance(found, ClassifierFeatures)
        return found

    def asking(self, model: Any, lenient: bool = False) -> tuple[Asking, int]:
        """Return how a model is asked, and for how many samples: for a few where no metric is of samples.

        ConfigError for what it cannot do, as far as that is known before it makes a sample.
        """
        subject, s, data = open_subject(model), self.settings, self.real.data
        if (shape := subject.shape) is not None:
            self._check_shape(subject, shape)
        count = s.count(self.real.count)
        if not (OF_SAMPLES & {*s.metrics} or (self.real.in_plane and "likelihood" in s.metrics)):
            count = min(count, SHOWN)
        conditions = conditions_for(subject, data, max(count, SHOWN), s.seed)
        choices: dict[str, Any] = {"num_steps": s.num_steps, "guidance_scale": s.guidance_scale, "sampler": s.sampler}
        if lenient:
            choices |= {"num_steps": None} if subject.steps is None else {}
            choices |= {"sampler": None} if "sampler" not in subject.parameters else {}
            choices |= {"guidance_scale": 1.0} if not subject.guided else {}
        asking = Asking(subject, conditions, s.seed, s.batch_size, **choices)
        asking.check()
        return asking, count

    def _check_shape(self, subject: Subject, shape: tuple[int, ...]) -> None:
        """Raise ConfigError for samples shaped unlike the data."""
        data = self.real.data
        if shape != tuple(data.shape):
            found, wanted = ("x".join(map(str, one)) for one in (shape, data.shape))
            hint = ""
            if len(shape) == 3 and not self.real.in_plane:
                channels, height, width = shape
                side = str(height) if height == width else f"{height} {width}"
                hint = f"; load the data with --resolution {side} --channels {channels}"
            raise ConfigError(f"{subject.name} makes {found}, {data.name} is {wanted}{hint}")

    def _checked(self, asking: Asking, count: int) -> Any:
        """Return what makes samples and reports how far it is; ConfigError for samples shaped unlike the data."""
        networks = networks_of(asking.subject.pipeline) if hasattr(asking.subject.pipeline, "components") else {}
        usual = asking.told.get(asking.subject.steps or "", 1000 if asking.subject.steps else 1)

        def make(rows: range) -> Tensor:
            nonlocal usual
            calls, last = itertools.count(1), 0

            def report() -> None:
                nonlocal last
                last = next(calls)
                self.progress.tick((rows.start + len(rows) * min(1.0, (last - 1) / usual)) / count)

            self.progress.tick(rows.start / count)
            with each_call(networks, report):
                samples = asking(rows)
            usual = last or usual                                           # as many as in the batch before
            self._check_shape(asking.subject, tuple(samples.shape[1:]))
            return samples

        return make

    def _collected(
        self, key: str | None, make: Any, batches: list[range], kind: str, title: str, images: bool
    ) -> Any:
        """Return what is known of items, from the cache or anew, in the first process; None in the others."""
        entry = self.cache.get(key) if self.processes.first else None
        if self.processes.from_first(lambda: entry is not None):
            self.progress.skip(kind)
            return None if entry is None else Collected.unpacked(entry[0]["count"], entry[1])
        with self.progress.stage(kind, title):
            found = self.collector(make, batches, images)
        if found is not None:
            self.cache.put(key, {"count": found.count}, found.packed())
        return found

    def _real_features(self, which: str, real: Real) -> Collected | None:
        """Return the features of real items, computed once."""
        if which not in self._features:
            fresh, seed = isinstance(real, Fresh), self.settings.seed
            key = key_of("real", seed=seed, real=real.key(), fresh=fresh, **self._eyes())
            batches = [range(i, min(i + AT_ONCE, real.count)) for i in range(0, real.count, AT_ONCE)]

            def make(rows: range) -> Tensor:
                self.progress.tick(rows.start / real.count)
                return real(rows)

            self._features[which] = self._collected(key, make, batches, f"{which} data", f"{which} data", images=False)
        return self._features[which]

    def _eyes(self) -> dict[str, Any]:
        """Return what sees the items, for keys."""
        def of(extractor: Extractor | None) -> list[str] | None:
            if extractor is None:
                return None
            return [type(extractor).__name__, extractor.weights_hash, extractor.resizer]

        return {"extractor": of(self.extractor), "classifier": of(self.classifier), "device": device().type}

    def _sample_key(self, subject: Subject, asking: Asking, count: int) -> str | None:
        """Return the key of the samples and of what is seen in them; None for a model that cannot be identified."""
        if not self.cache.on:
            return None
        identity = self.processes.from_first(lambda: identity_of(asking))
        if identity is None:
            return None
        s, data = self.settings, self.real.data
        told = asking.conditions.labels is not None or asking.conditions.captions is not None
        return key_of(
            "samples", model=identity, on=subject.device, told=asking.told, seed=s.seed, count=count,
            batch_size=s.batch_size, conditions=[data.fingerprint, asking.conditions.source] if told else None,
            shape=list(data.shape), **self._eyes(),
        )  # fmt: skip

    def _judged(self, case: Case, key: str | None) -> Evaluation:
        s, data = self.settings, self.real.data
        metrics, none, whole = dict[str, dict[str, Any]](), dict[str, str](), dict[str, Any]()
        for name in s.metrics:
            found = self._found(name, case, key)
            metrics, none = metrics | found.metrics, none | found.none
        pictures = self._pictures(case, key, metrics.get("near_copies"))
        asked = {"told": case.asking.told, "conditions": case.asking.conditions.source}
        whole = {
            "samples": {"count": case.samples.count, "features": len(case.samples.features), **asked,
                        "each_by_its_own_seed": case.subject.listed, "weights_hash": case.subject.fingerprint},
            "real": {"items": len(data), "looked_at": self.real.count, "compared": len(case.compared),
                     "fingerprint": data.fingerprint},
            "held_out": None if self.held_out is None else {
                "name": self.held_out.data.name, "count": self.held_out.count,
                "fingerprint": self.held_out.data.fingerprint,
            },
        }  # fmt: skip
        return Evaluation(
            model=case.subject.name, family=case.subject.family, dataset=self.dataset, split=self.split,
            metrics=metrics, none=none, extractor=self.extractor.describe(), versions=versions(),
            processes=self.processes.count,
            classifier=None if self.classifier is None else self.classifier.describe(), pictures=pictures,
            settings=dataclasses.asdict(s), **whole,
        )  # fmt: skip

    def _found(self, name: str, case: Case, key: str | None) -> Found:
        """Return what a group says, from the cache or computed now."""
        parts: dict[str, Any] = {field: getattr(self.settings, field) for field in DEPENDS[name]}
        if name == "cost":
            trained = None if case.subject.run is None else dataclasses.asdict(training_cost(case.subject.run))
            hardware = [device_name(one) for one in (torch.device("cpu"), device())]
            parts |= {"trained": trained, "threads": torch.get_num_threads(), "hardware": hardware}
        held_out = None if self.held_out is None else self.held_out.key()
        entry_key = None if key is None else key_of(
            name, samples=key, real=self.real.key(), held_out=held_out, seed=self.settings.seed, **parts
        )  # fmt: skip
        if entry := self.cache.get(entry_key):
            self.progress.skip(name)
            return Found(**entry[0])
        with self.progress.stage(name, f"{case.subject.name}: {name}"):
            found = COMPUTE[name](dataclasses.replace(case, settings=self.settings.only(("seed", *DEPENDS[name]))))
        self.cache.put(entry_key, dataclasses.asdict(found))
        return found

    def _pictures(self, case: Case, key: str | None, near_copies: dict[str, Any] | None) -> dict[str, Image.Image]:
        """Return the pictures, from the cache or drawn now."""
        entry_key = None if key is None else key_of(
            "pictures", samples=key, real=self.real.key(), pairs=near_copies and near_copies["pairs"]
        )  # fmt: skip
        if entry := self.cache.get(entry_key):
            return {name: Image.fromarray(tensor.numpy()) for name, tensor in entry[1].items()}
        found = draw(case, near_copies)
        self.cache.put(entry_key, {}, {name: torch.from_numpy(np.array(picture)) for name, picture in found.items()})
        return found
