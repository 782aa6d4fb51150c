"""Vision transformers as feature extractors: DINOv2 and CLIP from a folder or a Hub id, safetensors and JSON only."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfgen.errors import ConfigError
from hfgen.images import centre_crop, resized, shortest_side
from hfgen.loading.files import read_json
from hfgen.loading.resolve import resolve_component
from hfgen.loading.transformers_models import CONFIG, load_half, load_model

PREPROCESSOR = "preprocessor_config.json"
BICUBIC = 3
"""Pillow's number of bicubic interpolation."""

LARGEST_SIDE = 2**12
PART = "image_encoder"
"""Name of a vision model as a component of a pipeline."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of red, green and blue in ImageNet and in CLIP's data (Radford et al. 2021)."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of images in [0, 1] for a network: resize, crop, (x - mean) / std.

    `shortest`: new size of the shorter side. `size`: new (height, width). At most one of both is not None. `crop`:
    (height, width) of the centre crop.
    """

    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, unit: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] as input of the network, (B, 3, h, w)."""
        # resize and crop
        if self.size:
            unit = resized(unit, *self.size)
        if self.shortest:
            unit = shortest_side(unit, self.shortest)
        if self.crop:
            unit = centre_crop(unit, *self.crop)
        # normalise the colours
        mean, std = unit.new_tensor(self.mean)[:, None, None], unit.new_tensor(self.std)[:, None, None]
        return (unit - mean) / std

    def __str__(self) -> str:
        """Return the preprocessing in words."""
        steps = []
        if self.shortest:
            steps.append(f"shortest side to {self.shortest}")
        if self.size:
            steps.append("{}x{}".format(*self.size))
        if self.crop:
            steps.append("centre crop {}x{}".format(*self.crop))
        resizing = ", ".join(steps) or "as they are"
        return f"bicubic, antialiased, float32: {resizing}; mean {_listed(self.mean)}, std {_listed(self.std)}"


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def read_preprocessing(folder: Path, default: Preprocessing) -> Preprocessing:
    """Return the preprocessing in `preprocessor_config.json` of `folder`; `default` completes it.

    Raises ConfigError for values that cannot be used.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        return default
    # read the sizes
    config = read_json(path)
    shortest, size, crop = default.shortest, default.size, default.crop
    if "size" in config:
        shortest, size = _size(path, "size", config["size"])
    if "crop_size" in config:
        side, crop = _size(path, "crop_size", config["crop_size"])
        if side:
            crop = (side, side)
    # leave out steps that are switched off
    if config.get("do_resize") is False:
        shortest, size = None, None
    elif config.get("resample", BICUBIC) != BICUBIC:
        raise ConfigError(f"{path}: 'resample' must be {BICUBIC} (bicubic), found {config['resample']!r}")
    if config.get("do_center_crop") is False:
        crop = None
    # read the normalisation
    mean = _colours(path, config, "image_mean", default.mean)
    std = _colours(path, config, "image_std", default.std)
    if config.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    # check that the crop fits
    smallest = (shortest, shortest) if shortest else size
    if crop and (smallest is None or crop[0] > smallest[0] or crop[1] > smallest[1]):
        raise ConfigError(f"{path}: 'crop_size' {crop} must not exceed the size that images are resized to, {smallest}")
    return Preprocessing(shortest, size, crop, mean, std)


def _size(path: Path, key: str, value: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Return a size as (shortest side, None) or (None, (height, width))."""
    # check the sides
    given = {"shortest_edge": value} if isinstance(value, int) else value
    sides = list(given.values()) if isinstance(given, dict) else []
    if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
        sides = []
    # tell both forms apart
    if sides and given.keys() == {"shortest_edge"}:
        return sides[0], None
    if sides and given.keys() == {"height", "width"}:
        return None, (given["height"], given["width"])
    raise ConfigError(f"{path}: {key!r} must be an int, {{'shortest_edge': int}} or {{'height': int, 'width': int}} in "
                      f"[1, {LARGEST_SIDE}], found {value!r}")


def _colours(path: Path, config: dict[str, Any], key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    values = config.get(key, list(default))
    numbers = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    if not numbers or len(values) != 3 or (key == "image_std" and min(values) <= 0):
        raise ConfigError(f"{path}: {key!r} must be three finite numbers, of 'image_std' above 0, found {values!r}")
    return tuple(float(value) for value in values)


def load_dinov2(model: str) -> tuple[Any, Preprocessing]:
    """Return network, in evaluation mode, and preprocessing of a DINOv2 model (Oquab et al. 2024).

    `model`: folder or Hub id. Raises ConfigError for another model, or if image sides are no multiples of the patch.
    """
    from transformers import Dinov2Model, Dinov2WithRegistersModel

    # load the network
    folder = resolve_component(model, PART)
    kinds = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
    kind = read_json(folder / CONFIG).get("model_type")
    if kind not in kinds:
        raise ConfigError(f"{folder / CONFIG}: 'model_type' must be one of {', '.join(kinds)}, found {kind!r}")
    net = load_model(folder, kinds[kind], torch.float32)
    # check that its patches fit the images
    preprocessing = read_preprocessing(folder, Preprocessing(256, None, (224, 224), *IMAGENET))
    patch, sides = net.config.patch_size, preprocessing.crop or preprocessing.size
    if sides is None or any(side % patch for side in sides):
        raise ConfigError(f"{folder / PREPROCESSOR}: images must come out in sides that are multiples of the patch, "
                          f"{patch}; found {sides}")
    return net, preprocessing


def load_clip(model: str) -> tuple[Any, Preprocessing]:
    """Return image encoder, in evaluation mode, and preprocessing of a CLIP model (Radford et al. 2021).

    `model`: folder or Hub id of the complete model with its text encoder, or of the image encoder with or without its
    projection. Raises ConfigError if images do not have the size of the network.
    """
    from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

    # load the image encoder
    folder = resolve_component(model, PART)
    config = read_json(folder / CONFIG)
    if config.get("model_type") == "clip":
        net = load_half(folder, CLIPVisionModelWithProjection, torch.float32)
    elif config.get("architectures") == ["CLIPVisionModel"]:
        net = load_model(folder, CLIPVisionModel, torch.float32)
    else:
        net = load_model(folder, CLIPVisionModelWithProjection, torch.float32)
    # check that the images have its size
    side = net.config.image_size
    preprocessing = read_preprocessing(folder, Preprocessing(side, None, (side, side), *CLIP))
    if (preprocessing.crop or preprocessing.size) != (side, side):
        raise ConfigError(f"{folder / PREPROCESSOR}: images must come out {side}x{side}, the 'image_size' in {CONFIG}; "
                          f"found {preprocessing}")
    return net, preprocessing
