"""Quality of the first command of the README: train on digits, sample 1,797 at 100 steps, compare with real data.

    python -m tests.benchmarks.digits_quality [--seeds 0 1 2] [-- fields of hfgen train ddpm]

Every number has its floor, what real digits score: Fréchet ratio 1 is the mean distance between halves of the data;
precision of one half against the other; distance to the nearest training image, of held-out digits (each digit to the
nearest other one, the training set being all of them).
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from hfgen.data import load_dataset
from hfgen.metrics.distances import frechet_ratio, nearest_distances, random_halves
from hfgen.metrics.prdc import precision
from tests.benchmarks.harness import sample, train


def measure(real: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """Return the numbers of (N, D) generated against (N, D) real images in [-1, 1], and their floors."""
    first, second = random_halves(len(real))[0]
    held_out = nearest_distances(real, real, exclude_self=True).median()
    return {
        "frechet_ratio": frechet_ratio(real, generated),
        "precision": precision(real, generated, k=5),
        "precision_floor": precision(real[first], real[second], k=5),
        "nearest_ratio": float(nearest_distances(generated, real).median() / held_out),
    }


def generate(model: Path, number: int, seed: int, **choices: Any) -> torch.Tensor:
    """Return `number` images of a model as (N, D) rows in [-1, 1]."""
    return sample(model, number, seed, **choices).flatten(1) * 2 - 1


def main() -> None:
    """Print one row a seed and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("fields", nargs="*", help="Fields of hfgen train ddpm, after --.")
    options = parser.parse_args()
    real = load_dataset("digits").tensor().flatten(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"digits-{seed}"
            seconds = train("ddpm", folder, seed, ["--dataset", "digits", *options.fields])
            generated = generate(folder / "model", len(real), seed=1000 + seed, num_steps=100)
            rows.append({"seed": seed, "seconds": seconds, **measure(real, generated)})
            print(" | ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()), flush=True)
    print("medians: " + " | ".join(f"{k} {statistics.median(r[k] for r in rows):.3f}" for k in list(rows[0])[1:]))


if __name__ == "__main__":
    main()
