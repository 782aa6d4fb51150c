"""What the benchmarks share: real commands, samples of the finished model, tables with mean and standard deviation."""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hfgen import AutoPipeline

Row = dict[str, Any]


def train(recipe: str, folder: Path, seed: int, fields: Iterable[str]) -> float:
    """Train as a user would, `hfgen train RECIPE`, and return the seconds of the whole command."""
    command = "import sys; from hfgen.cli import main; main()"
    words = [sys.executable, "-c", command, "train", recipe, "--output-dir", str(folder), "--seed", str(seed), *fields]
    before = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=environment(fields))
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout}\n{done.stderr[-3000:]}")
    return time.monotonic() - before


def fitted(recipe: str, folder: Path, seed: int, fields: list[str]) -> float:
    """Return the seconds of a training, done now unless its model is there; FOLDER.json keeps them, and the fields.

    Raises RuntimeError where the model that is there was trained with other fields.
    """
    noted = folder.with_name(f"{folder.name}.json")
    if not (noted.exists() and (folder / "model").is_dir()):
        noted.write_text(json.dumps({"seconds": train(recipe, folder, seed, fields), "fields": fields}))
    known = json.loads(noted.read_text())
    if _placeless(known["fields"], folder) != _placeless(fields, folder):
        raise RuntimeError(f"{folder}: other fields were used, {' '.join(known['fields'])}, and not "
                           f"{' '.join(fields)}; remove the folder to train it again")  # fmt: skip
    return float(known["seconds"])


def _placeless(fields: list[str], folder: Path) -> list[str]:
    """Return fields with runs beside `folder` by their name alone: all of them may have been moved together."""
    return [Path(word).name if (folder.parent / Path(word).name / "model").is_dir() else word for word in fields]


def environment(fields: Iterable[str]) -> dict[str, str]:
    """Return the environment of a run: with `--threads N` no library uses more, so that runs can stand side by side."""
    words = list(fields)
    if "--threads" not in words:
        return dict(os.environ)
    return {**os.environ, "OMP_NUM_THREADS": words[words.index("--threads") + 1]}


def sample(model: Path, number: int, seed: int, labels: torch.Tensor | None = None, **choices: Any) -> torch.Tensor:
    """Return `number` samples of a model: images (N, C, H, W) in [0, 1] or points (N, 2)."""
    pipeline = AutoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for first in range(0, number, 256):
        count = min(256, number - first)
        if labels is not None:
            choices["class_labels"] = labels[first : first + count]
        batches.append(pipeline(batch_size=count, generator=generator, output_type="pt", **choices).images.cpu())
    return torch.cat(batches)


def collect(jobs: list[Row], work: Callable[[Row], Row], results: Path | None, parallel: int) -> list[Row]:
    """Return `job | work(job)` of every job, `parallel` at a time; those already in the file `results` are not redone.

    Each row is printed, and appended to the file as one JSON object a line.
    """
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results and results.exists() else []
    known = [{key: row.get(key) for key in job} for row, job in ((row, job) for row in rows for job in jobs)]
    waiting = [job for job in jobs if job not in known]

    def finish(job: Row) -> None:
        row = {**job, **work(job)}
        rows.append(row)
        print(" | ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        if results:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(finish, waiting))
    return [row for row in rows if {key: row.get(key) for key in jobs[0]} in jobs]


def table(rows: list[Row], by: list[str], numbers: list[str]) -> str:
    """Return a Markdown table: mean ± standard deviation over seeds of each of `numbers`, one line for each `by`."""
    lines = ["| " + " | ".join([*by, "seeds", *numbers]) + " |", "|---" * (len(by) + 1 + len(numbers)) + "|"]
    for group in sorted({tuple(row[key] for key in by) for row in rows}):
        members = [row for row in rows if tuple(row[key] for key in by) == group]
        cells = [spread([float(row[name]) for row in members]) for name in numbers]
        lines.append("| " + " | ".join([*map(str, group), str(len(members)), *cells]) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Return `mean ± standard deviation`; the mean alone where there is no deviation."""
    found = deviation(values)
    return f"{statistics.mean(values):.4g}" + ("" if found is None else f" ± {found:.3g}")


def deviation(values: list[float]) -> float | None:
    """Return the standard deviation of the sample; None of a single value, and where not all are finite."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None
