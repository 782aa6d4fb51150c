"""Disentanglement of beta-VAEs on `shapes`, whose true factors are known: mutual information gap for beta = 1, 4, 10.

    python -m tests.benchmarks.disentanglement [--seeds 0 1 2] [--figure traversals.png]

Ten latents, 16 x 16 pixels in colour, a Gaussian likelihood of fixed sigma, so that beta alone sets the price of the KL
(a learned sigma would take it back). The gap (Chen et al. 2018) is taken between means of q(z|x) and the factors of
5,000 images, the place as row and column, seven in all; a code drawn at random scores the floor. The figure has a block
for each beta of the first seed, with a row for each of the three latents of largest KL: that latent goes from -2 to 2,
the others stay those of one image.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hfgen import VAEPipeline
from hfgen.data import load_dataset
from hfgen.data.shapes.scene import FACTORS
from hfgen.images import grid
from hfgen.losses.elbo import kl_to_standard_normal
from hfgen.metrics.disentanglement import mutual_information_gaps
from tests.benchmarks.harness import Row, collect, table, train

BETAS = (1.0, 4.0, 10.0)
FIELDS = ("--dataset shapes --resolution 16 --hidden 32 64 --latent-dim 10 --likelihood gaussian --sigma 0.3 "
          "--beta-warmup-steps 1000 --max-steps 4000 --save-every 0 --sample-every 0")  # fmt: skip
IMAGES, SHOWN = 5000, 3


def columns(factors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the factors by name, (N,) each, with row and column in the place of one of nine places."""
    named = dict(zip(FACTORS, factors.T, strict=True))
    place = named.pop("place")
    return named | {"row": place // 3, "column": place % 3}


def posterior(vae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means of q(z|x), (N, D), and the mean KL of each latent, (D,)."""
    with torch.no_grad():
        mu, log_var = (torch.cat(part) for part in zip(*(vae.encode(part) for part in x.split(500)), strict=True))
    return mu, kl_to_standard_normal(mu, log_var).mean(0)


def run(job: Row, folder: Path, threads: int) -> Row:
    """Train with one beta and one seed; return the gap, what is left of it by factor, error and KL."""
    out = folder / f"beta{job['beta']:g}-{job['seed']}"
    fields = [*FIELDS.split(), "--beta", str(job["beta"]), "--threads", str(threads)]
    row: Row = {"seconds": train("vae", out, job["seed"], fields)}
    data: Any = load_dataset("shapes", resolution=16)
    x, named = data.tensor(IMAGES), columns(data.factors()[:IMAGES])
    factors = torch.stack(list(named.values()), 1)                                       # (N, 7)
    pipeline = VAEPipeline.from_pretrained(out)
    mu, kl = posterior(pipeline.vae, x)
    gaps = mutual_information_gaps(mu, factors)
    row |= {"gap": float(gaps.nanmean()), **dict(zip(named, gaps.tolist(), strict=True))}
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    row["floor"] = float(mutual_information_gaps(noise, factors).nanmean())
    back = pipeline.reconstruct(x[:1000] / 2 + 0.5, output_type="pt").images
    row |= {"squared_error": float((back * 2 - 1 - x[:1000]).square().mean()), "kl": float(kl.sum())}
    row["active"] = int((mu.var(0) > 0.01).sum())
    traversals(pipeline, mu[0], kl).save(out / "traversals.png")
    return row


def traversals(pipeline: VAEPipeline, z: torch.Tensor, kl: torch.Tensor) -> Image.Image:
    """Return a grid: one row for each of the latents of largest KL, from -2 to 2 in nine steps."""
    rows = [pipeline.traverse(int(dim), latents=z, n=9, span=2.0).images for dim in kl.argsort(descending=True)[:SHOWN]]
    return grid([image for row in rows for image in row], columns=9)


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--figure", type=Path, help="File for the traversals of the first seed.")
    options = parser.parse_args()
    jobs: list[Row] = [{"beta": beta, "seed": seed} for seed in options.seeds for beta in BETAS]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: run(job, folder, options.threads), options.results, options.parallel)
        if options.figure:
            parts = [Image.open(folder / f"beta{b:g}-{options.seeds[0]}" / "traversals.png") for b in BETAS]
            sheet = Image.new("RGB", (sum(p.width for p in parts) + 16 * (len(parts) - 1), parts[0].height), "white")
            for i, part in enumerate(parts):
                sheet.paste(part, (i * (part.width + 16), 0))
            sheet.save(options.figure)
    print(table(rows, ["beta"], ["gap", "floor", "squared_error", "kl", "active", "seconds"]))
    print(table(rows, ["beta"], [*(name for name in FACTORS if name != "place"), "row", "column"]))


if __name__ == "__main__":
    main()
