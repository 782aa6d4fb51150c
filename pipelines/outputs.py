"""Outputs of networks in data coordinates: images, or points."""

from typing import Any

from torch import Tensor

from hfgen.data.coordinates import Coordinates
from hfgen.images import LATENT, as_output


def in_plane(net: Any) -> bool:
    """Return whether `net` makes points; its configuration then has the mean and standard deviation of the data."""
    return "data_mean" in net.config


def as_points(x: Tensor, net: Any, output_type: str) -> Any:
    """Return points (B, dim) of `net` in data coordinates: a tensor for "pt", otherwise an array of float32."""
    points = Coordinates.of(net.config).to_data(x)
    return points if output_type == "pt" else points.float().cpu().numpy()


def decode(x: Tensor, net: Any, output_type: str) -> Any:
    """Return x_0 of `net` for users: images (B, C, H, W) in [-1, 1] as `output_type`, or points (B, dim).

    "latent" is x_0 itself.
    """
    if output_type == LATENT:
        return x
    if in_plane(net):
        return as_points(x, net, output_type)
    return as_output(x, output_type)
