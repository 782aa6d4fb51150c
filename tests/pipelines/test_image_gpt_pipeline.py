"""A pipeline whose network is transformers' `ImageGPTForCausalImageModeling`: saved so, and loaded from its folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import ImageGPTForCausalImageModeling

import hfgen
from tests.models.test_image_transformer_tools import made
from tests.models.test_stock_image_transformer import assert_equal_logits, stock

TWIN = ["transformers", "ImageGPTForCausalImageModeling"]


def pipeline(**changes: Any) -> Any:
    net, _, _ = made("learned", **changes)
    return hfgen.AutoregressivePipeline(net, image_shape=(1, 3, 4), levels=5)


def drawn(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(3, generator=torch.Generator().manual_seed(0), output_type="latent").images


def test_the_network_of_a_saved_pipeline_is_a_folder_of_transformers(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    assert json.loads((tmp_path / "pipe/model_index.json").read_text())["network"] == TWIN
    assert {path.name for path in (tmp_path / "pipe/network").iterdir()} == {"config.json", "model.safetensors"}
    assert_equal_logits(pipe.network, ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "pipe/network"))
    # in hfgen
    back = hfgen.AutoPipeline.from_pretrained(tmp_path / "pipe")
    assert type(back.network) is hfgen.ImageTransformer
    assert torch.equal(drawn(back), drawn(pipe))
    alone = hfgen.ImageTransformer.from_pretrained(tmp_path / "pipe")
    assert torch.equal(alone.wte.weight, pipe.network.wte.weight)


def test_a_network_with_rotary_positions_is_saved_as_hfgens(tmp_path: Path) -> None:
    pipeline(positions="rotary").save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe/model_index.json").read_text())
    assert index["network"] == ["hfgen_shim", "ImageTransformer"]


def test_a_pipeline_takes_a_network_of_transformers_and_a_folder_that_transformers_saved(tmp_path: Path) -> None:
    theirs = stock()
    pipe = hfgen.AutoregressivePipeline(theirs, image_shape=(1, 4, 4), levels=5)
    assert type(pipe.network) is hfgen.ImageTransformer
    assert_equal_logits(pipe.network, theirs)
    # transformers writes the network of a saved pipeline anew
    pipe.save_pretrained(tmp_path / "pipe")
    for path in (tmp_path / "pipe/network").iterdir():
        path.unlink()
    theirs.save_pretrained(tmp_path / "pipe/network")
    back = hfgen.AutoregressivePipeline.from_pretrained(tmp_path / "pipe")
    assert torch.equal(drawn(back), drawn(pipe))


@pytest.mark.filterwarnings("ignore")                                                    # of diffusers
def test_plain_diffusers_loads_the_pipeline(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    stock_loaded = DiffusionPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True)
    assert type(stock_loaded) is hfgen.AutoregressivePipeline
    assert torch.equal(drawn(stock_loaded), drawn(pipe))
