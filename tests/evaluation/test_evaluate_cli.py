"""The command line of the judge: its options are those of training and of `hfgen.evaluate`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hfgen
from hfgen.data import load_dataset
from tests import command_line
from tests.cards.helpers import MAKERS

FEW = "--num-samples 20 --resamples 20 --metrics frechet".split()


def evaluated(command: str, model: Path, *words: str) -> dict[str, Any]:
    """Return the result that a command writes for its first model, or its error under "error"."""
    if command == "compare":
        pytest.importorskip("matplotlib")
    target = model.parent / ("report" if command == "compare" else "found.json")
    done = command_line.hfgen(command, str(model), *words, "-o", str(target))
    if done.exit_code:
        assert done.exit_code == 2, done.output
        return {"error": done.output}
    found: dict[str, Any] = json.loads((target / "report.json" if command == "compare" else target).read_text())
    return found["models"][0] if command == "compare" else found


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_the_hint_for_images_that_are_not_square_works(command: str, tmp_path: Path) -> None:
    net = hfgen.VAE((8, 4), 1, hidden=(8,), latent_dim=2).eval()
    hfgen.VAEPipeline(net).save_pretrained(tmp_path / "vae")
    words = ["--dataset", "digits", *FEW]
    error = evaluated(command, tmp_path / "vae", *words, "--resolution", "8")["error"]
    assert error == "error: vae makes 1x8x4, digits is 1x8x8; load the data with --resolution 8 4 --channels 1\n"
    hint = re.findall(r"--resolution 8 4 --channels 1", error)[0].split()
    found = evaluated(command, tmp_path / "vae", *words, *hint)
    assert found["real"]["fingerprint"] == load_dataset("digits", resolution=(8, 4), channels=1).fingerprint
    error = evaluated(command, tmp_path / "vae", *words, "--resolution", "x")["error"]
    assert "--resolution" in error and "Traceback" not in error


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_data_are_read_as_training_reads_them(command: str, tmp_path: Path) -> None:
    MAKERS["GANPipeline"]().save_pretrained(tmp_path / "gan")
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 255, (8, 8, 4), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    (folder / "20.png").write_bytes(b"no image")
    words = ["--dataset", str(folder), *FEW, "--num-samples", "10", "--channels", "1"]
    with pytest.warns(UserWarning, match="left out 1 of 21 images"):
        found = evaluated(command, tmp_path / "gan", *words, "--background", "black", "--skip-bad-images")
    read: dict[str, Any] = {"channels": 1, "skip_bad_images": True}
    with pytest.warns(UserWarning, match="left out"):
        black, white = (load_dataset(folder, background=colour, **read).fingerprint for colour in ("black", "white"))
    assert found["real"]["fingerprint"] == black != white


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_the_settings_of_a_command_are_those_of_the_function(command: str, tmp_path: Path) -> None:
    MAKERS["GANPipeline"]().save_pretrained(tmp_path / "gan")
    words = "--neighbours 3 --importance-samples 7 --classifier-steps 9".split()
    found = evaluated(command, tmp_path / "gan", "--dataset", "digits", *FEW, *words)
    assert {"neighbours": 3, "importance_samples": 7, "classifier_steps": 9}.items() <= found["settings"].items()
