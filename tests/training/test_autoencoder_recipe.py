"""The autoencoder's recipe: what it restores, its penalties and corruptions, exactness, and what it refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.metrics.reconstruction import psnr
from hfgen.training import autoencoder
from hfgen.training.autoencoder import RECIPE, AutoencoderSettings, corrupted, corrupted_chunks, patches
from hfgen.training.engine.noise import Noise
from hfgen.training.settings.autoencoder import recommended
from tests.training import runs

TINY = "--dataset digits --hidden 64 --latent-dim 16 --log-every 50 --warmup-steps 5 --save-every 0 --threads 1".split()
train = partial(runs.train_here, "autoencoder", words=TINY)
HELD_OUT = ["--split", "train[:80%]", "--eval-split", "train[80%:]"]


def settings_of(**fields):
    return AutoencoderSettings(output_dir="unused", hidden=(8,), latent_dim=4, **fields)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "denoiser"
    words = ["--corruption", "gaussian", "--max-steps", "500", "--sample-every", "200", "--learning-rate", "5e-3"]
    return folder, train(folder, *HELD_OUT, *words, "--hidden", "256")


def test_a_short_run_takes_noise_out_of_digits_that_it_never_saw(denoiser):
    folder, log = denoiser
    pipe, truth = AutoPipeline.from_pretrained(folder), load_dataset("digits", split="train[80%:]").tensor()
    s = recommended(settings_of(corruption="gaussian"), load_dataset("digits"))
    x, noisy, _ = next(corrupted_chunks(load_dataset("digits", split="train[80%:]"), s))
    assert torch.equal(x, truth)
    restored = pipe.denoise(noisy / 2 + 0.5, output_type="pt").images * 2 - 1
    assert psnr(restored, truth) > psnr(noisy, truth) + 6
    assert log[-1]["eval_psnr"] == pytest.approx(psnr(restored, truth), abs=1e-3)
    assert log[-1]["eval_psnr_corrupted"] == pytest.approx(psnr(noisy, truth), abs=1e-3)
    assert psnr(noisy, truth) == pytest.approx(10 * np.log10(4 / 0.64), abs=0.1)         # sigma = 0.8


def test_the_evaluation_is_logged_where_a_grid_is_drawn(denoiser):
    folder, log = denoiser
    assert [line["step"] for line in log if "eval_psnr" in line] == [200, 400, 500]
    assert len({line["eval_psnr_corrupted"] for line in log if "eval_psnr" in line}) == 1
    drawn = np.asarray(Image.open(folder / "samples" / "step-00000500.png"))
    assert drawn.shape == (3 * 34 + 2, 16 * 34 + 2)                    # true, corrupted and restored images
    truth = load_dataset("digits", split="train[80%:]").tensor(16)
    first_row = torch.from_numpy(drawn[2:34:4, 2:].copy())             # each pixel is drawn 4x4, behind a border of 2
    for i, image in enumerate(truth):
        expected = image[0].add(1).mul(127.5)
        torch.testing.assert_close(first_row[:, 34 * i : 34 * i + 32 : 4].float(), expected, atol=1.0, rtol=0)


def test_missing_patches_are_completed_better_than_with_grey_and_the_rest_is_kept(tmp_path):
    log = train(tmp_path / "run", *HELD_OUT, "--corruption", "patch", "--max-steps", "400", "--learning-rate", "5e-3")
    pipe, held_out = AutoPipeline.from_pretrained(tmp_path / "run"), load_dataset("digits", split="train[80%:]")
    s = recommended(settings_of(corruption="patch"), held_out)
    x, _, missing = next(corrupted_chunks(held_out, s))
    done = pipe.complete(x / 2 + 0.5, missing, output_type="pt").images * 2 - 1
    assert log[-1]["eval_psnr"] == pytest.approx(psnr(done, x), abs=1e-3)
    assert log[-1]["eval_psnr"] > log[-1]["eval_psnr_corrupted"] + 3
    torch.testing.assert_close(done[~missing], x[~missing], atol=1e-6, rtol=0)


def test_a_plain_run_reconstructs_better_than_the_mean_image(tmp_path):
    log = train(tmp_path / "run", *HELD_OUT, "--max-steps", "200", "--learning-rate", "5e-3")
    held_out = load_dataset("digits", split="train[80%:]").tensor()
    assert log[-1]["eval_psnr"] > psnr(held_out.mean(0).expand_as(held_out), held_out) + 4
    assert "eval_psnr_corrupted" not in log[-1]


@pytest.mark.parametrize("tied", [(), ("--tied",)])
def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(tmp_path, tied):
    words = ["--lr-schedule", "constant", "--sample-every", "0", "--corruption", "salt_pepper", "--log-every", "1"]
    words += ["--sparsity", "kl", "--weight-penalty", "1e-4", *tied]
    whole = train(tmp_path / "a", *words, "--max-steps", "6")
    train(tmp_path / "b", *words, "--max-steps", "3")
    parts = train(tmp_path / "b", *words, "--max-steps", "6", "--resume")
    assert parts == whole
    a, b = (AutoPipeline.from_pretrained(tmp_path / run).autoencoder.state_dict() for run in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("corruption", ["none", "gaussian", "salt_pepper", "patch"])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts_each_corrupted_as_in_the_whole(corruption):
    dataset = load_dataset("digits")
    recipe = RECIPE.create(settings_of(corruption=corruption, sparsity="l1", weight_penalty=0.1), dataset)
    batch, loss = next(dataset.batches(seed=0, batch_size=12)), recipe.phases[0].loss
    whole, _ = loss(recipe.nets, batch, Noise((0, 0), 12, slice(0, 12)), {})
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    means = [loss(recipe.nets, {"x": batch["x"][part]}, Noise((0, 0), 12, part), {})[0] for part in parts]
    torch.testing.assert_close(torch.stack(means).mean(), whole, atol=1e-5, rtol=0)


def test_the_penalties_are_those_of_their_formulas():
    dataset = load_dataset("digits")
    x = next(dataset.batches(seed=0, batch_size=16))["x"]

    def parts(**fields):
        torch.manual_seed(1)
        recipe = RECIPE.create(settings_of(**fields), dataset)
        net = recipe.nets["autoencoder"]
        total, scalars = recipe.phases[0].loss(recipe.nets, {"x": x}, Noise((0, 0), 16, slice(0, 16)), {})
        torch.testing.assert_close(scalars["loss"], (net(x).sample.detach() - x).square().mean(), atol=1e-6, rtol=0)
        return net.requires_grad_(False), float(total.detach() - scalars["loss"])

    assert parts()[1] == 0
    net, added = parts(weight_penalty=0.01)
    weights = [layer.weight for layer in net.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(weights) == 4
    assert added == pytest.approx(0.01 * float(sum(w.square().sum() for w in weights)), abs=1e-5)
    net, added = parts(sparsity="l1", sparsity_weight=0.5)
    assert added == pytest.approx(0.5 * float(net.encode(x).abs().mean()), abs=1e-6)
    net, added = parts(sparsity="kl", sparsity_weight=0.5, sparsity_rate=0.1)
    rates = torch.distributions.Bernoulli(net.encode(x).mean(0)), torch.distributions.Bernoulli(torch.full((4,), 0.1))
    assert added == pytest.approx(0.5 * float(torch.distributions.kl_divergence(rates[1], rates[0]).sum()), abs=1e-5)


def test_the_penalty_of_the_rate_makes_codes_as_active_as_it_says(tmp_path):
    words = ["--max-steps", "300", "--learning-rate", "1e-2", "--log-every", "300", "--code-activation", "sigmoid"]
    free = train(tmp_path / "free", *words)
    sparse = train(tmp_path / "sparse", *words, "--sparsity", "kl", "--sparsity-weight", "1", "--sparsity-rate", "0.1")
    codes = AutoPipeline.from_pretrained(tmp_path / "sparse").encode(load_dataset("digits").tensor() / 2 + 0.5)
    assert (codes.mean(0) - 0.1).abs().max() < 0.03
    assert sparse[-1]["activity"] < 0.2 < 0.3 < free[-1]["activity"]


def test_gaussian_and_salt_and_pepper_noise_have_their_levels():
    x, noise = torch.zeros(2000, 3, 8, 8), Noise((0, 0), 2000, slice(None))
    noisy = corrupted(x, noise, "gaussian", 0.7)
    assert abs(float(noisy.std()) - 0.7) < 0.005 and abs(float(noisy.mean())) < 0.005
    peppered = corrupted(x, noise, "salt_pepper", 0.3)
    assert abs(float((peppered == 1).float().mean()) - 0.15) < 0.005
    assert abs(float((peppered == -1).float().mean()) - 0.15) < 0.005
    assert set(peppered.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert torch.equal(peppered[:, 0], peppered[:, 2])
    assert corrupted(x, noise, "none", 0.0) is x


def test_patches_are_boxes_of_one_size_at_all_places_equally_often():
    noise = Noise((0, 0), 20_000, slice(None))
    missing = patches(noise, 8, 12, 0.4)[:, 0]                         # 3 x 5 of 8 x 12
    assert (missing.sum((1, 2)) == 15).all()
    assert (missing.any(2).sum(1) == 3).all() and (missing.any(1).sum(1) == 5).all()
    first = missing.any(2).int().argmax(1) * 8 + missing.any(1).int().argmax(1)
    shares = torch.bincount(first, minlength=48) / 20_000
    torch.testing.assert_close(shares, torch.full((48,), 1 / 48), atol=0.006, rtol=0)
    x = torch.rand(20_000, 1, 8, 12) + 0.1
    assert torch.equal(corrupted(x, noise, "patch", 0.4)[:, 0] == 0, missing)


def test_evaluation_sees_every_image_once_with_its_own_noise():
    dataset = load_dataset("digits", split="train[:1100]")             # two whole chunks and a short one
    s = recommended(settings_of(corruption="gaussian"), dataset)
    xs, noisy, _ = (torch.cat(some) for some in zip(*corrupted_chunks(dataset, s), strict=True))
    assert torch.equal(xs, dataset.tensor())
    assert len((noisy - xs).flatten(1).unique(dim=0)) == 1100
    again = torch.cat([chunk[1] for chunk in corrupted_chunks(dataset, s)])
    assert torch.equal(again, noisy)
    net = RECIPE.create(s, dataset).nets["autoencoder"]
    with torch.no_grad():
        expected = psnr(net(noisy).sample, xs)
    assert autoencoder.evaluate(net, dataset, s)["eval_psnr"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_penalty": -1.0}, "--weight-penalty must not be negative"),
        ({"sparsity_weight": -1.0}, "--sparsity-weight must not be negative"),
        ({"sparsity_rate": 1.0}, "--sparsity-rate must be between 0 and 1"),
        ({"sparsity": "kl", "code_activation": "relu"}, "--sparsity kl needs rates .* got relu"),
        ({"corruption_level": 0.5}, "--corruption-level 0.5 needs --corruption"),
        ({"corruption": "patch", "corruption_level": 1.5}, "--corruption-level must be above 0 and at most 1 for"),
        ({"corruption": "gaussian", "corruption_level": 0.0}, "--corruption-level must be above 0"),
        ({"body": "conv", "hidden": (4, 4, 4, 4)}, "resolution must be divisible by 16"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        RECIPE.create(AutoencoderSettings(output_dir="unused", **fields), load_dataset("digits"))


@pytest.mark.parametrize(
    ("sides", "body", "hidden"),
    [
        ((8, 8), "mlp", (1024,)),
        ((28, 28), "conv", (32, 64)),
        ((32, 48), "conv", (32, 64, 128)),
        ((31, 32), "mlp", (1024, 512)),
    ],
)
def test_the_recommended_network_fits_the_sides_of_the_images(sides, body, hidden, tmp_path):
    Image.new("RGB", sides[::-1]).save(tmp_path / "image.png")
    dataset = load_dataset(tmp_path, channels=3)
    chosen = recommended(AutoencoderSettings(output_dir="unused"), dataset)
    assert (chosen.body, chosen.hidden) == (body, hidden)
    net = RECIPE.create(AutoencoderSettings(output_dir="unused"), dataset).nets["autoencoder"]
    assert net(dataset.tensor()).sample.shape == (1, 3, *sides)


def test_drawn_shapes_are_completed_too(tmp_path):
    words = ["--dataset", "shapes", "--resolution", "16", "--eval-split", "test[:64]", "--corruption", "patch"]
    log = train(tmp_path / "run", *words, "--body", "conv", "--hidden", "8", "16", "--max-steps", "30")
    assert log[-1]["eval_psnr"] > log[-1]["eval_psnr_corrupted"]
    assert AutoPipeline.from_pretrained(tmp_path / "run").autoencoder.config.channels == 3


def test_points_are_refused():
    with pytest.raises(ConfigError, match="--dataset ring8: an autoencoder is for images, these are points"):
        RECIPE.create(AutoencoderSettings(output_dir="unused", dataset="ring8"), load_dataset("ring8"))


def test_a_linear_tied_autoencoder_ends_in_the_subspace_of_the_principal_components(tmp_path):
    """The optimum of D = E^T spans the principal subspace, and its error is that of PCA (Baldi and Hornik 1989)."""
    words = "--dataset digits --tied --output-activation linear --hidden --latent-dim 3"
    rest = "--batch-size 1797 --max-steps 600 --learning-rate 5e-2 --ema-decay 0 --warmup-steps 5 --save-every 0"
    train(tmp_path, words=[*words.split(), *rest.split(), *"--sample-every 0 --threads 1".split()])
    pipeline = AutoPipeline.from_pretrained(tmp_path)
    net, x = pipeline.autoencoder, load_dataset("digits").tensor()
    weight = net.encoder[1].weight.detach().double().numpy()                 # (3, 64)
    pca = PCA(3).fit(x.flatten(1).double().numpy())
    cosines = np.linalg.svd(np.linalg.qr(weight.T)[0].T @ pca.components_.T)[1]
    assert cosines.min() > 0.999                                             # of the angles of the two subspaces
    error = float((net(x).sample - x).detach().double().square().mean())
    best = np.square(pca.inverse_transform(pca.transform(x.flatten(1).double().numpy())) - x.flatten(1).numpy()).mean()
    assert error == pytest.approx(best, rel=1e-3)
