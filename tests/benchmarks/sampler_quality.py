"""Every sampler by name on trained models: Fréchet distance beside the best sampler's, and broken images.

    python -m tests.benchmarks.sampler_quality RUN [RUN ...] [--number 1024] [--seeds 0 1 2] [--results rows.jsonl]

Each run folder is sampled with every method of the table at its usual steps, and judged in pixels against the training
data that its config.yaml names. An image is broken if no real image is nearer than 1.25 times the largest distance of a
real image to its nearest other one: saturated noise is, an odd digit is not. `--guidance` repeats all of it at those
guidance scales, for conditional models. `--samplers` and `--slow-seeds` save time: methods of 250 evaluations and more
take that many seeds only.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.metrics.distances import frechet_distance, nearest_distances
from hfgen.schedulers.samplers import SAMPLERS
from tests.benchmarks.harness import Row, collect

SLOW = 250
REFERENCE = 4000
BROKEN = 1.25


def reference(run: Path) -> Any:
    """Return the training data of a run as hfgen reads it."""
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    names = ("split", "image_column", "label_column", "channels", "background")
    size = settings["resolution"]
    choices = {name: settings[name] for name in names}
    return load_dataset(settings["dataset"], resolution=tuple(size) if isinstance(size, list) else size, **choices)


def broken_beyond(real: torch.Tensor) -> float:
    """Return the distance to the nearest real image, of (N, D) in [-1, 1], from which on an image is broken."""
    return BROKEN * float(nearest_distances(real, real, exclude_self=True).max())


def quality(job: Row, real: torch.Tensor, limit: float) -> Row:
    """Return Fréchet distance and number of broken images of one sampler, seed and guidance scale."""
    pipe: Any = AutoPipeline.from_pretrained(Path(job["run"]) / "model")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(job["seed"])
    choices: dict[str, Any] = {"sampler": job["sampler"], "num_steps": job["steps"], "output_type": "pt"}
    batches = []
    for first in range(0, job["number"], 256):
        count = min(256, job["number"] - first)
        if job["guidance"] is not None:
            classes = pipe.unet.config["num_class_embeds"] - bool(pipe.config["null_condition"])
            choices |= {"guidance_scale": job["guidance"], "class_labels": torch.arange(first, first + count) % classes}
        batches.append(pipe(batch_size=count, generator=generator, **choices).images.flatten(1) * 2 - 1)
    images = torch.cat(batches)
    far = nearest_distances(images, real) > limit
    return {"frechet": float(frechet_distance(images, real)), "broken": int(far.sum())}


def report(rows: list[Row]) -> str:
    """Return a Markdown table: mean Fréchet distance over seeds, its ratio to the best sampler's, broken images."""
    columns = ("run", "guidance", "sampler", "steps", "seeds", "Fréchet", "ratio to best", "broken")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run, guidance in dict.fromkeys((row["run"], row["guidance"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["guidance"]) == (run, guidance)]
        names = dict.fromkeys(row["sampler"] for row in mine)
        groups = {name: [row for row in mine if row["sampler"] == name] for name in names}
        means = {name: statistics.mean(row["frechet"] for row in group) for name, group in groups.items()}
        for name, group in groups.items():
            total, broken = sum(row["number"] for row in group), sum(row["broken"] for row in group)
            cells = (Path(run).name, guidance or "-", name, group[0]["steps"], len(group), f"{means[name]:.3f}",
                     f"{means[name] / min(means.values()):.2f}", f"{broken} of {total:,}")  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Sample, judge and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders.")
    parser.add_argument("--number", type=int, default=1024, help="Images per sampler and seed.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--slow-seeds", type=int, help="Seeds of methods of 250 evaluations and more. Default: all.")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--guidance", type=float, nargs="+", default=[None], help="Scales, for conditional models.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    options = parser.parse_args()
    rows = []
    for run in options.runs:
        data = reference(run)
        real = data.tensor(min(len(data), REFERENCE)).flatten(1)
        limit = broken_beyond(real)
        jobs: list[Row] = [
            {"run": str(run), "guidance": scale, "sampler": name, "seed": seed, "number": options.number,
             "steps": SAMPLERS[name].steps}
            for scale in options.guidance for name in options.samplers
            for seed in (options.seeds if SAMPLERS[name].steps < SLOW else options.seeds[: options.slow_seeds])
        ]  # fmt: skip
        rows += collect(jobs, lambda job, real=real, limit=limit: quality(job, real, limit), options.results, 1)  # type: ignore[misc]
    print(report(rows))


if __name__ == "__main__":
    main()
