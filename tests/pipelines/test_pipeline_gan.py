"""The GAN pipeline: latents in and out, truncation, checked arguments, round trips, points of the plane."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from hfgen import AutoPipeline, DCGANGenerator, GANPipeline, MLPGenerator
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.pipelines.latents import slerp
from hfgen.registry import SHIM
from tests.helpers import seed

D = 6


def make(**changes):
    """Return a pipeline of a tiny generator in evaluation mode: its images differ, its statistics are not a start's."""
    net = DCGANGenerator(**{"resolution": 8, "channels": 1, "width": 4, "latent_dim": D, **changes})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    net(torch.randn(64, D), *([torch.arange(64) % changes["num_classes"]] if "num_classes" in changes else []))
    return GANPipeline(net.eval())


def make_plane(**changes):
    """Return a pipeline for points, whose data have a mean and a standard deviation."""
    net = MLPGenerator(hidden=8, latent_dim=D, data_mean=[1.0, -2.0], data_std=[0.5, 3.0], **changes)
    return GANPipeline(net.eval())


def test_images_are_what_the_network_makes_of_the_normal_draw():
    pipe = make()
    output = pipe(3, generator=seed(0), output_type="pt")
    z = torch.randn(3, D, generator=seed(0))
    assert torch.equal(output.latents, z)
    with torch.no_grad():
        expected = pipe.generator(z).sample
    assert torch.equal(output.images, (expected / 2 + 0.5).clamp(0, 1))
    (state,) = pipe.states(3, generator=seed(0))
    assert torch.equal(state, expected) and not state.requires_grad


def test_latents_that_came_out_make_the_same_images_again():
    pipe = make()
    images, latents = pipe(4, generator=seed(1), output_type="np", return_dict=False)
    again = pipe(latents=latents, output_type="np")
    assert images.shape == (4, 8, 8, 1) and images.std() > 0.01
    np.testing.assert_array_equal(again.images, images)
    assert torch.equal(again.latents, latents)


def test_output_types_agree_with_each_other():
    pipe = make(channels=3, resolution=(8, 16))
    pil, array, tensor = (pipe(2, generator=seed(0), output_type=kind).images for kind in ("pil", "np", "pt"))
    assert [(type(image), image.mode, image.size) for image in pil] == [(Image.Image, "RGB", (16, 8))] * 2
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.stack([np.asarray(image) / 255 for image in pil]), array, atol=0.6 / 255)


@pytest.mark.parametrize("truncation", [None, 0.8])
def test_latents_of_an_image_do_not_depend_on_its_batch(truncation):
    pipe = make()
    together = pipe(3, truncation=truncation, generator=seed(5, 6, 7), output_type="pt")
    for i, value in enumerate((5, 6, 7)):
        alone = pipe(1, truncation=truncation, generator=[seed(value)], output_type="pt")
        assert torch.equal(together.latents[i], alone.latents[0])
        torch.testing.assert_close(together.images[i], alone.images[0], atol=1e-5, rtol=0)


def test_truncated_latents_are_those_of_the_same_draw_inside_the_limit():
    pipe = make_plane()
    free = pipe(4000, generator=seed(2), output_type="pt").latents
    cut = pipe(4000, truncation=0.5, generator=seed(2), output_type="pt").latents
    assert cut.abs().max() <= 0.5
    assert stats.kstest(cut.flatten().numpy(), stats.truncnorm(-0.5, 0.5).cdf).pvalue > 1e-3
    order = free.flatten().argsort()
    assert (cut.flatten()[order].diff() >= 0).all()
    wide = pipe(4000, truncation=20.0, generator=seed(2), output_type="pt").latents
    torch.testing.assert_close(wide, free, atol=1e-6, rtol=0)


def test_batch_statistics_stay_as_they_were_whatever_the_mode_of_the_network():
    pipe = make()
    expected = pipe(4, generator=seed(0), output_type="pt").images
    before = {key: tensor.clone() for key, tensor in pipe.generator.state_dict().items()}
    pipe.generator.train()
    assert torch.equal(pipe(4, generator=seed(0), output_type="pt").images, expected)
    assert all(part.training for part in pipe.generator.modules())
    assert all(torch.equal(before[key], tensor) for key, tensor in pipe.generator.state_dict().items())


@pytest.mark.parametrize("labels", [2, [2, 2], torch.tensor([2, 2]), np.array([2, 2])])
def test_one_label_serves_the_whole_batch(labels):
    pipe = make(num_classes=3)
    images = pipe(2, labels, generator=seed(0), output_type="pt").images
    with torch.no_grad():
        expected = pipe.generator(torch.randn(2, D, generator=seed(0)), torch.tensor([2, 2])).sample
    assert torch.equal(images, (expected / 2 + 0.5).clamp(0, 1))
    assert (images - pipe(2, 0, generator=seed(0), output_type="pt").images).abs().max() > 1e-3


def test_points_of_the_plane_come_in_data_coordinates():
    pipe = make_plane()
    (x_0,) = pipe.states(5, generator=seed(0))
    points = pipe(5, generator=seed(0)).images
    assert isinstance(points, np.ndarray) and points.shape == (5, 2)
    np.testing.assert_allclose(points, x_0.numpy() * [0.5, 3.0] + [1.0, -2.0], atol=1e-6, rtol=0)
    assert isinstance(pipe(1, output_type="pt").images, torch.Tensor)


@pytest.mark.parametrize("wrong", [0, 2, -1, 1.5, "1", True])
def test_only_one_step_can_be_asked_for(wrong):
    for call in (make(), make().states):
        with pytest.raises(ConfigError) as caught:
            call(num_steps=wrong)
        assert str(caught.value) == f"num_steps must be an int in [1, 1], got {wrong!r}"
    assert len(list(make().states(num_steps=None))) == len(list(make().states(num_steps=1))) == 1


@pytest.mark.parametrize(
    ("argument", "wrong", "kind"),
    [
        ("batch_size", 0, ValueError), ("batch_size", 1.5, TypeError), ("output_type", "jpg", ValueError),
        ("generator", 3, TypeError), ("generator", [torch.Generator()] * 3, ValueError),
        ("truncation", 0, ValueError), ("truncation", -1.0, ValueError), ("truncation", float("nan"), ValueError),
        ("truncation", float("inf"), ValueError), ("truncation", "0.5", TypeError), ("truncation", True, TypeError),
        ("latents", torch.zeros(2, D + 1), ValueError), ("latents", torch.zeros(D), ValueError),
        ("latents", torch.zeros(0, D), ValueError), ("latents", torch.zeros(2, D, dtype=torch.int64), TypeError),
        ("latents", np.zeros((2, D)), TypeError), ("latents", torch.zeros(3, D), ValueError),
        ("class_labels", 1, ValueError),
    ],
)
def test_wrong_arguments_are_named(argument, wrong, kind):
    with pytest.raises(kind, match=argument) as caught:
        make()(**{"batch_size": 2, argument: wrong})
    assert isinstance(caught.value, ConfigError)


def test_latents_decide_the_batch_and_take_no_truncation():
    pipe, z = make(), torch.randn(3, D)
    assert len(pipe(latents=z).images) == len(pipe(3, latents=z).images) == 3
    with pytest.raises(ConfigError, match="truncation"):
        pipe(latents=z, truncation=1.0)
    with pytest.raises(ConfigError, match="generator is a list of 1"):
        pipe(latents=z, generator=[seed(0)])


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(None, ConfigError), (3, ConfigError), (-1, ConfigError), ([1], ConfigError), (1.0, ConfigTypeError),
     ("cat", ConfigTypeError)],
)
def test_wrong_labels_are_refused(labels, kind):
    with pytest.raises(kind, match="class_labels"):
        make(num_classes=3)(2, labels)


@pytest.mark.parametrize("shape", [(D,), (1, D)])
def test_interpolation_walks_on_the_great_circle_and_ends_at_both_ends(shape):
    pipe = make(num_classes=2)
    a, b = torch.randn(shape), torch.randn(shape)
    output = pipe.interpolate(a, b, 5, class_labels=1, output_type="pt")
    torch.testing.assert_close(output.latents, slerp(a.flatten(), b.flatten(), torch.linspace(0, 1, 5)),
                               atol=1e-6, rtol=0)
    assert torch.equal(output.latents[[0, -1]], torch.stack([a.flatten(), b.flatten()]))
    expected = pipe(latents=output.latents, class_labels=1, output_type="pt").images
    assert torch.equal(output.images, expected)
    images, latents = pipe.interpolate(a, b, 2, class_labels=[0, 1], return_dict=False)
    assert len(images) == len(latents) == 2


@pytest.mark.parametrize(("a", "n", "words"), [(torch.zeros(D), 1, "n must be"), (torch.zeros(2, D), 3, "a must be"),
                                               (torch.zeros(D + 1), 3, "a must be"), ([0.0] * D, 3, "a must be")])
def test_interpolation_checks_its_ends_and_their_number(a, n, words):
    with pytest.raises(ConfigError, match=words):
        make().interpolate(a, torch.zeros(D), n)


def test_arithmetic_on_latents_is_arithmetic_on_what_they_make():
    pipe = make_plane(layers=1)
    for name, parameter in pipe.generator.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.constant_(parameter, 20.0)                           # LeakyReLU never leaks: G is affine
    groups = [pipe(8, generator=seed(k), output_type="pt") for k in range(3)]
    a, b, c = (group.latents.mean(dim=0) for group in groups)
    made = pipe(latents=(a - b + c)[None], output_type="pt").images[0]
    means = [group.images.mean(dim=0) for group in groups]
    torch.testing.assert_close(made, means[0] - means[1] + means[2], atol=1e-3, rtol=0)
    assert (made - means[0]).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_directions_without_labels_are_those_that_the_first_layer_stretches_most(norm):
    pipe = make(norm=norm)
    first = next(part for part in pipe.generator.modules() if isinstance(part, torch.nn.ConvTranspose2d))
    with torch.no_grad():
        stretch = pipe.generator.first_layer()
        directions = pipe.find_directions(3)
        expected = torch.linalg.svd(stretch).Vh[:3]
        base, moved = (first(z[:, :, None, None]).flatten(1) for z in (torch.zeros(3, D), directions))
    torch.testing.assert_close((directions * expected).sum(dim=1).abs(), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close((moved - base).norm(dim=1), torch.linalg.svdvals(stretch)[:3], atol=1e-5, rtol=0)
    assert make(num_classes=3).find_directions().shape == (D, D)


def test_directions_of_labelled_latents_lead_from_class_to_class():
    pipe = make()
    z = torch.randn(2000, D)
    down, up = pipe.find_directions(latents=z, labels=(z[:, 2] > 0).long())
    assert up[2] > 0.99 and down[2] < -0.99
    edited = pipe.edit(z, 10 * up, 4.0)
    assert (edited[:, 2] > 0).float().mean() > 0.99
    torch.testing.assert_close(edited, z + 4.0 * up, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n must be"), ({"n": D + 1}, "n must be"), ({"latents": torch.zeros(2, D)}, "latents and labels"),
        ({"labels": torch.zeros(2)}, "latents and labels"),
        ({"n": 1, "latents": torch.zeros(2, D), "labels": torch.tensor([0, 1])}, "n alone"),
        ({"latents": torch.zeros(2, D), "labels": torch.zeros(2)}, "labels must be 2 ints"),
        ({"latents": torch.zeros(2, D), "labels": torch.tensor([0, 1, 0])}, "labels must be 2 ints"),
        ({"latents": torch.zeros(2, D), "labels": [1, 1]}, "two classes"),
    ],
)
def test_find_directions_checks_its_arguments(arguments, words):
    with pytest.raises(ConfigError, match=words):
        make().find_directions(**arguments)


@pytest.mark.parametrize("loader", [GANPipeline, AutoPipeline])
@pytest.mark.parametrize("kind", ["image", "conditional", "spectral", "layer", "plane"])
def test_a_round_trip_keeps_every_bit(tmp_path, loader, kind):
    changes = {"conditional": {"num_classes": 3}, "spectral": {"norm": "spectral"}, "layer": {"norm": "layer"}}
    pipe = make_plane() if kind == "plane" else make(**changes.get(kind, {}))
    pipe.save_pretrained(tmp_path / "saved")
    again = loader.from_pretrained(tmp_path / "saved")
    labels = {"class_labels": 1} if kind == "conditional" else {}
    before, after = (one(4, generator=seed(0), output_type="np", **labels) for one in (pipe, again))
    assert type(again) is GANPipeline and not again.generator.training
    np.testing.assert_array_equal(after.images, before.images)
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    name = type(pipe.generator).__name__
    assert index["_class_name"] == ["pipeline", "GANPipeline"] and index["generator"] == [SHIM, name]
    assert {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*.*")} == {
        "model_index.json", "pipeline.py", "generator/config.json", f"generator/{SHIM}.py",
        "generator/diffusion_pytorch_model.safetensors",
    }


def test_stock_diffusers_runs_a_saved_folder_through_the_shims(python, tmp_path):
    pipe = make()
    pipe.save_pretrained(tmp_path / "saved")
    program = """
        import sys, numpy as np, torch, diffusers
        pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
        assert type(pipe).__name__ == "GANPipeline" and type(pipe).__module__ == "hfgen.pipelines.gan"
        images = pipe(2, generator=torch.Generator().manual_seed(0), output_type="np").images
        np.save(sys.argv[1] + "/images.npy", images)
    """
    result = python(program, tmp_path / "saved")
    assert result.returncode == 0, result.stderr
    images = pipe(2, generator=seed(0), output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "saved/images.npy"), images, atol=1e-6, rtol=0)


def test_half_precision_draws_the_same_latents(tmp_path):
    pipe = make()
    pipe.save_pretrained(tmp_path / "saved")
    half = GANPipeline.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    output, expected = (one(2, generator=seed(0), output_type="np") for one in (half, pipe))
    assert half.generator.dtype == torch.bfloat16 and torch.equal(output.latents, expected.latents)
    np.testing.assert_allclose(output.images, expected.images, atol=0.05, rtol=0)
    assert load_file(tmp_path / "saved/generator/diffusion_pytorch_model.safetensors")


def test_a_compiled_generator_makes_the_same_points():
    pipe = make_plane()
    expected = pipe(3, generator=seed(0)).images
    pipe.generator = torch.compile(pipe.generator, backend="eager")
    np.testing.assert_allclose(pipe(3, generator=seed(0)).images, expected, atol=1e-5, rtol=0)
