"""Unpaired translation of digits: MNIST to digits in colour on texture and back, and what the cycle loss buys.

    python -m tests.benchmarks.translation_digits --train mnist-train.parquet --test mnist-test.parquet --keep FOLDER
        [--seeds 0] [--figure FILE] [-- fields of hfgen train translation]

Domain A: the first half of MNIST. Domain B: the other half, drawn in light colour over a dark texture of waves, in the
manner of MNIST-M (Ganin et al. 2016, section 5.2.4) but by rule: image i is a function of (seed, i). Test images are
translated both ways; a classifier of the target domain, trained on its training images with their labels, reads the
class of the result, which should be that of the input. Once with the cycle loss (and the identity loss), once without.

A picture of each run lies in its folder, that of the first one in --figure: of the first 12 test images A, G(A) and
F(G(A)), then the same from B.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from hfgen import ClassifierPipeline, TranslationPipeline
from hfgen.data import load_dataset, uniforms
from hfgen.images import to_uint8
from hfgen.metrics.translation import cycle_error
from tests.benchmarks.harness import Row, collect, table, train
from tests.benchmarks.translation_shapes import COLUMNS, folder_of, sheet, there_and_back

RECIPES = {"with the cycle": "", "without": "--cycle-weight 0 --identity-weight 0"}
WAVES, DARKEST, LIGHTEST = 4, 0.0, 0.5
"""Waves in a colour of a texture, and the range of its values; a digit has 1 minus those of its own texture."""


def texture(items: np.ndarray, name: str, height: int, width: int, seed: int = 0) -> Tensor:
    """Return smooth coloured textures, (N, 3, H, W) in [DARKEST, LIGHTEST]: in each colour the mean of sine waves."""
    draws = [torch.from_numpy(uniforms(seed, 0, items, f"{name} {k}")) for k in range(3 * WAVES * 3)]
    u = torch.stack(draws, 1).view(len(items), 3, WAVES, 3, 1, 1)                       # direction, frequency, phase
    angle, frequency, phase = u[:, :, :, 0] * torch.pi, 0.02 + 0.18 * u[:, :, :, 1], u[:, :, :, 2]
    x, y = torch.arange(width), torch.arange(height)[:, None]
    waves = torch.sin(2 * torch.pi * (frequency * (angle.cos() * x + angle.sin() * y) + phase))
    return (DARKEST + (LIGHTEST - DARKEST) * (0.5 + 0.5 * waves.mean(2))).float()       # (N, 3, H, W)


def coloured(digits: Tensor, items: np.ndarray) -> Tensor:
    """Return grey digits (N, 1, H, W) in [-1, 1] as light colour over dark texture, (N, 3, H, W) in [-1, 1]."""
    ink, sides = digits / 2 + 0.5, digits.shape[2:]
    ground, paint = texture(items, "ground", *sides), 1 - texture(items, "paint", *sides)
    return (ground + ink * (paint - ground)) * 2 - 1


def write(images: Tensor, labels: Tensor, path: Path) -> None:
    """Write images (N, C, H, W) in [-1, 1] and their labels to a parquet file."""

    def png(pixels: np.ndarray) -> dict[str, bytes]:
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG", compress_level=1)
        return {"bytes": file.getvalue()}

    columns = {"image": [png(one) for one in to_uint8(images).permute(0, 2, 3, 1).numpy()], "label": labels.tolist()}
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=10)})
    Dataset.from_dict(columns, features=features).to_parquet(path)


def domains(mnist: Path, folder: Path, part: str, halves: bool) -> None:
    """Write a.parquet and b.parquet of a part of MNIST: its two halves, or all of it in both."""
    data = load_dataset(mnist)
    digits, labels = data.tensor(), data.labels()
    assert labels is not None
    middle = len(digits) // 2 if halves else 0
    stop = middle or len(digits)
    write(digits[:stop], labels[:stop], folder / f"{part}-a.parquet")
    items = np.arange(middle, len(digits)) + (0 if halves else 10**6)                   # no texture of the training
    write(coloured(digits[middle:], items), labels[middle:], folder / f"{part}-b.parquet")


def readers(folder: Path, threads: str) -> dict[str, ClassifierPipeline]:
    """Return a classifier for each domain, trained unless it is there."""
    found = {}
    for domain in "ab":
        if not (folder / f"reader-{domain}" / "model").exists():
            words = f"--dataset {folder}/train-{domain}.parquet --channels 3 --threads {threads} --save-every 0"
            train("classifier", folder / f"reader-{domain}", 0, words.split())
        found[domain] = ClassifierPipeline.from_pretrained(folder / f"reader-{domain}")
    return found


def unseen(folder: Path, domain: str) -> Any:
    """Return the test images of a domain."""
    return load_dataset(folder / f"test-{domain}.parquet", channels=3)


def picture(pipeline: TranslationPipeline, folder: Path) -> Image.Image:
    """Return a picture of test images A, G(A), F(G(A)), then B, F(B), G(F(B))."""
    a, b = (unseen(folder, domain).tensor(COLUMNS) for domain in "ab")
    return sheet([a, *there_and_back(pipeline, a, "a2b"), b, *there_and_back(pipeline, b, "b2a")])


def run(job: Row, folder: Path, threads: str, more: list[str]) -> list[Row]:
    """Train one recipe with one seed; return the numbers of both directions."""
    out = folder_of(job, folder)
    data = f"--dataset-a {folder}/train-a.parquet --dataset-b {folder}/train-b.parquet --channels 3"
    fields = f"{data} {RECIPES[job['recipe']]} --threads {threads} --save-every 0 --sample-every 0"
    seconds = train("translation", out, job["seed"], [*fields.split(), *more])
    pipeline, rows = TranslationPipeline.from_pretrained(out / "model"), []
    picture(pipeline, folder).save(out / "translations.png")
    for source, target in ("ab", "ba"):
        data_in, data_out = (unseen(folder, one) for one in (source, target))
        direction, x, labels = f"{source}2{target}", data_in.tensor(), data_in.labels()
        made, back = there_and_back(pipeline, x, direction)
        reader = readers(folder, threads)[target]
        real = reader(data_out.tensor() / 2 + 0.5).labels == data_out.labels()
        rows.append({
            "direction": direction, "class_kept": float((reader(made / 2 + 0.5).labels == labels).double().mean()),
            "reader": float(real.double().mean()), "cycle_error": cycle_error(x, back), "seconds": seconds,
        })  # fmt: skip
    return rows


def main() -> None:
    """Print a row for each run, then the table of both directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="Parquet file of MNIST's training images.")
    parser.add_argument("--test", type=Path, required=True, help="Parquet file of its test images.")
    parser.add_argument("--keep", type=Path, required=True, help="Folder for data and runs; what is there is used.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--figure", type=Path, help="File for the picture of the first recipe and seed.")
    parser.add_argument("fields", nargs="*", help="After --: further fields of the recipe.")
    options = parser.parse_args()
    folder: Path = options.keep
    folder.mkdir(parents=True, exist_ok=True)
    for part, mnist in (("train", options.train), ("test", options.test)):
        if not (folder / f"{part}-b.parquet").exists():
            domains(mnist, folder, part, halves=part == "train")
    readers(folder, options.threads)
    jobs: list[Row] = [{"recipe": recipe, "seed": seed} for seed in options.seeds for recipe in options.recipes]

    def work(job: Row) -> Row:
        return {"directions": run(job, folder, options.threads, options.fields)}

    rows = collect(jobs, work, folder / "rows.jsonl", options.parallel)
    if options.figure is not None:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        first = TranslationPipeline.from_pretrained(folder_of(jobs[0], folder) / "model")
        picture(first, folder).save(options.figure)
    numbers = ["class_kept", "reader", "cycle_error", "seconds"]
    print(table([{**row, **one} for row in rows for one in row["directions"]], ["recipe", "direction"], numbers))


if __name__ == "__main__":
    main()
