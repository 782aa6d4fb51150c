"""Bits per dimension of diffusion models, by the variational bound and by the probability-flow ODE.

    python -m tests.benchmarks.diffusion_bits --train mnist-train.parquet --test mnist-test.parquet --keep runs
    python -m tests.benchmarks.diffusion_bits --train digits --test digits --levels 17 --keep runs   # 8x8, minutes

Four ways to train the same network. The bound is that of the DDPM scheduler, or of the SDE at its T timesteps; the ODE
is Dormand-Prince with tolerances of 1e-5, one probe, uniform dequantisation. Fields after `--` go to every training,
for instance `-- --max-steps 20000 --block-out-channels 64 128 128`. Runs in --keep are not trained again.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hfgen import DDPMPipeline, VPSDEScheduler
from hfgen.data import load_dataset
from hfgen.metrics.diffusion_likelihood import predictor, variational_bound
from hfgen.metrics.ode_likelihood import ode_bits_per_dim
from hfgen.schedulers.samplers import make_sampler
from tests.benchmarks.harness import Row, train

MODELS = {
    "DDPM": "ddpm",
    "DDPM, learned variance": "ddpm --variance-type learned_range",
    "score SDE": "score_sde --t-min 1e-5",
    "score SDE, likelihood weighting": "score_sde --t-min 1e-5 --weighting likelihood --importance-sampling",
}
"""The recipe of each model and its fields."""

BATCH = 100


def fitted(name: str, dataset: str, keep: Path, fields: list[str]) -> Path:
    """Return the run folder of a model, trained unless that is done."""
    folder = keep / name.replace(",", "").replace(" ", "_")
    if not (folder / "model").is_dir():
        recipe, *own = MODELS[name].split()
        train(recipe, folder, 0, ["--dataset", dataset, *own, *fields, "--save-every", "5000"])
    return folder


def judge(pipeline: Any, images: Tensor, levels: int, ode: bool = True) -> Row:
    """Return bits per dimension of images (N, C, H, W) in [-1, 1]: of the bound, its prior and decoder, and the ODE."""
    trained, generator = pipeline.scheduler, torch.Generator().manual_seed(0)
    chain = trained.discretised() if isinstance(trained, VPSDEScheduler) else trained
    sde = trained if isinstance(trained, VPSDEScheduler) else make_sampler("ode_heun", trained)
    predict = predictor(pipeline.unet.requires_grad_(False))
    rows: list[list[float]] = []
    for x in images.split(BATCH):
        bound = variational_bound(predict, chain, x, levels, generator)
        scale = bound.dim * float(torch.log(torch.tensor(2.0)))
        exact = ode_bits_per_dim(predict, sde, x, generator, levels) if ode else torch.full((len(x),), float("nan"))
        terms = (bound.bits_per_dim, bound.prior / scale, bound.decoder / scale, exact)
        rows += torch.stack([term.double() for term in terms], 1).tolist()
    means = torch.tensor(rows).mean(0).tolist()
    return dict(zip(("bound", "prior", "decoder", "ODE"), means, strict=True))


def main() -> None:
    """Print a JSON line for each model."""
    words = sys.argv[1:]
    fields = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Dataset of the training, as hfgen train takes it.")
    parser.add_argument("--test", required=True, help="Dataset that is judged.")
    parser.add_argument("--split", default="train", help="Its split.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--number", type=int, default=1000, help="Images that are judged.")
    parser.add_argument("--levels", type=int, default=256, help="Grey levels: 17 of digits.")
    parser.add_argument("--keep", type=Path, required=True, help="Folder for the runs.")
    options = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    images = load_dataset(options.test, split=options.split).tensor(options.number)
    for name in options.models:
        pipeline = cast(Any, DDPMPipeline.from_pretrained(fitted(name, options.train, options.keep, fields)))
        before = time.monotonic()
        found = judge(pipeline, images, options.levels)
        print(json.dumps({"model": name, **found, "seconds": time.monotonic() - before}), flush=True)


if __name__ == "__main__":
    main()
