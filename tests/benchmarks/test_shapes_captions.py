"""The benchmark of captions: what its shares say of real images with their own captions, and with others'."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen.data import load_dataset
from hfgen.data.shapes.captions import captions_of, factors_of
from hfgen.data.shapes.dataset import held_out
from tests.benchmarks import harness, in_process, shapes_captions
from tests.benchmarks.shapes_captions import main, shares, shortened
from tests.training.runs import TINY


def test_shares_are_1_on_real_images_and_low_where_the_captions_are_shuffled() -> None:
    real: Any = load_dataset("shapes", split="test")
    x, captions = real.tensor(64), captions_of(real.factors()[:64].numpy())
    right = shares(x, captions)
    assert {"colour and shape", "colour", "shape", "all"} <= set(right) and set(right.values()) == {1.0}
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    wrong = shares(x, [captions[i] for i in order])
    assert wrong["all"] <= wrong["colour and shape"] <= min(wrong["colour"], wrong["shape"])
    assert max(wrong["colour"], wrong["shape"]) < 0.5 and wrong["all"] < 0.1


def test_short_captions_leave_fill_and_background_open_and_only_what_they_name_is_judged() -> None:
    factors = held_out()
    captions = shortened(factors)
    told = factors_of(captions).numpy()
    assert np.array_equal(told[:, [0, 2, 3, 4]], factors[:, [0, 2, 3, 4]]) and (told[:, [1, 5]] == -1).all()
    assert "a large red circle at the top left" in shortened(np.array([[2, 1, 0, 0, 0, 1]]))
    real: Any = load_dataset("shapes", split="test")
    right = shares(real.tensor(64), shortened(real.factors()[:64].numpy()))
    assert set(right) == {"colour and shape", "size", "colour", "shape", "place", "all"}
    assert set(right.values()) == {1.0}


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                         # diffusers with numpy 2
@pytest.mark.parametrize(("model", "autoencoder", "recipe"), [
    ("diffusion", "autoencoder_kl", "latent_diffusion"), ("masked", "vq_autoencoder", "autoregressive"),
    ("gan", None, "gan"),
])  # fmt: skip
def test_a_small_run_reports_every_kind_of_caption_at_every_scale(
    model: str, autoencoder: str | None, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    train = in_process.Trainings()
    monkeypatch.setattr(harness, "train", train)
    for name, value in {"IMAGES": 4, "BATCH": 3, "held_out": lambda: held_out()[:5]}.items():
        monkeypatch.setattr(shapes_captions, name, value)
    small = "--batch-size 4 --max-steps 2 --warmup-steps 1 --split train[:40]"
    first, second = (" ".join([small, *TINY.get(name or "", [])]) for name in (autoencoder, recipe))
    second = second.replace("--class-conditional", "")
    words = ["x", "--model", model, "--scales", "1", "4", "--keep", str(tmp_path), "--threads", "1",
             "--figure", str(tmp_path / "captions.png")]  # fmt: skip
    if model == "masked":
        words += ["--draws", "temperature=0.9"]
    monkeypatch.setattr("sys.argv", [*words, "--autoencoder", first, "--diffusion", second])
    main()
    printed = [line for line in capsys.readouterr().out.splitlines() if "colour and shape" in line]
    folders = {"diffusion": ["autoencoder-0"], "masked": ["vq_autoencoder-0"], "gan": []}[model]
    assert [folder.name for folder in train.folders] == [*folders, f"{model}-0"]
    scales = (1, 4) if folders else (1,)                                                 # a GAN is not guided
    kinds = [f"{kind}, guidance {scale}" for kind in ("trained on", "held out", "short") for scale in scales]
    names = [re.sub(", [0-9.e-]+ s each", "", line[:40]).strip() for line in printed]
    assert names == ["checker", *(["reconstructed"] if folders else []), *kinds]
    assert "colour and shape 100.0 %" in printed[0] and "fill" not in printed[-1]
    with Image.open(tmp_path / "captions.png") as picture:
        assert picture.size == (8 * 34 + 2, 34 + 2)                    # five images in a row of eight
