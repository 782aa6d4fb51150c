"""Kinds of conditioning on time, on digits: features of the timestep, and where they enter the residual blocks.

    python -m tests.benchmarks.time_conditioning [--seeds 0 1 2] [--recipe ddpm] [--keep FOLDER] [-- fields]

All networks of a seed see the same images, timesteps and noise, so that losses are compared in pairs. 1,797 samples, by
the recommended sampler, are compared with the real digits by the numbers of `digits_quality`.
"""

import argparse
import json
import statistics
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from hfgen.data import load_dataset
from hfgen.schedulers.samplers import RECOMMENDED, SAMPLERS
from tests.benchmarks.digits_quality import generate, measure
from tests.benchmarks.harness import fitted, table

FEATURES = ("positional", "fourier")
CONDITIONING = ("default", "scale_shift")
LAST_STEPS = 100
"""Last steps of training whose mean loss is reported."""

NUMBERS = ["loss", "frechet_ratio", "precision", "nearest_ratio", "seconds"]


def last_loss(folder: Path) -> float:
    """Return the mean loss of the last steps of a run that logs each step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean(line["loss"] for line in lines[-LAST_STEPS:])


def row(home: Path, recipe: str, seed: int, features: str, conditioning: str, fields: list[str]) -> dict[str, Any]:
    """Return loss, quality of samples and seconds of training of one network; trained now unless it is there."""
    # train
    folder = home / f"{features}-{conditioning}-{seed}"
    words = ["--dataset", "digits", "--log-every", "1", "--preview-images", "0", "--time-embedding-type", features]
    seconds = fitted(recipe, folder, seed, [*words, "--resnet-time-scale-shift", conditioning, *fields])
    # sample and compare
    real = load_dataset("digits").tensor().flatten(1)
    sampler = {"sampler": RECOMMENDED, "num_steps": SAMPLERS[RECOMMENDED].steps}
    numbers = measure(real, generate(folder / "model", len(real), 1000 + seed, **sampler))
    choices = {"seed": seed, "features": features, "conditioning": conditioning}
    return {**choices, "loss": last_loss(folder), **numbers, "seconds": seconds}


def main() -> None:
    """Train all kinds for each seed, and print a row each and a table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", choices=("ddpm", "score_sde"), default="ddpm")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("fields", nargs="*", help="Fields of the recipe, after --.")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        for seed, (features, conditioning) in product(options.seeds, product(FEATURES, CONDITIONING)):
            rows.append(row(home, options.recipe, seed, features, conditioning, options.fields))
            print(" | ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(table(rows, ["features", "conditioning"], NUMBERS))


if __name__ == "__main__":
    main()
