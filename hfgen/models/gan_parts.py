"""The parts that generators and discriminators share, for images and for points."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.models.checks import require, require_int

Norm = Literal["batch", "layer", "none", "spectral"]
NORMS = ("batch", "layer", "none", "spectral")


def with_classes(x: Tensor, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Return x (B, C) or (B, C, H, W) with the one-hot class as further channels; x where there are no classes."""
    if (num_classes is None) != (labels is None):
        wanted = "None: this network has no classes" if num_classes is None else "given"
        raise ConfigError(f"class_labels must be {wanted} (num_classes={num_classes})")
    if labels is None or num_classes is None:
        return x
    one_hot = F.one_hot(labels, num_classes).to(x.dtype)
    return torch.cat([x, one_hot.view(*one_hot.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)


def packed(x: Tensor, pack: int, group: int) -> Tensor:
    """Return x (B, C, ...) as (B / pack, pack * C, ...): consecutive samples side by side (Lin et al. 2018, fig. 1).

    Raises ConfigError where the batch is not made of whole packs, and of whole groups of `group` packs.
    """
    unit = pack * max(1, group)
    if len(x) % unit:
        raise ConfigError(f"the batch must be a multiple of {unit} (pack x minibatch_stddev), got {len(x)}")
    return x.reshape(len(x) // pack, -1, *x.shape[2:])


def with_deviation(h: Tensor, group: int) -> Tensor:
    """Return h (B, C, ...) with one more channel: how much groups of `group` consecutive samples vary; h if group < 2.

    The standard deviation over the group, averaged over channels and pixels (Karras et al. 2018, section 3).
    """
    if group < 2:
        return h
    groups = h.reshape(-1, group, h[0].numel())
    deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean(1)                    # (B / g,)
    column = deviation.repeat_interleave(group).view(-1, *[1] * (h.ndim - 1))
    return torch.cat([h, column.expand(-1, 1, *h.shape[2:])], 1)


def check_parts(config: Any) -> None:
    """Raise ConfigError, naming the field, for values of the shared settings that are impossible."""
    sizes = {"channels": 2**10, "width": 2**14, "dim": 2**12, "hidden": 2**16, "layers": 2**8, "latent_dim": 2**16}
    for field, high in {**sizes, "pack": 64}.items():
        if field in config:
            require_int(field, config[field], high=high)
    for field, low, high in (("extra_layers", 0, 16), ("minibatch_stddev", 0, 2**10), ("base_size", 1, 16)):
        if field in config:
            require_int(field, config[field], low=low, high=high)
    if config["num_classes"] is not None:
        require_int("num_classes", config["num_classes"])
    require(config["norm"] in NORMS, "norm", config["norm"], f"one of {', '.join(NORMS)}")
