"""`hfgen sample` with a sampler: the table, the same samples as in Python, mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfgen import (
    Autoencoder,
    AutoencoderPipeline,
    DCGANGenerator,
    DDPMPipeline,
    DDPMScheduler,
    GANPipeline,
    MLPDenoiser,
    MLPGenerator,
    VPSDEScheduler,
)
from hfgen.data.order import derive_seed
from hfgen.errors import ConfigError
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.text import build_text_encoder, build_tokenizer
from hfgen.sampling.generate import write_samples
from hfgen.sampling.request import SampleRequest
from hfgen.schedulers.samplers import SAMPLERS
from tests import command_line


@pytest.fixture(params=[DDPMScheduler, VPSDEScheduler])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    scheduler = request.param(num_train_timesteps=20, clip_sample=False)
    DDPMPipeline(MLPDenoiser(hidden=16, layers=1).eval(), scheduler).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                        # diffusers with numpy 2
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_command_line_gives_the_samples_of_the_pipeline(model: Path, tmp_path: Path, sampler: str) -> None:
    out = tmp_path / "points.npy"
    words = ["sample", str(model), "-o", str(out), "-n", "5", "--batch-size", "3", "--num-steps", "4", "--seed", "1"]
    extra = ["--eta", "0.5"] if sampler == "ddim" else []
    done = command_line.hfgen(*words, "--sampler", sampler, *extra)
    assert done.exit_code == 0, done.output
    pipe = DDPMPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(derive_seed(1, i)) for i in range(5)]
    eta = 0.5 if extra else 0.0
    expected = pipe(5, num_steps=4, generator=generators, output_type="np", sampler=sampler, eta=eta).images
    np.testing.assert_allclose(np.load(out), expected, atol=1e-4, rtol=1e-4)


def test_sample_writes_a_grid_of_its_own_name_and_says_each_time_where_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GANPipeline(DCGANGenerator(resolution=8, channels=1, width=8).eval()).save_pretrained(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    for words, line, made in (
        ((), "4 images, a grid: digits-samples.png", "digits-samples.png"),
        (("-o", "new/x.npy"), "4 images, an array (N, H, W, C) of float32 in [0, 1]: new/x.npy", "new/x.npy"),
        (("-o", "out"), "4 images, files from 00000.png on: out", "out/00003.png"),
    ):
        done = command_line.hfgen("sample", "digits", "-n", "4", *words)
        assert (done.exit_code, done.stdout.strip()) == (0, line) and Path(made).is_file(), done.output
    GANPipeline(MLPGenerator().eval()).save_pretrained(tmp_path / "ring")
    assert command_line.hfgen("sample", "ring", "-n", "4").stdout == "4 points, a plot: ring-samples.png\n"


def test_the_table_of_samplers_needs_no_model() -> None:
    done = command_line.hfgen("sample", "--list-samplers")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == list(SAMPLERS)


def test_a_sampler_for_a_model_of_one_step_and_an_unknown_one_are_refused(model: Path, tmp_path: Path) -> None:
    GANPipeline(MLPGenerator()).save_pretrained(tmp_path / "gan")
    with pytest.raises(ConfigError, match="--sampler: a GANPipeline does not take it; leave it out"):
        write_samples(SampleRequest(model=str(tmp_path / "gan"), number=1, sampler="ddim"), tmp_path / "x.npy")
    done = command_line.hfgen("sample", str(tmp_path / "gan"), "-o", str(tmp_path / "x.npy"), "--eta", "0.5")
    assert done.exit_code == 2 and "--eta: a GANPipeline does not take it; leave it out" in done.output
    done = command_line.hfgen("sample", str(model), "-o", str(tmp_path / "x.npy"), "--sampler", "nothing")
    assert done.exit_code == 2 and "sampler must be one of ddpm, ddim" in done.output


def test_a_prompt_a_label_and_guidance_reach_the_pipeline_and_are_refused_by_models_without(
    model: Path, tmp_path: Path
) -> None:
    words, out = build_tokenizer(["a red circle on white"]), tmp_path / "x.npy"
    unet = ConditionalUNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        attention_levels=(), attention_head_dim=4, cross_attention_dim=8, num_class_embeds=3,
    )  # fmt: skip
    text = build_text_encoder(words, 8, 1, 2).eval()
    pipe: Any = DDPMPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=20), text, words, null_condition=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "told")
    start = ["-o", str(out), "-n", "3", "--num-steps", "3", "--batch-size", "2"]
    told = ["--prompt", "a red circle", "--label", "1", "--guidance-scale", "2.5", "--negative-prompt", "white"]
    done = command_line.hfgen("sample", str(tmp_path / "told"), *start, *told)
    assert done.exit_code == 0, done.output
    generators = [torch.Generator().manual_seed(derive_seed(0, i)) for i in range(3)]
    expected = pipe(
        3, num_steps=3, class_labels=1, generator=generators, output_type="np", prompt="a red circle",
        guidance_scale=2.5, negative_prompt="white",
    )  # fmt: skip
    np.testing.assert_allclose(np.load(out), expected.images, atol=1e-4)
    GANPipeline(MLPGenerator()).save_pretrained(tmp_path / "gan")
    for name, extra, message in (
        ("gan", told[:2], "error: prompt must be None, this model is not conditioned on texts; got 'a red circle'"),
        ("gan", told[4:6], "error: --guidance-scale: a GANPipeline does not take it; leave it out"),
        ("model", told[:2], "error: prompt must be None, this model is not conditioned on texts; got 'a red circle'"),
        ("model", told[4:6], "error: guidance_scale must be 1: this model was not trained without conditions, got 2.5"),
    ):
        done = command_line.hfgen("sample", str(tmp_path / name), "-o", str(out), "--num-steps", "1", *extra)
        assert done.exit_code == 2 and done.output.strip() == message


def test_a_model_that_needs_images_is_refused_by_name(tmp_path: Path) -> None:
    AutoencoderPipeline(Autoencoder(resolution=8, hidden=(4,), latent_dim=2)).save_pretrained(tmp_path / "model")
    done = command_line.hfgen("sample", str(tmp_path / "model"), "-o", str(tmp_path / "x.png"))
    assert done.exit_code == 2
    assert "AutoencoderPipeline makes no images from noise alone, it needs images" in done.output
