"""Nats of MNIST under VAEs whose posteriors are diagonal or normalizing flows, at nearly equal processor time.

    python -m tests.benchmarks.vae_posteriors --train mnist-train.parquet --test mnist-test.parquet --keep runs

Network, dynamic binarisation and judging are those of `mnist_likelihood`; the steps make up for the longer steps of
flows. `cpu_seconds` are those of the training process, which do not count time that other processes take. -log p is by
5,000 importance samples, and its differences to the diagonal posterior are paired by image. Runs that --keep already
holds are not trained again.
"""

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch

from hfgen import VAEPipeline
from hfgen.data import load_dataset
from hfgen.losses.elbo import binarised
from hfgen.metrics.likelihood import elbo, log_likelihood
from tests.benchmarks.harness import train

STEPS = {"normal": 70_000, "inverse_autoregressive": 45_000, "planar": 45_000}
IMAGES = 100
"""Test images that are judged at once."""


def fitted(posterior: str, folder: Path, fields: list[str]) -> None:
    """Train one posterior, unless that is done; FOLDER.json keeps the processor's seconds."""
    if (folder / "model").is_dir():
        return
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    train("vae", folder, 0, ["--posterior", posterior, "--log-every", "1000", "--sample-every", "5000", *fields])
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    folder.with_name(f"{folder.name}.json").write_text(json.dumps({"cpu_seconds": seconds}))


def judge(folder: Path, x: torch.Tensor, n: int) -> tuple[torch.Tensor, float]:
    """Return -log p of each binarised image of x, and the mean ELBO, in nats."""
    vae: Any = VAEPipeline.from_pretrained(folder).vae
    generator = torch.Generator().manual_seed(1)
    nll = torch.cat([-log_likelihood(vae, part, n, generator) for part in x.split(IMAGES)])
    return nll, float(elbo(vae, x, 10, generator).mean())


def error(values: torch.Tensor) -> float:
    """Return the standard error of the mean of values (N,)."""
    return float(values.std() / len(values) ** 0.5)


def main() -> None:
    """Print one row for each posterior."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Dataset of the 60,000 training images.")
    parser.add_argument("--test", required=True, help="Dataset of the 10,000 test images.")
    parser.add_argument("--posteriors", nargs="+", default=["normal", "inverse_autoregressive"], choices=list(STEPS))
    parser.add_argument("--keep", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the steps.")
    parser.add_argument("--samples", type=int, default=5000, help="Importance samples for each image.")
    parser.add_argument("--images", type=int, default=1000, help="Test images.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = ["--dataset", options.train, "--eval-dataset", options.test, "--eval-split", "train", "--threads", "1"]
    grey = load_dataset(options.test).tensor(options.images)
    x = binarised(grey, torch.rand(grey.shape, generator=torch.Generator().manual_seed(0)))
    first = None
    for name in options.posteriors:
        folder = options.keep / name
        steps = round(options.share * STEPS[name])
        fitted(name, folder, [*data, "--max-steps", str(steps)])
        nll, bound = judge(folder, x, options.samples)
        seconds = json.loads(folder.with_name(f"{name}.json").read_text())["cpu_seconds"]
        line = f"{name}: {steps:,} steps, {seconds:.0f} s, -log p {nll.mean():.2f} ± {error(nll):.2f}, ELBO {bound:.2f}"
        if first is not None:
            line += f"; better by {(first - nll).mean():.2f} ± {error(first - nll):.2f} nats"
        first = nll if first is None else first
        print(line, flush=True)


if __name__ == "__main__":
    main()
