"""The U-Net of latent diffusion against diffusers' `UNet2DConditionModel`; classes, texts, and what is refused."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from hfgen.errors import ConfigError
from hfgen.loading.components import load_component
from hfgen.models.conditional_unet import ConditionalUNet

SMALL: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "attention_levels": (1,), "attention_head_dim": 4, "cross_attention_dim": 6,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "text": {},
    "pooled text": {"pooled_text": True},
    "pooled text and classes": {"pooled_text": True, "num_class_embeds": 5, "cross_attention_dim": 12},
    "text and classes": {"num_class_embeds": 5},
    "attention everywhere, two transformer layers, two blocks": {
        "attention_levels": (0, 1), "transformer_layers": 2, "layers_per_block": 2,
    },
    "attention in the middle only": {"attention_levels": ()},
    "random Fourier": {"time_embedding_type": "fourier"},
    "random Fourier, wide, scale and shift": {
        "time_embedding_type": "fourier", "time_embedding_dim": 20, "resnet_time_scale_shift": "scale_shift",
    },
    "wide time embedding": {"time_embedding_dim": 20},
    "three levels, other channels": {
        "block_out_channels": (8, 4, 12), "attention_levels": (0, 2), "in_channels": 3, "out_channels": 6,
    },
}  # fmt: skip


def stock(net: ConditionalUNet) -> diffusers.UNet2DConditionModel:
    """Return diffusers' network of the same shape; what it calls the dimension of a head is their number."""
    c = net.config
    levels = range(len(c["block_out_channels"]))
    down = ["CrossAttnDownBlock2D" if level in c["attention_levels"] else "DownBlock2D" for level in levels]
    up = ["CrossAttnUpBlock2D" if level in c["attention_levels"] else "UpBlock2D" for level in reversed(levels)]
    same = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "num_class_embeds",
            "norm_num_groups", "cross_attention_dim", "time_embedding_type", "time_embedding_dim",
            "resnet_time_scale_shift")  # fmt: skip
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": 3} if c["pooled_text"] else {}
    return diffusers.UNet2DConditionModel(
        down_block_types=tuple(down), up_block_types=tuple(up), transformer_layers_per_block=c["transformer_layers"],
        attention_head_dim=tuple(width // c["attention_head_dim"] for width in c["block_out_channels"]),
        **{field: c[field] for field in same}, **pooled,
    )  # fmt: skip


def inputs(net: ConditionalUNet) -> tuple[Any, ...]:
    x, text = torch.randn(3, net.config["in_channels"], 8, 4), torch.randn(3, 7, net.config["cross_attention_dim"] or 6)
    labels = None if net.config["num_class_embeds"] is None else torch.tensor([0, 4, 2])
    return x, torch.tensor([1, 500, 999]), labels, text


@pytest.mark.parametrize("name", VARIANTS)
def test_output_gradients_and_keys_are_those_of_diffusers(name: str) -> None:
    ours: Any = ConditionalUNet(**{**SMALL, **VARIANTS[name]})
    theirs: Any = stock(ours)
    with torch.no_grad():
        for parameter in theirs.parameters():  # ones and zeros of a fresh normalisation would hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter) * (parameter.ndim == 1))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, t, labels, text = inputs(ours)
    found, expected = ours(x, t, labels, text).sample, theirs(x, t, text, class_labels=labels).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(ours(x, t, labels, text, return_dict=False)[0], found) and found.is_contiguous()
    for out in (found, expected):
        out.square().mean().backward()
    reference = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[key].grad, atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient() -> None:
    nets: list[Any] = [ConditionalUNet(**SMALL) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].enable_gradient_checkpointing()
    x, t, labels, text = inputs(nets[0])
    for net in nets:
        net(x, t, labels, text).sample.square().mean().backward()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=0)


def test_without_text_only_pixels_are_looked_at_and_without_self_attention_only_the_text() -> None:
    plain: Any = ConditionalUNet(**{**SMALL, "cross_attention_dim": None})
    assert not [key for key in plain.state_dict() if "attn2" in key or ("norm2.w" in key and "transformer" in key)]
    x, t, _, text = inputs(plain)
    assert plain(x, t).sample.shape == x.shape
    only: Any = ConditionalUNet(**{**SMALL, "self_attention": False}).eval()
    assert not [key for key in only.state_dict() if "attn1" in key or ("norm1" in key and "transformer" in key)]
    with torch.no_grad():
        assert (only(x, t, None, text).sample - only(x, t, None, text + 1).sample).abs().max() > 1e-4


def test_a_text_can_only_be_pooled_where_there_is_one() -> None:
    with pytest.raises(ConfigError, match="cross_attention_dim must be given: the features of the text are pooled"):
        ConditionalUNet(**{**SMALL, "cross_attention_dim": None, "pooled_text": True})


def test_a_saved_folder_loads_again_without_code(tmp_path: Path) -> None:
    net: Any = ConditionalUNet(**{**SMALL, "num_class_embeds": 5}).eval()
    net.save_pretrained(tmp_path)
    again = load_component(tmp_path, "unet", ConditionalUNet, "UNet2DConditionModel")
    x, t, labels, text = inputs(net)
    with torch.no_grad():
        assert torch.equal(again(x, t, labels, text).sample, net(x, t, labels, text).sample)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_folder_loads_in_plain_diffusers_and_back(tmp_path: Path, name: str) -> None:
    net: Any = ConditionalUNet(**{**SMALL, **VARIANTS[name]}).eval()
    net.save_pretrained(tmp_path / "ours")
    theirs: Any = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again: Any = load_component(tmp_path / "theirs", "unet", ConditionalUNet, "UNet2DConditionModel")
    x, t, labels, text = inputs(net)
    with torch.no_grad():
        expected = net(x, t, labels, text).sample
        torch.testing.assert_close(theirs(x, t, text, class_labels=labels).sample, expected, atol=1e-5, rtol=0)
        assert torch.equal(again(x, t, labels, text).sample, expected)


def test_fourier_features_of_an_odd_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="time_embedding_dim must be even"):
        ConditionalUNet(**{**SMALL, "time_embedding_type": "fourier", "time_embedding_dim": 9})


def test_inputs_that_do_not_fit_are_refused_by_name() -> None:
    told: Any = ConditionalUNet(**{**SMALL, "num_class_embeds": 5})
    plain: Any = ConditionalUNet(**{**SMALL, "cross_attention_dim": None})
    x, t, labels, text = inputs(told)
    for call, message in (
        (lambda: told(x, t, labels), "encoder_hidden_states must be given"),
        (lambda: plain(x, t, None, text), "encoder_hidden_states must be None"),
        (lambda: told(x, t, labels, text[..., :5]), "encoder_hidden_states must have 6 features, got 5"),
        (lambda: told(x, t, None, text), "class_labels must be given"),
        (lambda: plain(x, t, labels), "class_labels must be None"),
        (lambda: plain(x[..., :3], t), "sample must have height and width divisible by 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


BAD = [
    ("block_out_channels", ()), ("block_out_channels", (8, 10)), ("attention_levels", (2,)), ("attention_levels", 1),
    ("attention_levels", (True,)), ("attention_head_dim", 3), ("attention_head_dim", 0), ("transformer_layers", 0),
    ("layers_per_block", 10**9), ("cross_attention_dim", 0), ("num_class_embeds", -1),
    ("self_attention", None), ("pooled_text", 1),
    ("dropout", 2.0), ("sample_size", 7), ("sample_size", (8, 8, 8)), ("in_channels", "4"),
    ("norm_num_groups", 0), ("time_embedding_type", "learned"), ("resnet_time_scale_shift", "spatial"),
    ("time_embedding_dim", 0),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ConditionalUNet(**{**SMALL, field: value})
    assert str(caught.value).startswith(field)
