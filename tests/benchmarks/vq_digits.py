"""Discrete autoencoders on held-out digits: error of the reconstructions, and how many codes are in use.

    python -m tests.benchmarks.vq_digits [--seeds 0 1 2] [--steps 300] [--fields "--block-out-channels 16 32"]

Trained on the first 80 % of the digits, judged on the rest, with averaged weights. Three quantisers: a codebook of
moving averages (`ema`) or of gradients (`gradient`), and a grid of levels (`fsq`).
"""

import argparse
import shlex
import tempfile
from pathlib import Path

from tests.benchmarks.harness import Row, collect, table, train
from tests.training.runs import metrics

HALVES = "--dataset digits --split train[:80%] --eval-split train[80%:]"
KINDS = {"ema": "--codebook ema", "gradient": "--codebook gradient", "fsq": "--quantizer fsq"}


def work(job: Row, folder: Path, words: str) -> Row:
    """Train one quantiser with one seed; return PSNR in decibels and the use of codes, both of held-out digits."""
    out = folder / f"{job['quantiser']}-{job['seed']}"
    seconds = train("vq_autoencoder", out, job["seed"], shlex.split(f"{HALVES} {KINDS[job['quantiser']]} {words}"))
    last = metrics(out)[-1]
    return {
        "psnr": last["eval_psnr"], "perplexity": last["eval_perplexity"], "used": last["eval_codes_used"],
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="Steps of each run. Default: those of the recipe.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--fields", default="", help="Further fields of each run, as one argument.")
    parser.add_argument("--results", type=Path, help="File of finished rows, which are not done again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs. Default: a temporary one.")
    options = parser.parse_args()
    words = f"--threads {options.threads} {options.fields}"
    if options.steps is not None:
        words += f" --max-steps {options.steps}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        jobs: list[Row] = [{"quantiser": kind, "seed": seed} for seed in options.seeds for kind in KINDS]
        rows = collect(jobs, lambda job: work(job, folder, words), options.results, options.parallel)
    print(table(rows, ["quantiser"], ["psnr", "perplexity", "used", "seconds"]))


if __name__ == "__main__":
    main()
