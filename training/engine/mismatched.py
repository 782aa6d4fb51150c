"""Wrong conditions for the samples of a batch: another class, another caption."""

from collections.abc import Sequence

from torch import Tensor

from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch


def mismatched(batch: Batch, noise: Noise, num_classes: int | None, captions: Sequence[str] = ()) -> Batch:
    """Return the batch with a wrong class and a wrong caption for each sample (Reed et al. 2016, section 4.2).

    `num_classes`: K >= 2 for a batch with `label` (B,), int64 in [0, K - 1]: the wrong class is uniform among the K - 1
    others. `captions`: those of the data, at least two of them different, for a batch with `caption`, B texts: the
    wrong one is a random caption of the data with another text. None and () leave classes and captions as they are.
    Both are functions of (seed, step, sample).
    """
    wrong = dict(batch)
    if num_classes is not None:
        wrong["label"] = other_classes(batch["label"], noise.uniform("wrong class"), num_classes)
    if captions:
        wrong["caption"] = other_captions(batch["caption"], noise.uniform("wrong caption"), captions)
    return wrong


def other_classes(labels: Tensor, u: Tensor, num_classes: int) -> Tensor:
    """Return a class other than each of `labels` (B,), int64 in [0, K - 1], uniform for `u` (B,) uniform in [0, 1)."""
    others = num_classes - 1
    distance = 1 + (u * others).long().clamp(max=others - 1)                             # in [1, K - 1]
    return (labels + distance.to(labels.device)) % num_classes


def other_captions(texts: Sequence[str], u: Tensor, captions: Sequence[str]) -> list[str]:
    """Return for each text the first other text among `captions` from the random one at `u` (B,) in [0, 1) on."""
    found = []
    for text, start in zip(texts, (u.double() * len(captions)).long().tolist(), strict=True):
        while captions[start % len(captions)] == text:
            start += 1
        found.append(captions[start % len(captions)])
    return found
