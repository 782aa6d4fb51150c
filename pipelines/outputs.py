"""Outputs of networks in data coordinates: images, or points; and outputs of pipelines, shown as pictures."""

import io
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image
from torch import Tensor

from hfgen.data.coordinates import Coordinates
from hfgen.images import LATENT, as_output, grid, scatter, to_pil


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


GRID_IMAGES, PICTURE_SIDE, WIDEST = 64, 64, 1024
"""Images of the picture of an output; pixels to which smaller images are enlarged; largest side of the picture."""


class ImageOutput(ImagePipelineOutput):
    """Images of a pipeline, `images`, in its output type. A notebook shows them as one picture."""

    def _repr_png_(self) -> bytes | None:
        """Return the picture of the first 64 images, or of all points, as PNG; None for anything else."""
        picture = picture_of(self.images)
        if picture is None:
            return None
        picture.thumbnail((WIDEST, WIDEST))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()


def picture_of(samples: Any) -> Image.Image | None:
    """Return a grid of images, small ones enlarged, or a plot of points (N, 2); None for latents and anything else.

    `samples`: a list of PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in [0, 1].
    """
    # PIL images
    if isinstance(samples, list):
        pictures = samples[:GRID_IMAGES]
        known = bool(pictures) and all(isinstance(one, Image.Image) for one in pictures)
        return grid(pictures, min_side=PICTURE_SIDE) if known else None
    # points
    if not isinstance(samples, np.ndarray | Tensor):
        return None
    values = torch.as_tensor(samples).detach().float().cpu()
    if values.ndim == 2 and values.shape[1] == 2 and len(values):
        reach = max(float(values.abs().max()) * 1.2, 1e-6)
        return scatter(values, -reach, reach, side=4 * PICTURE_SIDE)
    # arrays and tensors
    if values.ndim != 4 or not len(values):
        return None
    if isinstance(samples, np.ndarray):
        values = values.permute(0, 3, 1, 2)
    values = values[:GRID_IMAGES]
    if values.shape[1] not in (1, 3, 4) or values.min() < 0 or values.max() > 1:
        return None
    return grid(to_pil(values * 2 - 1), min_side=PICTURE_SIDE)
