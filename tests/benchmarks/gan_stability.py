"""Are f-divergences and the Wasserstein distance more stable than the first GAN? Measured on ring8 and grid25.

    python -m tests.benchmarks.gan_stability --results stability.jsonl --keep runs [--seeds 0 1 2] [--picture FILE.png]

Every loss has the same networks, latents, learning rate and generator steps; only penalties, clipping and critic steps
are those that belong to the loss. The log has ten counts of modes captured and of the share of high quality among 2,500
samples: at the end, and over the second half of the training the fewest modes and how far the count deviates over time;
`lost`: modes fewer at the end than at the best count; `seconds`: CPU time. A run that ends with NonFiniteError
counts as 0 modes. All runs are in this process, one after the other.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from hfgen.errors import NonFiniteError
from hfgen.training import gan
from hfgen.training.engine.run import train
from tests.benchmarks.harness import Row, collect, table

COUNTS = 10
"""Counts of the modes during a training."""
USUAL = (
    "--width 64 --batch-size 128 --latent-dim 64 --ema-decay 0 --lr-schedule constant --learning-rate 1e-3 "
    "--save-every 0 --threads 1"
)
LOSSES = {
    "minimax": "--loss minimax",
    "non_saturating": "--loss non_saturating",
    "kl": "--loss kl",
    "kl, minimax": "--loss kl --generator-loss minimax",
    "reverse_kl": "--loss reverse_kl",
    "reverse_kl, minimax": "--loss reverse_kl --generator-loss minimax",
    "pearson": "--loss pearson",
    "pearson, minimax": "--loss pearson --generator-loss minimax",
    "squared_hellinger": "--loss squared_hellinger",
    "squared_hellinger, minimax": "--loss squared_hellinger --generator-loss minimax",
    "wasserstein": "--loss wasserstein",
    "wasserstein_gp": "--loss wasserstein_gp",
}
"""jensen_shannon is left out: its losses are those of minimax and non_saturating up to constants."""
NUMBERS = ["modes", "high quality", "fewest", "deviation", "lost", "diverged", "seconds"]


def run(job: Row, folder: Path, steps: int) -> Row:
    """Train one loss on one set with one seed and return its numbers."""
    out = folder / f"{job['loss']}-{job['dataset']}-{job['seed']}".replace(", ", "-")
    fields = f"--dataset {job['dataset']} {LOSSES[job['loss']]} {USUAL} --max-steps {steps}"
    words = [*fields.split(), "--sample-every", str(steps // COUNTS), "--seed", str(job["seed"])]
    before = time.process_time()
    try:
        train(gan.RECIPE, gan.RECIPE.spec.parse(["--output-dir", str(out), *words]))
    except NonFiniteError:
        return dict.fromkeys(NUMBERS, 0.0) | {"diverged": 1.0}
    return {**over_time(out / "metrics.jsonl"), "diverged": 0.0, "seconds": time.process_time() - before}


def over_time(log: Path) -> dict[str, float]:
    """Return the last counts in a log, and how the count of modes moved in its second half."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    counted = [line for line in lines if "modes" in line]
    counts = [float(line["modes"]) for line in counted]
    late = counts[len(counts) // 2 :]
    return {
        "modes": counts[-1], "high quality": counted[-1]["high_quality"],
        "fewest": min(late), "deviation": statistics.pstdev(late), "lost": max(counts) - counts[-1],
    }  # fmt: skip


def sheet(folder: Path, seed: int, steps: int) -> Image.Image:
    """Return the last samples of every loss, a row for each data set."""
    picture = Image.new("RGB", (164 * len(LOSSES), 2 * 182), "white")
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(LOSSES):
        for row, dataset in enumerate(("ring8", "grid25")):
            file = folder / f"{name}-{dataset}-{seed}".replace(", ", "-") / "samples" / f"step-{steps:08d}.png"
            draw.text((164 * column + 4, 182 * row + 2), name, fill="black")
            if file.exists():
                with Image.open(file) as points:
                    picture.paste(points.convert("RGB").resize((160, 160)), (164 * column, 182 * row + 18))
    return picture


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--datasets", nargs="+", default=["ring8", "grid25"])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--steps", type=int, default=2500, help="Generator steps.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--picture", type=Path, help="Picture of the last samples of the first seed.")
    options = parser.parse_args()
    jobs: list[Row] = [
        {"dataset": dataset, "loss": loss, "seed": seed}
        for seed in options.seeds for dataset in options.datasets for loss in options.losses
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: run(job, folder, options.steps), options.results, 1)
        if options.picture:
            sheet(folder, options.seeds[0], options.steps).save(options.picture)
    print(table(rows, ["dataset", "loss"], NUMBERS))


if __name__ == "__main__":
    main()
