"""Translation of images from one domain to another, and back."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL import Image

from hfgen.checks import check_int, require_choice
from hfgen.errors import ConfigError
from hfgen.images import as_output, check_output_type
from hfgen.models.translator import ResNetTranslator, UNetTranslator
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.inputs import checked, prepared

DIRECTIONS = ("a2b", "b2a")

Output = ImagePipelineOutput | tuple[Any]


class TranslationPipeline(Pipeline):
    """Translation of images of domain A to domain B ("a2b"), or B to A ("b2a"); one folder holds both directions.

    `images`: a PIL image or a list of them, all of one size, a float tensor (B, C, H, W) or an array (B, H, W, C) in
    [0, 1]; translations have their order and size. `output_type`: "pil" for PIL images, "np" or "numpy" for an array
    (B, H, W, C), "pt" for a tensor (B, C, H, W), in [0, 1]. `batch_size`: number of images in one evaluation of a
    network; it does not change the result.

    Every size is allowed: images whose sides the network cannot halve are padded by reflection (by replication if they
    are too small), and the padding is cropped from the result. Raises ConfigError, or ConfigTypeError (also a
    TypeError) for arguments that are not images.
    """

    model_cpu_offload_seq = "generator_a2b->generator_b2a"

    def __init__(
        self, generator_a2b: ResNetTranslator | UNetTranslator, generator_b2a: ResNetTranslator | UNetTranslator
    ) -> None:
        super().__init__()
        self.register_modules(generator_a2b=generator_a2b, generator_b2a=generator_b2a)

    def __call__(
        self,
        images: Any,
        direction: str = "a2b",
        batch_size: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Output:
        """Return the translations, `.images`."""
        return self._translated(images, [direction], batch_size, output_type, return_dict)

    def cycle(
        self,
        images: Any,
        direction: str = "a2b",
        batch_size: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Output:
        """Return the images translated in `direction` and back, `.images`; ideally equal to `images`."""
        return self._translated(images, [direction, opposite(direction)], batch_size, output_type, return_dict)

    def prepare(self, images: Any, direction: str) -> torch.Tensor:
        """Return images as inputs of the network: float32 (B, C, H, W) in [-1, 1] on its device."""
        given = checked(images)
        height, width = given.shape[2:] if isinstance(given, torch.Tensor) else one_size(given)
        channels = self.components[f"generator_{direction}"].config.in_channels
        return prepared(given, channels, height, width, self._execution_device)

    @torch.no_grad()
    def _translated(
        self, images: Any, directions: list[str], batch_size: int, output_type: str, return_dict: bool
    ) -> Output:
        """Return the images after the networks of all `directions` in turn."""
        # check the arguments
        check_output_type(output_type)
        opposite(directions[0])
        check_int("batch_size", batch_size, 1)
        # translate in parts
        x = self.prepare(images, directions[0])
        for direction in directions:
            net = self.components[f"generator_{direction}"]
            x = torch.cat([through(net, part) for part in x.split(batch_size)])
        return self._output(as_output(x, output_type), return_dict)


def through(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the translations, float32 (B, C', H, W), of x (B, C, H, W) in [-1, 1], padded so that `net` can halve it.

    Padding is by reflection; by replication if it is wider than side - 1, which reflection does not allow.
    """
    # width of the padding
    factor, least = net.sides
    height, width = x.shape[2:]
    gaps = (max(-side % factor, least - side) for side in (height, width))
    (top, bottom), (left, right) = ((gap // 2, gap - gap // 2) for gap in gaps)
    # padding
    for border, side in (((left, right, 0, 0), width), ((0, 0, top, bottom), height)):
        if any(border):
            x = F.pad(x, border, mode="reflect" if max(border) < side else "replicate")
    # network, without the padding
    y: torch.Tensor = net(x.to(net.dtype)).sample.float()
    return y[:, :, top : top + height, left : left + width]


def opposite(direction: str) -> str:
    """Return the other direction. Raises ConfigError unless it is "a2b" or "b2a"."""
    require_choice("direction", direction, DIRECTIONS)
    return DIRECTIONS[1 - DIRECTIONS.index(direction)]


def one_size(images: list[Image.Image]) -> tuple[int, int]:
    """Return the (height, width) of all images. Raises ConfigError naming the first that differs."""
    for i, image in enumerate(images):
        if image.size != images[0].size:
            sizes = f"image 0 is {images[0].height}x{images[0].width}, image {i} is {image.height}x{image.width}"
            raise ConfigError(f"images must have one size in a call: {sizes} (height x width); call once for each size")
    return images[0].height, images[0].width
