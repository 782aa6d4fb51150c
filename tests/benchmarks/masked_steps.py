"""Masked generation on digits: quality and seconds of samples against the number of parallel steps.

    python -m tests.benchmarks.masked_steps [--seeds 0 1 2] [--steps 1 4 8 12 64] [--temperatures 4.5] \
        [-- fields of hfgen train autoregressive]

Each model is trained by `hfgen train autoregressive --dataset digits --objective masked`. 1,797 samples are compared
with the real digits by the numbers of `digits_quality`; 64 steps draw one entry after the other.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from hfgen.data import load_dataset
from tests.benchmarks.digits_quality import generate, measure
from tests.benchmarks.harness import fitted, table

STEPS = (1, 2, 4, 8, 12, 16, 32, 64)
TRAINED = ("--dataset", "digits", "--objective", "masked")
NUMBERS = ["frechet_ratio", "precision", "nearest_ratio", "seconds"]


def row(model: Path, seed: int, steps: int, temperature: float) -> dict[str, Any]:
    """Return quality and seconds of 1,797 samples in a number of steps, at a temperature of the choice of entries."""
    real = load_dataset("digits").tensor().flatten(1)
    before = time.monotonic()
    generated = generate(model, len(real), 1000 + seed, num_steps=steps, choice_temperature=temperature)
    seconds = time.monotonic() - before
    return {"seed": seed, "temperature": temperature, "steps": steps, **measure(real, generated), "seconds": seconds}


def main() -> None:
    """Train a model for each seed, and print a table over steps and temperatures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[4.5], help=f"inf: random order ({math.inf})")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("fields", nargs="*", help="Fields of hfgen train autoregressive, after --.")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"masked-{seed}"
            seconds = fitted("autoregressive", folder, seed, [*TRAINED, *options.fields])
            print(f"seed {seed}: trained in {seconds:.0f} s", flush=True)
            for temperature in options.temperatures:
                rows += [row(folder, seed, steps, temperature) for steps in options.steps]
    print(table(rows, ["temperature", "steps"], NUMBERS))


if __name__ == "__main__":
    main()
