"""Outputs of networks in data coordinates: images, or points."""

from typing import Any

from torch import Tensor

from hfgen.images import as_output


def in_plane(net: Any) -> bool:
    """Return whether `net` makes points; its configuration then has the mean and standard deviation of the data."""
    return "data_mean" in net.config


def to_data(x: Tensor, net: Any) -> Tensor:
    """Return points (B, dim) of `net` in data coordinates: std * x + mean."""
    mean, std = _coordinates(net, x)
    return x * std + mean


def to_model(points: Tensor, net: Any) -> Tensor:
    """Return points (B, dim), given in data coordinates, in the coordinates of `net`: (points - mean) / std."""
    mean, std = _coordinates(net, points)
    return (points - mean) / std


def _coordinates(net: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the data of `net`, (dim,) or scalars, in the dtype and device of `like`."""
    mean, std = net.config["data_mean"] or 0.0, net.config["data_std"] or 1.0
    return like.new_tensor(mean), like.new_tensor(std)


def as_points(x: Tensor, net: Any, output_type: str) -> Any:
    """Return points (B, dim) of `net` in data coordinates: a tensor for "pt", otherwise an array of float32."""
    points = to_data(x, net)
    return points if output_type == "pt" else points.float().cpu().numpy()


def decode(x: Tensor, net: Any, output_type: str) -> Any:
    """Return x_0 of `net` for users: images (B, C, H, W) in [-1, 1] as `output_type`, or points (B, dim)."""
    if in_plane(net):
        return as_points(x, net, output_type)
    return as_output(x, output_type)
