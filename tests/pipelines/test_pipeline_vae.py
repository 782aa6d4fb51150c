"""The VAE's pipeline: latents in and out, ways through them, checked arguments, round trips, points of the plane."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from hfgen import AutoPipeline
from hfgen.errors import ConfigError, ConfigTypeError
from hfgen.images import from_pil, grid, to_pil
from hfgen.models.vae import VAE, HierarchicalVAE
from hfgen.pipelines.latents import slerp
from hfgen.pipelines.vae import VAEPipeline
from tests.helpers import seed

D = 3


def lively(net):
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    net.centre.normal_(std=0.1)
    return VAEPipeline(net.eval())


def make(**changes):
    return lively(VAE(**{"resolution": 8, "hidden": (10,), "latent_dim": D, **changes}))


def make_two():
    return lively(HierarchicalVAE(resolution=8, hidden=((10,), (5,)), latent_dims=(4, 2)))


def make_plane():
    return lively(VAE(dim=2, hidden=(10,), latent_dim=D, likelihood="gaussian", data_mean=[1.0, -2.0],
                      data_std=[0.5, 3.0]))  # fmt: skip


def unit(x):
    return (x / 2 + 0.5).clamp(0, 1)


def test_images_are_the_mean_of_p_at_the_normal_draw():
    pipe = make()
    output = pipe(3, generator=seed(0), output_type="pt")
    z = torch.randn(3, D, generator=seed(0))
    assert torch.equal(output.latents, z)
    with torch.no_grad():
        expected = pipe.vae.decode(z).sigmoid()
    torch.testing.assert_close(output.images, expected, atol=1e-6, rtol=0)
    (state,) = pipe.states(3, generator=seed(0))
    torch.testing.assert_close(state, expected * 2 - 1, atol=1e-6, rtol=0)
    assert not state.requires_grad and output.images.std() > 0.01


@pytest.mark.parametrize("pipe", [make(), make_two()], ids=["one layer", "two layers"])
def test_latents_that_came_out_make_the_same_images_again(pipe):
    images, latents = pipe(4, generator=seed(1), output_type="np", return_dict=False)
    assert images.shape == (4, 8, 8, 1) and latents.shape == (4, pipe.vae.latent_size)
    np.testing.assert_array_equal(pipe(latents=latents, output_type="np").images, images)


def test_output_types_agree_with_each_other():
    pipe = make(channels=3, resolution=(8, 16), body="conv")
    pil, array, tensor = (pipe(2, generator=seed(0), output_type=kind).images for kind in ("pil", "np", "pt"))
    assert [(type(image), image.mode, image.size) for image in pil] == [(Image.Image, "RGB", (16, 8))] * 2
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(np.stack([np.asarray(image) / 255 for image in pil]), array, atol=0.6 / 255)


def test_latents_of_an_image_do_not_depend_on_its_batch():
    pipe = make_two()
    together = pipe(3, generator=seed(5, 6, 7), output_type="pt")
    for i, value in enumerate((5, 6, 7)):
        alone = pipe(1, generator=[seed(value)], output_type="pt")
        assert torch.equal(together.latents[i], alone.latents[0])
        torch.testing.assert_close(together.images[i], alone.images[0], atol=1e-5, rtol=0)


def test_encoded_means_are_those_of_q_and_images_come_in_in_any_form():
    pipe = make()
    pictures = pipe(5, generator=seed(2)).images
    with torch.no_grad():
        mu, log_var = pipe.vae.encode(from_pil(pictures))
    torch.testing.assert_close(pipe.encode(pictures), mu, atol=1e-6, rtol=0)
    torch.testing.assert_close(pipe.encode(pictures, batch_size=2), mu, atol=1e-6, rtol=0)
    torch.testing.assert_close(pipe.encode(unit(from_pil(pictures))), mu, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe.encode(pictures[0]), mu[:1], atol=1e-6, rtol=0)
    larger = pictures[0].resize((16, 16), Image.Resampling.NEAREST)
    torch.testing.assert_close(pipe.encode([larger]), mu[:1], atol=1.0, rtol=0)
    z = pipe.encode(pictures[:1] * 4000, sample=True, generator=seed(3))
    standard = ((z - mu[0]) / (log_var[0] / 2).exp()).flatten().numpy()
    assert stats.kstest(standard, stats.norm.cdf).pvalue > 1e-3


def test_a_draw_of_an_image_does_not_depend_on_its_batch():
    pipe = make_two()
    pictures = pipe(3, generator=seed(2)).images
    together = pipe.encode(pictures, sample=True, generator=seed(5, 6, 7))
    for i, value in enumerate((5, 6, 7)):
        alone = pipe.encode(pictures[i], sample=True, generator=[seed(value)])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=0)
    assert (together - pipe.encode(pictures)).abs().min() > 1e-4


@pytest.mark.parametrize("pipe", [make(), make_two()], ids=["one layer", "two layers"])
def test_reconstructions_are_the_images_of_the_latents(pipe):
    pictures = pipe(4, generator=seed(2)).images
    output = pipe.reconstruct(pictures, output_type="pt", batch_size=3)
    torch.testing.assert_close(output.latents, pipe.encode(pictures), atol=1e-6, rtol=0)
    expected = pipe(latents=output.latents, output_type="pt").images
    torch.testing.assert_close(output.images, expected, atol=1e-6, rtol=0)
    assert output.images.std(0).max() > 0.01


def test_interpolation_is_the_great_circle_with_both_ends():
    pipe = make()
    a, b = torch.randn(D), torch.randn(1, D)
    output = pipe.interpolate(a, b, 5, output_type="pt")
    expected = slerp(a, b[0], torch.linspace(0, 1, 5, dtype=torch.float64))
    torch.testing.assert_close(output.latents, expected, atol=1e-6, rtol=0)
    ends = pipe(latents=torch.stack([a, b[0]]), output_type="pt").images
    torch.testing.assert_close(output.images[[0, 4]], ends, atol=1e-5, rtol=0)


def test_a_traversal_changes_one_latent_evenly_and_no_other():
    pipe, base = make(), torch.tensor([0.3, -0.2, 0.9])
    z = pipe.traverse(1, base, n=5, span=2.0, output_type="pt").latents
    assert z[:, 1].tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert torch.equal(z[:, [0, 2]], base[[0, 2]].expand(5, 2)) and base[1] == -0.2
    output = pipe.traverse(2, n=3)
    assert len(output.images) == 3 and output.latents[1].tolist() == [0.0, 0.0, 0.0]


def test_the_manifold_is_one_picture_of_equally_likely_cells_with_both_axes_in_order():
    pipe, n = make(latent_dim=2), 6
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    z = torch.tensor([[x, y] for y in quantiles[::-1] for x in quantiles], dtype=torch.float32)
    with torch.no_grad():
        expected = grid(to_pil(pipe.vae.decode(z).sigmoid() * 2 - 1), columns=n, padding=0)
    found = pipe.manifold(n)
    assert found.size == (n * 32, n * 32)
    np.testing.assert_allclose(np.asarray(found, int), np.asarray(expected, int), atol=1)
    with pytest.raises(ConfigError, match="manifold is for images of two latents, this model has 3"):
        make().manifold()


def test_a_model_of_classes_needs_them_everywhere_and_shows_them():
    pipe = make(num_classes=4, latent_dim=2)
    a, b = (pipe(2, labels, generator=seed(0), output_type="pt").images for labels in (0, [0, 3]))
    assert torch.equal(a[0], b[0]) and (a[1] - b[1]).abs().max() > 1e-3
    x = torch.rand(2, 1, 8, 8)
    assert (pipe.encode(x, 0) - pipe.encode(x, [1, 2])).abs().max() > 1e-3
    zeros = torch.zeros(2)
    for call in (lambda k: pipe(1, k), lambda k: pipe.encode(x, k), lambda k: pipe.reconstruct(x, k),
                 lambda k: pipe.interpolate(zeros, zeros + 1, 3, k), lambda k: pipe.traverse(0, class_labels=k),
                 lambda k: pipe.manifold(2, k)):  # fmt: skip
        call(1)
        for wrong, message in ((None, "class_labels must be given"), (4, r"class_labels must be in \[0, 3\]")):
            with pytest.raises(ConfigError, match=message):
                call(wrong)
    with pytest.raises(ConfigError, match="class_labels must be None"):
        make()(1, 0)


def test_points_go_in_and_come_out_in_data_coordinates():
    pipe = make_plane()
    points, _ = pipe(6, generator=seed(0), return_dict=False)
    (x_0,) = pipe.states(6, generator=seed(0))
    assert isinstance(points, np.ndarray) and points.shape == (6, 2)
    np.testing.assert_allclose(points, x_0.numpy() * [0.5, 3.0] + [1.0, -2.0], atol=1e-5, rtol=0)
    with torch.no_grad():
        mu, _ = pipe.vae.encode(x_0)
    torch.testing.assert_close(pipe.encode(torch.from_numpy(points)), mu, atol=1e-5, rtol=0)
    again = pipe.reconstruct(torch.from_numpy(points), output_type="pt")
    torch.testing.assert_close(again.images, pipe(latents=mu, output_type="pt").images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["one layer", "two layers", "plane", "classes", "flow"])
def test_the_saved_folder_loads_again_bit_for_bit(kind, tmp_path):
    pipe = {"one layer": make, "two layers": make_two, "plane": make_plane,
            "classes": lambda: make(num_classes=3, body="conv"),
            "flow": lambda: make(posterior="inverse_autoregressive", flow_width=8)}[kind]()  # fmt: skip
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "VAEPipeline"]
    assert index["vae"] == ["hfgen_shim", "HierarchicalVAE" if kind == "two layers" else "VAE"]
    labels = 1 if kind == "classes" else None
    expected = pipe(3, labels, generator=seed(0), output_type="pt").images
    for loader in (AutoPipeline, VAEPipeline):
        loaded = loader.from_pretrained(tmp_path / "model")
        assert isinstance(loaded, VAEPipeline)
        assert torch.equal(loaded(3, labels, generator=seed(0), output_type="pt").images, expected)
        given = torch.randn(2, 2) if kind == "plane" else torch.rand(2, 1, 8, 8)
        assert torch.equal(loaded.encode(given, labels), pipe.encode(given, labels))
    half = AutoPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    images = half(3, labels, generator=seed(0), output_type="pt").images
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=0.2, rtol=0)
    torch.testing.assert_close(half.encode(given, labels), pipe.encode(given, labels), atol=0.2, rtol=0)


@pytest.mark.parametrize("wrong", [0, 2, 1.5, "1", True])
def test_only_one_step_can_be_asked_for(wrong):
    for call in (make(), make().states):
        with pytest.raises(ConfigError) as caught:
            call(num_steps=wrong)
        assert str(caught.value) == f"num_steps must be an int in [1, 1], got {wrong!r}"
    assert len(list(make().states(num_steps=None))) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(0), "batch_size must be an int >= 1"),
        (lambda p: p(output_type="jpg"), "output_type must be one of"),
        (lambda p: p(latents=torch.zeros(2, 4)), r"latents must have shape \(B, 3\), got \[2, 4\]"),
        (lambda p: p(latents=torch.zeros(0, 3)), r"latents must have shape"),
        (lambda p: p(3, latents=torch.zeros(2, 3)), "batch_size must be 2, the number of latents"),
        (lambda p: p(2, generator=[seed(0)]), "generator is a list of 1"),
        (lambda p: p.interpolate(torch.zeros(4), torch.zeros(3), 3), r"a must be a tensor of floats \(3,\)"),
        (lambda p: p.interpolate(torch.zeros(3), torch.zeros(3), 1), "n must be an int >= 2"),
        (lambda p: p.traverse(3), r"dim must be an int in \[0, 2\]"),
        (lambda p: p.traverse(0, torch.zeros(2, 3)), "latents must be a tensor of floats"),
        (lambda p: p.encode(torch.rand(2, 8, 8)), r"images must be \(B, C, H, W\)"),
        (lambda p: p.encode([]), "at least one image"),
        (lambda p: p.encode(torch.rand(2, 1, 8, 8), generator=seed(0)), "generator must be None if sample is False"),
        (lambda p: p.reconstruct(torch.rand(2, 1, 8, 8), output_type="x"), "output_type must be"),
        (lambda p: p.reconstruct(torch.rand(2, 1, 8, 8), batch_size=0), "batch_size must be an int >= 1"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(call, message):
    with pytest.raises(ConfigError, match=message):
        call(make())


@pytest.mark.parametrize("wrong", [[0.0] * 3, torch.zeros(2, 3, dtype=torch.long), "z"])
def test_latents_of_another_type_are_type_errors(wrong):
    with pytest.raises(ConfigTypeError, match="latents must be a tensor of floats"):
        make()(latents=wrong)
    with pytest.raises(ConfigTypeError, match="images must be PIL images, a float tensor"):
        make().encode([1, 2])
