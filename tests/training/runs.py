"""Runs of the real recipe as real processes, small enough for two cores."""

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hfgen.training.engine.run import main

ROOT = Path(__file__).resolve().parents[2]

SHARED = "--dataset digits --batch-size 16 --warmup-steps 5 --log-every 1 --sample-every 0 --threads 1".split()
TINY = {
    "ddpm": "--block-out-channels 8 16 --layers-per-block 1 --num-train-timesteps 100 --learning-rate 1e-3".split(),
    "autoregressive": (
        "--width 16 --layers 1 --attention-head-dim 8 --learning-rate 1e-3 --dropout 0 --class-conditional"
    ).split(),
    "autoencoder": "--hidden 16 --latent-dim 8 --learning-rate 1e-3 --corruption patch --weight-penalty 1e-3".split(),
    "autoencoder_kl": (
        "--block-out-channels 8 16 --latent-channels 2 --adversarial-weight 0.5 --discriminator-width 8 "
        "--learning-rate 1e-3 --kl-weight 1e-3"
    ).split(),
    "vq_autoencoder": (
        "--block-out-channels 8 16 --num-codes 24 --code-dim 3 --levels 4 3 --discriminator-width 8 "
        "--learning-rate 1e-3"
    ).split(),
    "gan": "--loss non_saturating --width 8 --latent-dim 8 --learning-rate 1e-3".split(),
    "translation": [
        "--dataset", "", *"--resolution 16 --batch-size 4 --width 4 --blocks 1 --discriminator-width 4".split(),
        *"--discriminator-layers 1 --history 6".split(),
    ],
    "score_sde": "--block-out-channels 8 16 --layers-per-block 1 --learning-rate 1e-3".split(),
    "latent_diffusion": (
        "--block-out-channels 8 16 --layers-per-block 1 --num-train-timesteps 50 --learning-rate 1e-3 "
        "--attention-head-dim 4 --text-width 16 --text-layers 1"
    ).split(),
    "tarflow": "--width 16 --blocks 2 --layers 1 --attention-head-dim 8 --dropout 0 --learning-rate 1e-3".split(),
    "vae": "--hidden 16 --learning-rate 1e-3".split(),
}

LAUNCH_TWO = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
    "--mixed_precision no --dynamo_backend no"
).split()


def environment() -> dict[str, str]:
    """Return an environment in which two CPU processes find each other on the loopback, and warnings are errors."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def command(folder: Path, *extra: str, processes: int = 1, recipe: str = "ddpm") -> list[str]:
    """Return the words that train the recipe's tiny model into `folder`."""
    launch = [*(LAUNCH_TWO if processes == 2 else ()), "-m", f"hfgen.training.{recipe}"]
    return [sys.executable, *launch, *arguments(folder, *extra, recipe=recipe)]


def arguments(folder: Path, *extra: str, recipe: str = "ddpm") -> list[str]:
    """Return the fields of the recipe's tiny model, trained into `folder`."""
    return ["--output-dir", str(folder), *SHARED, *TINY[recipe], *extra]


def train_here(
    recipe: str, folder: Path, *extra: str, words: Sequence[str] | None = None, code: int = 0
) -> list[dict[str, Any]]:
    """Train in this process and return the lines of the log; fails unless the exit code is `code`.

    `words` stand in place of those of the recipe's tiny model.
    """
    threads = torch.get_num_threads()
    given = arguments(folder, *extra, recipe=recipe) if words is None else ["--output-dir", str(folder), *words, *extra]
    try:
        assert main(import_module(f"hfgen.training.{recipe}").RECIPE, given) == code
    finally:
        torch.set_num_threads(threads)
    return metrics(folder) if code == 0 else []


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's newest checkpoint: networks, averages and optimisers."""
    newest = max((folder / "checkpoints").glob("step-*"))
    files = sorted(newest.rglob("*.safetensors"))
    assert len(files) >= 3, files
    names = {file: file.stem if file.parent == newest else f"model/{file.parent.name}" for file in files}
    return {f"{names[file]}/{key}": value.clone() for file in files for key, value in load_file(file).items()}


def assert_same_run(a: Path, b: Path) -> None:
    """Assert that two runs ended in the same bits and logged the same numbers."""
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, different
    assert metrics(a) == metrics(b)
