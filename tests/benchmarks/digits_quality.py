"""Quality of the first command of the README: train on digits, sample 1,797 at 100 steps, compare with real data.

    python tests/benchmarks/digits_quality.py [--seeds 0 1 2] [-- fields of hfgen train ddpm]

Every number has its floor, what real digits score: Fréchet ratio 1 is the mean distance between halves of the data;
precision of one half against the other; distance to the nearest training image, of held-out digits (each digit to the
nearest other one, the training set being all of them).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hfgen import DDPMPipeline
from hfgen.data import load_dataset
from hfgen.metrics.distances import frechet_ratio, nearest_distances, random_halves
from hfgen.metrics.prdc import precision


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


def generate(model: Path, number: int, num_steps: int, seed: int) -> torch.Tensor:
    """Return `number` images of a model as (N, D) rows in [-1, 1]."""
    pipeline = DDPMPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    done = [
        pipeline(batch_size=min(256, number - i), num_steps=num_steps, generator=generator, output_type="pt").images
        for i in range(0, number, 256)
    ]
    return torch.cat(done).flatten(1) * 2 - 1


def train(folder: Path, seed: int, fields: list[str]) -> float:
    """Train as a user would and return the seconds of the whole command."""
    command = "import sys; from hfgen.cli import main; main()"
    words = [sys.executable, "-c", command, "train", "ddpm", "--dataset", "digits", "--output-dir", str(folder)]
    before = time.monotonic()
    subprocess.run([*words, "--seed", str(seed), *fields], check=True)
    return time.monotonic() - before


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
            seconds = train(folder, seed, options.fields)
            generated = generate(folder / "model", len(real), 100, seed=1000 + seed)
            rows.append({"seed": seed, "seconds": seconds, **measure(real, generated)})
            print(" | ".join(f"{key} {value:.3f}" for key, value in rows[-1].items()), flush=True)
    print("medians: " + " | ".join(f"{k} {statistics.median(r[k] for r in rows):.3f}" for k in list(rows[0])[1:]))


if __name__ == "__main__":
    main()
