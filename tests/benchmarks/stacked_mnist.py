"""Stacked MNIST: how many of 1,000 modes a GAN finds (Srivastava et al. 2017, VEEGAN; Lin et al. 2018, PacGAN).

    python -m tests.benchmarks.stacked_mnist --train mnist-train.parquet --test mnist-test.parquet --keep FOLDER
        [--budget 60m] [-- fields of hfgen train gan]

Three digits drawn at random are the channels of one colour image, 128,000 of them; what a classifier of MNIST reads in
the channels is the mode of an image, one of 1,000. Of 26,000 samples: the modes found, and KL(generated || real) of the
modes in nats, real being uniform; 26,000 fair draws score about 999/52,000 = 0.019 there.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hfgen import ClassifierPipeline
from hfgen.data import load_dataset, uniforms
from hfgen.images import grid, to_pil, to_uint8
from hfgen.metrics.modes import label_kl, label_modes
from tests.benchmarks.harness import sample, train

STACKED, SAMPLES = 128_000, 26_000


def stack(mnist: Path, path: Path, number: int = STACKED, seed: int = 0) -> None:
    """Write `number` stacked images with their mode as label to a parquet file; image i is a function of (seed, i)."""
    digits = load_dataset(mnist)
    pixels, labels = to_uint8(digits.tensor())[:, 0].numpy(), digits.labels()
    assert labels is not None
    draws = [uniforms(seed, 0, np.arange(number), f"channel {c}") for c in range(3)]
    chosen = (np.stack(draws, 1) * len(pixels)).astype(int)                              # (number, 3)

    def png(indices: np.ndarray) -> dict[str, bytes]:
        file = io.BytesIO()
        Image.fromarray(pixels[indices].transpose(1, 2, 0)).save(file, format="PNG", compress_level=1)
        return {"bytes": file.getvalue()}

    modes = (labels.numpy()[chosen] * [100, 10, 1]).sum(1)
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=1000)})
    columns = {"image": [png(indices) for indices in chosen], "label": modes.tolist()}
    Dataset.from_dict(columns, features=features).to_parquet(path)


def modes_of(classifier: ClassifierPipeline, images: torch.Tensor) -> torch.Tensor:
    """Return the mode, 0 to 999, that a classifier of single digits reads in colour images (N, 3, 28, 28) in [0, 1]."""
    digits = torch.stack([classifier(images[:, c : c + 1]).labels for c in range(3)], 1).cpu()
    return (digits * torch.tensor([100, 10, 1])).sum(1)


def main() -> None:
    """Train the classifier and the GAN unless they are there, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="Parquet file of MNIST's training images.")
    parser.add_argument("--test", type=Path, required=True, help="Parquet file of its test images.")
    parser.add_argument("--keep", type=Path, required=True, help="Folder for data and runs; what is there is used.")
    parser.add_argument("--budget", default="60m", help="Wall-clock time of the GAN's training.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", default="2")
    parser.add_argument("fields", nargs="*", help="Fields of hfgen train gan, after --.")
    options = parser.parse_args()
    folder: Path = options.keep
    folder.mkdir(parents=True, exist_ok=True)
    reader, data, run = folder / "reader", folder / "stacked.parquet", folder / f"gan-{options.seed}"
    if not (reader / "model").exists():
        words = f"--dataset {options.train} --eval-dataset {options.test} --threads {options.threads}"
        train("classifier", reader, 0, words.split())
    if not data.exists():
        stack(options.train, data)
    if not (run / "model").exists():
        words = f"--dataset {data} --threads {options.threads} --budget {options.budget} --sample-every 2000"
        print(f"trained for {train('gan', run, options.seed, [*words.split(), *options.fields]):.0f} s")
    classifier = ClassifierPipeline.from_pretrained(reader / "model")
    held_out = load_dataset(options.test)
    accuracy = (classifier(held_out.tensor() / 2 + 0.5).labels == held_out.labels()).double().mean()
    images = sample(run / "model", SAMPLES, seed=1000 + options.seed)
    grid(to_pil(images[:100] * 2 - 1), columns=10).save(folder / "grid.png")
    real = modes_of(classifier, load_dataset(data).tensor(SAMPLES) / 2 + 0.5)
    print(f"classifier {float(accuracy):.4f} on test digits")
    for name, modes in (("real", real), ("generated", modes_of(classifier, images))):
        print(f"{name}: modes {label_modes(modes, 1000)} of 1000, KL {label_kl(modes, 1000):.4f}")


if __name__ == "__main__":
    main()
