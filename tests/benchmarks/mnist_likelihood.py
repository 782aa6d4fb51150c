"""Likelihood of MNIST by VAE and IWAE, one and two stochastic layers, beside the rows of Burda et al. 2016, table 1.

    python -m tests.benchmarks.mnist_likelihood --train mnist-train.parquet --test mnist-test.parquet --keep runs

Dynamic binarisation; 5,000 importance samples for each of the 10,000 test images, which are binarised once, by seed 0.
The networks are the paper's; its 3,280 epochs are replaced by a start with one sample (k = 1), from whose end k = 50
goes on, under learning rates that fall along a cosine, and by averaged weights. With one layer the KL is lifted in
between and put back, to 0.8 of its weight: k = 50 wants more latents than k = 1 leaves in use, and revives none. Runs
that --keep already holds are not trained again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from hfgen import VAEPipeline
from hfgen.data import load_dataset
from hfgen.losses.elbo import binarised
from hfgen.metrics.likelihood import active_units, elbo, log_likelihood
from tests.benchmarks.harness import train

TWO = "--latent-dim 100 50 --upper-hidden 100 100"
IWAE = "--importance-samples 50 --learning-rate 1e-3 --mixed-precision bf16"
MODELS: dict[str, tuple[str, str | None]] = {
    "VAE": ("--max-steps 400000", None),
    "wide VAE": ("--beta 0.8 --beta-warmup-steps 30000 --learning-rate 1e-3 --max-steps 40000", "VAE"),
    "IWAE, k = 50": (f"{IWAE} --max-steps 26000", "wide VAE"),
    "two layers, VAE": (f"{TWO} --mixed-precision bf16 --max-steps 250000", None),
    "two layers, IWAE, k = 50": (f"{TWO} {IWAE} --max-steps 30000", "two layers, VAE"),
}
"""Fields of each model, and the model whose weights it starts from."""

PUBLISHED = {"VAE": 86.76, "IWAE, k = 50": 84.78, "two layers, VAE": 85.33, "two layers, IWAE, k = 50": 82.90}
"""Negated log-likelihood in nats, Burda et al. 2016, table 1."""

IMAGES = 100
"""Test images whose rows are computed before progress is said."""


def folder_of(name: str, keep: Path) -> Path:
    """Return the run folder of a model."""
    return keep / name.replace(",", "").replace(" = ", "").replace(" ", "_")


def fitted(name: str, keep: Path, fields: list[str]) -> dict[str, Any]:
    """Train a model, and first the one it starts from, unless that is done; return its folder and seconds."""
    own, start = MODELS[name]
    folder = folder_of(name, keep)
    if start is not None:
        fitted(start, keep, fields)
        own += f" --start-from {folder_of(start, keep)}"
    if (folder / "model").is_dir():
        return {"folder": folder, "seconds": None}
    words = [*own.split(), *fields, "--save-every", "10000", "--sample-every", "20000", "--log-every", "1000"]
    return {"folder": folder, "seconds": train("vae", folder, 0, words)}


def judge(folder: Path, test: str, n: int, number: int) -> dict[str, Any]:
    """Return negated log-likelihood and ELBO in nats, means over `number` test images, and the active units."""
    vae: Any = VAEPipeline.from_pretrained(folder).vae
    grey = load_dataset(test).tensor(number)
    x = binarised(grey, torch.rand(grey.shape, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(1)
    nll: list[torch.Tensor] = []
    before = time.monotonic()
    for part in x.split(IMAGES):
        nll.append(-log_likelihood(vae, part, n, generator))
        done = torch.cat(nll)
        print(f"\r{len(done):,} images: {done.mean():.3f}", end="", flush=True)
    print()
    values = torch.cat(nll)
    with torch.no_grad():
        layers = [torch.cat(means) for means in zip(*(vae.means(part) for part in x.split(1000)), strict=True)]
    return {
        "nll": float(values.mean()),
        "nll_error": float(values.std() / len(values) ** 0.5),
        "elbo": float(elbo(vae, x, 10, generator).mean()),
        "active": [active_units(means) for means in layers],
        "images": len(values),
        "n": n,
        "judging_seconds": time.monotonic() - before,
    }


def main() -> None:
    """Print one row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Dataset of the 60,000 training images.")
    parser.add_argument("--test", required=True, help="Dataset of the 10,000 test images.")
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), choices=list(MODELS))
    parser.add_argument("--keep", type=Path, required=True, help="Folder for the runs, and their rows.")
    parser.add_argument("--samples", type=int, default=5000, help="Importance samples for each image.")
    parser.add_argument("--images", type=int, default=10_000, help="Test images.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = ["--dataset", options.train, "--eval-dataset", options.test, "--eval-split", "train"]
    for name in options.models:
        row = fitted(name, options.keep, [*data, "--threads", str(options.threads)])
        row |= judge(row["folder"], options.test, options.samples, options.images)
        row |= {"model": name, "published": PUBLISHED.get(name), "folder": str(row["folder"])}
        with (options.keep / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: {row['nll']:.2f} ± {row['nll_error']:.2f} nats (ELBO {row['elbo']:.2f}, "
              f"active units {row['active']}); published {row['published']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
