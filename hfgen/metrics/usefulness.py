"""Usefulness of synthetic images: classifiers are trained on them and tested on real images.

Every classifier is `hfgen.Classifier`, trained for the same number of steps and batch size on all data, so that more
images do not mean more training. Initial weights and order are functions of the seed: equal inputs give equal numbers
(on one machine, with equal threads).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hfgen.data.order import derive_seed, stretch
from hfgen.errors import ConfigError
from hfgen.metrics.bootstrap import mean_interval
from hfgen.models.classifier import Classifier

Labelled = tuple[Tensor, Tensor]
"""Images (N, C, H, W) in [-1, 1] and their classes, int64 (N,)."""

PER_CLASS = (10, 50, 200)
"""Default numbers of real images per class in `augmentation_gain`."""

BATCH_SIZE = 512
"""Test images that a classifier labels at once."""


@dataclass(frozen=True)
class Training:
    """Training of each classifier: AdamW with a cosine decay of the rate to 0; results are means over `seeds` runs."""

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    width: int = 16
    seeds: int = 3


@dataclass(frozen=True)
class Usefulness:
    """Accuracy on real test images: (mean, low, high) with a 95 % bootstrap interval over test images, in [0, 1].

    `real`: trained on real images; `other`: trained on synthetic images, or on both. `gain` = other - real, paired by
    test image, so an interval without 0 shows a difference beyond chance. `images`: number of real training images.
    """

    images: int
    real: tuple[float, float, float]
    other: tuple[float, float, float]
    gain: tuple[float, float, float]


def classifier_accuracy_score(
    synthetic: Labelled,
    reference: Labelled,
    test: Labelled,
    num_classes: int,
    training: Training | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Usefulness:
    """Return the accuracy on real test images of classifiers trained on synthetic and on real (`reference`) images.

    `other` is the classification accuracy score (Ravuri and Vinyals 2019, section 3): it measures how much of the class
    information a class-conditional model has kept. The synthetic labels are those that the model was conditioned on.

    Bias: downwards, because training sets are finite, and by the seeds. Use as many synthetic as real images, or report
    the counts. Do not compare with scores of another classifier or number of steps. Raises ConfigError for images of
    different shapes, for counts of images and labels that differ, and for no images.
    """
    training = training or Training()
    on_real = _correct([reference], test, num_classes, training, seed, progress)
    on_synthetic = _correct([synthetic], test, num_classes, training, seed, progress)
    return _compared(len(reference[0]), on_real, on_synthetic)


def augmentation_gain(
    synthetic: Labelled,
    reference: Labelled,
    test: Labelled,
    num_classes: int,
    per_class: Sequence[int] = PER_CLASS,
    training: Training | None = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, Usefulness]:
    """Return, by number of real images per class, the accuracy from real images and from real and synthetic images.

    For training on both, half of each batch is real and half synthetic, so few real images keep their weight. A class
    with fewer images than requested gives all of them (`Usefulness.images` is the total).

    Bias: the generator may have been trained on all of `reference`, that is, on more than the few images of the
    comparison: a gain is then due to the model together with its training data. Raises ConfigError as
    `classifier_accuracy_score`.
    """
    training = training or Training()
    gains = {}
    for number in per_class:
        few = few_per_class(reference, number, seed)
        on_real = _correct([few], test, num_classes, training, seed, progress)
        on_both = _correct([few, synthetic], test, num_classes, training, seed, progress)
        gains[number] = _compared(len(few[0]), on_real, on_both)
    return gains


def few_per_class(data: Labelled, number: int, seed: int = 0) -> Labelled:
    """Return `number` images of each class, chosen by the seed, or all of a class with fewer.

    Images chosen for a smaller `number` are also chosen for a larger one.
    """
    # shuffle, and take the first of each class
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
    """Return a classifier in evaluation mode, trained on batches with equal shares of all `sources`.

    `after_step` is called without arguments after each optimiser step.
    """
    # initialise the network from the seed alone
    images, _ = sources[0]
    device = device or images.device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "classifier"))
        height, width = images.shape[2:]
        net: Any = Classifier((height, width), images.shape[1], num_classes, training.width)
    net.to(device).train()
    # train it
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    for x, y in _batches(sources, training, seed):
        optimizer.zero_grad()
        F.cross_entropy(net(x.to(device)).logits, y.to(device)).backward()
        optimizer.step()
        schedule.step()
        if after_step is not None:
            after_step()
    return net.eval()


def _batches(sources: Sequence[Labelled], training: Training, seed: int) -> Iterator[Labelled]:
    """Yield one batch per step: an equal share of each source, in an endless seeded order."""
    share = training.batch_size // len(sources)
    for step in range(training.steps):
        xs, ys = [], []
        for number, (images, labels) in enumerate(sources):
            _, rows = stretch(derive_seed(seed, "order", number), len(labels), step * share, share)
            chosen = torch.from_numpy(rows)
            xs.append(images[chosen.to(images.device)])
            ys.append(labels[chosen.to(labels.device)])
        yield torch.cat(xs), torch.cat(ys)


@torch.no_grad()
def _correct(
    sources: Sequence[Labelled], test: Labelled, num_classes: int, training: Training, seed: int, progress: bool
) -> Tensor:
    """Return, for each test image, the share of classifiers (one per seed) that predict its class, (N,) float64."""
    # check the images
    for images, labels in (*sources, test):
        if len(images) != len(labels) or not len(labels) or images.shape[1:] != test[0].shape[1:]:
            raise ConfigError(f"labelled images must be as many as their labels, at least one, and of one shape "
                              f"{tuple(test[0].shape[1:])}; got {tuple(images.shape)} and {len(labels)} labels")
    # train and test one classifier per seed
    total = torch.zeros(len(test[1]), dtype=torch.float64)
    title = f"classifiers of {' + '.join(f'{len(labels):,}' for _, labels in sources)} images"
    steps = training.seeds * training.steps
    with tqdm(total=steps, desc=title, unit=" steps", leave=False, disable=not progress) as bar:
        for number in range(training.seeds):
            derived = derive_seed(seed, number)
            with torch.enable_grad():
                net = train_classifier(sources, num_classes, training, derived, after_step=bar.update)
            predicted = torch.cat([net(x.to(net.device)).logits.argmax(1).cpu() for x in test[0].split(BATCH_SIZE)])
            total += predicted == test[1].cpu()
    return total / training.seeds


def _compared(images: int, real: Tensor, other: Tensor) -> Usefulness:
    return Usefulness(images, mean_interval(real), mean_interval(other), mean_interval(other - real))
