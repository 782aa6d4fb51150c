"""Nats of held-out digits under VAEs with one scale for all pixels and with one for each, by two likelihoods.

    python -m tests.benchmarks.vae_scales [--seeds 0 1 2]

Trained on the first 80 % of the digits with the recommended settings, judged on the rest by `hfgen evaluate`: -log p by
500 importance samples and the ELBO. `gaussian` is a density of dequantised pixels, `discretised_logistic` a
probability of 17 levels; compare within a likelihood. `no floor` has a `--min-sigma` of 1e-4.
"""

import argparse
import tempfile
from pathlib import Path

from hfgen import evaluate
from tests.benchmarks.harness import Row, collect, table, train

SCALES = {"one": "", "per pixel": "--sigma-per-pixel", "per pixel, no floor": "--sigma-per-pixel --min-sigma 1e-4"}
LIKELIHOODS = ("gaussian", "discretised_logistic")
TEST = "train[80%:]"


def work(job: Row, folder: Path, words: str) -> Row:
    """Train with one likelihood and one kind of scale; return seconds, and negated nats of held-out digits."""
    out = folder / f"{job['likelihood']}-{job['scale']}-{job['seed']}".replace(" ", "-").replace(",", "")
    fields = f"--dataset digits --split train[:80%] --likelihood {job['likelihood']} {SCALES[job['scale']]} {words}"
    seconds = train("vae", out, job["seed"], fields.split())
    judged = evaluate(out, "digits", split=TEST, metrics="likelihood", num_samples=64, cache=False).metrics
    return {"seconds": seconds, "nll": -judged["log_likelihood"]["value"], "negated_elbo": -judged["elbo"]["value"]}


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--fields", default="--threads 1", help="Further fields of every run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    options = parser.parse_args()
    jobs: list[Row] = [
        {"likelihood": likelihood, "scale": scale, "seed": seed}
        for seed in options.seeds for likelihood in LIKELIHOODS for scale in SCALES
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: work(job, folder, options.fields), options.results, options.parallel)
    print(table(rows, ["likelihood", "scale"], ["nll", "negated_elbo", "seconds"]))


if __name__ == "__main__":
    main()
