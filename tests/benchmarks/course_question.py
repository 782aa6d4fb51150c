"""The course's question: which family is best, with the same time to train? One report over seeds, by one judge.

    python -m tests.benchmarks.course_question --keep runs/course [--budget 10m] [--seeds 0 1 2]
    python -m tests.benchmarks.course_question --keep runs/course-mnist --budget 2h --dataset mnist-train.parquet \\
        --held-out mnist-test.parquet --num-samples 10000

Each family is trained as `hfgen train` recommends for the dataset, told no classes, one training after the other, in
the same wall-clock budget: the autoencoder of latent diffusion takes its share of the one that both have. A classifier
of the dataset, outside of the budget, sees which classes the samples are of. Then `hfgen.compare` judges all models of
a seed together, denoising ones at --num-steps. In --keep stand the runs, a report for each seed, and `course.md` and
`course.json`: mean and standard deviation over the seeds. Runs that are there are used, and evaluations are cached.
Fields after `--` go to every training, such as --threads 2.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import hfgen
from hfgen.training.settings import seconds_of
from tests.benchmarks.harness import Row, table, train

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
           "memorisation_ratio", "seconds_per_64", "parameters", "training_steps")  # fmt: skip


def fitted(family: str, folder: Path, seed: int, budget: float, data: list[str]) -> Path:
    """Return the run folder of a family's model, trained in `budget` seconds unless it is there."""
    name = family.lower().replace(" ", "-")
    before: list[str] = []
    for recipe, fields, share in FAMILIES[family]:
        run = folder / (f"{name}-{seed}" if recipe == FAMILIES[family][-1][0] else f"{name}-{recipe}-{seed}")
        if not (run / "model").is_dir():
            words = [*data, *fields.split(), *before, "--budget", f"{budget * share:g}s"]
            print(f"{run.name}: trained in {train(recipe, run, seed, words):.0f} s", flush=True)
        before = ["--autoencoder", str(run)]
    return run


def numbers(family: str, seed: int, found: Any) -> Row:
    """Return what goes into the table; None for what does not apply."""
    values = {name: found.metrics.get(name, {}).get("value") for name in NUMBERS}
    return {"family": family, "seed": seed, **values}


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
    parser.add_argument("fields", nargs="*", help="Fields of every hfgen train, after --.")
    options = parser.parse_args(arguments)
    data = ["--dataset", options.dataset, "--split", options.split, *options.fields]
    classifier = options.keep / "classifier"
    if not (classifier / "model").is_dir():
        train("classifier", classifier, 0, [*data, *options.classifier_fields.split()])
    rows, last = [], None
    for seed in options.seeds:
        models = {f: fitted(f, options.keep, seed, seconds_of(options.budget), data) for f in options.families}
        report = hfgen.compare(
            models, options.dataset, options.keep / f"report-{seed}", split=options.split, held_out=options.held_out,
            held_out_split=options.held_out_split, metrics=METRICS, num_samples=options.num_samples, seed=seed,
            num_steps=options.num_steps, classifier=str(classifier), resamples=options.resamples,
            likelihood_images=options.likelihood_images,
        )  # fmt: skip
        rows += [numbers(found.model, seed, found) for found in report.rows]
        last = report.rows[0]
    known_of_all = [name for name in NUMBERS if all(row[name] is not None for row in rows)]
    text = table(rows, ["family"], known_of_all)
    title = f"# Which family, with {options.budget} to train? {options.dataset}, seeds {options.seeds}"
    (options.keep / "course.md").write_text(f"{title}\n\n{text}\n\n{floors(last)}\n")
    known = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    everything = {"options": known, "families": FAMILIES, "rows": rows}
    (options.keep / "course.json").write_text(json.dumps(everything, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
