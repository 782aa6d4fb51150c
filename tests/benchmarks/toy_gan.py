"""Mode coverage of GANs on ring8 and grid25 with VEEGAN's definitions: four recipes, the same networks.

    python -m tests.benchmarks.toy_gan --results toy.jsonl [--seeds 0 1 2 3 4] [--parallel 2] [--movie FILE.gif]

2,500 samples of the finished model: the modes captured, the share of high quality (within three sigma of a mode; real
points: 0.989), the reverse KL of the modes in nats, and how wide modes are (standard deviation over sigma, of samples
of high quality; real points: 0.97).
"""

import argparse
import tempfile
from pathlib import Path
from typing import cast

import torch
from PIL import Image

from hfgen.data import load_dataset
from hfgen.data.toy import Toy
from hfgen.metrics.modes import high_quality, modes_captured, reverse_kl
from tests.benchmarks.harness import Row, collect, sample, table, train

USUAL = "--latent-dim 64 --ema-decay 0 --lr-schedule constant --max-steps 10000"
RECIPES = {
    "non-saturating": f"--loss non_saturating --learning-rate 1e-3 {USUAL}",
    "LSGAN": f"--loss least_squares --learning-rate 1e-3 {USUAL}",
    "WGAN-GP": f"--loss wasserstein_gp {USUAL} --max-steps 3000",
    "recommended": "",
}
"""The same networks; the first three with what is usual, z of 64 dimensions, a constant learning rate and no average.
WGAN-GP takes five critic steps before each of the generator."""
NUMBERS = ["modes", "high quality", "reverse KL", "width", "seconds"]


def measure(points: torch.Tensor, dataset: Toy) -> dict[str, float]:
    """Return the numbers of (N, 2) points."""
    modes = cast(torch.Tensor, dataset.modes)
    good = high_quality(points, modes, dataset.sigma)
    nearest = modes[torch.cdist(points, modes).argmin(1)]
    return {
        "modes": float(modes_captured(points, modes, dataset.sigma)),
        "high quality": float(good.double().mean()),
        "reverse KL": reverse_kl(points, modes),
        "width": float((points - nearest)[good].std()) / dataset.sigma,
    }


def run(job: Row, folder: Path, threads: int) -> Row:
    """Train one recipe on one set with one seed and return its numbers."""
    out = folder / f"{job['recipe']}-{job['dataset']}-{job['seed']}".replace(" ", "-")
    fields = f"--dataset {job['dataset']} {RECIPES[job['recipe']]} --threads {threads} --save-every 0"
    seconds = train("gan", out, job["seed"], fields.split())
    points = sample(out / "model", 2500, seed=1000 + job["seed"])
    return {**measure(points, cast(Toy, load_dataset(job["dataset"]))), "seconds": seconds}


def movie(folders: list[Path], path: Path) -> None:
    """Write an animation of the samples of several runs side by side, each from its first picture to its last."""
    columns = [sorted((folder / "samples").glob("*.png")) for folder in folders]
    length = min(map(len, columns))
    frames = []
    for i in range(length):
        files = [column[i * (len(column) - 1) // max(1, length - 1)] for column in columns]
        pictures = [Image.open(file).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS) for file in files]
        sheet = Image.new("RGB", (260 * len(pictures) - 4, 256), "white")
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (260 * i, 0))
        frames.append(sheet.quantize(32))
    durations = [200] * (len(frames) - 1) + [3000]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--datasets", nargs="+", default=["ring8", "grid25"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--movie", type=Path, help="GIF of the usual recipe and the recommended one on ring8.")
    options = parser.parse_args()
    jobs: list[Row] = [
        {"dataset": dataset, "recipe": recipe, "seed": seed}
        for seed in options.seeds for dataset in options.datasets for recipe in options.recipes
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: run(job, folder, options.threads), options.results, options.parallel)
        if options.movie:
            two = [folder / f"{name}-ring8-{options.seeds[0]}" for name in ("non-saturating", "recommended")]
            movie(two, options.movie)
    print(table(rows, ["dataset", "recipe"], NUMBERS))


if __name__ == "__main__":
    main()
