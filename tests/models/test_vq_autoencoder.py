"""The discrete autoencoder against diffusers' `VQModel`: outputs, gradients, keys, folders; codes and their images."""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from hfgen import VQAutoencoder, VQAutoencoderPipeline
from hfgen.errors import ConfigError
from hfgen.models.vq_autoencoder import OWN

SMALL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": 16,
    "num_vq_embeddings": 12,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "the small network": {},
    "one level": {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
                  "block_out_channels": (8,)},
    "wider codes, grey in, two channels out": {"in_channels": 1, "out_channels": 2, "vq_embed_dim": 5},
    "no attention, two layers, gelu": {"mid_block_add_attention": False, "layers_per_block": 2, "act_fn": "gelu"},
}  # fmt: skip
FSQ: dict[str, Any] = {"quantizer": "fsq", "levels": (5, 4, 3)}


def pair(**changes: Any) -> tuple[Any, Any]:
    """Return stock's network and ours with the same weights, loaded strictly."""
    config = {**SMALL, **changes}
    theirs, ours = diffusers.VQModel(**config), VQAutoencoder(**config)
    with torch.no_grad():
        for parameter in theirs.parameters():  # ones and zeros of a fresh normalisation would hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter) * (parameter.ndim == 1))
        theirs.quantize.embedding.weight.normal_()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("name", VARIANTS)
def test_latents_images_and_losses_are_those_of_diffusers_and_weights_load_both_ways(name: str) -> None:
    theirs, ours = pair(**VARIANTS[name])
    x = torch.randn(3, ours.config["in_channels"], 16, 8)
    with torch.no_grad():
        z = theirs.encode(x).latents
        torch.testing.assert_close(ours.encode(x).latents, z, atol=1e-5, rtol=0)
        for net in (theirs, ours):  # latents as codes, so that more than a few are in use
            net.quantize.embedding.weight.copy_(z.movedim(1, -1).flatten(0, -2)[:12])
        for force in (False, True):
            expected, found = theirs.decode(z, force_not_quantize=force), ours.decode(z, force_not_quantize=force)
            torch.testing.assert_close(found.sample, expected.sample, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.commit_loss, expected.commit_loss, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours(x).sample, theirs(x).sample, atol=1e-5, rtol=0)
        sample, loss = ours(x, return_dict=False)
        assert torch.equal(sample, ours(x).sample) and torch.equal(loss, ours(x).commit_loss)
        codes = theirs.quantize(z)[2][2].reshape(3, *ours.code_shape(x.shape))
        assert torch.equal(ours.to_codes(x), codes) and len(codes.unique()) > 6
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_gradients_are_those_of_diffusers_with_and_without_checkpointing() -> None:
    theirs, ours = pair()
    checkpointed = pair()[1]
    checkpointed.load_state_dict(theirs.state_dict())
    checkpointed.enable_gradient_checkpointing()
    x = torch.randn(2, 3, 8, 8)
    gradients = []
    for net in (theirs, ours, checkpointed):
        out = net(x)
        (out.sample.square().mean() + out.commit_loss).backward()
        gradients.append({key: p.grad for key, p in net.named_parameters()})
    for found in gradients[1:]:
        for key, expected in gradients[0].items():
            torch.testing.assert_close(found[key], expected, atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_a_network_that_looks_codes_up_takes_them_as_in_diffusers() -> None:
    theirs, ours = pair(lookup_from_codebook=True)
    codes, shape = torch.randint(12, (2, 4, 3)), (2, 4, 3, 3)
    with torch.no_grad():
        expected = theirs.decode(codes, force_not_quantize=True, shape=shape).sample
        found = ours.decode(codes.flatten(), force_not_quantize=True, shape=shape).sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.from_codes(codes), expected, atol=1e-5, rtol=0)


def test_defaults_and_configuration_keys_are_those_of_diffusers_and_two_more() -> None:
    def defaults(cls: type) -> dict[str, Any]:
        return {k: p.default for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}  # type: ignore[misc]

    ours = defaults(VQAutoencoder)
    assert {key: ours.pop(key) for key in OWN} == {"quantizer": "vq", "levels": None}
    assert ours == defaults(diffusers.VQModel)


def test_a_saved_folder_is_a_stock_folder_and_the_other_way_round(tmp_path: Path) -> None:
    theirs, ours = pair(vq_embed_dim=4, scaling_factor=0.5)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["_class_name"] == "VQModel" and not {*OWN} & {*config}
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        stock = diffusers.VQModel.from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(stock(x).sample, ours(x).sample, atol=1e-5, rtol=0)
        again = VQAutoencoder.from_pretrained(tmp_path / "theirs")
        assert torch.equal(again(x).sample, ours(x).sample)
    assert stock.config.scaling_factor == again.config["scaling_factor"] == 0.5
    assert type(VQAutoencoder.from_config(theirs.config)) is VQAutoencoder


def test_a_network_of_diffusers_in_a_pipeline_becomes_ours_and_its_saved_component_is_stock(tmp_path: Path) -> None:
    theirs, ours = pair()
    pipe: Any = VQAutoencoderPipeline(theirs)
    assert type(pipe.autoencoder) is VQAutoencoder
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(pipe.encode(x), ours.to_codes(2 * x - 1))
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["autoencoder"] == ["diffusers", "VQModel"]
    stock = diffusers.VQModel.from_pretrained(tmp_path, subfolder="autoencoder")
    with torch.no_grad():
        torch.testing.assert_close(stock(x).sample, ours(x).sample, atol=1e-5, rtol=0)


def test_a_network_with_a_grid_is_saved_under_its_own_name_and_has_no_codebook(tmp_path: Path) -> None:
    net = VQAutoencoder(**{**SMALL, **FSQ})
    assert not any("quantize." in key for key in net.state_dict()) and net.num_codes == 60
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "VQAutoencoder" and config["levels"] == [5, 4, 3]
    again, x = VQAutoencoder.from_pretrained(tmp_path), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x).sample, net(x).sample) and net(x).commit_loss == 0


@pytest.mark.parametrize("changes", [{}, FSQ], ids=["vq", "fsq"])
def test_images_become_codes_and_codes_the_reconstructions(changes: dict[str, Any]) -> None:
    net = VQAutoencoder(**{**SMALL, **changes}).eval()
    x = torch.randn(3, 3, 16, 8)
    with torch.no_grad():
        codes, passed = net.to_codes(x), net(x)
        assert codes.shape == (3, *net.code_shape(x.shape)) == (3, 8, 4) and codes.dtype == torch.int64
        assert torch.equal(codes, passed.codes) and 0 <= int(codes.min()) <= int(codes.max()) < net.num_codes
        assert torch.equal(net.from_codes(codes), passed.sample)
    assert net.factor == 2


def test_autocast_is_close_to_float32_and_differentiable() -> None:
    for changes in ({}, FSQ):
        net, x = VQAutoencoder(**{**SMALL, **changes}), torch.randn(2, 3, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(x)
        (found.sample.float().square().mean() + found.commit_loss.float()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        assert net.to(torch.bfloat16)(x.bfloat16()).sample.dtype == torch.bfloat16


BAD = [
    ("down_block_types", ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    ("block_out_channels", (8, 10)),
    ("latent_channels", "4"),
    ("num_vq_embeddings", 0),
    ("num_vq_embeddings", 10**9),
    ("vq_embed_dim", 0),
    ("norm_type", "spatial"),
    ("lookup_from_codebook", 1),
    ("scaling_factor", float("nan")),
    ("quantizer", "lfq"),
    ("levels", (8, 5)),
]
BAD_GRIDS = [("levels", None), ("levels", (5, 1)), ("levels", (1000, 1000, 1000)), ("vq_embed_dim", 7)]
REFUSED = [(*bad, {}) for bad in BAD] + [(*bad, FSQ) for bad in BAD_GRIDS]


@pytest.mark.parametrize(("field", "value", "changes"), REFUSED, ids=lambda v: str(v)[:40])
def test_a_bad_value_is_refused_by_name(field: str, value: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}"):
        VQAutoencoder(**{**SMALL, **changes, field: value})


def test_a_stock_folder_with_another_kind_of_norm_is_refused_with_its_path(tmp_path: Path) -> None:
    pair()[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"norm_type": "spatial"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json: norm_type must be 'group', got 'spatial'"):
        VQAutoencoder.from_pretrained(tmp_path)


def test_images_that_cannot_be_halved_are_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(ConfigError, match=r"images must have height and width divisible by 2 .* 8x6 and 8x8"):
        VQAutoencoder(**SMALL).encode(torch.zeros(1, 3, 8, 7))
