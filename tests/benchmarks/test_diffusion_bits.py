"""The benchmark of bits per dimension, short: its terms add up, and training brings them down."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image

from hfgen import DDPMPipeline, UNet, VPSDEScheduler
from hfgen.data import load_dataset
from hfgen.training.ddpm import DDPMSettings
from hfgen.training.denoiser import network
from hfgen.training.engine.parse import parse
from tests.benchmarks.diffusion_bits import CIFAR10, MODELS, encoding, fitted, judge, main

TINY = "--block-out-channels 8 16 --layers-per-block 1 --learning-rate 2e-3 --threads 1 --max-steps 150".split()


def test_a_short_training_needs_fewer_bits_than_pixels_drawn_evenly(tmp_path: Path) -> None:
    fields = [*TINY, "--num-train-timesteps", "50"]
    folder = fitted("DDPM, cosine, learned variance", ["--dataset", "digits"], tmp_path, fields)
    pipeline = DDPMPipeline.from_pretrained(folder)
    found = judge(pipeline, load_dataset("digits").tensor(8), 17, 8)
    assert 0 <= found["prior"] < 0.01 and 0 < found["decoder"] < found["bound"]
    assert found["ODE"] < math.log2(17), found


def test_a_network_that_sees_no_noise_has_the_likelihood_of_one_gaussian() -> None:
    """With eps = 0 the flow only shrinks, x_T = x exp(-B / 2): the density is N(0, exp(B) I), B = B(1) - B(t_min)."""
    net = UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    sde = VPSDEScheduler(num_train_timesteps=30, beta_end=0.1)
    images = load_dataset("digits").tensor(50)
    found = judge(DDPMPipeline(net.eval(), sde), images, 17, 50)
    B = float(sde.rate.integral(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).diff())
    second = float(images.square().mean()) + 1 / (3 * 16**2)          # and the variance of the dequantisation
    nats = (math.log(2 * math.pi) + B + second * math.exp(-B)) / 2 - math.log(2 / 16)
    assert abs(found["ODE"] - nats / math.log(2)) < 2e-3
    assert found["bound"] > found["decoder"] + found["prior"] > 0


def test_the_fields_for_cifar10_are_those_of_the_paper() -> None:
    words = ["--output-dir", "run", "--dataset", "shapes", *MODELS["DDPM, linear"].split()[1:], *CIFAR10.split()]
    settings = parse(DDPMSettings, words)
    net = network(settings, load_dataset("shapes"))
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 35.7
    assert (settings.max_steps, settings.batch_size, settings.beta_schedule) == (800_000, 128, "linear")


def test_a_small_run_of_the_fields_for_cifar10_is_judged_on_both_halves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = "--block-out-channels 8 8 8 16 --attention-head-dim 8 --batch-size 4 --max-steps 2 --warmup-steps 1"
    words = ["x", "--models", "DDPM, linear", "--train", "shapes", "--test", "shapes", "--test-split", "test"]
    small += " --num-train-timesteps 10 --threads 1 --no-flip"
    words += ["--number", "2", "--ode-number", "0", "--keep", str(tmp_path), "--", "CIFAR10", *small.split()]
    monkeypatch.setattr("sys.argv", words)
    main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["half"] for row in rows] == ["train", "test"]
    assert all(row["bound"] > row["decoder"] > 0 and "ODE" not in row for row in rows)
    assert all(row["published"] == 3.75 and row["training_steps"] == 2 for row in rows)
    assert all(row["encoding"] is None and row["device"] in ("cpu", "cuda") for row in rows)
    assert all(row["training_seconds"] > 0 and row["hardware"]["device"] == "cpu" for row in rows)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_row_tells_how_the_images_of_a_file_are_encoded(kind: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, kind)
    path, cell = tmp_path / "x.parquet", {"bytes": file.getvalue(), "path": None}
    Dataset.from_dict({"label": [3], "img": [cell]}).to_parquet(path)
    assert encoding(str(path)) == kind
    assert encoding("digits") is None
