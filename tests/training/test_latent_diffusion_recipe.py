"""The recipe of latent diffusion: conditions that are left out, exact runs, pipelines, refusals."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from hfgen import AutoPipeline
from hfgen.errors import ConfigError, HfgenError
from hfgen.models.fold_shift import fold_shift
from hfgen.training import latent_diffusion
from hfgen.training.engine.latents import load_autoencoder
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.run import main
from hfgen.training.latent_diffusion import LatentDiffusionSettings, open_latents
from hfgen.training.settings.latent_diffusion import recommended
from tests.training import runs
from tests.training.test_denoiser import saved_text
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import LATENT_DIFFUSION, make_autoencoder

Train = Callable[..., subprocess.CompletedProcess]
SHAPES = ("--dataset", "shapes", "--split", "train[:64]", "--resolution", "8", "--captions")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_autoencoder(tmp_path_factory.mktemp("autoencoders") / "coloured", 3))


settings, engine = LATENT_DIFFUSION.settings, LATENT_DIFFUSION.engine
CAPTIONED: dict[str, Any] = {"dataset": "shapes", "split": "train[:64]", "resolution": 8, "captions": True}


def test_the_loss_is_the_error_of_the_noise_in_draws_of_q_and_conditions_are_left_out(
    tmp_path: Path, coloured: str
) -> None:
    e = engine(output_dir=tmp_path, autoencoder=coloured, **CAPTIONED, class_conditional=True, condition_dropout=0.4)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    seen: list[Any] = []
    nets: Any = {"unet": lambda *a, **k: seen.append((a, k)) or e.nets["unet"](*a, **k),
                 "text_encoder": e.nets["text_encoder"]}  # fmt: skip
    loss, scalars = e.recipe.phases[0].loss(nets, batch, Noise((0, 0, "x", 0), 16, slice(16)), {})
    noise = Noise((0, 0, "x", 0), 16, slice(16))
    eps, t = noise.normal("eps", 2, 4, 4), (noise.stratified("t") * 50).long()
    z = batch["x"] + batch["std"] * noise.normal("posterior", 2, 4, 4)
    scheduler = scheduler_of(e)
    ((z_t, times), told) = seen[0]
    torch.testing.assert_close(z_t, scheduler.add_noise(z, eps, t), atol=1e-5, rtol=0)
    assert torch.equal(times, t)
    expected = (e.nets["unet"](z_t, t, **told).sample - scheduler.get_velocity(z, eps, t)).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and scalars["loss"] == loss
    out = noise.uniform("condition") < 0.4
    assert 0 < out.sum() < 16
    assert torch.equal(told["class_labels"], torch.where(out, 4, batch["label"]))
    features = told["encoder_hidden_states"]
    empty = features[out]
    torch.testing.assert_close(empty, empty[:1].expand_as(empty), atol=1e-6, rtol=0)
    assert (features[~out] - empty[:1]).abs().amax((1, 2)).min() > 1e-2


def scheduler_of(e: Engine) -> Any:
    """Return the scheduler of a recipe's pipeline."""
    return e.recipe.pipeline(e.nets).scheduler


@pytest.mark.parametrize("kind", ["nothing", "classes", "captions"])
def test_micro_batches_give_the_numbers_of_the_whole_batch(
    tmp_path: Path, grey: str, coloured: str, kind: str
) -> None:
    choices = {"nothing": {}, "classes": {"class_conditional": True}, "captions": CAPTIONED}[kind]
    lines = []
    for micro in (None, 4):
        used = coloured if kind == "captions" else grey
        e = engine(output_dir=tmp_path, autoencoder=used, **choices, micro_batch_size=micro)
        lines.append([e.log.fetch(e.accelerator) for _ in e.train(0, 3, 20)])
        assert set(e.averages) == ({"unet", "text_encoder"} if kind == "captions" else {"unet"})
    for a, b in zip(*lines, strict=True):
        assert a.keys() == b.keys() == {"loss", "grad_norm"}
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name


def test_half_precision_stays_finite_and_close(tmp_path: Path, coloured: str) -> None:
    losses = []
    for precision in ("no", "bf16"):
        e = engine(output_dir=tmp_path, autoencoder=coloured, **CAPTIONED, mixed_precision=precision)
        losses.append([e.log.fetch(e.accelerator)["loss"] for _ in e.train(0, 5, 20)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=0.03, rtol=0)


def test_a_run_told_captions_learns_and_its_folder_samples_what_its_text_says(tmp_path: Path, coloured: str) -> None:
    words = ["--autoencoder", coloured, *SHAPES, "--class-conditional", "--max-steps", "60", "--learning-rate", "5e-3"]
    log = runs.train_here("latent_diffusion", tmp_path / "run", *words)
    assert sum(line["loss"] for line in log[-10:]) < 0.9 * sum(line["loss"] for line in log[:10])
    pipe: Any = AutoPipeline.from_pretrained(tmp_path / "run")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config["null_condition"] and pipe.unet.config["num_class_embeds"] == 5
    vae = fold_shift(load_autoencoder(coloured))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), pipe.vae.parameters(), strict=True))

    def sample(prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return next(reversed(list(pipe.states(prompt, class_labels=1, num_steps=5, generator=generator))))

    red, blue = (sample(f"a large filled {colour} circle in the centre on white") for colour in ("red", "blue"))
    assert (red - blue).abs().max() > 1e-4
    assert (tmp_path / "run" / "samples" / "step-00000060.png").is_file()


def checkpoint_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's newest checkpoint, by file and name."""
    newest = max((folder / "checkpoints").glob("step-*"))
    files = sorted(newest.rglob("*.safetensors"))
    assert len(files) == 5, files                         # networks, optimisers; U-Net, text encoder, autoencoder
    return {f"{file.relative_to(newest)}/{k}": v.clone() for file in files for k, v in load_file(file).items()}


def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, coloured: str, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--autoencoder", coloured, *SHAPES, "--max-steps", "20", "--save-every", "4")
    train(tmp_path / "whole", *arguments, recipe="latent_diffusion")
    stock: Any = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "whole" / "model")
    assert type(stock) is diffusers.StableDiffusionPipeline and not list((tmp_path / "whole" / "model").rglob("*.py"))
    process = start(tmp_path / "killed", *arguments, recipe="latent_diffusion")
    wait_for_step(tmp_path / "killed", 9, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", *arguments, "--resume", recipe="latent_diffusion")
    assert "continued from step" in done.stdout
    first, second = checkpoint_tensors(tmp_path / "whole"), checkpoint_tensors(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]
    assert runs.metrics(tmp_path / "whole") == runs.metrics(tmp_path / "killed")


@pytest.mark.parametrize("kind", ["classes", "text encoder"])
def test_told_classes_or_by_a_given_text_encoder_it_resumes_exactly(
    tmp_path: Path, grey: str, coloured: str, kind: str
) -> None:
    told = ["--autoencoder", grey, "--class-conditional", "--flip"]
    if kind == "text encoder":
        told = ["--autoencoder", coloured, *SHAPES, "--text-encoder", str(saved_text(tmp_path / "text"))]
    told += ["--lr-schedule", "constant"]
    for folder, steps in (("whole", "6"), ("parts", "3"), ("parts", "6")):
        again = ["--resume"] if (tmp_path / folder).exists() else []
        runs.train_here("latent_diffusion", tmp_path / folder, *told, "--max-steps", steps, *again)
    runs.assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_equal_one(tmp_path: Path, coloured: str, train: Train) -> None:
    arguments = ("--autoencoder", coloured, *SHAPES, "--class-conditional", "--max-steps", "6", "--save-every", "0")
    train(tmp_path / "one", *arguments, recipe="latent_diffusion")
    done = train(tmp_path / "two", *arguments, recipe="latent_diffusion", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), (name, a, b)
    first, second = checkpoint_tensors(tmp_path / "one"), checkpoint_tensors(tmp_path / "two")
    for key in first:
        if key.startswith("nets") and "k_proj.bias" not in key:    # softmax does not see it: its gradient is rounding
            torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring8"}, "--dataset ring8: latent diffusion is for images"),
        ({"dataset": "shapes"}, "--autoencoder .*: is for 1 channels, the images of shapes have 3"),
        ({"dataset": "shapes", "class_conditional": True, "label_column": "none"}, "'shapes' has no labels"),
        ({"condition_dropout": 1.0}, r"--condition-dropout must be in \[0, 1\), got 1.0"),
        ({"caption_column": "text"}, "--caption-column text needs --captions"),
        ({"text_encoder": "somewhere"}, "--text-encoder somewhere needs --captions"),
        ({"captions": True}, "caption_column='caption' does not apply"),
        ({"streaming": True}, "--streaming"),
        ({"variance_type": "learned_range"}, "--variance-type learned_range"),
        ({"block_out_channels": (8, 9)}, "norm_num_groups"),
        ({"batch_size": 16, "micro_batch_size": 5}, "--batch-size 16 is the global batch and must divide by"),
        ({"batch_size": 5000}, "latents of digits: 1,797 items are fewer than one batch of 5,000"),
        ({"start_from": "nowhere"}, "'nowhere': no such folder"),
        ({"autoencoder": "nowhere"}, "'nowhere': no such folder"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_name_and_leave_no_trace(
    tmp_path: Path, grey: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HfgenError, match=message):
        open_latents(settings(**{"output_dir": tmp_path / "run", "autoencoder": grey, **changes}))
    assert not (tmp_path / "run").exists()


def test_the_help_says_what_is_recommended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")                           # one column of boxes
    with pytest.raises(SystemExit):
        main(latent_diffusion.RECIPE, ["--help"])
    _, _, found = " ".join(capsys.readouterr().out.replace("│", " ").split()).partition("--block-out-channels")
    for side in (4, 16, 32):
        data: Any = SimpleNamespace(shape=(4, side, side))
        widths = recommended(LatentDiffusionSettings(output_dir=Path(), autoencoder=""), data).block_out_channels
        assert " ".join(map(str, widths)) in found[:400], found[:400]


@pytest.mark.parametrize(("side", "layers"), [(4, 2), (7, 2), (8, 1), (16, 1), (31, 1), (32, 2)])
def test_small_latents_have_one_block_a_level_unless_it_is_said(side: int, layers: int) -> None:
    data: Any = SimpleNamespace(shape=(4, side, side))
    fields: Any = {"output_dir": Path(), "autoencoder": ""}
    assert recommended(LatentDiffusionSettings(**fields), data).layers_per_block == layers
    assert recommended(LatentDiffusionSettings(**fields, layers_per_block=3), data).layers_per_block == 3


def test_a_pipeline_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds no vae; it holds model_index\.json"):
        load_autoencoder(str(tmp_path))


def test_what_is_recommended_fits_the_latents_and_gives_way_to_what_is_asked(tmp_path: Path, grey: str) -> None:
    data = open_latents(settings(output_dir=tmp_path, autoencoder=grey))
    s = LatentDiffusionSettings(output_dir=tmp_path, autoencoder=grey)
    assert recommended(s, data).block_out_channels == (32, 64) and recommended(s, data).attention_levels == (1,)
    assert recommended(s, data).prediction_type == "v_prediction"
    s.block_out_channels, s.prediction_type = (8,), "epsilon"
    assert recommended(s, data).attention_levels == (0,) and recommended(s, data).prediction_type == "epsilon"
