"""From images to noise and back, and between images."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import DDPMPipeline, GANPipeline, MLPDenoiser, MLPGenerator, VPSDEScheduler
from hfgen.errors import ConfigError
from hfgen.pipelines.inversion import interpolate, invert, states_of
from hfgen.pipelines.latents import slerp


@pytest.fixture
def pictures():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_images_come_back_from_their_noise_better_with_more_steps(make_pipeline, pictures):
    pipe = make_pipeline()
    few, many = (invert(pipe, pictures, steps) for steps in (10, 80))
    assert few.error.shape == (2,) and many.latents.shape == (2, 1, 8, 8)
    assert float(many.error.max()) < 1e-5 and float(many.error.max()) < float(few.error.max()) / 20
    torch.testing.assert_close(many.reconstructed, pictures * 2 - 1, atol=0.02, rtol=0)
    measured = (many.reconstructed - (pictures * 2 - 1)).square().flatten(1).mean(1).double()
    torch.testing.assert_close(many.error, measured, atol=1e-9, rtol=1e-3)


def test_the_noise_of_an_image_makes_it_again_in_the_pipeline(make_pipeline, pictures):
    pipe = make_pipeline(num_class_embeds=3)
    found = invert(pipe, pictures, 60, class_labels=[0, 2])
    way_back = {"num_steps": 60, "class_labels": [0, 2], "sampler": "ode_heun", "latents": found.latents}
    again = pipe(2, output_type="pt", **way_back).images
    alone = list(pipe.states(2, **way_back))[-2]
    torch.testing.assert_close(alone, found.reconstructed, atol=1e-5, rtol=0)
    assert float((again - pictures).square().mean()) < 0.1           # the denoiser's last word is an untrained one's


def test_points_of_the_plane_are_inverted_in_data_coordinates():
    pipe = DDPMPipeline(MLPDenoiser(data_mean=[1.0, -2.0], data_std=[0.5, 3.0]).eval(), VPSDEScheduler())
    points = torch.tensor([[1.0, -2.0], [1.5, 1.0]])
    torch.testing.assert_close(states_of(pipe, points), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert float(invert(pipe, points, 300).error.max()) < 1e-5             # from t_min to t = 1 and back
    path = interpolate(pipe, points, 5, 300, output_type="pt")
    torch.testing.assert_close(path[[0, -1]], points, atol=0.02, rtol=0)


def test_the_way_between_two_images_starts_and_ends_at_them_along_a_great_circle(make_pipeline, pictures):
    pipe = make_pipeline()
    path = interpolate(pipe, pictures, 5, 60, output_type="pt")
    assert path.shape == (5, 1, 8, 8)
    torch.testing.assert_close(path[[0, -1]], pictures, atol=0.02, rtol=0)
    ends = invert(pipe, pictures, 60).latents.flatten(1)
    middle = slerp(ends[0], ends[1], torch.tensor([0.5])).view(1, 1, 8, 8)
    states = list(pipe.states(1, num_steps=60, sampler="ode_heun", latents=middle))
    torch.testing.assert_close(path[2:3], (states[-2] / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    assert [type(picture) for picture in interpolate(pipe, pictures, 2, 2)] == [Image.Image] * 2
    assert isinstance(interpolate(pipe, pictures, 2, 2, output_type="np"), np.ndarray)


def test_wrong_images_numbers_and_labels_are_named(make_pipeline, plane_pipeline, pictures):
    pipe = make_pipeline()
    for call, words in (
        (lambda: interpolate(pipe, pictures[:1], 3, 2), "images must be two"),
        (lambda: interpolate(pipe, pictures, 1), "n must be"),
        (lambda: invert(pipe, pictures, 0), "num_steps"),
        (lambda: invert(pipe, pictures, 2, class_labels=1), "class_labels must be None"),
        (lambda: invert(plane_pipeline, torch.zeros(3)), r"points must have shape \[B, 2\], got \[3\]"),
        (lambda: invert(pipe, pictures + 3, 2), "images must be in"),
        (lambda: invert(pipe, pictures, 2, prompt="a"), "prompt must be None, this model is not conditioned on texts"),
        (lambda: invert(GANPipeline(MLPGenerator()), pictures), "pipe must be a pipeline that denoises, got GANPi"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()
