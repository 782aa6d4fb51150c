"""Tiny real parts: an 8x8 U-Net, a denoiser of the plane, a 20-step scheduler, and Python beside this one."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from hfgen import DDPMPipeline, DDPMScheduler, MLPDenoiser, UNet

SIZES = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
    "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def make_unet() -> Callable[..., UNet]:
    """Return a maker of tiny U-Nets in evaluation mode."""
    return lambda **changes: UNet(**{**SIZES, **changes}).eval()


@pytest.fixture
def make_pipeline(make_unet) -> Callable[..., DDPMPipeline]:
    """Return a maker of quiet pipelines: `unet` or changes of the U-Net's configuration, `scheduler` settings."""

    def make(unet=None, scheduler=None, **changes):
        pipe = DDPMPipeline(unet or make_unet(**changes), DDPMScheduler(num_train_timesteps=20, **(scheduler or {})))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def plane_pipeline(make_pipeline) -> DDPMPipeline:
    """Return a pipeline for points in the plane, whose data have a mean and a standard deviation."""
    net = MLPDenoiser(data_mean=[1.0, -2.0], data_std=[0.5, 3.0])
    return make_pipeline(unet=net.eval())


@pytest.fixture
def saved(make_pipeline, tmp_path) -> Path:
    """Return the folder of a saved unconditional pipeline."""
    make_pipeline().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def python(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a program in a new Python, where hfgen cannot be imported if `blocked`."""

    def run(program: str, *arguments: object, blocked: bool = False, **environment: str):
        script = (BLOCKER if blocked else "") + textwrap.dedent(program)
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120,
            env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", **environment},
        )

    return run
