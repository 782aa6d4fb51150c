"""The course's question: which family is best, with the same time to train? One report over seeds, by one judge.

    python -m tests.benchmarks.course_question --keep runs/course [--budget 10m] [--seeds 0 1 2]
    python -m tests.benchmarks.course_question --keep runs/course-mnist --budget 2h --dataset mnist-train.parquet \\
        --held-out mnist-test.parquet --num-samples 10000 --own-fields DDPM "--block-out-channels 32 64 64"

Each family is trained as `hfgen train` recommends for the dataset, told no classes, one training after the other, in
the same wall-clock budget: the autoencoder of latent diffusion takes its share of the one that both have. A classifier
of the dataset, outside of the budget, sees which classes the samples are of. Then `hfgen.compare` judges all models of
a seed together, denoising ones at --num-steps. In --keep stand the runs, a report for each seed, and `course.md`,
`course.json` and `course.png`: mean and standard deviation over the seeds. Training seconds are those of all networks
of a family. Runs that are there are used, and evaluations are cached.
Fields after `--` go to every training, such as --threads 2.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import hfgen
from hfgen.metrics.cost import training_cost
from hfgen.training.engine.settings import seconds_of
from tests.benchmarks.harness import Row, deviation, table, train

FAMILIES: dict[str, list[tuple[str, str, float]]] = {
    "VAE": [("vae", "", 1.0)],
    "DCGAN": [("gan", "--loss non_saturating", 1.0)],
    "WGAN-GP": [("gan", "--loss wasserstein_gp", 1.0)],
    "DDPM": [("ddpm", "", 1.0)],
    "latent diffusion": [("autoencoder_kl", "", 0.4), ("latent_diffusion", "", 0.6)],
}
"""Of each family the recipes that are trained one after the other, their fields, and their shares of the budget."""

METRICS = "frechet,kid,prdc,diversity,likelihood,privacy,cost"
NUMBERS = ("frechet", "kid", "precision", "recall", "density", "coverage", "label_kl", "near_copies",
           "memorisation_ratio", "seconds_per_64", "parameters", "training_steps", "training_seconds")  # fmt: skip


def runs_of(family: str, folder: Path, seed: int) -> list[Path]:
    """Return the run folder of each recipe of a family, the one that makes samples last."""
    name = family.lower().replace(" ", "-")
    *before, _ = FAMILIES[family]
    return [*(folder / f"{name}-{recipe}-{seed}" for recipe, _, _ in before), folder / f"{name}-{seed}"]


def fitted(family: str, folder: Path, seed: int, budget: float, data: list[str], own: str = "") -> Path:
    """Return the run folder of a family's model, trained in `budget` seconds unless it is there.

    `own`: fields of the recipe that makes samples, in one text.
    """
    before: list[str] = []
    runs = runs_of(family, folder, seed)
    for run, (recipe, fields, share) in zip(runs, FAMILIES[family], strict=True):
        if not (run / "model").is_dir():
            words = [*data, *fields.split(), *before, "--budget", f"{budget * share:g}s"]
            words += own.split() if run == runs[-1] else []
            print(f"{run.name}: trained in {train(recipe, run, seed, words):.0f} s", flush=True)
        before = ["--autoencoder", str(run)]
    return runs[-1]


def training_seconds(runs: list[Path]) -> float | None:
    """Return how long all runs of a family took together; None where one does not tell."""
    spent = [training_cost(run).seconds for run in runs]
    return None if None in spent else sum(seconds for seconds in spent if seconds is not None)


def numbers(family: str, seed: int, found: Any, runs: list[Path]) -> Row:
    """Return what goes into the table, None for what does not apply; and for the plot the Frechet distance at the count
    of the real data's, where that is known, the interval of the latter, and the count."""
    values = {name: found.metrics.get(name, {}).get("value") for name in NUMBERS}
    values["training_seconds"] = training_seconds(runs)
    distance = found.metrics.get("frechet", {})
    matched = distance.get("matched")
    floor = None if matched is None else [distance["floor_low"], distance["floor_high"]]
    drawn = {"frechet_drawn": values["frechet"] if matched is None else matched, "frechet_floor": floor,
             "frechet_count": distance.get("count")}  # fmt: skip
    return {"family": family, "seed": seed, **values, **drawn}


def left_out(rows: list[Row]) -> str:
    """Return which columns the table is without, and the families that lack them, as a line; "" without any."""
    lacking = {name: sorted({row["family"] for row in rows if row[name] is None}) for name in NUMBERS}
    parts = [f"{name} (none of {', '.join(families)})" for name, families in lacking.items() if families]
    return f"Left out, since not all families have them: {'; '.join(parts)}." if parts else ""


def summary(rows: list[Row]) -> str:
    """Return the table over the seeds, of the columns that all families have, and which are left out."""
    known_of_all = [name for name in NUMBERS if all(row[name] is not None for row in rows)]
    return "\n\n".join(filter(None, [table(rows, ["family"], known_of_all), left_out(rows)]))


def plot(rows: list[Row], path: Path) -> bool:
    """Draw the Frechet distance over the seconds that 64 images take, mean and standard deviation over seeds, a marker
    a family, and in grey what real data score in any seed; return whether both are known of any family."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["frechet_drawn"] is not None and row["seconds_per_64"] is not None]
    if not rows:
        return False
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    count = rows[0]["frechet_count"]
    words = "Fréchet distance" if count is None else f"Fréchet distance, {count:,} items a side"
    axes.set(xscale="log", xlabel="seconds per 64 images", yscale="log", ylabel=words)
    for i, family in enumerate(dict.fromkeys(row["family"] for row in rows)):
        mine = [row for row in rows if row["family"] == family]
        (x, across), (y, up) = (level([row[name] for row in mine]) for name in ("seconds_per_64", "frechet_drawn"))
        axes.errorbar(x, y, xerr=across, yerr=up, fmt="osD^vP*X"[i % 8], capsize=3, label=family)
    floors = [row["frechet_floor"] for row in rows if row["frechet_floor"] is not None]
    if floors:
        low, high = min(low for low, _ in floors), max(high for _, high in floors)
        axes.axhspan(low, high, color="grey", alpha=0.3, label="real data", linewidth=0)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return True


def level(values: list[float]) -> tuple[float, float | None]:
    """Return the mean, nan (not drawn) where it is not finite, and the standard deviation, None where there is none."""
    mean = statistics.mean(values)
    return (mean if math.isfinite(mean) else math.nan), deviation(values)


def floors(found: Any) -> str:
    """Return what real data score, as a line."""
    known = {name: found.metrics[name].get("floor") for name in NUMBERS if name in found.metrics}
    return "Real data: " + ", ".join(f"{name} {value:.4g}" for name, value in known.items() if value is not None)


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, judge, and write the report over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="Folder for runs and reports; what is there is used.")
    parser.add_argument("--budget", default="10m", help="Wall-clock time to train each family, such as 90s, 10m, 2h.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dataset", default="digits", help="As for hfgen train.")
    parser.add_argument("--split", default="train", help="Its split.")
    parser.add_argument("--held-out", help="Data that is not trained on, for memorisation and likelihoods.")
    parser.add_argument("--held-out-split", help="Split of these, or of --dataset.")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--num-samples", type=int, help="Samples of each model; by default as many as real images.")
    parser.add_argument("--num-steps", type=int, default=100, help="Sampling steps of those that denoise.")
    parser.add_argument("--resamples", type=int, help="Of the bootstrap.")
    parser.add_argument("--likelihood-images", type=int, default=64, help="Images of the diffusion model's likelihood.")
    parser.add_argument("--classifier-fields", default="", help="Fields of hfgen train classifier, as one text.")
    parser.add_argument("--own-fields", nargs=2, action="append", default=[], metavar=("FAMILY", "FIELDS"),
                        help="Fields of one family's hfgen train, as one text; may be given again.")  # fmt: skip
    parser.add_argument("fields", nargs="*", help="Fields of every hfgen train, after --.")
    options = parser.parse_args(arguments)
    own = dict(options.own_fields)
    if unknown := set(own) - set(options.families):
        parser.error(f"--own-fields: {', '.join(sorted(unknown))} is not among {', '.join(options.families)}")
    data = ["--dataset", options.dataset, "--split", options.split, *options.fields]
    classifier = options.keep / "classifier"
    if not (classifier / "model").is_dir():
        train("classifier", classifier, 0, [*data, *options.classifier_fields.split()])
    rows, last = [], None
    for seed in options.seeds:
        budget = seconds_of(options.budget)
        models = {f: fitted(f, options.keep, seed, budget, data, own.get(f, "")) for f in options.families}
        report = hfgen.compare(
            models, options.dataset, options.keep / f"report-{seed}", split=options.split, held_out=options.held_out,
            held_out_split=options.held_out_split, metrics=METRICS, num_samples=options.num_samples, seed=seed,
            num_steps=options.num_steps, classifier=str(classifier), resamples=options.resamples,
            likelihood_images=options.likelihood_images,
        )  # fmt: skip
        rows += [numbers(f.model, seed, f, runs_of(f.model, options.keep, seed)) for f in report.rows]
        last = report.rows[0]
    text = summary(rows)
    title = f"# Which family, with {options.budget} to train? {options.dataset}, seeds {options.seeds}"
    picture = "\n![quality against time](course.png)\n" if plot(rows, options.keep / "course.png") else ""
    (options.keep / "course.md").write_text(f"{title}\n\n{text}\n\n{floors(last)}\n{picture}")
    known = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    everything = {"options": known, "families": FAMILIES, "rows": rows}
    (options.keep / "course.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
