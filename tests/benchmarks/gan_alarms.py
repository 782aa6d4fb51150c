"""False and missing alarms of the GAN recipe's guard: runs that end healthy, and runs in which trouble was planted.

    python -m tests.benchmarks.gan_alarms --keep FOLDER --colour cifar10-train.parquet --mnist mnist-train.parquet

Each run is trained once, in this process; its log is kept and then read to the guard line by line, as training does. A
run on digits is healthy whose samples have 0.8 to 1.2 of the variance of real digits and a precision (k = 5) of 0.3 or
more; one on points that has captured every mode. Runs that are stopped before that must not be called collapsed either.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hfgen.data import load_dataset
from hfgen.data.toy import Toy
from hfgen.training import gan
from hfgen.training.engine import run
from hfgen.training.engine.gan_guard import guard
from hfgen.training.engine.parse import parse
from tests.benchmarks import toy_gan
from tests.benchmarks.digits_quality import measure
from tests.benchmarks.harness import sample


@dataclass(frozen=True)
class Planned:
    """One recipe, the seeds it is trained with, and whether trouble is planted in it."""

    name: str
    fields: str
    seeds: int = 1
    planted: bool = False


DIGITS = "--dataset digits --max-steps 800"
USUAL = f"--loss non_saturating --learning-rate 1e-3 {toy_gan.USUAL} --max-steps 1500"
STRONG = "--dataset digits --max-steps 600 --discriminator-steps 10 --discriminator-learning-rate 0.01"
MNIST = "--dataset MNIST --split train[:6000] --resolution 16 --width 32"

RUNS = [
    Planned("DCGAN", DIGITS, 4),
    Planned("minimax", f"{DIGITS} --loss minimax", 2),
    Planned("LSGAN", f"{DIGITS} --loss least_squares", 3),
    Planned("WGAN-GP", f"{DIGITS} --loss wasserstein_gp", 3),
    Planned("conditional", f"{DIGITS} --class-conditional", 2),
    Planned("relativistic", f"{DIGITS} --loss relativistic", 1),
    Planned("hinge", f"{DIGITS} --loss hinge", 1),
    Planned("hinge, ten steps of a fast discriminator", f"{STRONG} --loss hinge --discriminator-norm none"),
    Planned("ring8", "--dataset ring8 --max-steps 1000", 4),
    Planned("grid25", "--dataset grid25 --max-steps 1500", 5),
    Planned("two latents on ring8", f"--dataset ring8 {USUAL} --latent-dim 2 --max-steps 3000"),
    Planned("two latents on grid25", f"--dataset grid25 {USUAL} --latent-dim 2 --max-steps 4000"),
    Planned("MNIST at 16x16, DCGAN", f"{MNIST} --max-steps 500"),
    Planned("MNIST at 16x16, WGAN-GP", f"{MNIST} --max-steps 400 --loss wasserstein_gp"),
    Planned("usual on ring8", f"--dataset ring8 {USUAL}", 3, planted=True),
    Planned("usual on grid25", f"--dataset grid25 {USUAL}", 5, planted=True),
    Planned("frozen generator", "--dataset digits --max-steps 600 --learning-rate 1e-9 "
            "--discriminator-learning-rate 2e-3", planted=True),
    Planned("generator x 100", "--dataset digits --max-steps 800 --learning-rate 0.2 "
            "--discriminator-learning-rate 2e-3", 2, planted=True),
    Planned("both x 50", "--dataset digits --max-steps 800 --learning-rate 0.1", 2, planted=True),
    Planned("strong discriminator, minimax", f"{STRONG} --loss minimax", planted=True),
    Planned("strong discriminator", f"{STRONG} --learning-rate 2e-4", planted=True),
    Planned("critic without a penalty", "--dataset digits --max-steps 500 --loss wasserstein_gp --gradient-penalty 0",
            planted=True),
    Planned("1,600 colour pictures", "--dataset COLOUR --split train[:1600] --max-steps 500", planted=True),
    Planned("classes of one picture", "--dataset digits --max-steps 600 --class-conditional --latent-dim 1 "
            "--minibatch-stddev 0 --learning-rate 1e-2 --discriminator-learning-rate 2e-4", 2, planted=True),
]  # fmt: skip


COLUMNS = ["variance", "class variance", "precision", "modes", "high quality"]


def alarms(folder: Path) -> list[tuple[int, str]]:
    """Return (step, how it begins) of each warning that the guard gives on a run's log."""
    settings = parse(gan.GANSettings, ["--config", str(folder / "config.yaml"), "--output-dir", str(folder)])
    points = isinstance(load_dataset(settings.dataset), Toy) if ".parquet" not in settings.dataset else False
    memory: dict[str, Any] = {}
    found = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = {name: float("nan") if value is None else value for name, value in json.loads(text).items()}
        memory, warning = guard(memory, line, settings, points)
        if warning is not None:
            found.append((int(line["step"]), "; ".join(part.split(":")[0] for part in warning.split("; "))))
    return found


def health(folder: Path) -> dict[str, float]:
    """Return numbers of a finished model: of points modes and quality, of images variances over those of real ones, of
    digits the precision."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = load_dataset(config["dataset"], split=config["split"], resolution=config["resolution"])
    if isinstance(data, Toy):
        return toy_gan.measure(sample(folder / "model", 2500, seed=1000), data)
    real = data.tensor().flatten(1)
    labels = torch.arange(1797) % 10 if config["class_conditional"] else None
    images = sample(folder / "model", min(1797, len(real)), seed=1000, labels=labels).flatten(1) * 2 - 1
    numbers = {"variance": float(images.var(0).mean() / real.var(0).mean())}
    if labels is not None:
        numbers["class variance"] = float(class_variance(images, labels) / class_variance(real, data.labels()))
    return numbers | (measure(real, images) if config["dataset"] == "digits" else {})


def class_variance(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the variance of samples (N, D) within classes, averaged over dimensions and classes."""
    return torch.stack([x[labels == k].var(0).mean() for k in labels.unique()]).mean()


def trained(keep: Path, seeds: list[int], places: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each run, which is trained unless FOLDER/health.json is there."""
    for seed in seeds:
        for plan in RUNS:
            words = [places.get(word, word) for word in plan.fields.split()]
            if seed >= plan.seeds or None in words:
                continue
            folder = keep / f"{plan.name.replace(' ', '-').replace(',', '')}-{seed}"
            if not (folder / "health.json").exists():
                words += ["--seed", str(seed), "--threads", "1", "--save-every", "0", "--sample-every", "0"]
                if run.main(gan.RECIPE, ["--output-dir", str(folder), *words]):
                    raise SystemExit(f"{folder}: was not finished")
                (folder / "health.json").write_text(json.dumps(health(folder)))
            row = {"run": plan.name, "seed": seed, "planted": plan.planted, "alarms": alarms(folder)}
            yield row | json.loads((folder / "health.json").read_text())


def main() -> None:
    """Print a row for each run, then how many alarms were false and how many are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="Folder of the runs, each of which is trained once.")
    parser.add_argument("--colour", help="Parquet file of colour pictures of 32x32.")
    parser.add_argument("--mnist", help="Parquet file of MNIST.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    rows = []
    print(f"| run | seed | planted | {' | '.join(COLUMNS)} | alarms |\n{'|---' * (len(COLUMNS) + 4)}|")
    for row in trained(options.keep, options.seeds, {"COLOUR": options.colour, "MNIST": options.mnist}):
        said = ", ".join(f"{step}: {names}" for step, names in row["alarms"]) or "none"
        numbers = [f"{row[name]:.3g}" if name in row else "" for name in COLUMNS]
        planted = "yes" if row["planted"] else "no"
        print(f"| {row['run']} | {row['seed']} | {planted} | {' | '.join(numbers)} | {said} |", flush=True)
        rows.append(row)
    false = sum(bool(row["alarms"]) for row in rows if not row["planted"])
    missing = sum(not row["alarms"] for row in rows if row["planted"])
    bad = sum(row["planted"] for row in rows)
    print(f"\nfalse alarms in {false} of {len(rows) - bad} runs, no alarm in {missing} of {bad} with planted trouble")


if __name__ == "__main__":
    main()
