"""Accuracy with few labels: classifiers on the encoder of an autoencoder or a VAE beside one from random weights.

    python -m tests.benchmarks.few_labels [--seeds 0 1 2 3 4]

The encoders see the first 80 % of the digits without labels; classifiers then get 10, 100 or 1,000 labelled images of
them, the same number of each class, drawn by the seed, and are tested on the rest. `fresh autoencoder` and `fresh vae`
are the same networks from random weights, `scratch` is the usual convolutional classifier. All have the same steps,
without shifts and label smoothing. Intervals are 95 % (Student's t over seeds); gains are over the
fresh network, paired by seed.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy import stats

import hfgen
from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.metrics.usefulness import few_per_class
from tests.benchmarks.harness import Row, collect

SEEN, UNSEEN = "train[:80%]", "train[80%:]"
STARTS = ("scratch", "fresh autoencoder", "autoencoder", "fresh vae", "vae")
LABELS = (10, 100, 1000)
SOURCES: dict[str, dict[str, Any]] = {"autoencoder": {"corruption": "gaussian"}, "vae": {}}


def encoder(name: str, seed: int, folder: Path, steps: int) -> Path:
    """Return the run folder of a recipe trained on the digits without their labels."""
    out = folder / f"{name}-{seed}"
    if not (out / "model").is_dir():
        fields = {"max_steps": steps, "threads": 1, "sample_every": 0, "save_every": 0}
        hfgen.train(name, dataset="digits", split=SEEN, seed=seed, output_dir=out, **fields, **SOURCES[name])
    return out


def fresh(source: Path, name: str, seed: int) -> Any:
    """Return the pipeline in a run folder with random weights in its network `name`."""
    torch.manual_seed(seed)
    pipeline = AutoPipeline.from_pretrained(source)
    net = pipeline.components[name]
    settings = {key: value for key, value in net.config.items() if not key.startswith("_")}
    return type(pipeline)(type(net)(**settings))


def work(job: Row, folder: Path, unlabelled_steps: int, steps: int) -> Row:
    """Return the accuracy on unseen digits of one way to start, with a number of labels and a seed."""
    # choose the labelled images
    seen, unseen, seed = load_dataset("digits", split=SEEN), load_dataset("digits", split=UNSEEN), job["seed"]
    y, y_test = seen.labels(), unseen.labels()
    assert y is not None and y_test is not None
    images, labels = few_per_class((seen.tensor(), y), job["labels"] // 10, seed)
    # train the classifier
    start: dict[str, Any] = {}
    name = job["start"].removeprefix("fresh ")
    if name in SOURCES:
        source = encoder(name, seed, folder, unlabelled_steps)
        start = {"start_from": source if name == job["start"] else fresh(source, name, seed)}
    pipeline: Any = hfgen.train(
        "classifier", dataset=(images / 2 + 0.5, labels), max_steps=steps, batch_size=min(len(labels), 100), seed=seed,
        learning_rate=1e-3, max_shift=0, label_smoothing=0.0, threads=1, sample_every=0, **start,
    )  # fmt: skip
    right = pipeline(unseen.tensor() / 2 + 0.5).labels == y_test
    return {"accuracy": float(right.double().mean())}


def accuracies(rows: list[Row], number: int, start: str) -> list[float]:
    """Return the accuracies of one way to start from a number of labels, by seed."""
    chosen = [row for row in rows if row["labels"] == number and row["start"] == start]
    return [row["accuracy"] for row in sorted(chosen, key=lambda row: row["seed"])]


def interval(values: list[float]) -> str:
    """Return the mean and the half-width of its 95 % interval, in percent."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{100 * statistics.mean(values):.1f} ± {100 * half:.1f}"


def main() -> None:
    """Print a row for each run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS), help="Numbers of labels.")
    parser.add_argument("--steps", type=int, default=300, help="Steps of each classifier.")
    parser.add_argument("--unlabelled-steps", type=int, default=2000, help="Steps of each autoencoder and VAE.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    options = parser.parse_args()
    jobs: list[Row] = [
        {"labels": number, "start": start, "seed": seed}
        for seed in options.seeds for number in options.labels for start in STARTS
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = collect(jobs, lambda job: work(job, folder, options.unlabelled_steps, options.steps), options.results, 1)
    columns = [*STARTS, *(f"gain of {name}" for name in SOURCES)]
    print("| labels | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for number in options.labels:
        of = {start: accuracies(rows, number, start) for start in STARTS}
        gains = [[a - b for a, b in zip(of[name], of[f"fresh {name}"], strict=True)] for name in SOURCES]
        print(f"| {number:,} | " + " | ".join(interval(values) for values in [*of.values(), *gains]) + " |")


if __name__ == "__main__":
    main()
