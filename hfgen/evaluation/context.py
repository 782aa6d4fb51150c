"""Everything that a group of metrics may look at, and what it says."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hfgen.evaluation.features import Collected
from hfgen.evaluation.generate import Asking
from hfgen.evaluation.model import Subject
from hfgen.evaluation.progress import Progress
from hfgen.evaluation.reference import Real
from hfgen.evaluation.settings import Settings
from hfgen.metrics.features import ClassifierFeatures, Extractor


@dataclass
class Case:
    """A model, its samples, and the real data: `held_out` are real data that it has not seen, if there are any.

    `settings` has the seed and what `hfgen.evaluation.metric_groups.DEPENDS` says of the group, and nothing else.
    """

    subject: Subject
    asking: Asking
    settings: Settings
    extractor: Extractor
    classifier: ClassifierFeatures | None
    real: Real
    held_out: Real | None
    samples: Collected
    real_features: Collected
    held_out_features: Collected | None
    progress: Progress = field(default_factory=lambda: Progress(shown=False))

    @property
    def compared(self) -> Tensor:
        """Return the real features (N, D) that samples are compared with: twice as many as samples, as far as there
        are so many, so that each of their halves, which give the floor, has as many."""
        return self.real_features.features[: 2 * self.samples.count]

    @property
    def resamples(self) -> int:
        """Return the number of bootstrap resamples: as asked for, or fewer the more they cost."""
        if self.settings.resamples is not None:
            return self.settings.resamples
        dim, most = self.samples.features.shape[1], max(len(self.compared), len(self.samples.features))
        return 1000 if dim <= 256 and most <= 20_000 else 200 if dim <= 1024 and most <= 50_000 else 50

    def images(self, indices: list[int]) -> Tensor:
        """Return the samples `indices`: those that stayed, or all made again."""
        if max(indices) < len(self.samples.images):
            return self.samples.images[indices]
        return self.asking.at(indices, self.samples.count)


@dataclass
class Found:
    """The result of a group: `metrics`, each with a `value` and its details, and `none`, the reason for each metric, or
    for the whole group, that does not apply."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    none: dict[str, str] = field(default_factory=dict)
