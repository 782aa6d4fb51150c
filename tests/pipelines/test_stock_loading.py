"""Loading, saving and exchange of pipelines with the keywords that users of diffusers know."""

import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import hfgen
from hfgen.errors import ConfigError, ConfigTypeError, UnsafeContentError
from hfgen.registry import PIPELINES, STOCK_SCHEDULERS
from tests.hub.models import FAMILIES, digest, make, networks, outputs

FP16 = torch.float16


def unfit() -> list[type]:
    """Return the schedulers of diffusers that hfgen does not name among those that fit."""
    fit = (*STOCK_SCHEDULERS, "DDPMScheduler", "SchedulerMixin")
    classes = [getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler") and name not in fit]
    return [one for one in classes if issubclass(one, diffusers.SchedulerMixin)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a pipeline with four components, saved."""
    make("latent-diffusion-text").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_loaded_with_the_keywords_of_diffusers(family: str, tmp_path: Path) -> None:
    pipe = make(family)
    pipe.save_pretrained(tmp_path / "saved")
    for loader in (type(pipe), hfgen.AutoPipeline):
        again: Any = loader.from_pretrained(
            tmp_path / "saved", torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=True,
            device_map="cpu", force_download=True, variant=None,
        )  # fmt: skip
        assert digest(again) == digest(pipe)
        np.testing.assert_array_equal(outputs(again, family), outputs(pipe, family))
        half: Any = loader.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
        assert {net.dtype for net in networks(half).values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_slip_in_a_keyword_is_answered_with_the_nearest(name: str, folder: Path) -> None:
    for given, nearest in (("tourch_dtype", "torch_dtype"), ("local_file_only", "local_files_only")):
        with pytest.raises(ConfigTypeError, match=f"no argument '{given}'; did you mean '{nearest}'"):
            getattr(hfgen, name).from_pretrained(folder, **{given: None})


def test_a_slip_in_the_name_of_a_component_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigTypeError, match="no argument 'shceduler'; did you mean 'scheduler'"):
        hfgen.AutoPipeline.from_pretrained(folder, shceduler=diffusers.DDIMScheduler())
    with pytest.raises(ConfigTypeError, match="from_pipe has no argument 'unit'; did you mean 'unet'"):
        hfgen.DDPMPipeline.from_pipe(make("ddpm"), unit=None)
    with pytest.raises(ConfigTypeError, match="no argument 'pirvate'; did you mean 'private'"):
        make("ddpm").save_pretrained(folder, push_to_hub=True, pirvate=True)


@pytest.mark.parametrize(
    "words",
    [
        {"use_safetensors": False}, {"trust_remote_code": True}, {"custom_pipeline": "someone/code"},
        {"quantization_config": {}}, {"device_map": {"unet": "cpu", "vae": "meta"}},
        {"device_map": "cpu", "device": "meta"},
    ],
)  # fmt: skip
def test_a_value_that_hfgen_does_not_support_is_refused_by_name(folder: Path, words: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(words))):
        hfgen.LatentDiffusionPipeline.from_pretrained(folder, **words)


def test_a_device_map_places_every_network(folder: Path) -> None:
    for given in ("meta", {"": "meta"}, torch.device("meta")):
        pipe = hfgen.LatentDiffusionPipeline.from_pretrained(folder, device_map=given)
        assert {net.device.type for net in networks(pipe).values()} == {"meta"}
    balanced = hfgen.LatentDiffusionPipeline.from_pretrained(folder, device_map="balanced")
    device = "cpu"
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator().type
    assert {net.device.type for net in networks(balanced).values()} == {device}


def test_a_dict_of_dtypes_gives_each_network_its_own(folder: Path) -> None:
    pipe = hfgen.LatentDiffusionPipeline.from_pretrained(folder, dtype={"unet": torch.bfloat16, "default": FP16})
    dtypes = {name: net.dtype for name, net in networks(pipe).items()}
    assert dtypes == {"unet": torch.bfloat16, "vae": FP16, "text_encoder": FP16}
    alone = hfgen.LatentDiffusionPipeline.from_pretrained(folder, torch_dtype={"vae": FP16})
    assert (alone.vae.dtype, alone.unet.dtype) == (FP16, torch.float32)
    for wrong in ({"unit": FP16}, {"unet": "float16"}, "float16"):
        with pytest.raises(ConfigTypeError, match=r"dtype must be a torch\.dtype, or a dict of them by component"):
            hfgen.LatentDiffusionPipeline.from_pretrained(folder, dtype=wrong)
    with pytest.raises(ConfigError, match=r"dtype is torch\.float16 and torch_dtype torch\.bfloat16"):
        hfgen.LatentDiffusionPipeline.from_pretrained(folder, dtype=FP16, torch_dtype=torch.bfloat16)


def test_a_given_component_takes_the_place_of_the_saved_one_whose_files_are_not_read(folder: Path) -> None:
    other = make("latent-diffusion-text", seed=1)
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=20, clip_sample=False)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    pipe: Any = hfgen.AutoPipeline.from_pretrained(folder, scheduler=scheduler, unet=other.unet)
    assert pipe.scheduler is scheduler and pipe.unet is other.unet
    mixed = hfgen.LatentDiffusionPipeline.from_pipe(make("latent-diffusion-text"), unet=other.unet)
    assert digest(pipe) == digest(mixed)
    with pytest.raises(ConfigError, match="'unet' must be UNet, ConditionalUNet, got AutoencoderKL"):
        hfgen.LatentDiffusionPipeline.from_pretrained(folder, unet=other.vae)


def test_a_given_setting_takes_the_place_of_the_saved_one(tmp_path: Path) -> None:
    make("latent-diffusion").save_pretrained(tmp_path)
    assert hfgen.AutoPipeline.from_pretrained(tmp_path).guidable  # type: ignore[attr-defined]
    pipe: Any = hfgen.AutoPipeline.from_pretrained(tmp_path, null_condition=False)
    assert not pipe.guidable and pipe.num_classes == 4


def test_a_variant_that_no_component_has_is_a_value_error_and_one_that_some_have_is_used(folder: Path) -> None:
    words = "You are trying to load the model files of the `variant=fp16`, but no such modeling files are available"
    with pytest.raises(ValueError, match=words):
        hfgen.LatentDiffusionPipeline.from_pretrained(folder, variant="fp16")
    name = "diffusion_pytorch_model{}.safetensors"
    (folder / "unet" / name.format("")).rename(folder / "unet" / name.format(".fp16"))
    pipe = hfgen.LatentDiffusionPipeline.from_pretrained(folder, variant="fp16")
    assert digest(pipe) == digest(make("latent-diffusion-text"))


def test_every_loaded_component_is_named_in_the_log_of_diffusers(folder: Path, caplog) -> None:
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    logger.addHandler(caplog.handler)
    try:
        diffusers.logging.set_verbosity_info()
        hfgen.LatentDiffusionPipeline.from_pretrained(folder)
    finally:
        diffusers.logging.set_verbosity_warning()
        logger.removeHandler(caplog.handler)
    for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer"):
        assert f"Loaded {part} as " in caplog.text and f"from `{part}` subfolder of {folder}" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_from_pipe_shares_the_components_and_the_settings(family: str) -> None:
    pipe = make(family).to(dtype=torch.float64)
    again = type(pipe).from_pipe(pipe)
    assert again is not pipe and again.components.items() == pipe.components.items()
    settings = pipe._get_signature_keys(pipe)[1]
    assert [again.config[name] for name in settings] == [pipe.config[name] for name in settings]
    assert {net.dtype for net in networks(again).values()} == {torch.float64}
    half = type(pipe).from_pipe(pipe, torch_dtype=torch.bfloat16)
    assert {net.dtype for net in networks(half).values()} == {torch.bfloat16}


def test_from_pipe_leads_from_diffusers_to_hfgen_and_back(tmp_path: Path) -> None:
    make("ddpm").save_pretrained(tmp_path)
    stock = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    ours = hfgen.DDPMPipeline.from_pipe(stock)
    assert ours.unet is stock.unet and ours.scheduler is stock.scheduler
    assert ours.config["null_condition"] is False
    # diffusers compares classes by identity, and asks for the network by its keyword
    pipe = make("ddpm")
    back = diffusers.DDPMPipeline.from_pipe(pipe, unet=pipe.unet)
    assert back.unet is pipe.unet and back.scheduler is pipe.scheduler
    back.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "output_type": "np"}
    images = [one(generator=torch.manual_seed(0), **settings).images for one in (stock, back)]
    np.testing.assert_allclose(images[0], images[1], atol=1e-4)
    ddim = diffusers.DDIMPipeline.from_pipe(pipe, unet=pipe.unet)
    assert ddim.unet is pipe.unet and type(ddim.scheduler) is diffusers.DDIMScheduler


def test_from_pipe_makes_the_parts_of_a_pipeline_one_of_their_own() -> None:
    pipe = make("latent-diffusion")
    coder = hfgen.AutoencoderKLPipeline.from_pipe(pipe)
    assert coder.vae is pipe.vae and coder.config["_null_condition"] is True
    again = hfgen.LatentDiffusionPipeline.from_pipe(coder, unet=pipe.unet, scheduler=pipe.scheduler)
    assert again.config["null_condition"] is True
    with pytest.raises(ConfigError, match=r"also needs scheduler, unet.*from_pipe\(pipeline, scheduler="):
        hfgen.LatentDiffusionPipeline.from_pipe(coder)
    with pytest.raises(ConfigError, match=r"'generator' must be DCGANGenerator, MLPGenerator, .*, got UNet"):
        hfgen.GANPipeline.from_pipe(pipe, generator=pipe.unet)


def test_an_autoencoder_of_diffusers_put_into_a_pipeline_becomes_ours() -> None:
    pipe = make("latent-diffusion")
    config = {key: value for key, value in pipe.vae.config.items() if not key.startswith("_")}
    stock = diffusers.AutoencoderKL(**config)
    pipe.vae = stock
    assert isinstance(pipe.vae, hfgen.AutoencoderKL)
    assert pipe.vae.state_dict().keys() == stock.state_dict().keys()
    assert pipe.vae.encoder.conv_in.weight.data_ptr() == stock.encoder.conv_in.weight.data_ptr()


@pytest.mark.parametrize("cls", unfit())
def test_a_scheduler_that_does_not_fit_is_refused_by_name(cls: type, tmp_path: Path) -> None:
    pipe, name = make("ddpm"), cls.__name__
    pipe.save_pretrained(tmp_path)
    scheduler = cls.__new__(cls)                                       # some need arguments, and the name is enough
    with pytest.raises(ConfigError, match=f"{name} does not fit"):
        pipe.scheduler = scheduler
    with pytest.raises(ConfigError, match=f"{name} does not fit"):
        hfgen.DDPMPipeline.from_pretrained(tmp_path, scheduler=scheduler)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"DDPMScheduler"', f'"{name}"'), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"'scheduler' is a diffusers.{name}, which hfgen does not have"):
        hfgen.DDPMPipeline.from_pretrained(tmp_path)


def test_most_schedulers_of_diffusers_are_known_to_fit_or_not() -> None:
    assert len(unfit()) > 20 and {"LCMScheduler", "FlowMatchEulerDiscreteScheduler"} < {one.__name__ for one in unfit()}


def test_no_pickle_is_read_whatever_the_keywords(folder: Path) -> None:
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, unet / "diffusion_pytorch_model.bin")
    for value in (None, True):
        with pytest.raises(UnsafeContentError, match="the weights are pickled"):
            hfgen.LatentDiffusionPipeline.from_pretrained(folder, use_safetensors=value)
