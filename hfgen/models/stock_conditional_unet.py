"""Settings of a `ConditionalUNet` as those of diffusers' `UNet2DConditionModel`, and back; the tensors are the same."""

from collections.abc import Mapping
from math import gcd
from typing import Any

from hfgen.checks import require, require_int

SHARED = (
    "sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
    "cross_attention_dim", "dropout", "num_class_embeds", "time_embedding_type", "time_embedding_dim",
    "resnet_time_scale_shift",
)  # fmt: skip
"""Settings with one name and one meaning in both classes."""

DEFAULTS: dict[str, Any] = {
    "sample_size": None, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "norm_num_groups": 32, "cross_attention_dim": 1280, "dropout": 0.0, "num_class_embeds": None,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "transformer_layers_per_block": 1, "attention_head_dim": 8, "addition_embed_type": None,
    "addition_embed_type_num_heads": 64, "time_embedding_type": "positional", "time_embedding_dim": None,
    "resnet_time_scale_shift": "default",
}  # fmt: skip
"""Defaults of diffusers for the settings that are converted."""

FIXED: dict[str, Any] = {
    "act_fn": "silu", "addition_time_embed_dim": None, "attention_type": "default", "center_input_sample": False,
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_norm": None, "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "num_attention_heads": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip
"""Settings of diffusers that have this value in every `ConditionalUNet`; the values are the defaults."""


def stock_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the `UNet2DConditionModel` with the same tensors as a `ConditionalUNet` of `config`.

    None without texts or without self-attention, which every `UNet2DConditionModel` has.
    """
    if config["cross_attention_dim"] is None or not config["self_attention"]:
        return None
    # blocks
    down, up = _block_types(config["attention_levels"], len(config["block_out_channels"]))
    settings = {field: config[field] for field in SHARED} | {"down_block_types": down, "up_block_types": up}
    # heads: `attention_head_dim` is their number in diffusers
    width = config["attention_head_dim"]
    settings["attention_head_dim"] = [max(1, channels // width) for channels in config["block_out_channels"]]
    settings["transformer_layers_per_block"] = config["transformer_layers"]
    # the vector of the whole text
    if config["pooled_text"]:
        heads = _heads_of_text(config["cross_attention_dim"], width)
        settings |= {"addition_embed_type": "text", "addition_embed_type_num_heads": heads}
    return settings


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the `ConditionalUNet` with the same tensors as a `UNet2DConditionModel` of `config`.

    Raises ConfigError, naming the field, for settings that hfgen does not reproduce.
    """
    stock = {key: value for key, value in config.items() if not key.startswith("_")}
    for field, value in stock.items():
        if field not in DEFAULTS:
            require(field in FIXED and value == FIXED[field], field, value, str(FIXED.get(field, "left out")))
    stock = DEFAULTS | stock
    settings = {field: stock[field] for field in SHARED}
    # levels with transformers
    down, widths = stock["down_block_types"], stock["block_out_channels"]
    listed = isinstance(down, list | tuple) and isinstance(widths, list | tuple) and len(down) == len(widths)
    require(listed, "down_block_types", down, "a list with a type for each of block_out_channels")
    levels = [level for level, kind in enumerate(down) if kind == "CrossAttnDownBlock2D"]
    for field, types in zip(("down_block_types", "up_block_types"), _block_types(levels, len(down)), strict=True):
        require(list(stock[field]) == types, field, stock[field], f"{types}, the same levels down and up")
    # width of the heads, one for all levels
    width = _head_width(stock["attention_head_dim"], widths, {*levels, len(widths) - 1})
    settings |= {"attention_levels": levels, "attention_head_dim": width}
    settings["transformer_layers"] = stock["transformer_layers_per_block"]
    # the vector of the whole text
    added, heads = stock["addition_embed_type"], stock["addition_embed_type_num_heads"]
    require(added in (None, "text"), "addition_embed_type", added, "null or 'text'")
    require_int("cross_attention_dim", stock["cross_attention_dim"])
    expected = _heads_of_text(stock["cross_attention_dim"], width)
    require(added is None or heads == expected, "addition_embed_type_num_heads", heads, f"{expected}")
    return settings | {"pooled_text": added is not None}


def _block_types(attention_levels: Any, levels: int) -> tuple[list[str], list[str]]:
    """Return the names of the blocks in diffusers, those of the encoder and those of the decoder."""
    kinds = ["CrossAttn" if level in attention_levels else "" for level in range(levels)]
    down = [f"{kind}DownBlock2D" for kind in kinds]
    return down, [f"{kind}UpBlock2D" for kind in reversed(kinds)]


def _head_width(heads: Any, widths: Any, levels: set[int]) -> int:
    """Return the width of a head, given the numbers of `heads`, one for all levels or one for each of them."""
    # one number for each level
    numbers = heads if isinstance(heads, list | tuple) else [heads] * len(widths)
    require(len(numbers) == len(widths), "attention_head_dim", heads, "an int, or one for each of block_out_channels")
    for field, values in (("attention_head_dim", numbers), ("block_out_channels", widths)):
        for value in values:
            require_int(field, value)
    # one width for all levels with transformers
    found = {widths[level] / numbers[level] for level in levels}
    same = len(found) == 1 and min(found).is_integer()
    require(same, "attention_head_dim", heads, "numbers of heads that are all equally wide")
    return int(min(found))


def _heads_of_text(features: int, width: int) -> int:
    """Return the number of heads that pool a text of `features`: each has the largest width that divides both."""
    return features // gcd(features, width)
