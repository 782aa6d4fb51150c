"""The autoencoder of latent diffusion against diffusers' `AutoencoderKL`: outputs, gradients, keys, folders, scale."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading.components import load_component
from hfgen.models.autoencoder_kl import AutoencoderKL

SMALL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": 16,
}
THREE = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "the small network": {},
    "one level": {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
                  "block_out_channels": (8,)},
    "three levels of two blocks, narrower in the middle": {**THREE, "block_out_channels": (8, 4, 12),
                                                           "layers_per_block": 2},
    "grey in, four channels out": {"in_channels": 1, "out_channels": 4, "latent_channels": 3},
    "no convolutions around the latents": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
    "gelu": {"act_fn": "gelu", "sample_size": (16, 8)},
}  # fmt: skip
MSE = {  # of stabilityai/sd-vae-ft-mse, which says nothing of later keys
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.4.2", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def pair(**changes: Any) -> tuple[Any, Any]:
    """Return stock's network and ours with the same weights, loaded strictly."""
    config = {**SMALL, **changes}
    theirs, ours = diffusers.AutoencoderKL(**config), AutoencoderKL(**config)
    with torch.no_grad():
        for parameter in theirs.parameters():  # ones and zeros of a fresh normalisation would hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter) * (parameter.ndim == 1))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("name", VARIANTS)
def test_moments_and_images_are_those_of_diffusers_and_weights_load_both_ways(name: str) -> None:
    theirs, ours = pair(**VARIANTS[name])
    x = torch.randn(2, ours.config["in_channels"], 16, 8)
    with torch.no_grad():
        expected, found = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
        for what in ("mean", "logvar", "std"):
            torch.testing.assert_close(getattr(found, what), getattr(expected, what), atol=1e-5, rtol=0)
        z = expected.mean
        torch.testing.assert_close(ours.decode(z).sample, theirs.decode(z).sample, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-5, rtol=0)
        drawn, expected = (net(x, True, generator=torch.Generator().manual_seed(1)).sample for net in (ours, theirs))
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    assert torch.equal(ours.encode(x, return_dict=False)[0].mean, ours.encode(x).latent_dist.mean)
    assert torch.equal(ours.decode(z, return_dict=False)[0], ours.decode(z).sample)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_gradients_are_those_of_diffusers_with_and_without_checkpointing() -> None:
    theirs, ours = pair()
    checkpointed = pair()[1]
    checkpointed.load_state_dict(theirs.state_dict())
    checkpointed.enable_gradient_checkpointing()
    x = torch.randn(2, 3, 8, 8)
    gradients = []
    for net in (theirs, ours, checkpointed):
        net(x).sample.square().mean().backward()
        gradients.append({key: p.grad for key, p in net.named_parameters()})
    for found in gradients[1:]:
        for key, expected in gradients[0].items():
            torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_defaults_and_configuration_keys_are_those_of_diffusers() -> None:
    def defaults(cls: type) -> dict[str, Any]:
        return {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}  # type: ignore[misc]

    assert defaults(AutoencoderKL) == defaults(diffusers.AutoencoderKL)


def test_a_folder_of_the_published_configuration_with_old_names_loads_everywhere(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = diffusers.AutoencoderKL.from_config(MSE).state_dict()
    assert sum(tensor.numel() for tensor in shapes.values()) == 83_653_863
    tensors = {key: torch.empty(t.shape, dtype=torch.float16).uniform_(-0.04, 0.04) for key, t in shapes.items()}

    def old(key: str) -> str:
        for new, was in OLD_NAMES.items():
            key = key.replace(new, was)
        return key

    named = {old(key): tensor for key, tensor in tensors.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in named
    save_file(named, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MSE))
    ours = load_component(tmp_path, "vae", AutoencoderKL, "AutoencoderKL")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = theirs.encode(x).latent_dist.mean
        torch.testing.assert_close(ours.encode(x).latent_dist.mean, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.decode(expected).sample, theirs.decode(expected).sample, atol=1e-5, rtol=0)
    assert ours.config["scaling_factor"] == 0.18215 and ours.factor == 8


def test_a_saved_folder_is_a_stock_folder_and_the_other_way_round(tmp_path: Path) -> None:
    theirs, ours = pair(shift_factor=0.5, scaling_factor=2.0)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        stock = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(stock(x).sample, ours(x).sample, atol=1e-5, rtol=0)
        again = load_component(tmp_path / "theirs", "vae", AutoencoderKL, "AutoencoderKL")
        torch.testing.assert_close(again(x).sample, ours(x).sample, atol=1e-5, rtol=0)
    assert stock.config.shift_factor == again.config["shift_factor"] == 0.5
    tensors = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    tensors.pop("quant_conv.bias")
    save_file(tensors, tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: quant_conv\.bias"):
        load_component(tmp_path / "theirs", "vae", AutoencoderKL, "AutoencoderKL")


@pytest.mark.parametrize(
    ("changes", "shift", "scale"),
    [
        ({}, 0.0, 0.18215),
        ({"shift_factor": 0.1159, "scaling_factor": 0.3611}, 0.1159, 0.3611),
        ({"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0, 2.0, 4.0, 8.0], "scaling_factor": 0.5},
         torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None], 0.5 / torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None, None]),
    ],
)  # fmt: skip
def test_latents_are_shifted_and_scaled_as_stock_pipelines_do_and_back(changes: Any, shift: Any, scale: Any) -> None:
    _, ours = pair(**changes)
    x, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        posterior = ours.encode(x).latent_dist
        latents = ours.to_latents(x)
        torch.testing.assert_close(latents, (posterior.mean - shift) * scale, atol=1e-5, rtol=0)
        drawn = (posterior.mean + posterior.std * eps - shift) * scale
        torch.testing.assert_close(ours.to_latents(x, eps), drawn, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.denormalise(latents), posterior.mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.from_latents(latents), ours.decode(posterior.mean).sample, atol=1e-4, rtol=0)


def test_given_noise_decides_the_draw_and_the_distribution_comes_along() -> None:
    _, ours = pair()
    x, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        found, posterior = ours(x, eps=eps), ours.encode(x).latent_dist
        expected = ours.decode(posterior.mean + posterior.std * eps).sample
    torch.testing.assert_close(found.sample, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.latent_dist.logvar, posterior.logvar, atol=1e-6, rtol=0)
    assert found.sample.is_contiguous() and ours(x, return_dict=False)[0].shape == x.shape


def test_autocast_is_close_to_float32_and_differentiable() -> None:
    theirs, ours = pair()
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x).sample
    found.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    torch.testing.assert_close(found.float(), theirs(x).sample, atol=0.2, rtol=0)


BAD = [
    ("down_block_types", ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    ("down_block_types", ("DownEncoderBlock2D",)),
    ("up_block_types", ("UpBlock2D",) * 2),
    ("block_out_channels", (8, 10)),
    ("block_out_channels", ()),
    ("block_out_channels", (8, 4 * 10**12)),
    ("norm_num_groups", 0),
    ("layers_per_block", 10**9),
    ("layers_per_block", True),
    ("act_fn", "tanh"),
    ("in_channels", 0),
    ("latent_channels", "4"),
    ("sample_size", (8, 8, 8)),
    ("sample_size", 0),
    ("scaling_factor", 0.0),
    ("scaling_factor", float("nan")),
    ("shift_factor", "0"),
    ("force_upcast", 1),
    ("mid_block_add_attention", None),
    ("latents_std", (1.0,) * 4),
    ("latents_mean", (0.0,) * 3),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        AutoencoderKL(**{**SMALL, field: value})
    named = "latents_mean" if field == "latents_std" else field
    assert str(caught.value).startswith(named)


def test_scales_that_stock_pipelines_would_apply_in_two_ways_are_refused() -> None:
    each = {"latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4}
    with pytest.raises(ConfigError, match="shift_factor must be null if latents_mean is given"):
        AutoencoderKL(**{**SMALL, **each, "shift_factor": 0.1})
    with pytest.raises(ConfigError, match="latents_std must be a number"):
        AutoencoderKL(**{**SMALL, **each, "latents_std": (1.0, 1.0, 1.0, 0.0)})


def test_images_that_cannot_be_halved_are_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(ConfigError, match=r"images must have height and width divisible by 2 .* 8x6 and 8x8"):
        AutoencoderKL(**SMALL).encode(torch.zeros(1, 3, 8, 7))
