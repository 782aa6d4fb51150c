"""Usefulness of synthetic images: classifiers trained on them and tested on real images.

Every classifier is `hfgen.Classifier`, trained for the same number of steps of the same size whatever the data, so that
more images never mean more training. Starting weights and order are functions of the seed: equal inputs give equal
numbers (on one machine, with equal threads).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hfgen.data.order import derive_seed, stretch
from hfgen.errors import ConfigError
from hfgen.metrics.bootstrap import mean_interval
from hfgen.models.classifier import Classifier

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) in [-1, 1] and their classes, int64 (N,)."""

PER_CLASS = (10, 50, 200)


@dataclass(frozen=True)
class Training:
    """How each classifier is trained: AdamW, a rate that falls to 0 along a cosine, `seeds` of them averaged."""

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    width: int = 16
    seeds: int = 3


@dataclass(frozen=True)
class Usefulness:
    """Accuracy on real test images after training on `real` images, and on `other` ones: synthetic, or both.

    Each with its 95 % bootstrap interval over test images; `gain` = other - real, paired by test image, so that its
    interval tells whether the difference is more than chance. `images`: real images trained on.
    """

    images: int
    real: tuple[float, float, float]
    other: tuple[float, float, float]
    gain: tuple[float, float, float]


def classifier_accuracy_score(
    synthetic: Labelled,
    real: Labelled,
    test: Labelled,
    num_classes: int,
    training: Training | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Usefulness:
    """Return the accuracy on real test images of classifiers trained on synthetic, and on real images.

    The classification accuracy score (Ravuri and Vinyals 2019, section 3), `other`, against `real`: how
    much of what matters for the classes a class-conditional model has kept. Labels are those the model was asked for.

    Bias: downwards, as of every finite training set, and by the seeds; use as many synthetic as real images, or say how
    many. Never compare with scores of another classifier or number of steps.
    """
    training = training or Training()
    on_real = _correct([real], test, num_classes, training, seed, progress)
    on_synthetic = _correct([synthetic], test, num_classes, training, seed, progress)
    return _compared(len(real[0]), on_real, on_synthetic)


def augmentation_gain(
    synthetic: Labelled,
    real: Labelled,
    test: Labelled,
    num_classes: int,
    per_class: Sequence[int] = PER_CLASS,
    training: Training | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, Usefulness]:
    """Return what synthetic images add to few real ones: for each number of real images per class, real against both.

    Trained on both, a batch is half real and half synthetic, so that few real images do not drown. A class with fewer
    images than asked gives all it has (`Usefulness.images` says how many there are in all).

    Bias: the generator may have been trained on all of `real`, and then brings more than the few images of the
    comparison: a gain is the use of the model together with its training data.
    """
    training = training or Training()
    found = {}
    for number in per_class:
        few = few_per_class(real, number, seed)
        on_real = _correct([few], test, num_classes, training, seed, progress)
        on_both = _correct([few, synthetic], test, num_classes, training, seed, progress)
        found[number] = _compared(len(few[0]), on_real, on_both)
    return found


def few_per_class(data: Labelled, number: int, seed: int = 0) -> Labelled:
    """Return `number` images of each class, chosen by the seed, smaller choices within larger ones; all where fewer."""
    images, labels = data
    order = torch.from_numpy(stretch(derive_seed(seed, "few"), len(labels), 0, len(labels))[1].copy())
    shuffled = labels.cpu()[order]
    chosen = torch.cat([order[shuffled == c][:number] for c in labels.cpu().unique()])
    return images[chosen.to(images.device)], labels[chosen.to(labels.device)]


def train_classifier(
    sources: Sequence[Labelled],
    num_classes: int,
    training: Training,
    seed: int,
    device: torch.device | None = None,
    after_step: Callable[[], Any] | None = None,
) -> Any:
    """Return a classifier trained on equal shares of each batch from every one of `sources`, in evaluation mode."""
    images, _ = sources[0]
    device = device or images.device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "classifier"))
        net: Any = Classifier(tuple(images.shape[2:]), images.shape[1], num_classes, training.width)
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for x, y in _batches(sources, training, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x.to(device)), y.to(device)).backward()
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step()
    return net.eval()


def _batches(sources: Sequence[Labelled], training: Training, seed: int) -> Iterator[Labelled]:
    """Yield one batch a step: of each source its share, in an endless seeded order."""
    share = training.batch_size // len(sources)
    for step in range(training.steps):
        parts = []
        for number, (images, labels) in enumerate(sources):
            _, rows = stretch(derive_seed(seed, "order", number), len(labels), step * share, share)
            chosen = torch.from_numpy(rows)
            parts.append((images[chosen.to(images.device)], labels[chosen.to(labels.device)]))
        yield torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@torch.no_grad()
def _correct(
    sources: Sequence[Labelled], test: Labelled, num_classes: int, training: Training, seed: int, progress: bool
) -> Tensor:
    """Return for each test image the share of the classifiers, one a seed, that are right, (N,) float64."""
    for images, labels in (*sources, test):
        if len(images) != len(labels) or not len(labels) or images.shape[1:] != test[0].shape[1:]:
            raise ConfigError(f"labelled images must be as many as their labels, at least one, and of one shape "
                              f"{tuple(test[0].shape[1:])}; got {tuple(images.shape)} and {len(labels)} labels")
    total = torch.zeros(len(test[1]), dtype=torch.float64)
    title = f"classifiers of {' + '.join(f'{len(labels):,}' for _, labels in sources)} images"
    steps = training.seeds * training.steps
    with tqdm(total=steps, desc=title, unit=" steps", leave=False, disable=not progress) as bar:
        for number in range(training.seeds):
            start = derive_seed(seed, number)
            with torch.enable_grad():
                net = train_classifier(sources, num_classes, training, start, after_step=bar.update)
            seen = torch.cat([net(x.to(net.device)).argmax(1).cpu() for x in test[0].split(512)])
            total += seen == test[1].cpu()
    return total / training.seeds


def _compared(images: int, real: Tensor, other: Tensor) -> Usefulness:
    return Usefulness(images, mean_interval(real), mean_interval(other), mean_interval(other - real))
