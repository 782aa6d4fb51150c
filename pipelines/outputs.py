"""Outputs of networks in data coordinates: images, or points in the plane."""

from typing import Any

import torch

from hfgen.data.coordinates import Coordinates
from hfgen.images import as_output


def in_plane(net: Any) -> bool:
    """Return whether `net` makes points; its configuration then holds the mean and standard deviation of the data."""
    return "data_mean" in net.config


def decode(x: torch.Tensor, net: Any, output_type: str) -> Any:
    """Return x_0 of `net` in data coordinates.

    Images (B, C, H, W) in [-1, 1] are converted to the `output_type` (`hfgen.images.as_output`). Points (B, dim) become
    x_data = data_std * x + data_mean, a tensor for "pt", otherwise an array.
    """
    if not in_plane(net):
        return as_output(x, output_type)
    points = Coordinates.of(net.config).to_data(x)
    return points if output_type == "pt" else points.float().cpu().numpy()
