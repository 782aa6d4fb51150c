"""GANs on digits: quality of three losses, classes of conditional ones, and steps towards a class by a classifier.

    python -m tests.benchmarks.digits_gan [--seeds 0 1 2 3 4] [--results digits_gan.jsonl] [--keep FOLDER]

Each recipe has the steps that take at most three minutes on two cores. Fréchet ratio, precision and distance to the
nearest training image as in `digits_quality`. The classifier that reads labels is trained on the first 80 % of the real
digits, and its accuracy on the rest is printed; the one that steers is another, trained with another seed, and without
label smoothing, which would take the gradient from classes far off. Conditional GANs are trained without and with real
digits of wrong classes among the discriminator's fakes; D(x, right) and D(x, wrong) are its mean probabilities for all
digits, each with its class and with each of the nine others.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from hfgen import ClassifierPipeline, ControllableGANPipeline, DCGANDiscriminator, GANPipeline, runs
from hfgen.data import load_dataset
from hfgen.images import grid, to_pil
from hfgen.training.engine.parse import settings_from
from hfgen.training.gan_networks import networks
from hfgen.training.settings.gan import GANSettings
from tests.benchmarks.digits_quality import measure
from tests.benchmarks.harness import Row, collect, sample, table, train

RECIPES = {
    "DCGAN": "",
    "LSGAN": "--loss least_squares",
    "WGAN-GP": "--loss wasserstein_gp",
    "conditional DCGAN": "--class-conditional --wrong-conditions 0",
    "conditional DCGAN, wrong classes": "--class-conditional --wrong-conditions 0.5",
}
"""DCGAN, with the non-saturating loss, is what is recommended for images."""

QUALITY = ["frechet_ratio", "precision", "precision_floor", "nearest_ratio", "seconds"]


def read(classifier: Path, images: torch.Tensor) -> torch.Tensor:
    """Return the classes that a classifier sees in images (N, C, H, W) in [0, 1]."""
    return ClassifierPipeline.from_pretrained(classifier)(images).labels


def run(job: Row, folder: Path, threads: int) -> Row:
    """Train one recipe with one seed and return its numbers."""
    out = folder / f"{job['recipe']}-{job['seed']}".replace(",", "").replace(" ", "-")
    fields = f"--dataset digits {RECIPES[job['recipe']]} --threads {threads} --save-every 0 --sample-every 0"
    row: Row = {"seconds": train("gan", out, job["seed"], fields.split())}
    labels = torch.arange(1797) % 10 if "conditional" in job["recipe"] else None
    images = sample(out / "model", 1797, seed=1000 + job["seed"], labels=labels)
    grid(to_pil(images[:100] * 2 - 1), columns=10).save(out / "grid.png")
    row |= measure(load_dataset("digits").tensor().flatten(1), images.flatten(1) * 2 - 1)
    if labels is not None:
        right = read(folder / "reader" / "model", images[:1000]) == labels[:1000]
        row["label_accuracy"] = float(right.double().mean())
        row |= verdicts(out)
    if job["recipe"] == "DCGAN":
        row |= steer(out / "model", folder, job["seed"])
    return row


def discriminator_of(run: Path) -> DCGANDiscriminator:
    """Return the discriminator of a finished run on digits."""
    settings = settings_from(GANSettings, runs.settings(run), str(run))
    net = networks(settings, load_dataset("digits"))[1]
    tensors = load_file(cast(Path, runs.newest_checkpoint(run)) / "nets.safetensors")
    own = {key.removeprefix("discriminator."): value for key, value in tensors.items() if key.startswith("discr")}
    net.load_state_dict(own)
    return cast(DCGANDiscriminator, net)


@torch.no_grad()
def verdicts(run: Path) -> dict[str, float]:
    """Return the discriminator's mean probabilities that real digits are real, with right and with wrong classes.

    The batches are of 64 in random order, with their own statistics, as in training.
    """
    net, digits = discriminator_of(run), load_dataset("digits")
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[: len(digits) // 64 * 64]
    x, labels = digits.tensor()[order].split(64), cast(torch.Tensor, digits.labels())[order].split(64)
    says = []
    for off in range(10):
        logits = [net(a, (b + off) % 10).logits for a, b in zip(x, labels, strict=True)]
        says.append(float(torch.cat(logits).sigmoid().mean()))
    return {"D(x, right)": says[0], "D(x, wrong)": sum(says[1:]) / 9}


def steer(model: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Return how many of 1,000 random latents reach a random class within 100 steps, by the steering classifier and by
    the one that took no part, in how many steps, and how much the other features moved."""
    classifier = ClassifierPipeline.from_pretrained(folder / "steerer" / "model").classifier
    generator = GANPipeline.from_pretrained(model).generator
    pipeline = ControllableGANPipeline(generator=generator, classifier=classifier)
    pipeline.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(2000 + seed)
    target = torch.randint(10, (1000,), generator=draws)
    out = pipeline(batch_size=1000, target=target, num_steps=100, generator=draws, output_type="pt")
    agreed = read(folder / "reader" / "model", out.images) == target
    return {
        "reached": float(out.reached.double().mean()),
        "reached_by_other": float(agreed.double().mean()),
        "steps": float(out.steps[out.reached].double().mean()),
        "entanglement": float(out.entanglement[out.reached].double().mean()),
    }


def classifiers(folder: Path) -> None:
    """Train the classifier that reads labels and the one that steers; print their accuracy on held-out digits."""
    held_out = load_dataset("digits", split="train[80%:]")
    for name, seed, fields in (("reader", 0, ""), ("steerer", 1, "--label-smoothing 0 --dropout 0.5")):
        if not (folder / name / "model").exists():
            words = f"--dataset digits --split train[:80%] --threads 1 {fields}"
            train("classifier", folder / name, seed, words.split())
        right = read(folder / name / "model", held_out.tensor() / 2 + 0.5) == held_out.labels()
        print(f"{name}: accuracy {right.double().mean():.4f} on {len(held_out)} held-out digits", flush=True)


def main() -> None:
    """Print a row for each run, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    options = parser.parse_args()
    jobs: list[Row] = [{"recipe": recipe, "seed": seed} for seed in options.seeds for recipe in options.recipes]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        classifiers(folder)
        rows = collect(jobs, lambda job: run(job, folder, options.threads), options.results, options.parallel)
    print(table(rows, ["recipe"], QUALITY))
    for kind, numbers in (("conditional", ["label_accuracy", "D(x, right)", "D(x, wrong)"]),
                          ("DCGAN", ["reached", "reached_by_other", "steps", "entanglement"])):  # fmt: skip
        if members := [row for row in rows if row["recipe"].startswith(kind)]:
            print(table(members, ["recipe"], numbers))


if __name__ == "__main__":
    main()
