"""Checks of the settings of U-Nets; an error names the field, the allowed values and the given one."""

from typing import Any

from hfgen.checks import check_divisible, require, require_int, require_number, require_size
from hfgen.models.blocks import ACTIVATIONS
from hfgen.models.ncsnpp import COLOURS

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "SkipDownBlock2D", "AttnSkipDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "SkipUpBlock2D", "AttnSkipUpBlock2D")
OLD_PREFIX = "UNetRes"
"""Prefix of block types in old configurations, such as "UNetResDownBlock2D"."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier", "learned"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
    "center_input_sample": (False, True),
    "flip_sin_to_cos": (False, True),
    "add_attention": (True, False),
}
WHOLE_NUMBERS = ("in_channels", "out_channels")
OPTIONAL_WHOLE_NUMBERS = (
    "norm_num_groups",
    "time_embedding_dim",
    "attention_head_dim",
    "attn_norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
)
MAX_LEVELS, MAX_LAYERS = 12, 64


def check_config(config: Any) -> None:
    """Raise ConfigError, naming the field, for a value that is impossible or not reproduced by this network."""
    # choices
    for field, allowed in CHOICES.items():
        known = any(config[field] == value and type(config[field]) is type(value) for value in allowed)
        require(known, field, config[field], f"one of {allowed}")
    act = config["act_fn"]
    require(isinstance(act, str) and act.lower() in ACTIVATIONS, "act_fn", act, f"one of {tuple(ACTIVATIONS)}")
    # numbers
    for field in WHOLE_NUMBERS:
        require_int(field, config[field])
    for field in OPTIONAL_WHOLE_NUMBERS:
        if config[field] is not None:
            require_int(field, config[field])
    require_int("layers_per_block", config["layers_per_block"], high=MAX_LAYERS)
    require_number("norm_eps", config["norm_eps"], 0.0)
    require_number("dropout", config["dropout"], 0.0, 1.0)
    require_number("mid_block_scale_factor", config["mid_block_scale_factor"], 1e-6)
    # combinations
    learned = config["time_embedding_type"] == "learned"
    steps = config["num_train_timesteps"]
    require(not learned or steps is not None, "num_train_timesteps", steps, "set with learned time features")
    _check_levels(config)
    _check_skip_blocks(config)
    _check_channels(config)
    if config["sample_size"] is not None:
        height, width = require_size("sample_size", config["sample_size"], 2**24)
        check_divisible("sample_size", height, width, len(config["block_out_channels"]))


def _check_levels(config: Any) -> None:
    channels = config["block_out_channels"]
    good = isinstance(channels, list | tuple) and 1 <= len(channels) <= MAX_LEVELS
    require(good, "block_out_channels", channels, f"a list of 1 to {MAX_LEVELS} channel counts")
    for field, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = config[field]
        good = isinstance(kinds, list | tuple) and len(kinds) == len(channels)
        require(good, field, kinds, f"a list as long as block_out_channels ({len(channels)})")
        for kind in kinds:
            require(str(kind).removeprefix(OLD_PREFIX) in allowed, field, kind, f"made of {allowed}")


def _check_skip_blocks(config: Any) -> None:
    """Raise ConfigError unless the image beside the features of NCSN++ fits the levels and has three channels."""
    # levels: the image is halved from the first one on, and doubled up to the last one
    down, up = config["down_block_types"], config["up_block_types"]
    skips_down, skips_up = (["Skip" in kind for kind in kinds] for kinds in (down[:-1], up))
    first = skips_down == sorted(skips_down, reverse=True)
    require(first, "down_block_types", down, "Skip blocks from the first level on, without others in between")
    require(skips_up == sorted(skips_up), "up_block_types", up, "Skip blocks up to the last level, once there is one")
    # channels of the image
    for field, skips in (("in_channels", skips_down), ("out_channels", skips_up)):
        good = config[field] == COLOURS or not any(skips)
        require(good, field, config[field], f"{COLOURS} with Skip blocks")
    # groups
    plain = [kind for kind in (*down, *up) if "Skip" not in kind]
    groups = config["norm_num_groups"]
    require(not plain or groups is not None, "norm_num_groups", groups, f"an int with {', '.join(plain)}")


def _check_channels(config: Any) -> None:
    # group norm
    channels, groups, head_dim = config["block_out_channels"], config["norm_num_groups"], config["attention_head_dim"]
    for count in channels:
        require_int("block_out_channels", count)
        divisible = groups is None or count % groups == 0
        require(divisible, "block_out_channels", count, f"multiples of norm_num_groups ({groups})")
    # attention
    attending = [c for c, kind in zip(channels, config["down_block_types"], strict=True) if "Attn" in kind]
    attending += [c for c, kind in zip(channels[::-1], config["up_block_types"], strict=True) if "Attn" in kind]
    if config["mid_block_type"] is not None and config["add_attention"]:
        attending.append(channels[-1])
        attn_groups = config["attn_norm_num_groups"]
        allowed = f"a divisor of the last of block_out_channels ({channels[-1]})"
        require(not attn_groups or channels[-1] % attn_groups == 0, "attn_norm_num_groups", attn_groups, allowed)
    if head_dim is not None and attending:
        least = min(attending)
        require(head_dim <= least, "attention_head_dim", head_dim, f"at most {least}, the channels it divides")
    # frequencies of time
    shift, half = config["freq_shift"], channels[0] // 2
    require_number("freq_shift", shift, 0.0)
    require(half == 0 or shift < half, "freq_shift", shift, f"below block_out_channels[0] / 2 ({half})")

