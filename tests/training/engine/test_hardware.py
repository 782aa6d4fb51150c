"""Hardware: float16 with a scaled loss, gradient checkpointing, devices by name, and one without float64."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfgen import AutoPipeline
from hfgen.errors import ConfigError
from hfgen.loading.devices import available_device
from hfgen.training.engine.distributed import CHOSEN_DEVICE, REDUCED
from hfgen.training.engine.loss_scale import FIRST, LossScale
from tests.training import runs
from tests.training.tiny import DDPM, VAE, make_autoencoder, run, state


@pytest.mark.parametrize("precision", REDUCED)
def test_training_in_half_the_bits_follows_that_in_float32(precision: str) -> None:
    full = [line["loss"] for line in run(DDPM.engine(), 12)]
    half = [line["loss"] for line in run(DDPM.engine(mixed_precision=precision), 12)]
    torch.testing.assert_close(torch.tensor(half), torch.tensor(full), atol=0.03, rtol=0)


def test_a_scale_that_is_too_large_is_halved_and_its_steps_change_nothing() -> None:
    engine = DDPM.engine(mixed_precision="fp16")
    scale = engine.scales["ddpm"]
    scale.value.fill_(2.0**40)
    before = state(engine.nets["unet"])
    run(engine, 2)
    assert float(scale.value) == 2.0**38 and engine.non_finite["ddpm"] == 2
    assert all(torch.equal(before[key], value) for key, value in engine.nets["unet"].state_dict().items())
    lines = run(engine, 30, first=2)
    assert float(scale.value) < 2.0**30 and engine.non_finite["ddpm"] == 0
    assert lines[-1]["grad_norm"] < 100                                # the norm of the gradients without the scale
    engine.check_finite(32)


def test_the_scale_is_that_of_torch() -> None:
    ours, theirs = LossScale(torch.device("cpu")), torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=2000)
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.0)
    for step in range(2105):
        finite = float(step not in (3, 50))
        theirs.scale(p * 1.0).backward()
        assert p.grad is not None
        p.grad.fill_(1.0 if finite else float("inf"))
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(finite))
    assert ours.state()[0] == theirs.get_scale() == FIRST / 2
    again = LossScale(torch.device("cpu"))
    again.restore(json.loads(json.dumps(ours.state())))
    assert again.state() == ours.state()


@pytest.mark.parametrize("recipe", ["ddpm", "gan"])
def test_a_run_in_float16_resumes_exactly(recipe: str, tmp_path: Path) -> None:
    words = "--max-steps 8 --save-every 4 --lr-schedule constant --mixed-precision fp16".split()
    runs.train_here(recipe, tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("model", "checkpoints/step-00000008"):
        shutil.rmtree(tmp_path / "killed" / name)
    runs.train_here(recipe, tmp_path / "killed", *words, "--resume")
    for name in ("nets.safetensors", "optimizers.safetensors", "state.json"):
        one, two = (tmp_path / run / "checkpoints/step-00000008" / name for run in ("whole", "killed"))
        if name != "state.json":
            assert one.read_bytes() == two.read_bytes()
        else:
            assert json.loads(one.read_text())["loss_scale"] == json.loads(two.read_text())["loss_scale"]
    assert runs.metrics(tmp_path / "whole")[-1] == runs.metrics(tmp_path / "killed")[-1]


def test_gradient_checkpointing_gives_the_same_numbers() -> None:
    plain, saving = DDPM.engine(), DDPM.engine(gradient_checkpointing=True)
    assert saving.nets["unet"].is_gradient_checkpointing
    assert run(plain, 4) == run(saving, 4)
    a, b = plain.nets["unet"].state_dict(), saving.nets["unet"].state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_network_without_gradient_checkpointing_says_so() -> None:
    with pytest.raises(ConfigError, match=r"--gradient-checkpointing: .*VAE cannot"):
        VAE.engine(gradient_checkpointing=True)


@pytest.mark.parametrize("name, words", [
    ("cpux", "no device is called so"), ("cuda:99", "has none|there are"), ("gpu", "no device is called so"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_an_error(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--device {name}: .*({words})"):
        available_device(name)


def test_a_run_and_its_samples_are_made_on_the_device_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfgen import cli

    monkeypatch.setenv(CHOSEN_DEVICE, "cpu")
    runs.train_here("ddpm", tmp_path / "run", "--max-steps", "2", "--device", "cpu")
    assert AutoPipeline.from_pretrained(tmp_path / "run").device.type == "cpu"
    sample = ["sample", str(tmp_path / "run"), "-n", "2", "--num-steps", "2", "--device", "cpu"]
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*sample, "--dtype", dtype, "-o", str(tmp_path / f"{dtype}.npy")])
        assert not ended.value.code and (tmp_path / f"{dtype}.npy").is_file()
    with pytest.raises(SystemExit) as ended:
        cli.main([*sample, "--device", "mps", "-o", str(tmp_path / "none.png")])
    assert ended.value.code == 2


QUICK = ("score_sde", "vae")
RECIPES = (*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "ddpm", "gan", "translation", "autoencoder_kl", "vq_autoencoder", "latent_diffusion", "autoregressive", "tarflow",
)))  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_device_without_float64_trains_evaluates_and_samples(recipe: str, tmp_path: Path) -> None:
    words = [str(make_autoencoder(tmp_path / "autoencoder", 1))] if recipe == "latent_diffusion" else []
    command = [sys.executable, "-m", "tests.plain_device", recipe, *words]
    done = subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("loss") >= 3
