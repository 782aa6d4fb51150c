"""The context in which a group of metrics is computed, and its result."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hfgen.evaluation.features import Features
from hfgen.evaluation.generate import SampleGenerator
from hfgen.evaluation.model import EvaluatedModel
from hfgen.evaluation.progress import Progress
from hfgen.evaluation.reference import ReferenceData
from hfgen.metrics.features import ClassifierFeatures, Extractor


@dataclass
class MetricContext:
    """A model, its samples, the reference data, and held-out data, if there are any.

    `held_out`: data that the model was not trained on. `settings`: the seed and the settings of the group in
    `hfgen.evaluation.metric_groups.METRICS`, and no others.
    """

    model: EvaluatedModel
    generator: SampleGenerator
    settings: Any
    extractor: Extractor
    classifier: ClassifierFeatures | None
    reference: ReferenceData
    held_out: ReferenceData | None
    samples: Features
    reference_features: Features
    held_out_features: Features | None
    progress: Progress = field(default_factory=lambda: Progress(shown=False))

    @property
    def compared(self) -> Tensor:
        """Return the reference features (N, D) that samples are compared with.

        N is twice the number of samples, or fewer if there are fewer items: each half, of which the floor is computed,
        is then as large as the samples.
        """
        return self.reference_features.features[: 2 * self.samples.count]

    @property
    def resamples(self) -> int:
        """Return the number of bootstrap resamples: the setting. Default: 1,000 (fewer for many features or items)."""
        if self.settings.resamples is not None:
            return int(self.settings.resamples)
        dim, most = self.samples.features.shape[1], max(len(self.compared), len(self.samples.features))
        if dim <= 256 and most <= 20_000:
            return 1000
        return 200 if dim <= 1024 and most <= 50_000 else 50

    def images(self, indices: list[int]) -> Tensor:
        """Return the samples `indices`, (B, C, H, W) in [-1, 1]: those in memory, or all of them generated again."""
        if max(indices) < len(self.samples.images):
            return self.samples.images[indices]
        return self.generator.at(indices, self.samples.count)


@dataclass
class MetricResult:
    """The result of a group of metrics.

    `metrics`: for each metric its `value` and details. `none`: the reason for each metric, or for the whole group, that
    does not apply.
    """

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    none: dict[str, str] = field(default_factory=dict)
