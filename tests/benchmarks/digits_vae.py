"""VAEs on digits: the plane of two latents as a picture, how smoothly it changes, and samples beside real digits.

    python -m tests.benchmarks.digits_vae [--seeds 0 1 2] [--figure plane.png]

`seconds` are those of the whole command; Fréchet ratio, precision and distance to the nearest training image as in
`digits_quality`. `neighbours` is the mean distance of adjacent cells of the plane's 20 x 20, divided by that of cells
drawn at random: 0 where nothing changes, 1 where neighbours are no nearer than any two.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from hfgen import VAEPipeline
from hfgen.data import load_dataset
from tests.benchmarks.digits_quality import measure
from tests.benchmarks.harness import Row, collect, sample, table, train

RECIPES = {"two latents": "--latent-dim 2", "recommended": ""}
QUALITY = ["seconds", "frechet_ratio", "precision", "precision_floor", "nearest_ratio"]
CELLS = 20


def smoothness(pipeline: VAEPipeline) -> float:
    """Return the mean distance of adjacent cells of the plane over that of all pairs of cells, in pixels."""
    quantiles = torch.special.ndtri((torch.arange(CELLS) + 0.5) / CELLS)
    z = torch.cartesian_prod(quantiles, quantiles)
    x = pipeline(latents=z, output_type="pt").images.flatten(1).unflatten(0, (CELLS, CELLS))   # (20, 20, 64)
    steps = torch.cat([(x[1:] - x[:-1]).flatten(0, 1), (x[:, 1:] - x[:, :-1]).flatten(0, 1)])
    return float(steps.norm(dim=1).mean() / torch.pdist(x.flatten(0, 1)).mean())


def run(job: Row, folder: Path, threads: int) -> Row:
    """Train one recipe with one seed and return its numbers."""
    out = folder / f"{job['recipe']}-{job['seed']}".replace(" ", "-")
    fields = f"--dataset digits {RECIPES[job['recipe']]} --threads {threads}"
    row: Row = {"seconds": train("vae", out, job["seed"], fields.split())}
    images = sample(out / "model", 1797, seed=1000 + job["seed"])
    row |= measure(load_dataset("digits").tensor().flatten(1), images.flatten(1) * 2 - 1)
    if job["recipe"] == "two latents":
        pipeline = VAEPipeline.from_pretrained(out)
        pipeline.manifold(CELLS).save(out / "plane.png")
        row["neighbours"] = smoothness(pipeline)
    return row


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--figure", type=Path, help="File for the plane of the first seed.")
    options = parser.parse_args()
    jobs: list[Row] = [{"recipe": recipe, "seed": seed} for seed in options.seeds for recipe in RECIPES]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: run(job, folder, options.threads), options.results, options.parallel)
        if options.figure:
            options.figure.write_bytes((folder / f"two-latents-{options.seeds[0]}" / "plane.png").read_bytes())
    print(table(rows, ["recipe"], QUALITY))
    print(table([row for row in rows if "neighbours" in row], ["recipe"], ["neighbours"]))


if __name__ == "__main__":
    main()
