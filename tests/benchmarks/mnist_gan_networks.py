"""Samples of GANs on MNIST, such as those of `--network biggan` or `progressive`, in the features of a classifier.

    python -m tests.benchmarks.mnist_gan_networks RUN [RUN ...] --classifier RUN --test mnist-test.parquet

Prints for each run, with and without truncation of z: the Fréchet distance and precision and recall (k = 5) in the
features of a classifier, and for conditional generators the share of samples that it reads as their class. The last row
is the floor: as many other test images. Images are averaged to the classifier's resolution.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen import AutoPipeline, ClassifierPipeline
from hfgen.data import load_dataset
from hfgen.metrics.distances import frechet_distance
from hfgen.metrics.prdc import prdc

TRUNCATIONS = (None, 1.0, 0.5)


@torch.no_grad()
def seen(classifier: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (N, C) and classes (N,) that a classifier sees in images (N, C, H, W) in [-1, 1]."""
    images = F.adaptive_avg_pool2d(images, classifier.config.resolution)
    return classifier.features(images), classifier(images).logits.argmax(1)


def row(name: str, reference: Tensor, features: Tensor, accuracy: float | None) -> str:
    """Return a row of the table: name, Fréchet distance, precision, recall, share of samples read as their class."""
    shares = prdc(reference, features)
    read = "" if accuracy is None else f"{accuracy:.3f}"
    distance = frechet_distance(reference, features)
    return f"| {name} | {distance:.2f} | {shares.precision:.3f} | {shares.recall:.3f} | {read} |"


def main() -> None:
    """Print the table."""
    # read the arguments and the reference
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--number", type=int, default=2000)
    given = parser.parse_args()
    classifier = ClassifierPipeline.from_pretrained(given.classifier).classifier.eval()
    data = load_dataset(given.test, split=f"train[:{2 * given.number}]")
    x, labels = data.tensor(), data.labels()
    assert labels is not None
    features, classes = seen(classifier, x)
    reference, floor = features[: given.number], features[given.number :]
    print("| model | Fréchet distance | precision | recall | read as their class |\n|---|---|---|---|---|")
    # judge samples of each run
    for name in given.runs:
        pipe: Any = AutoPipeline.from_pretrained(name)
        wanted = torch.arange(given.number) % pipe.num_classes if pipe.num_classes else None
        for truncation in TRUNCATIONS:
            draws = torch.Generator().manual_seed(0)
            samples = pipe(given.number, wanted, truncation, generator=draws, output_type="pt").images * 2 - 1
            found, read = seen(classifier, samples)
            accuracy = None if wanted is None else float((read == wanted).float().mean())
            print(row(f"{name}, truncation {truncation}", reference, found, accuracy), flush=True)
    # the floor
    print(row("test images", reference, floor, float((classes == labels).float().mean())))


if __name__ == "__main__":
    main()
