"""What comes out of a network, in the coordinates of the data: images, or points of the plane."""

from typing import Any

import torch

from hfgen.images import as_output


def in_plane(net: Any) -> bool:
    """Return whether `net` makes points, not images: its configuration then says how the data are spread."""
    return "data_mean" in net.config


def decode(x: torch.Tensor, net: Any, output_type: str) -> Any:
    """Return x_0, as `net` makes it, as what a pipeline promises.

    Images (B, C, H, W) in [-1, 1] become what `output_type` says (hfgen.images). Points (B, dim) become data:
    x_data = data_std * x + data_mean, a tensor for "pt", an array else.
    """
    if not in_plane(net):
        return as_output(x, output_type)
    mean, std = (x.new_tensor(net.config[key]) for key in ("data_mean", "data_std"))
    points = x * std + mean
    return points if output_type == "pt" else points.float().cpu().numpy()
