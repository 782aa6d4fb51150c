"""Stages of denoising autoencoders with attenuation, on digits, with a factor of the noise that DDPM adds to each.

    python -m tests.benchmarks.stage_noise [--seeds 0 1 2] [--steps 1000] [--noise 0 0.5 0.9 1]

All rows of a seed have the same network; factor 0 is the chain of means, factor 1 is DDPM.
"""

import argparse
from typing import Any

from hfgen import figures
from hfgen.data import load_dataset
from hfgen.metrics.distances import frechet_ratio
from tests.benchmarks.harness import table

NUMBERS = ["frechet_ratio", "spread", "spread_of_data"]


def rows(seed: int, steps: int, factors: list[float]) -> list[dict[str, Any]]:
    """Return the numbers of `figures.compare_attempts` for the chain with each factor of the noise."""
    # train once
    data, scheduler = load_dataset("digits").tensor(), figures.ddpm_scheduler(figures.STAGES)
    net = figures.noise_predictor(data, steps, seed, scheduler)
    # walk with each factor
    found = []
    for noise in factors:
        sampler = figures.walk(data, scheduler, lambda x, t: net(x, t).sample, noise)
        samples = sampler(len(data), seed).clamp(-1, 1)
        ratio = frechet_ratio(data.flatten(1), samples.flatten(1))
        spreads = {"spread": figures.spread(samples), "spread_of_data": figures.spread(data)}
        found.append({"seed": seed, "noise": noise, "frechet_ratio": ratio, **spreads})
        print(" | ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    return found


def main() -> None:
    """Print a row for each seed and factor, and a table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 0.5, 0.9, 1])
    options = parser.parse_args()
    found = []
    for seed in options.seeds:
        found += rows(seed, options.steps, options.noise)
    print(table(found, ["noise"], NUMBERS))


if __name__ == "__main__":
    main()
