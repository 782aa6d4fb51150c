"""The classifier's recipe: what it learns, what it logs, its augmentation, and what it refuses."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import hfgen
from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.training.classifier import RECIPE, ClassifierSettings, evaluate, shifted
from hfgen.training.engine.noise import Noise
from tests.training import runs

TINY = "--dataset digits --log-every 10 --warmup-steps 5 --save-every 0 --threads 1".split()
train = partial(runs.train_here, "classifier", words=TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reader"
    words = ["--split", "train[:80%]", "--eval-split", "train[80%:]", "--max-steps", "250", "--sample-every", "100"]
    return folder, train(folder, *words, "--width", "16", "--learning-rate", "5e-3")


def test_a_short_run_reads_the_digits_that_it_never_saw(trained):
    folder, log = trained
    held_out = load_dataset("digits", split="train[80%:]")
    seen = AutoPipeline.from_pretrained(folder)(held_out.tensor() / 2 + 0.5)
    accuracy = float((seen.labels == held_out.labels()).float().mean())
    assert accuracy > 0.93                                             # chance is 0.1; longer runs reach 0.98
    assert log[-1]["eval_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    nats = -seen.probabilities.gather(1, held_out.labels()[:, None]).log().mean()
    assert log[-1]["eval_loss"] == pytest.approx(float(nats), abs=1e-4)
    assert seen.names[0] == str(int(seen.labels[0]))


def test_loss_and_accuracy_are_logged_and_the_evaluation_where_a_grid_is_drawn(trained):
    folder, log = trained
    assert log[0]["accuracy"] < 0.6 < 0.9 < log[-1]["accuracy"] and log[0]["loss"] > log[-1]["loss"]
    assert [line["step"] for line in log if "eval_accuracy" in line] == [100, 200, 250]
    drawn = sorted(path.name for path in (folder / "samples").iterdir())
    assert drawn == [f"step-{step:08d}.png" for step in (100, 200, 250)]


def test_the_grid_shows_the_images_that_the_classifier_is_least_sure_of(trained):
    folder, _ = trained
    held_out = load_dataset("digits", split="train[80%:]")
    sure = AutoPipeline.from_pretrained(folder)(held_out.tensor() / 2 + 0.5).probabilities.max(1).values
    expected = held_out.tensor()[sure.argmin()][0].add(1).mul(127.5)
    drawn = np.asarray(Image.open(folder / "samples" / "step-00000250.png"))
    first = torch.from_numpy(drawn[2:34:4, 2:34:4].copy()).float()     # each pixel is drawn 4x4, behind a border of 2
    torch.testing.assert_close(first, expected, atol=1.0, rtol=0)


def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(tmp_path):
    words = ["--lr-schedule", "constant", "--sample-every", "0", "--dropout", "0.2", "--log-every", "1"]
    whole = train(tmp_path / "a", *words, "--max-steps", "6")
    train(tmp_path / "b", *words, "--max-steps", "3")
    parts = train(tmp_path / "b", *words, "--max-steps", "6", "--resume")
    assert parts == whole
    a, b = (AutoPipeline.from_pretrained(tmp_path / run).classifier.state_dict() for run in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_shifted_images_are_rolled_ones_with_the_border_repeated():
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    down, right = torch.tensor([1, -2]), torch.tensor([-1, 0])
    moved = shifted(x, down, right)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                row, column = min(max(i - int(down[b]), 0), 3), min(max(j - int(right[b]), 0), 4)
                assert torch.equal(moved[b, :, i, j], x[b, :, row, column])


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_each_shifted_as_in_the_whole():
    dataset = load_dataset("digits")
    recipe = RECIPE.create(ClassifierSettings(output_dir="unused", width=4, max_shift=2), dataset)
    batch = next(dataset.batches(seed=0, batch_size=12))
    loss = recipe.phases[0].loss
    whole, _ = loss(recipe.nets, batch, Noise((0, 0), 12, slice(0, 12)), {})
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    batches = [{key: value[part] for key, value in batch.items()} for part in parts]
    noises = [Noise((0, 0), 12, part) for part in parts]
    means = [loss(recipe.nets, part, noise, {})[0] for part, noise in zip(batches, noises, strict=True)]
    torch.testing.assert_close(torch.stack(means).mean(), whole, atol=1e-6, rtol=0)


def test_every_shift_up_to_the_largest_is_drawn_and_equally_often():
    draws = (Noise((0, 0), 50_000, slice(None)).uniform("shift 0") * 5).long() - 2
    counts = torch.bincount(draws + 2, minlength=5) / 50_000
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.01, rtol=0)


def test_evaluation_counts_every_image_once():
    dataset = load_dataset("digits", split="train[:1100]")             # two whole batches and a short one
    net = RECIPE.create(ClassifierSettings(output_dir="unused", width=4), dataset).nets["classifier"].eval()
    with torch.no_grad():
        right = (net(dataset.tensor()).logits.argmax(1) == dataset.labels()).double().mean()
    assert evaluate(net, dataset)["eval_accuracy"] == pytest.approx(float(right), abs=1e-12)


def folder_of(root, *names, side=8):
    for name in names:
        for i in range(2):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (side, side), 60 * i).save(root / name / f"{i}.png")
    return str(root)


def test_evaluation_data_come_from_another_dataset_in_the_shape_of_the_first(tmp_path):
    here, there = folder_of(tmp_path / "a", "x", "y"), folder_of(tmp_path / "b", "x", "y", side=16)
    recipe = RECIPE.create(ClassifierSettings(output_dir="unused", eval_dataset=there), load_dataset(here))
    assert 0 <= recipe.evaluate(recipe.nets)["eval_accuracy"] <= 1
    assert recipe.nets["classifier"].config.class_names == ["x", "y"]
    other = folder_of(tmp_path / "c", "x", "z")
    with pytest.raises(ConfigError, match=r"other classes than the training data: \['x', 'z'\] instead of \['x', 'y"):
        RECIPE.create(ClassifierSettings(output_dir="unused", eval_dataset=other), load_dataset(here))


def test_data_without_labels_or_images_are_refused_with_what_is_missing(tmp_path):
    settings = ClassifierSettings(output_dir="unused", dataset="heap")
    with pytest.raises(ConfigError, match=r"--dataset heap: a classifier needs labels, .* --label-column"):
        RECIPE.create(settings, load_dataset(folder_of(tmp_path, "x")))
    with pytest.raises(ConfigError, match="--dataset heap: a classifier is for images, these are points"):
        RECIPE.create(settings, load_dataset("ring8"))
    plain = ClassifierSettings(output_dir="unused", eval_dataset=str(tmp_path))
    with pytest.raises(ConfigError, match=r"the evaluation data .* have no labels"):
        RECIPE.create(plain, load_dataset("digits"))


@pytest.mark.parametrize(("field", "value"), [("label_smoothing", 1.0), ("max_shift", 8), ("max_shift", -1)])
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} must be in"):
        RECIPE.create(ClassifierSettings(output_dir="unused", **{field: value}), load_dataset("digits"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the run folders of a small autoencoder and a small VAE of digits."""
    root = tmp_path_factory.mktemp("sources")
    fields = "--dataset digits --hidden 32 --max-steps 60 --batch-size 64 --warmup-steps 5 --save-every 0 --threads 1"
    for recipe in ("autoencoder", "vae"):
        runs.train_here(recipe, root / recipe, "--latent-dim", "12", words=fields.split())
    return root


def codes_of(pipeline, x):
    return pipeline.encode(x / 2 + 0.5)


@pytest.mark.parametrize("recipe", ["autoencoder", "vae"])
def test_a_classifier_started_from_an_encoder_has_its_codes_as_features_and_learns_from_few_labels(
    recipe, sources, tmp_path
):
    words = "--split train[:100] --eval-split train[80%:] --max-shift 0 --batch-size 50".split()
    start = [*words, "--start-from", str(sources / recipe)]
    train(tmp_path / "still", *start, "--max-steps", "1", "--learning-rate", "1e-12", "--ema-decay", "0")
    x = load_dataset("digits", split="train[80%:]").tensor()
    pipeline = AutoPipeline.from_pretrained(tmp_path / "still")
    expected = codes_of(AutoPipeline.from_pretrained(sources / recipe), x)
    torch.testing.assert_close(pipeline.classifier.features(x).detach(), expected, atol=1e-5, rtol=0)
    log = train(tmp_path / "learnt", *start, "--max-steps", "100", "--learning-rate", "5e-3")
    assert log[-1]["eval_accuracy"] > 0.6                              # chance is 0.1
    learnt = AutoPipeline.from_pretrained(tmp_path / "learnt").classifier
    assert (learnt.features(x) - expected).detach().abs().max() > 0.1  # the encoder is trained too


def test_from_python_a_classifier_starts_from_a_pipeline_or_from_a_classifier_with_an_encoder(sources, tmp_path):
    autoencoder = AutoPipeline.from_pretrained(sources / "autoencoder")
    fields = {"dataset": "digits", "max_steps": 1, "learning_rate": 1e-12, "ema_decay": 0, "sample_every": 0}
    first = hfgen.train("classifier", start_from=autoencoder, output_dir=tmp_path / "first", **fields)
    x = load_dataset("digits").tensor()[:50]
    expected = codes_of(autoencoder, x)
    torch.testing.assert_close(first.classifier.features(x).detach(), expected, atol=1e-5, rtol=0)
    second = hfgen.train("classifier", start_from=tmp_path / "first", output_dir=tmp_path / "second", **fields)
    torch.testing.assert_close(second(x / 2 + 0.5).probabilities, first(x / 2 + 0.5).probabilities, atol=1e-5, rtol=0)


def test_a_run_on_an_encoder_resumes_to_the_same_bits_without_the_model_that_it_started_from(sources, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(sources / "vae", source)
    words = ["--start-from", str(source), *"--sample-every 0 --log-every 1 --save-every 3 --max-steps 6".split()]
    train(tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    shutil.rmtree(source)
    train(tmp_path / "cut", "--resume", *words)
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_encoders_of_other_images_are_refused(sources, tmp_path, capfd):
    start = ["--start-from", str(sources / "vae"), "--max-steps", "1"]
    train(tmp_path / "a", *start, "--dataset", "shapes", "--resolution", "16", code=2)
    assert "encoder must be an encoder of images (3, 16, 16)" in capfd.readouterr().err
