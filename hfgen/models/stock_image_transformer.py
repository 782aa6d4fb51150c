"""An `ImageTransformer` as transformers' `ImageGPTForCausalImageModeling`, and back: settings and tensors."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ImageGPTConfig

from hfgen.checks import require, require_int
from hfgen.loading.transformers_models import NOTES

NAME = "ImageGPTForCausalImageModeling"

SHARED = {"n_embd": "width", "n_layer": "layers", "n_head": "heads"}
"""Settings with one meaning in both classes: the name in transformers, and in hfgen."""

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
CONVERTED = (*SHARED, *DROPOUTS, "vocab_size", "n_positions", "n_inner", "grid")
FIXED: dict[str, Any] = {
    "activation_function": "quick_gelu", "add_cross_attention": False, "layer_norm_epsilon": 1e-5,
    "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Settings of transformers with this value, the default, in every `ImageTransformer`."""

UNUSED = ("initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
"""Settings of transformers that do not change the logits; any other one must have its default value."""

TRANSPOSED = re.compile(r"\.c_(attn|proj|fc)\.weight$")
"""Matrices that transformers stores as (inputs, outputs)."""

OLD_BUFFER = re.compile(r"\.attn\.(bias|masked_bias)$")
"""Causal masks in files of early transformers."""


def stock_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of the `ImageGPTForCausalImageModeling` with the logits of an `ImageTransformer` of `config`.

    `grid` is added to them, which transformers keeps and ignores. None for a network with conditions, rotary positions
    or tied weights, or that is not causal: transformers has none of these.
    """
    conditional = config["num_class_embeds"] is not None or config["text_width"] is not None
    if conditional or config["positions"] != "learned" or config["tie_weights"] or not config["causal"]:
        return None
    settings = {theirs: config[ours] for theirs, ours in SHARED.items()} | dict.fromkeys(DROPOUTS, config["dropout"])
    settings |= {
        "architectures": [NAME], "model_type": ImageGPTConfig.model_type, "grid": list(config["grid"]),
        "vocab_size": config["vocab_size"] + 1, "n_positions": math.prod(config["grid"]),
        "n_inner": config["mlp_ratio"] * config["width"],
    }  # fmt: skip
    return FIXED | settings


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the `ImageTransformer` with the logits of an `ImageGPTForCausalImageModeling` of `config`.

    Default of `grid`: a square of n_positions. Raises ConfigError, naming the field, for settings that hfgen does not
    reproduce.
    """
    defaults = json.loads(ImageGPTConfig().to_json_string(use_diff=False))
    for field, value in config.items():
        if field not in (*CONVERTED, *UNUSED, *NOTES) and not field.startswith("_"):
            require(field in defaults and value == defaults[field], field, value, str(defaults.get(field, "left out")))
    stock = defaults | dict(config)
    settings = {ours: stock[theirs] for theirs, ours in SHARED.items()}
    # values of an entry, and the grid of entries
    settings["vocab_size"] = require_int("vocab_size", stock["vocab_size"], 3) - 1       # one of them is the start
    n = require_int("n_positions", stock["n_positions"])
    side = math.isqrt(n)
    grid = stock.get("grid", [side, side, 1])
    fits = isinstance(grid, list | tuple) and all(isinstance(count, int) for count in grid) and math.prod(grid) == n
    require(fits, "n_positions", n, f"the product of grid, {grid}; without grid it must be a square")
    # sizes of the hidden layers, dropout
    width = require_int("n_embd", stock["n_embd"])
    inner = require_int("n_inner", 4 * width if stock["n_inner"] is None else stock["n_inner"])
    require(inner % width == 0, "n_inner", inner, f"a multiple of n_embd, {width}")
    for field in DROPOUTS:
        require(stock[field] == stock["resid_pdrop"], field, stock[field], f"resid_pdrop, {stock['resid_pdrop']}")
    return settings | {
        "grid": list(grid), "mlp_ratio": inner // width, "dropout": stock["resid_pdrop"], "positions": "learned",
    }  # fmt: skip


def stock_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an `ImageTransformer` under their names in transformers."""
    renamed = {}
    for key, tensor in tensors.items():
        name = key if key.startswith("lm_head.") else f"transformer.{key}"
        renamed[name] = tensor.t().contiguous() if TRANSPOSED.search(name) else tensor
    return renamed


def own_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors of an `ImageGPTForCausalImageModeling`, or their shapes, under their names in hfgen."""
    renamed = {}
    for key, value in tensors.items():
        if OLD_BUFFER.search(key):
            continue
        if TRANSPOSED.search(key):
            value = value.t().contiguous() if isinstance(value, Tensor) else value[::-1]
        renamed[key.removeprefix("transformer.")] = value
    return renamed
