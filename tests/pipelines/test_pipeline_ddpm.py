"""Sampling: the same numbers as diffusers, checked arguments, states, per-image noise, any scheduler."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline as StockPipeline
from diffusers import DDPMScheduler as StockScheduler
from diffusers import ImagePipelineOutput, UNet2DModel
from PIL import Image

from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.models.mlp import MLPDenoiser
from hfgen.registry import STOCK_SCHEDULERS
from tests.helpers import seed


def stock(pipe, scheduler=None):
    """Return diffusers' own pipeline with the same weights."""
    net = UNet2DModel(**{k: v for k, v in pipe.unet.config.items() if not k.startswith("_")})
    net.load_state_dict(pipe.unet.state_dict())
    twin = StockPipeline(net.eval(), scheduler or StockScheduler.from_config(dict(pipe.scheduler.config)))
    twin.set_progress_bar_config(disable=True)
    return twin


@pytest.mark.parametrize("num_steps", [1, 7, 20])
@pytest.mark.parametrize("channels", [{}, {"in_channels": 3, "out_channels": 3, "sample_size": (8, 16)}])
def test_images_equal_those_of_the_stock_pipeline(make_pipeline, channels, num_steps):
    pipe = make_pipeline(**channels)
    ours = pipe(batch_size=3, num_steps=num_steps, generator=seed(0), output_type="np").images
    theirs = stock(pipe)(batch_size=3, num_inference_steps=num_steps, generator=seed(0), output_type="np").images
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_learned_variance_equals_the_stock_pipeline(make_pipeline):
    pipe = make_pipeline(out_channels=2, scheduler={"variance_type": "learned_range"})
    ours = pipe(batch_size=2, num_steps=10, generator=seed(0), output_type="np").images
    theirs = stock(pipe)(batch_size=2, num_inference_steps=10, generator=seed(0), output_type="np").images
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_without_num_steps_every_step_of_training_is_taken(make_pipeline):
    pipe = make_pipeline()
    assert len(list(pipe.states())) == 20 + 1


def test_states_end_with_the_output_and_start_with_pure_noise(make_pipeline):
    pipe = make_pipeline()
    states = list(pipe.states(batch_size=2, num_steps=5, generator=seed(3)))
    images = pipe(batch_size=2, num_steps=5, generator=seed(3), output_type="pt").images
    assert [tuple(x.shape) for x in states] == [(2, 1, 8, 8)] * 6
    assert torch.equal((states[-1] / 2 + 0.5).clamp(0, 1), images)
    assert torch.equal(states[0], torch.randn(2, 1, 8, 8, generator=seed(3)))
    assert not any(x.requires_grad or x.is_inference() for x in states)


def test_noise_of_an_image_does_not_depend_on_its_batch(make_pipeline):
    pipe = make_pipeline()
    together = list(pipe.states(batch_size=3, num_steps=6, generator=seed(5, 6, 7)))
    for i, value in enumerate((5, 6, 7)):
        alone = list(pipe.states(batch_size=1, num_steps=6, generator=seed(value)))
        assert torch.equal(together[0][i : i + 1], alone[0])
        torch.testing.assert_close(together[-1][i : i + 1], alone[-1], atol=1e-4, rtol=0)
        listed = list(pipe.states(batch_size=1, num_steps=6, generator=[seed(value)]))
        assert torch.equal(listed[-1], alone[-1])


def test_step_noise_of_an_image_is_bit_equal_whatever_the_batch(make_pipeline):
    pipe = make_pipeline()
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.zero_()                                        # predicts 0: what is left is noise alone
    together = list(pipe.states(batch_size=3, num_steps=6, generator=seed(5, 6, 7)))
    alone = list(pipe.states(batch_size=1, num_steps=6, generator=seed(6)))
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")                        # diffusers with numpy 2
@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_every_scheduler_of_the_table_can_be_swapped_in(make_pipeline, name):
    pipe = make_pipeline()
    class_ = getattr(diffusers, name)
    pipe.scheduler = class_.from_config(pipe.scheduler.config)
    ours = list(pipe.states(batch_size=2, num_steps=6, generator=seed(1)))[-1]

    twin = stock(pipe, class_.from_config(pipe.scheduler.config))
    generator, draws = seed(1), "generator" in class_.step.__code__.co_varnames
    twin.scheduler.set_timesteps(6)
    x = torch.randn(2, 1, 8, 8, generator=generator) * twin.scheduler.init_noise_sigma
    for t in twin.scheduler.timesteps:
        with torch.no_grad():
            eps = twin.unet(twin.scheduler.scale_model_input(x, t), t).sample
        x = twin.scheduler.step(eps, t, x, **({"generator": generator} if draws else {})).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_ddim_swapped_in_equals_the_stock_pipeline_with_ddim(make_pipeline):
    pipe = make_pipeline()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    ours = pipe(batch_size=2, num_steps=5, generator=seed(0), output_type="np").images
    theirs = stock(pipe, diffusers.DDIMScheduler.from_config(pipe.scheduler.config))(
        batch_size=2, num_inference_steps=5, generator=seed(0), output_type="np"
    ).images
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "5", True, 21])
def test_num_steps_outside_its_range_is_refused_with_the_range(make_pipeline, wrong):
    with pytest.raises(ConfigError) as caught:
        make_pipeline()(num_steps=wrong)
    assert str(caught.value) == f"num_steps must be an int in [1, 20], got {wrong!r}"
    assert isinstance(caught.value, TypeError) == (type(wrong) is not int)


@pytest.mark.parametrize(
    ("argument", "wrong", "kind"),
    [
        ("batch_size", 0, ValueError), ("batch_size", -1, ValueError), ("batch_size", 1.5, TypeError),
        ("output_type", "jpg", ValueError), ("generator", 3, TypeError), ("generator", [3, 4], TypeError),
        ("generator", [torch.Generator()] * 3, ValueError),
    ],
)
def test_wrong_arguments_are_named(make_pipeline, argument, wrong, kind):
    with pytest.raises(kind, match=argument) as caught:
        make_pipeline()(**{"batch_size": 2, "num_steps": 1, argument: wrong})
    assert isinstance(caught.value, ConfigError)


def test_states_check_their_arguments_before_they_are_asked_for(make_pipeline):
    with pytest.raises(ConfigError, match="num_steps"):
        make_pipeline().states(num_steps=0)


@pytest.mark.parametrize("labels", [3, [3, 3], torch.tensor([3, 3]), np.array([3, 3])])
def test_one_label_serves_the_whole_batch(make_pipeline, labels):
    pipe = make_pipeline(num_class_embeds=4)
    images, same, other = (
        pipe(2, num_steps=3, class_labels=one, generator=seed(0), output_type="np").images
        for one in (labels, [3, 3], [0, 0])
    )
    np.testing.assert_array_equal(images, same)
    assert np.abs(images - other).max() > 1e-3


def test_labels_reach_the_network_as_they_reach_a_stock_one(make_pipeline):
    pipe = make_pipeline(num_class_embeds=4)
    twin = stock(pipe)
    x, *_, last = pipe.states(2, num_steps=5, class_labels=[1, 2], generator=seed(0))
    generator = seed(0)
    torch.randn(x.shape, generator=generator)
    twin.scheduler.set_timesteps(5)
    for t in twin.scheduler.timesteps:
        with torch.no_grad():
            eps = twin.unet(x, t, class_labels=torch.tensor([1, 2])).sample
        x = twin.scheduler.step(eps, t, x, generator=generator).prev_sample
    torch.testing.assert_close(last, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("labels", "kind", "words"),
    [
        (None, ConfigError, r"must be given.*\[0, 3\]"), (4, ConfigError, r"in \[0, 3\], got 4"),
        (-1, ConfigError, r"in \[0, 3\], got -1"), ([1], ConfigError, "2"), (1.0, ConfigTypeError, "ints"),
        (True, ConfigTypeError, "ints"), ("cat", ConfigTypeError, "ints"),
    ],
)
def test_wrong_labels_are_refused_with_their_range(make_pipeline, labels, kind, words):
    with pytest.raises(kind, match="class_labels.*" + words):
        make_pipeline(num_class_embeds=4)(2, num_steps=3, class_labels=labels)


def test_labels_for_a_network_without_classes_are_refused(make_pipeline):
    with pytest.raises(ConfigError, match="class_labels must be None"):
        make_pipeline()(class_labels=1)


def test_points_of_the_plane_come_in_data_coordinates(plane_pipeline):
    x_0 = list(plane_pipeline.states(4, num_steps=5, generator=seed(0)))[-1]
    points = plane_pipeline(4, num_steps=5, generator=seed(0), output_type="np").images
    assert x_0.shape == points.shape == (4, 2)
    np.testing.assert_allclose(points, x_0.numpy() * [0.5, 3.0] + [1.0, -2.0], atol=1e-5, rtol=0)
    assert isinstance(plane_pipeline(1, num_steps=1, output_type="pt").images, torch.Tensor)
    assert isinstance(plane_pipeline(1, num_steps=1).images, np.ndarray)


def test_output_types_agree_with_each_other(make_pipeline):
    pipe = make_pipeline()
    pil, array, tensor = (
        pipe(2, num_steps=3, generator=seed(0), output_type=kind).images for kind in ("pil", "np", "pt")
    )
    assert [(type(image), image.mode, image.size) for image in pil] == [(Image.Image, "L", (8, 8))] * 2
    assert array.shape == (2, 8, 8, 1) and tensor.shape == (2, 1, 8, 8)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.stack([np.asarray(image) / 255 for image in pil]), array[..., 0], atol=0.6 / 255)


def test_a_tuple_comes_back_if_asked_for(make_pipeline):
    pipe = make_pipeline()
    (images,) = pipe(1, num_steps=2, generator=seed(0), output_type="np", return_dict=False)
    output = pipe(1, num_steps=2, generator=seed(0), output_type="np")
    assert isinstance(output, ImagePipelineOutput) and np.array_equal(images, output.images)


def test_the_progress_bar_counts_steps_and_can_be_switched_off(make_pipeline, capsys):
    pipe = make_pipeline()
    pipe(num_steps=4)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config()
    pipe(num_steps=4)
    assert "4/4" in capsys.readouterr().err


def test_a_unet_without_a_size_asks_for_one(make_pipeline):
    with pytest.raises(ConfigError, match="sample_size"):
        make_pipeline(sample_size=None)()


def test_the_plane_denoiser_takes_labels_too(make_pipeline):
    pipe = make_pipeline(unet=MLPDenoiser(num_class_embeds=2).eval())
    first, second = (pipe(8, num_steps=5, class_labels=label, generator=seed(0)).images for label in (0, 1))
    assert np.abs(first - second).max() > 1e-4
