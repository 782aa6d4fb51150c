"""A notebook without ipywidgets, executed by a real kernel: training, one progress bar, and pictures of samples."""

import base64
import io
import re
from typing import Any

import pytest
from PIL import Image

TRAIN = """
import hfgen

pipe = hfgen.train(
    "ddpm", dataset="digits", max_steps=8, batch_size=16, block_out_channels=(8, 16), layers_per_block=1,
    num_train_timesteps=50, sample_every=3, save_every=4, log_every=1, preview_images=4, preview_steps=2, threads=1,
    callback=lambda step, numbers: numbers["loss"] < 0,
)
"""
CELLS = (TRAIN, "pipe(batch_size=4, num_steps=2)", "hfgen.evaluate(pipe, 'digits', num_samples=20, num_steps=2, "
         "metrics='frechet', cache=False).metrics['frechet']['value']")  # fmt: skip


@pytest.fixture(scope="module")
def cells() -> list[Any]:
    """Return the executed cells of the notebook."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return list(notebook.cells)


def shown(cell: Any, *streams: str) -> list[str]:
    """Return the lines that a reader sees of a cell's streams: after a carriage return a line is written anew."""
    text = "".join(output.text for output in cell.outputs if output.get("name") in streams)
    assert "\x1b" not in text, "moves the cursor, which a notebook does not"
    return [re.split("\r", line.rstrip("\r"))[-1].rstrip() for line in text.split("\n")]


@pytest.mark.slow
def test_a_cell_that_trains_shows_one_bar_and_no_warning(cells: list[Any]) -> None:
    errors = [line for line in shown(cells[0], "stderr") if line]
    assert len(errors) == 1 and errors[0].startswith("100%|") and "8/8" in errors[0], errors
    printed = shown(cells[0], "stdout")
    assert printed[0].startswith("run folder ") and any(line.startswith("finished step 8") for line in printed)


@pytest.mark.slow
def test_a_cell_that_samples_shows_the_pictures_enlarged(cells: list[Any]) -> None:
    [result] = [output.data for output in cells[1].outputs if output.output_type == "execute_result"]
    assert Image.open(io.BytesIO(base64.b64decode(result["image/png"]))).size == (134, 134)
    assert [line for line in shown(cells[1], "stderr") if line and not line.startswith("100%|")] == []


@pytest.mark.slow
def test_a_cell_that_evaluates_leaves_no_bar(cells: list[Any]) -> None:
    assert [line for line in shown(cells[2], "stderr") if line] == []
    [result] = [output.data for output in cells[2].outputs if output.output_type == "execute_result"]
    assert float(result["text/plain"]) > 0
