"""The output of a pipeline in a notebook: a picture of its images, small ones enlarged, or of its points."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import DCGANGenerator, GANPipeline, MLPGenerator
from hfgen.pipelines.outputs import ImageOutput


def picture(output: Any) -> Image.Image:
    return Image.open(io.BytesIO(output._repr_png_()))


def test_a_notebook_shows_small_images_of_every_output_type_as_one_enlarged_grid() -> None:
    pipe = GANPipeline(DCGANGenerator(resolution=8, channels=1, width=8).eval())
    generator = torch.Generator()
    outputs = [pipe(batch_size=4, output_type=kind, generator=generator.manual_seed(0)) for kind in ("pil", "np", "pt")]
    pictures = [picture(output) for output in outputs]
    assert pictures[0].size == (2 * 64 + 3 * 2, 2 * 64 + 3 * 2)                        # 8 pixels became 64, with gaps
    pixels = [np.asarray(one) for one in pictures]
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()
    assert (pixels[0][2:66:8, 2:66:8] == np.asarray(outputs[0].images[0])).all()


def test_a_notebook_shows_points_as_a_plot() -> None:
    for kind in ("np", "pt"):
        plot = picture(GANPipeline(MLPGenerator().eval())(batch_size=50, output_type=kind))
        assert plot.size == (256, 256) and np.asarray(plot).min() < 255


def test_many_and_large_images_make_a_picture_of_bounded_size() -> None:
    assert picture(ImageOutput(images=[Image.new("RGB", (512, 256))] * 200)).size == (1024, 514)


@pytest.mark.parametrize("images", [
    torch.randn(2, 4, 8, 8), torch.rand(2, 7, 8, 8), torch.rand(3), [], [1, 2], np.zeros((0, 8, 8, 3)), None,
])  # fmt: skip
def test_latents_and_other_values_have_no_picture(images: Any) -> None:
    assert ImageOutput(images=images)._repr_png_() is None
