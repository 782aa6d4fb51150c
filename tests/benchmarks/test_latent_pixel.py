"""The benchmark of latent diffusion, in parts: seconds of samples, and trainings that are kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from hfgen import DDPMPipeline, DDPMScheduler, UNet
from tests.benchmarks import harness, in_process, latent_pixel
from tests.benchmarks.harness import fitted
from tests.training.runs import TINY


def test_the_seconds_are_the_median_of_three_samplings_of_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=4,
    )  # fmt: skip
    DDPMPipeline(net.eval(), DDPMScheduler(num_train_timesteps=20), null_condition=True).save_pretrained(tmp_path)
    clock = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])                       # the first sampling is the slowest
    monkeypatch.setattr(latent_pixel, "time", SimpleNamespace(perf_counter=clock.__next__))
    assert latent_pixel.timed(tmp_path, 2, "ddim") == 3.0
    assert next(clock, None) is None


def kept(folder: Path, seconds: float, fields: list[str]) -> Path:
    """Return a run folder as trainings leave it, beside it seconds and fields."""
    (folder / "model").mkdir(parents=True)
    folder.with_name(f"{folder.name}.json").write_text(json.dumps({"seconds": seconds, "fields": fields}))
    return folder


def test_a_training_is_kept_and_refused_where_its_fields_were_others(tmp_path: Path) -> None:
    run = kept(tmp_path / "latent-0", 12.5, ["--batch-size", "4"])
    assert fitted("ddpm", run, 0, ["--batch-size", "4"]) == 12.5
    with pytest.raises(RuntimeError, match=r"latent-0: other fields were used.*4.*not.*8; remove the folder") as error:
        fitted("ddpm", run, 0, ["--batch-size", "8"])
    assert "\n" not in str(error.value)


def test_runs_that_were_moved_together_are_still_those_of_their_fields(tmp_path: Path) -> None:
    kept(tmp_path / "autoencoder-0", 3.0, [])
    kept(tmp_path / "autoencoder-1", 3.0, [])
    run = kept(tmp_path / "latent-0", 4.0, ["--autoencoder", "elsewhere/autoencoder-0"])
    assert fitted("latent_diffusion", run, 0, ["--autoencoder", str(tmp_path / "autoencoder-0")]) == 4.0
    with pytest.raises(RuntimeError, match="other fields"):
        fitted("latent_diffusion", run, 0, ["--autoencoder", str(tmp_path / "autoencoder-1")])


def test_a_folder_that_was_removed_is_trained_again_and_its_new_fields_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(recipe: str, folder: Path, seed: int, fields: list[str]) -> float:
        (folder / "model").mkdir(parents=True)
        return 7.0

    monkeypatch.setattr(harness, "train", train)
    (tmp_path / "run.json").write_text(json.dumps({"seconds": 1.0, "fields": ["--flip"]}))
    assert fitted("ddpm", tmp_path / "run", 0, ["--no-flip"]) == 7.0
    assert json.loads((tmp_path / "run.json").read_text()) == {"seconds": 7.0, "fields": ["--no-flip"]}


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                         # diffusers with numpy 2
def test_a_small_run_has_a_line_for_every_model_and_scale_and_gives_the_pixels_the_time_of_the_latents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, list[str]] = {}

    def train(recipe: str, folder: Path, seed: int, fields: list[str]) -> float:
        given[recipe] = fields
        return in_process.train(recipe, folder, seed, [word for word in fields if word not in ("--budget", "30s")])

    monkeypatch.setattr(harness, "train", train)
    monkeypatch.setattr(latent_pixel, "TIMED", 2)
    words = ["x", "--train", "digits", "--test", "digits", "--keep", str(tmp_path), "--resolution", "8"]
    words += "--number 20 --scales 1 2 --steps 2 --latent".split()
    latent, pixel = TINY["latent_diffusion"], TINY["ddpm"]
    words += [" ".join(latent), "--pixel", " ".join(pixel), "--autoencoder", " ".join(TINY["autoencoder_kl"]), "--"]
    monkeypatch.setattr("sys.argv", [*words, *"--batch-size 8 --max-steps 2 --warmup-steps 1 --threads 1".split()])
    latent_pixel.main()
    assert list(given) == ["classifier", "autoencoder_kl", "latent_diffusion", "ddpm"]
    assert given["ddpm"][given["ddpm"].index("--budget") + 1] == "30s"
    assert given["latent_diffusion"][:2] == ["--autoencoder", str(tmp_path / "autoencoder-0")]
    out = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out if line.startswith("| ")]
    assert cells[0] == ["model", "guidance", "seeds", "frechet", "label", "train"]
    assert [tuple(row[:2]) for row in cells[1:]] == [
        ("latent", "1.0"), ("latent", "2.0"), ("pixel", "1.0"), ("pixel", "2.0"), ("real", "1.0"),
        ("reconstructed", "1.0"),
    ]  # fmt: skip
    assert [row[5] for row in cells[1:5]] == ["30", "30", "15", "15"] and cells[5][3] == "0"
    assert out[-1].startswith("seconds per 64 images at 2 steps: latent ")
    for name in ("latent-1", "latent-2", "pixel-1", "pixel-2"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert sheet.size == (10 * 34 + 2, 2 * 34 + 2)
