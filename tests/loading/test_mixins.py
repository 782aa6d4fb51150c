"""Networks and schedulers alone: round trips, what is refused, and all that diffusers' own mixins still do."""

import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

import hfgen
from hfgen.errors import CheckpointError, ConfigError, ConfigTypeError, UnsafeContentError
from hfgen.loading import checkpoint
from hfgen.registry import FUNCTIONS, MODULES, PIPELINES, SAVED_NAMES
from tests.hub.models import COMPONENTS, make, make_component

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULERS = [name for name in COMPONENTS if name.endswith("Scheduler")]
NETWORKS = [name for name in COMPONENTS if name not in SCHEDULERS]

CHECKPOINTING = ("AutoencoderKL", "ConditionalUNet", "ImageTransformer", "TarFlow", "UNet", "VQAutoencoder")


def settings_of(component: Any) -> dict[str, Any]:
    """Return the settings as JSON has them; not what diffusers notes beside."""
    config = json.loads(json.dumps(dict(component.config)))
    return {key: value for key, value in config.items() if not key.startswith("_")}


def tensors_of(component: Any) -> dict[str, torch.Tensor]:
    """Return every tensor of a network, or of a scheduler's tables."""
    if isinstance(component, torch.nn.Module):
        return component.state_dict()
    return {key: value for key, value in vars(component).items() if isinstance(value, torch.Tensor)}


def test_there_is_one_of_every_registered_network_and_scheduler() -> None:
    assert set(COMPONENTS) == set(MODULES) - set(PIPELINES) - set(FUNCTIONS) - {"AutoPipeline"}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_comes_back_with_every_bit_and_setting_and_in_evaluation_mode(name: str, tmp_path) -> None:
    component, cls = make_component(name, 1), getattr(hfgen, name)
    component.save_pretrained(tmp_path / "saved")
    files = {path.name: path for path in (tmp_path / "saved").iterdir()}
    assert set(files) == {cls.config_name, WEIGHTS} - ({WEIGHTS} if name in SCHEDULERS else set())
    assert len({path.stat().st_mode for path in files.values()}) == 1
    back = cls.from_pretrained(tmp_path / "saved")
    assert type(back) is cls and settings_of(back) == settings_of(component)
    assert tensors_of(back).keys() == tensors_of(component).keys()
    assert all(torch.equal(tensors_of(back)[key], tensor) for key, tensor in tensors_of(component).items())
    if name in NETWORKS:
        assert not back.training and all(tensor.device.type == "cpu" for tensor in tensors_of(back).values())
    again = cls.from_config(cls.load_config(tmp_path / "saved"))
    assert settings_of(again) == settings_of(component)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_stock_networks_do_beside_loading_is_as_it_was(name: str) -> None:
    net = make_component(name)
    parameters = list(net.parameters())
    assert net.num_parameters() == sum(parameter.numel() for parameter in parameters) and net.dtype == torch.float32
    assert isinstance(net, diffusers.ModelMixin) and net.device == torch.device("cpu")
    assert net.to(torch.float64).dtype == torch.float64 and net.float().dtype == torch.float32
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = net.nothing
    if name not in CHECKPOINTING:
        with pytest.raises(ValueError, match="does not support gradient checkpointing"):
            net.enable_gradient_checkpointing()
        return
    net.enable_gradient_checkpointing()
    assert net.is_gradient_checkpointing
    net.disable_gradient_checkpointing()
    assert not net.is_gradient_checkpointing


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pickle_is_never_opened_be_it_alone_or_beside_safetensors(name: str, tmp_path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(tmp_path / "canary"), "w")

    net, cls = make_component(name), getattr(hfgen, name)
    net.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    cls.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / WEIGHTS).unlink()
    for words in ({}, {"use_safetensors": True}, {"variant": "fp16"}):
        with pytest.raises(UnsafeContentError, match=r"diffusion_pytorch_model\.bin"):
            cls.from_pretrained(tmp_path / "saved", **words)
    with pytest.raises(ConfigError, match="use_safetensors must be None or True"):
        cls.from_pretrained(tmp_path / "saved", use_safetensors=False)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_key_that_is_missing_extra_or_misshaped_is_an_error_that_names_it(name: str, tmp_path) -> None:
    net, cls = make_component(name), getattr(hfgen, name)
    net.save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    key = next(key for key, tensor in whole.items() if tensor.ndim)
    wrong = {
        f"missing: {key}": {other: tensor for other, tensor in whole.items() if other != key},
        "unexpected: more.weight": whole | {"more.weight": torch.zeros(1)},
        f"misshaped: {key}": whole | {key: torch.zeros(*whole[key].shape, 1)},
    }
    for message, tensors in wrong.items():
        save_file(tensors, tmp_path / WEIGHTS)
        with pytest.raises(CheckpointError, match=message.replace(".", r"\.")):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", COMPONENTS)
def test_nothing_is_saved_as_a_pickle_and_saving_uploads_nothing(name: str, tmp_path) -> None:
    component = make_component(name)
    with pytest.raises(ConfigError, match="hfgen saves safetensors only"):
        component.save_pretrained(tmp_path / "saved", safe_serialization=False)
    with pytest.raises(ConfigTypeError, match="'private' is an argument of publishing and needs push_to_hub=True"):
        component.save_pretrained(tmp_path / "saved", private=True)
    component.save_pretrained(tmp_path / "saved", is_main_process=False, push_to_hub=True)
    with pytest.raises(ConfigError, match=r"use push_to_hub\(repo_id\)"):
        component.save_config(tmp_path / "saved", push_to_hub=True, repo_id="user/name")
    assert not (tmp_path / "saved").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file"):
        component.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("name", SAVED_NAMES)
def test_stock_diffusers_loads_the_twin_of_a_saved_component_and_back(name: str, tmp_path) -> None:
    ours, stock = make_component(name, 2), getattr(diffusers, SAVED_NAMES[name][1])
    ours.save_pretrained(tmp_path / "ours")
    twin = stock.from_pretrained(tmp_path / "ours")
    assert type(twin) is stock
    twin.save_pretrained(tmp_path / "twin")
    back = getattr(hfgen, name).from_pretrained(tmp_path / "twin")
    for other in (twin, back):
        found = tensors_of(other)
        assert found.keys() >= tensors_of(ours).keys() or name in SCHEDULERS
        same = tensors_of(ours) if name in NETWORKS else {"betas": ours.betas}
        assert all(torch.equal(found[key], tensor) for key, tensor in same.items())


def test_shards_variants_types_and_devices_are_heeded(tmp_path) -> None:
    net = make_component("UNet", 3)
    net.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*-of-*.safetensors"))) > 1
    net.to(torch.float16).save_pretrained(tmp_path / "variant", variant="fp16")
    assert {path.name for path in (tmp_path / "variant").iterdir()} == {
        "config.json", "diffusion_pytorch_model.fp16.safetensors"
    }
    sharded = hfgen.UNet.from_pretrained(tmp_path / "shards", dtype=torch.float16)
    half = hfgen.UNet.from_pretrained(tmp_path / "variant", variant="fp16", torch_dtype=torch.float16)
    assert sharded.dtype == half.dtype == torch.float16
    assert all(torch.equal(half.state_dict()[key], tensor) for key, tensor in sharded.state_dict().items())
    assert hfgen.UNet.from_pretrained(tmp_path / "variant", variant="fp16").dtype == torch.float32
    for words in ({"device": "meta"}, {"device_map": {"": "meta"}}):
        assert hfgen.UNet.from_pretrained(tmp_path / "shards", **words).device.type == "meta"
    net.float().save_pretrained(tmp_path / "shards")
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {"config.json", WEIGHTS}
    assert hfgen.UNet.from_pretrained(tmp_path / "shards").dtype == torch.float32


def test_a_component_is_found_in_a_pipeline_a_run_and_a_checkpoint(tmp_path) -> None:
    pipe = make("ddpm", 4)
    pipe.save_pretrained(tmp_path / "run/model")
    checkpoint.save(tmp_path / "young/checkpoints", 3, lambda folder: pipe.save_pretrained(folder / "model"), {})
    places = [(tmp_path / "run/model", None), (tmp_path / "run/model", "unet"), (tmp_path / "run/model/unet", None),
              (tmp_path / "run", None), (tmp_path / "run", "unet"), (tmp_path / "run", "model"),
              (tmp_path / "run", "model/unet"), (tmp_path / "young", None), (tmp_path / "young", "unet")]
    for folder, subfolder in places:
        net = hfgen.UNet.from_pretrained(str(folder), subfolder=subfolder)
        assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in pipe.unet.state_dict().items())
        part = subfolder and subfolder.replace("unet", "scheduler")
        if folder.name != "unet":
            found = hfgen.DDPMScheduler.from_pretrained(folder, subfolder=part)
            assert found.config.num_train_timesteps == pipe.scheduler.config.num_train_timesteps


def test_a_part_that_is_not_there_or_not_the_only_one_is_named(tmp_path) -> None:
    pipe = make("translation", 5)
    pipe.save_pretrained(tmp_path / "saved")
    first, second = pipe.components
    with pytest.raises(ConfigError, match=f"subfolder= the part to load; saved there as .*: {first}, {second}"):
        hfgen.ResNetTranslator.from_pretrained(tmp_path / "saved")
    net = hfgen.ResNetTranslator.from_pretrained(tmp_path / "saved", subfolder=second)
    wanted = pipe.components[second].state_dict()
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in wanted.items())
    with pytest.raises(ConfigError, match="saved there as UNet2DModel: none"):
        hfgen.UNet.from_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="'_class_name' is 'ResNetTranslator'; expected 'UNet2DModel'"):
        hfgen.UNet.from_pretrained(tmp_path / "saved", subfolder=first)
    with pytest.raises(UnsafeContentError, match="outside"):
        hfgen.UNet.from_pretrained(tmp_path / "saved", subfolder="../saved")
    for missing in (tmp_path / "none", "digits"):
        with pytest.raises(ConfigError, match="no such folder, and not a Hub id"):
            hfgen.UNet.from_pretrained(missing)


def test_settings_of_a_compatible_scheduler_are_taken_and_those_of_another_are_not(tmp_path) -> None:
    diffusers.DDIMScheduler(num_train_timesteps=30).save_pretrained(tmp_path / "ddim")
    assert hfgen.DDPMScheduler.from_pretrained(tmp_path / "ddim").config.num_train_timesteps == 30
    diffusers.RePaintScheduler(num_train_timesteps=30).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="'_class_name' is 'RePaintScheduler'"):
        hfgen.DDPMScheduler.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_keyword_is_heeded_or_refused_by_name_and_never_ignored(name: str, tmp_path) -> None:
    make_component(name).save_pretrained(tmp_path)
    cls: Any = getattr(hfgen, name)
    cls.from_pretrained(
        tmp_path, low_cpu_mem_usage=True, offload_state_dict=None, force_download=True, device_map="auto"
    )
    with pytest.raises(ConfigTypeError, match="no argument 'sub_folder'; did you mean 'subfolder'"):
        cls.from_pretrained(tmp_path, sub_folder="x")
    for words in (
        {"output_loading_info": True}, {"quantization_config": {}}, {"device_map": {"layer": 0}},
        {"use_safetensors": False},
    ):
        with pytest.raises(ConfigError, match=next(iter(words))):
            cls.from_pretrained(tmp_path, **words)
    with pytest.raises(ConfigError, match=r"dtype is torch\.float16 and torch_dtype torch\.bfloat16"):
        cls.from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.bfloat16)


def test_a_stock_pipeline_holds_our_network_and_saves_and_loads_it_by_our_code(tmp_path: Path) -> None:
    net, steps = make_component("UNet", 6), make_component("DDPMScheduler")
    pipe = diffusers.DDPMPipeline(net, steps)
    assert pipe.unet is net and pipe.scheduler is steps
    net.save_pretrained(tmp_path)
    assert diffusers.UNet2DModel.from_pretrained(tmp_path).num_parameters() == net.num_parameters()


def test_saving_leaves_the_settings_of_an_object_as_they_were(tmp_path: Path) -> None:
    for component in (hfgen.DDPMScheduler(beta_start=0.001), hfgen.Autoencoder(resolution=8, hidden=[6], latent_dim=2)):
        before = dict(component.config)
        component.save_pretrained(tmp_path)
        assert dict(component.config) == before
        loaded = type(component).from_pretrained(tmp_path).config
        assert dict(loaded) == {key: value for key, value in before.items() if key != "_use_default_values"}


@pytest.mark.filterwarnings("ignore:It is deprecated to pass a pretrained model name")       # stock's own call
def test_diffusers_average_of_weights_is_saved_and_loaded_with_a_network(tmp_path: Path) -> None:
    net = hfgen.Autoencoder(resolution=8, hidden=[6], latent_dim=2)
    average = EMAModel(net.parameters(), decay=0.5, model_cls=hfgen.Autoencoder, model_config=net.config)
    for _ in range(3):
        average.step(net.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, model_cls=hfgen.Autoencoder)
    assert (loaded.decay, loaded.optimization_step) == (0.5, 3)
    for found, expected in zip(loaded.shadow_params, average.shadow_params, strict=True):
        assert torch.equal(found, expected)
