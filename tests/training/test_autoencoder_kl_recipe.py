"""The recipe of latent diffusion's autoencoder: losses, their balance, measured latents, exact runs, refusals."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.errors import CheckpointError, ConfigError
from hfgen.losses.adversarial import hinge_d, hinge_g
from hfgen.losses.perceptual import LPIPS
from hfgen.metrics.reconstruction import psnr
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.training import autoencoder_kl
from hfgen.training.autoencoder_kl import RECIPE, AutoencoderKLSettings
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.noise import Noise
from hfgen.training.first_stage import adaptive_weight
from hfgen.training.settings.autoencoder_kl import recommended
from tests.losses.test_perceptual import weights as lpips_weights
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import AUTOENCODER_KL, run

Train = Callable[..., subprocess.CompletedProcess]
START = ("--adversarial-start", "4")


settings, engine = AUTOENCODER_KL.settings, AUTOENCODER_KL.engine
train_here = partial(runs.train_here, "autoencoder_kl")


@pytest.mark.parametrize("choices", [{"adversarial_start": 2}, {"loss": "relativistic"}, {"reconstruction": "l2"}],
                         ids=lambda c: " ".join(map(str, c)))  # fmt: skip
def test_micro_batches_give_the_numbers_of_the_whole_batch(choices: dict[str, Any]) -> None:
    whole, parts = engine(**choices), engine(micro_batch_size=4, **choices)
    lines = run(whole, 4)
    for a, b in zip(lines, run(parts, 4), strict=True):
        assert a.keys() == b.keys() >= {"loss", "reconstruction", "kl", "grad_norm_autoencoder"}
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name
    assert {"loss_discriminator", "D(x)", "D(x')", "adversarial", "adversarial_balance"} <= set(lines[-1])
    assert lines[-1]["loss"] != lines[0]["loss"]


def test_both_losses_and_their_balance_are_those_of_the_papers() -> None:
    e = engine(adversarial_weight=0.7)
    vae, judge = (e.nets[name] for name in ("vae", "discriminator"))
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    x = batch["x"]

    def passed(phase: str) -> tuple[Any, Any]:
        eps = Noise((0, 0, phase, 0), 16, slice(16)).normal("eps", 2, 4, 4)
        out: Any = vae(x, eps=eps)
        return out.sample, out.latent_dist

    made, _ = passed("discriminator")
    last: Any = vae.decoder.conv_out.weight  # type: ignore[union-attr]
    error, fooled = (made - x).abs().mean(), hinge_g(judge(made).logits)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, fooled)]
    expected_d = hinge_d(judge(x).logits, judge(made).logits).item()
    balance = (norms[0] / (norms[1] + 1e-6)).item()
    phases = {phase.name: phase for phase in e.recipe.phases}
    assert list(phases) == ["discriminator", "autoencoder"]
    e.optimise(phases["discriminator"], 0, 0, batch, [{}])
    scalars = e.log.fetch(e.accelerator)
    assert scalars["loss_discriminator"] == pytest.approx(expected_d, rel=1e-5)

    made, q = passed("autoencoder")                                            # the discriminator has taken its step
    kl = 0.5 * (q.mean**2 + q.var - 1 - q.logvar).sum((1, 2, 3)).mean()
    fooled = hinge_g(judge(made).logits)
    expected = (made - x).abs().mean() + 1e-3 * kl / 64 + 0.7 * balance * fooled
    e.optimise(phases["autoencoder"], 0, 0, batch, [{}])
    scalars = e.log.fetch(e.accelerator)
    assert scalars["adversarial_balance"] == pytest.approx(balance, rel=1e-4)
    assert scalars["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert scalars["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert scalars["adversarial"] == pytest.approx(fooled.item(), abs=1e-6)


def test_the_adaptive_weight_is_bounded() -> None:
    ones = torch.ones(4)
    assert adaptive_weight(3 * ones, ones).item() == pytest.approx(3.0, rel=1e-5)
    assert adaptive_weight(ones, 0 * ones).item() == 1e4 and adaptive_weight(0 * ones, ones).item() == 0


def test_before_its_start_the_discriminator_stays_as_it_was_and_its_first_step_is_adams_first() -> None:
    e = engine(adversarial_start=5)
    judge, before = e.nets["discriminator"], [p.clone() for p in e.nets["discriminator"].parameters()]
    lines = run(e, 5)
    assert all("adversarial" not in line and line["grad_norm_discriminator"] == 0 for line in lines)
    assert all(torch.equal(a, b) for a, b in zip(before, judge.parameters(), strict=True))
    for _ in e.train(5, 1, 20):
        line = e.log.fetch(e.accelerator)
    assert line["adversarial_balance"] > 0 and line["grad_norm_discriminator"] > 0
    moved = max((a - b).abs().max().item() for a, b in zip(before, judge.parameters(), strict=True))
    assert moved == pytest.approx(2e-4, rel=1e-2)                              # the learning rate: m / sqrt(v) = 1


def test_without_an_adversarial_loss_there_is_no_discriminator() -> None:
    e = engine(adversarial_weight=0.0)
    assert set(e.nets) == {"vae"} and [phase.name for phase in e.recipe.phases] == ["autoencoder"]
    assert run(e, 2)[-1].keys() == {"loss", "reconstruction", "kl", "grad_norm"}


def test_lpips_is_added_to_the_error_where_its_weights_are_at_hand(tmp_path: Path) -> None:
    file, weights = tmp_path / "lpips.safetensors", lpips_weights()
    save_file(weights, file)
    shapes = load_dataset("shapes", resolution=16, split="train[:16]")
    chosen = settings(adversarial_weight=0.0, perceptual=file, perceptual_weight=0.25, reconstruction="l2")
    e = Engine(chosen, RECIPE.create, shapes, Accelerator(cpu=True))
    assert set(e.nets) == {"vae"}                                               # LPIPS is neither trained nor saved
    vae: Any = e.nets["vae"]
    x = next(shapes.batches(seed=0, batch_size=16))["x"]
    out = vae(x, eps=Noise((0, 0, "autoencoder", 0), 16, slice(16)).normal("eps", 2, 8, 8))
    distance, kl = LPIPS.of(weights)(x, out.sample).mean().item(), out.latent_dist.kl().mean().item()
    error = (out.sample - x).square().mean().item()
    line = run(e, 1)[0]
    assert line["perceptual"] == pytest.approx(distance, rel=1e-4) and distance > 0.01
    assert line["reconstruction"] == pytest.approx(error, rel=1e-4)
    assert line["loss"] == pytest.approx(error + 0.25 * distance + 1e-3 * kl / (3 * 16 * 16), rel=1e-4)


def test_files_that_hold_no_lpips_are_refused_by_name(tmp_path: Path) -> None:
    shapes, file = load_dataset("shapes", resolution=16, split="train[:16]"), tmp_path / "lpips.safetensors"
    with pytest.raises(CheckpointError, match=r"lpips\.safetensors: cannot be read as safetensors"):
        RECIPE.create(settings(perceptual=file), shapes)
    save_file({"conv.weight": torch.ones(2)}, file)
    with pytest.raises(ConfigError, match=r"--perceptual .*: has no 'net.slice1.0.weight'"):
        RECIPE.create(settings(perceptual=file), shapes)
    save_file({"net.slice1.0.weight": torch.ones(2)}, file)
    with pytest.raises(ConfigError, match=r"--perceptual .*: net.slice1.0.weight: shape \[2\], expected"):
        RECIPE.create(settings(perceptual=file), shapes)


def test_a_short_run_reconstructs_and_its_stored_latents_have_mean_0_and_variance_1(tmp_path: Path) -> None:
    words = "--split train[:80%] --eval-split train[80%:] --max-steps 180 --batch-size 32 --learning-rate 5e-3"
    log = train_here(tmp_path, *words.split(), "--adversarial-start", "150", "--block-out-channels", "16", "32")
    digits, rest = load_dataset("digits", split="train[:80%]").tensor(), load_dataset("digits", split="train[80%:]")
    blank = psnr(rest.tensor().mean(0).expand(len(rest), -1, -1, -1), rest.tensor())
    assert log[-1]["eval_psnr"] > blank + 5 and log[-1]["reconstruction"] < 0.4 * log[0]["reconstruction"]
    assert abs(log[-1]["eval_latent_mean"]) < 0.05 and abs(log[-1]["eval_latent_std"] - 1) < 0.05    # held-out images
    pipeline = AutoPipeline.from_pretrained(tmp_path)
    vae: Any = pipeline.vae
    assert vae.config["scaling_factor"] != 0.18215 and vae.config["sample_size"] == 8
    with torch.no_grad():
        latents = vae.to_latents(digits, torch.randn(len(digits), 2, 4, 4))
        restored = pipeline.reconstruct(rest.tensor() / 2 + 0.5, output_type="pt").images * 2 - 1
    assert abs(latents.mean()) < 0.05 and abs(latents.var() - 1) < 0.05
    assert psnr(restored, rest.tensor()) == pytest.approx(log[-1]["eval_psnr"], abs=0.3)
    stock = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model" / "vae")
    assert stock.config.shift_factor == vae.config["shift_factor"]
    with Image.open(tmp_path / "samples" / "step-00000180.png") as drawn:
        assert drawn.mode == "L"


def test_half_precision_stays_finite_and_close() -> None:
    lines = run(engine(mixed_precision="bf16", adversarial_start=2), 6)
    exact = run(engine(adversarial_start=2), 6)
    for a, b in zip(lines, exact, strict=True):
        assert all(torch.tensor(list(a.values())).isfinite())
        assert a["reconstruction"] == pytest.approx(b["reconstruction"], abs=0.03)


def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--max-steps", "24", "--save-every", "3", "--adversarial-start", "9")
    train(tmp_path / "whole", *arguments, recipe="autoencoder_kl")
    process = start(tmp_path / "killed", *arguments, recipe="autoencoder_kl")
    wait_for_step(tmp_path / "killed", 7, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--resume", recipe="autoencoder_kl")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    configs = [(tmp_path / name / "model" / "vae" / "config.json").read_text() for name in ("whole", "killed")]
    assert configs[0] == configs[1]


def test_two_processes_equal_one(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "8", "--save-every", "0", *START)
    train(tmp_path / "one", *arguments, recipe="autoencoder_kl")
    done = train(tmp_path / "two", *arguments, recipe="autoencoder_kl", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-3, rel=1e-3), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        if key.startswith("nets") and "to_k.bias" not in key:      # softmax does not see it: its gradient is rounding
            torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_latents_are_measured_as_diffusion_takes_them_also_where_each_channel_has_its_own_scale() -> None:
    vae: Any = AutoencoderKL(
        1, 1, block_out_channels=(8,), norm_num_groups=4, sample_size=8, latent_channels=2, scaling_factor=0.5,
        latents_mean=(0.1, -0.4), latents_std=(0.25, 2.0),
    ).eval()  # fmt: skip
    digits = load_dataset("digits", split="train[:40]")
    found = autoencoder_kl.evaluate(vae, digits)
    eps = torch.randn(200, 40, 2, 8, 8)
    with torch.no_grad():
        q = vae.posterior(digits.tensor())
        z = (q.mean + q.std * eps - torch.tensor([0.1, -0.4])[:, None, None]) / torch.tensor([0.5, 4.0])[:, None, None]
    assert found["eval_latent_mean"] == pytest.approx(z.mean().item(), abs=0.01)
    assert found["eval_latent_std"] == pytest.approx(z.std().item(), abs=0.01)


def test_what_is_recommended_fits_the_images_and_gives_way_to_what_is_asked(tmp_path: Path) -> None:
    def of(width: int, height: int, **asked: Any) -> AutoencoderKLSettings:
        for i in range(2):
            Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
        return recommended(AutoencoderKLSettings(output_dir=Path("unused"), **asked), load_dataset(tmp_path))

    assert (of(8, 8).block_out_channels, of(8, 8).discriminator_layers) == ((32, 64), 1)
    assert (of(32, 32).block_out_channels, of(32, 32).discriminator_layers) == ((16, 32), 3)
    assert (of(32, 32).adversarial_weight, of(32, 32).reconstruction) == (0.0, "l2")
    assert of(32, 32, adversarial_weight=0.3).reconstruction == "l1"
    assert (of(64, 64).adversarial_weight, of(64, 64).reconstruction) == (0.5, "l1")
    assert of(66, 66).block_out_channels == (64, 128) and of(128, 256).block_out_channels == (64, 128, 128, 128)
    assert of(8, 8, max_steps=70).adversarial_start == 35 and of(8, 8, adversarial_start=3).adversarial_start == 3
    assert of(8, 8, budget="3m").adversarial_start is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring8"}, "--dataset ring8: an autoencoder is for images"),
        ({"kl_weight": -1.0}, "--kl-weight must not be negative, got -1.0"),
        ({"adversarial_start": -1}, "--adversarial-start must not be negative"),
        ({"discriminator_layers": 2}, "--discriminator-layers 2: for images of 12 pixels a side"),
        ({"discriminator_layers": 0}, "--discriminator-layers must be above 0, got 0"),
        ({"perceptual_weight": -1.0}, "--perceptual-weight must not be negative, got -1.0"),
        ({"perceptual": Path("lpips.safetensors")}, "--perceptual: LPIPS is for images .* 16 pixels .* are 1x8x8"),
        ({"block_out_channels": (4,) * 5}, "--block-out-channels .* divide the sides by 16, and those of 8x8 images"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RECIPE.create(settings(**changes), load_dataset(changes.get("dataset", "digits")))
