"""Plain diffusers and hfgen, each with the other's folders and repositories; hfgen is missing where it should be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from hfgen import AutoencoderKL, AutoencoderKLPipeline, UNet
from hfgen.loading.old_names import OLD_ATTENTION_NAMES
from tests.hub.models import FAMILIES, make, outputs
from tests.hub.standin import Standin, run_client

SHIMMED = [family for family in FAMILIES if family != "ddpm"]
CARD = {"README.md": b"---\nlicense: mit\nlibrary_name: hfgen\n---\n# A model\n", "samples/grid.png": b"\x89PNG\0"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Standin, Path, dict[str, Any]]]:
    """Return a Hub with a repository of every family, a folder with the same, and the pipelines."""
    folder = tmp_path_factory.mktemp("shared")
    pipes = {family: make(family, seed) for seed, family in enumerate(FAMILIES)}
    with Standin() as hub:
        for family, pipe in pipes.items():
            pipe.save_pretrained(folder / "saved" / family)
            hub.put(f"user/{family}", folder / "saved" / family)
            hub.put(f"user/{family}", CARD)
        yield hub, folder, pipes


def test_where_hfgen_cannot_be_imported_plain_diffusers_takes_what_is_stock_and_names_what_is_missing(
    shared: tuple[Standin, Path, dict[str, Any]],
) -> None:
    hub, tmp_path, pipes = shared
    program = """
        import importlib, sys, traceback
        import diffusers, torch
        from safetensors.torch import save_file
        try:
            importlib.import_module("hfgen")
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit("hfgen is there")
        out, found = sys.argv[1], {}
        for where, base in (("folder", f"{out}/saved/"), ("hub", "user/")):
            pipe = diffusers.DiffusionPipeline.from_pretrained(base + "ddpm")
            assert type(pipe) is diffusers.DDPMPipeline and type(pipe.unet) is diffusers.UNet2DModel
            assert type(pipe.scheduler) is diffusers.DDPMScheduler
            pipe.set_progress_bar_config(disable=True)
            images = pipe(2, torch.Generator().manual_seed(0), 3, output_type="np").images
            found[f"{where}/images"] = torch.from_numpy(images)
            net = diffusers.UNet2DModel.from_pretrained(base + "ddpm-classes", subfolder="unet").eval()
            found |= {f"{where}/unet/{key}": tensor for key, tensor in net.state_dict().items()}
            x, labels = torch.linspace(-1, 1, 128).view(2, 1, 8, 8), torch.tensor([1, 3])
            with torch.no_grad():
                found[f"{where}/eps"] = net(x, 7, labels).sample
            diffusers.DDPMScheduler.from_pretrained(base + "ddpm-classes", subfolder="scheduler")
            net = diffusers.UNet2DModel.from_pretrained(base + "latent-diffusion", subfolder="unet").eval()
            with torch.no_grad():
                found[f"{where}/v"] = net(torch.linspace(-1, 1, 64).view(2, 2, 4, 4), 7, labels).sample
            for name in ("autoencoder-kl", "latent-diffusion"):
                vae = diffusers.AutoencoderKL.from_pretrained(base + name, subfolder="vae").eval()
                assert (vae.config.scaling_factor, vae.config.shift_factor) == (0.5, 0.1)
                found |= {f"{where}/{name}/{key}": tensor for key, tensor in vae.state_dict().items()}
                with torch.no_grad():
                    z = vae.encode(torch.linspace(-1, 1, 384).view(2, 3, 8, 8)).latent_dist.mean
                    found |= {f"{where}/{name}-latents": z, f"{where}/{name}-decoded": vae.decode(z).sample}
        for family in sys.argv[2:]:
            for where in (f"{out}/saved/{family}", f"user/{family}"):
                try:
                    diffusers.DiffusionPipeline.from_pretrained(where, trust_remote_code=True)
                except ImportError as error:
                    lines = traceback.format_exc().splitlines()
                    print(where, "|", error, "|", [line.strip() for line in lines if "no package on PyPI" in line])
                else:
                    raise SystemExit(f"{where} loaded")
        assert not any(name.split(".")[0] == "hfgen" for name in sys.modules)
        save_file({key: tensor.contiguous() for key, tensor in found.items()}, f"{out}/found.safetensors")
    """
    said = run_client(hub, program, tmp_path, tmp_path, *SHIMMED, without_hfgen=True).stdout.splitlines()
    assert len(said) == 2 * len(SHIMMED)
    for line in said:
        assert "No module named 'hfgen'" in line and "from hfgen import" in line and "ask the publisher" in line, line
    found = load_file(tmp_path / "found.safetensors")
    images = torch.from_numpy(outputs(pipes["ddpm"], "ddpm"))
    x, labels = torch.linspace(-1, 1, 128).view(2, 1, 8, 8), torch.tensor([1, 3])
    colours = torch.linspace(-1, 1, 384).view(2, 3, 8, 8)
    for where in ("folder", "hub"):
        torch.testing.assert_close(found[f"{where}/images"], images, atol=1e-4, rtol=0)
        unet = pipes["ddpm-classes"].unet
        expected = {f"{where}/unet/{key}": tensor for key, tensor in unet.state_dict().items()}
        with torch.no_grad():
            torch.testing.assert_close(found[f"{where}/eps"], unet(x, 7, labels).sample, atol=1e-4, rtol=0)
            v = pipes["latent-diffusion"].unet(torch.linspace(-1, 1, 64).view(2, 2, 4, 4), 7, labels).sample
            torch.testing.assert_close(found[f"{where}/v"], v, atol=1e-4, rtol=0)
        for name in ("autoencoder-kl", "latent-diffusion"):
            vae = pipes[name].vae
            expected |= {f"{where}/{name}/{key}": tensor for key, tensor in vae.state_dict().items()}
            with torch.no_grad():
                z = vae.encode(colours).latent_dist.mean
                torch.testing.assert_close(found[f"{where}/{name}-latents"], z, atol=1e-4, rtol=0)
                torch.testing.assert_close(found[f"{where}/{name}-decoded"], vae.decode(z).sample, atol=1e-4, rtol=0)
        parts = (f"{where}/unet/", f"{where}/autoencoder-kl/", f"{where}/latent-diffusion/")
        assert expected.keys() == {key for key in found if key.startswith(parts)}
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_where_hfgen_is_installed_stock_diffusers_loads_every_other_family_through_its_shims(
    shared: tuple[Standin, Path, dict[str, Any]],
) -> None:
    hub, tmp_path, pipes = shared
    program = """
        import sys
        import diffusers, numpy as np
        from tests.hub.models import digest, outputs
        for family in sys.argv[2:]:
            pipe = diffusers.DiffusionPipeline.from_pretrained(f"user/{family}", trust_remote_code=True)
            assert type(pipe).__module__.startswith("hfgen.pipelines."), type(pipe)
            assert all(type(net).__module__.split(".")[0] != "diffusers_modules" for net in pipe.components.values())
            np.save(f"{sys.argv[1]}/{family}.npy", outputs(pipe, family))
    """
    run_client(hub, program, tmp_path, tmp_path, *SHIMMED, home="installed")
    for family in SHIMMED:
        images = np.load(tmp_path / f"{family}.npy")
        np.testing.assert_allclose(images, outputs(pipes[family], family), atol=1e-4, rtol=0, err_msg=family)


CIFAR_10 = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
LARGE = {
    **CIFAR_10, "block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
    "variance_type": "fixed_large",
}  # fmt: skip
EMA = {**SCHEDULER, "variance_type": "fixed_small", "timestep_values": None, "tensor_format": "pt"}
INDEX = {
    "_class_name": "DDPMPipeline", "_diffusers_version": "0.0.4", "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}  # fmt: skip
STOCK = {
    "google/ddpm-cifar10-32": (CIFAR_10, SCHEDULER, 35_746_307),
    "google/ddpm-celebahq-256": (LARGE, SCHEDULER, 113_673_219),
    "google/ddpm-ema-celebahq-256": (LARGE, EMA, 113_673_219),
    "google/ddpm-ema-bedroom-256": (LARGE, EMA, 113_673_219),
}
"""Repositories of the early days: their configurations, and how many parameters their networks have."""


def settings_of(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")} | changes


@pytest.mark.parametrize("name", STOCK)
def test_a_network_of_a_stock_repository_has_its_size_in_both(name: str) -> None:
    config, _, number = STOCK[name]
    with torch.device("meta"):
        nets = [cls(**settings_of(config)) for cls in (UNet, diffusers.UNet2DModel)]
    shapes = [{key: tensor.shape for key, tensor in net.state_dict().items()} for net in nets]
    assert shapes[0] == shapes[1] and sum(shape.numel() for shape in shapes[0].values()) == number


def stock_repository(name: str, old_names: bool) -> tuple[dict[str, bytes], diffusers.DDPMPipeline]:
    """Return the files of such a repository with narrow layers and random weights, in one flat folder, and its twin."""
    config, scheduler, _ = STOCK[name]
    narrow = {**config, "block_out_channels": [width // 4 for width in config["block_out_channels"]]}
    net = diffusers.UNet2DModel(**settings_of(narrow)).eval()
    for key, tensor in net.state_dict().items():
        torch.nn.init.normal_(tensor, 1.0 if "norm" in key and key.endswith("weight") else 0.0, 0.05)
    weights = net.state_dict()
    if old_names:
        for old, new in OLD_ATTENTION_NAMES.items():
            weights = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in weights.items()}
    files = {"config.json": narrow, "scheduler_config.json": scheduler, "model_index.json": INDEX}
    content = {path: json.dumps(found, indent=2).encode() for path, found in files.items()}
    stock = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler(**settings_of(SCHEDULER)))
    stock.scheduler.register_to_config(variance_type=scheduler["variance_type"])
    stock.set_progress_bar_config(disable=True)
    tensors = save({key: tensor.contiguous() for key, tensor in weights.items()}, {"format": "pt"})
    return {**content, "diffusion_pytorch_model.safetensors": tensors}, stock


def latent_pipelines() -> list[diffusers.DiffusionPipeline]:
    """Return stock pipelines whose networks hfgen does not have, whole and tiny."""
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(
        sample_size=4, layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **blocks
    )
    vae = diffusers.AutoencoderKL(sample_size=8, **blocks)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=4, norm_num_groups=4,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    return [
        diffusers.LDMPipeline(diffusers.VQModel(sample_size=8, **blocks), unet, diffusers.DDIMScheduler()),
        diffusers.DiTPipeline(dit, vae, diffusers.DDIMScheduler(), {0: "a fish"}),
    ]


def test_stock_repositories_load_in_hfgen_and_others_are_refused_by_name(hub: Standin, tmp_path: Path) -> None:
    stock = {}
    for i, name in enumerate(STOCK):
        files, stock[name] = stock_repository(name, old_names=i != 3)
        assert any(b".proj_attn." in content for content in files.values()) == (i != 3)
        hub.put(name, {**files, "README.md": b"---\nlicense: apache-2.0\n---\n", "diffusion_pytorch_model.bin": b"x"})
    for pipe in latent_pipelines():
        pipe.save_pretrained(tmp_path / type(pipe).__name__)
        hub.put(f"stock/{type(pipe).__name__}", tmp_path / type(pipe).__name__)
    program = """
        import sys
        import torch
        from safetensors.torch import save_file
        from hfgen import AutoPipeline, DDPMPipeline, DDPMScheduler, UNet
        from hfgen.errors import ConfigError
        found = {}
        for name in sys.argv[2:]:
            pipe = AutoPipeline.from_pretrained(name)
            assert [type(part) for part in (pipe, pipe.unet, pipe.scheduler)] == [DDPMPipeline, UNet, DDPMScheduler]
            x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
            with torch.no_grad():
                found[f"{name}/eps"] = pipe.unet(x, 500).sample
            print(name, pipe.unet.config.sample_size, pipe.scheduler.config.variance_type)
            if pipe.unet.config.sample_size == 32:
                pipe.set_progress_bar_config(disable=True)
                generator = torch.Generator().manual_seed(0)
                images = pipe(2, num_steps=3, generator=generator, output_type="np").images
                found[f"{name}/images"] = torch.from_numpy(images).contiguous()
        save_file(found, f"{sys.argv[1]}/found.safetensors")
        for name in ("LDMPipeline", "DiTPipeline"):
            for where in (f"stock/{name}", f"{sys.argv[1]}/{name}"):
                for loader in (AutoPipeline, DDPMPipeline):
                    try:
                        loader.from_pretrained(where)
                    except ConfigError as error:
                        print("refused", error)
    """
    lines = run_client(hub, program, tmp_path, tmp_path, *STOCK).stdout.splitlines()
    found = load_file(tmp_path / "found.safetensors")
    x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    for line, (name, pipe) in zip(lines, stock.items(), strict=False):
        assert line == f"{name} {pipe.unet.config.sample_size} {pipe.scheduler.config.variance_type}"
        with torch.no_grad():
            eps = pipe.unet(x, 500).sample
        largest = max(1.0, float(eps.abs().max()))
        assert eps.std() > 0.05
        torch.testing.assert_close(found[f"{name}/eps"], eps, atol=1e-4 * largest, rtol=0)
    pipe = stock["google/ddpm-cifar10-32"]
    images = pipe(2, torch.Generator().manual_seed(0), 3, output_type="np").images
    torch.testing.assert_close(found["google/ddpm-cifar10-32/images"], torch.from_numpy(images), atol=1e-4, rtol=0)
    refusals = lines[len(stock):]
    assert len(refusals) == 8
    for i, line in enumerate(refusals):
        name = ("LDMPipeline", "DiTPipeline")[i // 4]
        assert f"'_class_name' is '{name}', which hfgen does not load" in line and "DDPMPipeline" in line, line
    assert not hub.seen(r"resolve/.*\.(bin|md)$")


def test_a_stock_autoencoder_in_our_pipelines_becomes_ours_with_the_same_tensors() -> None:
    stock = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8, shift_factor=0.1).eval()
    ours = AutoencoderKLPipeline(stock).vae                                         # type: ignore[arg-type]
    theirs, found = stock.state_dict(), ours.state_dict()
    assert type(ours) is AutoencoderKL and not ours.training and found.keys() == theirs.keys()
    assert all(found[key].data_ptr() == tensor.data_ptr() for key, tensor in theirs.items())
    z = torch.linspace(-1, 1, 512).view(2, 4, 8, 8)
    with torch.no_grad():
        expected = stock.decode(z / stock.config.scaling_factor + 0.1).sample
        torch.testing.assert_close(ours.from_latents(z), expected, atol=1e-4, rtol=0)
