"""Nats of held-out digits under VAEs with one scale for all pixels and with one for each, by two likelihoods.

    python -m tests.benchmarks.vae_scales [--seeds 0 1 2]

Trained on the first 80 % of the digits with the recommended settings, judged on the rest by `hfgen evaluate`: -log p by
500 importance samples and the ELBO. `gaussian` is a density of dequantised pixels, `discretised_logistic` a
probability of 17 levels; compare within a likelihood. `no floor` has a `--min-sigma` of 1e-4.
"""

import argparse
import time
from pathlib import Path

import hfgen
from tests.benchmarks.harness import Row, collect, table

SCALES: dict[str, Row] = {
    "one": {}, "per pixel": {"sigma_per_pixel": True},
    "per pixel, no floor": {"sigma_per_pixel": True, "min_sigma": 1e-4},
}  # fmt: skip
LIKELIHOODS = ("gaussian", "discretised_logistic")
SEEN, UNSEEN = "train[:80%]", "train[80%:]"


def work(job: Row, steps: int) -> Row:
    """Train with one likelihood and one kind of scale; return seconds, and negated nats of held-out digits."""
    before = time.monotonic()
    pipeline = hfgen.train(
        "vae", dataset="digits", split=SEEN, likelihood=job["likelihood"], seed=job["seed"], max_steps=steps, threads=1,
        sample_every=0, **SCALES[job["scale"]],
    )  # fmt: skip
    seconds = time.monotonic() - before
    judged = hfgen.evaluate(pipeline, "digits", split=UNSEEN, metrics="likelihood", num_samples=64, cache=False).metrics
    return {"seconds": seconds, "nll": -judged["log_likelihood"]["value"], "negated_elbo": -judged["elbo"]["value"]}


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000, help="Steps of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    options = parser.parse_args()
    jobs: list[Row] = [
        {"likelihood": likelihood, "scale": scale, "seed": seed}
        for seed in options.seeds for likelihood in LIKELIHOODS for scale in SCALES
    ]  # fmt: skip
    rows = collect(jobs, lambda job: work(job, options.steps), options.results, 1)
    print(table(rows, ["likelihood", "scale"], ["nll", "negated_elbo", "seconds"]))


if __name__ == "__main__":
    main()
