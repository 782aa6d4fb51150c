"""Bits per dimension of diffusion models, by the variational bound and by the probability-flow ODE.

    python -m tests.benchmarks.diffusion_bits --train mnist-train.parquet --test mnist-test.parquet --keep runs
    python -m tests.benchmarks.diffusion_bits --train digits --train-split "train[:50%]" --test digits \\
        --test-split "train[50%:]" --levels 17 --keep runs                                      # 8x8, minutes
    python -m tests.benchmarks.diffusion_bits --models "DDPM, linear" --train cifar10-train.parquet \\
        --test cifar10-test.parquet --number 10000 --ode-number 0 --keep runs -- CIFAR10           # days; for a GPU

The same network and budget with linear and cosine schedules, with a learned variance, and as an SDE. Judged are the
first `--number` images of what it was trained on and of what it was not, on the GPU if there is one. The bound is that
of the DDPM scheduler, or of the SDE at its T timesteps; the ODE is Dormand-Prince with tolerances of 1e-5, one probe,
uniform dequantisation. Fields after `--` go to every training; the word CIFAR10 stands for those of Ho et al. 2020,
appendix B: a U-Net of 35.7 M parameters, 800,000 steps of 128, and each row then has the published bits per dimension
beside it. That is of the original PNG images: a file of JPEGs is another, smoother dataset, and rows tell which one was
read. Rows tell steps, seconds and hardware of the training too. Runs in --keep are not trained again, and those that
were interrupted go on.
"""

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from pyarrow.parquet import ParquetFile
from torch import Tensor

from hfgen import DDPMPipeline, VPSDEScheduler
from hfgen.data import load_dataset
from hfgen.metrics.cost import training_cost
from hfgen.metrics.likelihood import ode_bits_per_dim, predictor, variational_bound
from hfgen.schedulers.samplers import make_sampler
from tests.benchmarks.harness import Row, train

MODELS = {
    "DDPM, linear": "ddpm --beta-schedule linear",
    "DDPM, cosine": "ddpm --beta-schedule squaredcos_cap_v2",
    "DDPM, cosine, learned variance": "ddpm --beta-schedule squaredcos_cap_v2 --variance-type learned_range",
    "score SDE": "score_sde --t-min 1e-5",
    "score SDE, likelihood weighting": "score_sde --t-min 1e-5 --weighting likelihood --importance-sampling",
}
"""The recipe of each model and its fields."""

CIFAR10 = (
    "--block-out-channels 128 256 256 256 --attention-levels 1 --attention-head-dim 256 --layers-per-block 2 "
    "--dropout 0.1 --flip --batch-size 128 --learning-rate 2e-4 --warmup-steps 5000 --lr-schedule constant "
    "--max-steps 800000 --ema-decay 0.9999"
)
PUBLISHED = 3.75
"""Bits per dimension of CIFAR-10's test images by the bound: Ho et al. 2020, table 1, the simple loss."""

BATCH = 100


def fitted(name: str, data: list[str], keep: Path, fields: list[str]) -> Path:
    """Return the run folder of a model, trained unless that is done; a run that was interrupted goes on."""
    folder = keep / name.replace(",", "").replace(" ", "_")
    if not (folder / "model").is_dir():
        recipe, *own = MODELS[name].split()
        train(recipe, folder, 0, [*data, *own, "--save-every", "5000", "--resume", *fields])
    return folder


def judge(pipeline: Any, images: Tensor, levels: int, ode_number: int) -> Row:
    """Return bits per dimension of images (N, C, H, W) in [-1, 1]: of the bound, its standard error, and its prior and
    decoder terms; and by the ODE, of the first `ode_number` images."""
    trained, generator = pipeline.scheduler, torch.Generator().manual_seed(0)
    chain = trained.discretised() if isinstance(trained, VPSDEScheduler) else trained
    sde = trained if isinstance(trained, VPSDEScheduler) else make_sampler("ode_heun", trained)
    predict = predictor(pipeline.unet.requires_grad_(False))
    bounds = [variational_bound(predict, chain, x, levels, generator) for x in images.split(BATCH)]
    scale = bounds[0].dim * math.log(2)
    bits = torch.cat([bound.bits_per_dim for bound in bounds])
    row: Row = {"bound": float(bits.mean()), "error": float(bits.std() / len(bits) ** 0.5)}
    for name in ("prior", "decoder"):
        row[name] = float(torch.cat([getattr(bound, name) for bound in bounds]).mean()) / scale
    if not ode_number:
        return row
    exact = [ode_bits_per_dim(predict, sde, x, generator, levels) for x in images[:ode_number].split(BATCH)]
    return row | {"ODE": float(torch.cat(exact).double().mean())}


def encoding(dataset: str) -> str | None:
    """Return how the first image of a parquet file is encoded, such as PNG or JPEG; None for other datasets."""
    if not dataset.endswith(".parquet"):
        return None
    [row] = next(ParquetFile(dataset).iter_batches(1)).to_pylist()
    files = [cell["bytes"] for cell in row.values() if isinstance(cell, dict) and "bytes" in cell]
    with Image.open(io.BytesIO(files[0])) as image:
        return image.format


def training(folder: Path) -> Row:
    """Return steps, seconds and hardware of the training in a run folder; None for what it does not tell."""
    cost = training_cost(folder)
    return {"training_steps": cost.steps, "training_seconds": cost.seconds, "hardware": cost.hardware}


def main() -> None:
    """Print a JSON line for each model."""
    words = sys.argv[1:]
    fields = words[words.index("--") + 1 :] if "--" in words else []
    beside = {"published": PUBLISHED} if "CIFAR10" in fields else {}
    fields = [part for word in fields for part in (CIFAR10.split() if word == "CIFAR10" else [word])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Dataset of the training, as hfgen train takes it.")
    parser.add_argument("--train-split", default="train", help="Its split.")
    parser.add_argument("--test", required=True, help="Dataset that no model is trained on.")
    parser.add_argument("--test-split", default="train", help="Its split.")
    parser.add_argument("--models", nargs="+", default=list(MODELS)[:3], choices=list(MODELS))
    parser.add_argument("--number", type=int, default=200, help="Images of each half whose bound is computed.")
    parser.add_argument("--ode-number", type=int, default=100, help="Of these, images whose ODE is solved.")
    parser.add_argument("--levels", type=int, default=256, help="Grey levels: 17 of digits.")
    parser.add_argument("--keep", type=Path, required=True, help="Folder for the runs, and their rows.")
    options = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    data = {"train": (options.train, options.train_split), "test": (options.test, options.test_split)}
    images = {half: load_dataset(name, split=split).tensor(options.number) for half, (name, split) in data.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    formats = {half: encoding(name) for half, (name, _) in data.items()}
    for name in options.models:
        trained_on = ["--dataset", options.train, "--split", options.train_split]
        folder = fitted(name, trained_on, options.keep, fields)
        pipeline = cast(Any, DDPMPipeline.from_pretrained(folder, device=device))
        for half, x in images.items():
            before = time.monotonic()
            found = judge(pipeline, x.to(device), options.levels, options.ode_number)
            row = {"model": name, "half": half, "images": len(x), "encoding": formats[half], **found, **beside}
            row |= {"device": device, "seconds": time.monotonic() - before, **training(folder)}
            with (options.keep / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
