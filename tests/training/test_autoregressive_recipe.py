"""The recipe of autoregressive models: the loss, conditions, binarised pixels, exact runs, refusals, learning."""

import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline, AutoregressivePipeline
from hfgen.errors import ConfigError
from hfgen.losses.elbo import binarised
from hfgen.training.engine.noise import Noise
from hfgen.training.settings.autoregressive import AutoregressiveSettings, recommended, smaller
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import AUTOREGRESSIVE, make_vq_autoencoder, run, state

Train = Callable[..., subprocess.CompletedProcess]
engine = AUTOREGRESSIVE.engine


def noise() -> Noise:
    return Noise((0, 0, "autoregressive", 0), 16, slice(16))


def test_the_loss_is_the_negated_log_probability_of_all_entries_and_bits_are_those_of_a_pixel() -> None:
    e = engine()
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    loss, scalars = e.recipe.phases[0].loss(e.nets, batch, noise(), {})
    levels = ((batch["x"] + 1) * 8).round().long().flatten(1)
    logits = e.nets["network"](levels).logits
    log_p = logits.log_softmax(-1).gather(2, levels[..., None])
    assert loss.item() == pytest.approx(-log_p.mean().item(), abs=1e-6)
    assert scalars["bits_per_dim"].item() == pytest.approx(loss.item() / math.log(2), abs=1e-6)
    assert logits.shape == (16, 64, 17)


def test_an_untrained_model_costs_the_logarithm_of_the_levels() -> None:
    e = engine()
    loss, _ = e.recipe.phases[0].loss(e.nets, next(e.dataset.batches(seed=0, batch_size=16)), noise(), {})
    assert loss.item() == pytest.approx(math.log(17), abs=0.05)


def test_bits_of_patches_are_those_of_their_pixels() -> None:
    e = engine(levels=2, patch_size=2)
    _, scalars = e.recipe.phases[0].loss(e.nets, next(e.dataset.batches(seed=0, batch_size=16)), noise(), {})
    assert e.nets["network"].vocab_size == 16
    assert scalars["bits_per_dim"].item() == pytest.approx(1, abs=0.05)
    assert scalars["loss"].item() == pytest.approx(math.log(16), abs=0.2)


def test_binarised_pixels_are_drawn_anew_at_each_step() -> None:
    e = engine(binarise=True)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    seen: list[torch.Tensor] = []
    nets: Any = {"network": lambda entries, **k: seen.append(entries) or e.nets["network"](entries, **k)}
    for step in (0, 1):
        e.recipe.phases[0].loss(nets, batch, Noise((0, step, "a", 0), 16, slice(16)), {})
    expected = binarised(batch["x"], Noise((0, 1, "a", 0), 16, slice(16)).uniform("pixels", 1, 8, 8))
    assert torch.equal(seen[1], (expected.flatten(1) > 0).long())
    assert not torch.equal(seen[0], seen[1])


def test_classes_are_left_out_at_random_for_guidance() -> None:
    e = engine(class_conditional=True, condition_dropout=0.4)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    given: list[torch.Tensor] = []
    nets: Any = {"network": lambda entries, class_labels, **k: given.append(class_labels) or e.nets["network"](
        entries, class_labels=class_labels, **k)}  # fmt: skip
    e.recipe.phases[0].loss(nets, batch, noise(), {})
    out = noise().uniform("condition") < 0.4
    assert 0 < out.sum() < 16
    assert torch.equal(given[0], torch.where(out, 10, batch["label"]))


def test_vectors_do_not_decay() -> None:
    e = engine(weight_decay=0.1)
    for group in e.recipe.phases[0].optimizer.param_groups:
        matrix = {parameter.ndim > 1 for parameter in group["params"]}
        assert matrix == {group["weight_decay"] > 0}


def test_a_run_in_micro_batches_takes_the_steps_of_a_whole_one() -> None:
    whole, parts = engine(class_conditional=True), engine(class_conditional=True, micro_batch_size=4)
    losses = [[line["loss"] for line in run(e, 5)] for e in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, value in state(whole.nets["network"]).items():
        torch.testing.assert_close(parts.nets["network"].state_dict()[key], value, atol=1e-4, rtol=0)


def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], train: Train
) -> None:
    words = ("--max-steps", "14", "--save-every", "5", "--preview-images", "0")
    train(tmp_path / "whole", *words, recipe="autoregressive")
    process = start(tmp_path / "killed", *words, recipe="autoregressive")
    wait_for_step(tmp_path / "killed", 7, process)
    process.kill()
    process.communicate()
    train(tmp_path / "killed", "--resume", recipe="autoregressive")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_finished_run_samples_completes_and_says_its_likelihood(tmp_path: Path) -> None:
    lines = runs.train_here("autoregressive", tmp_path / "run", "--max-steps", "60", "--eval-split", "train[:100]",
                            "--preview-images", "4")  # fmt: skip
    pipe = AutoPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipe, AutoregressivePipeline)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, class_labels=3, output_type="pt").images
    assert pipe.complete(images, rows=4, class_labels=3, output_type="pt").images.shape == (2, 1, 8, 8)
    nats = -pipe.log_likelihood(images, class_labels=3)
    assert (nats > 0).all()
    evaluated = [line for line in lines if "eval_nats" in line]
    assert evaluated[-1]["eval_bits_per_dim"] == pytest.approx(evaluated[-1]["eval_nats"] / 64 / math.log(2), rel=1e-6)
    assert evaluated[-1]["eval_bits_per_dim"] < math.log2(17)


@pytest.mark.parametrize(("changes", "words"), [
    ({"dataset": "ring8"}, "are for images"), ({"binarise": True, "levels": 4}, "--levels 4"),
    ({"patch_size": 3, "levels": 2}, "patch_size"), ({"patch_size": 2}, "65,536 values"),
    ({"width": 0}, "--width"), ({"dropout": 1.0}, "--dropout"),
])  # fmt: skip
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(**changes)


@pytest.mark.parametrize(("shape", "given", "found"), [
    ((1, 8, 8), {}, ("transformer", 1, 64, 4)), ((1, 8, 8), {"network": "pixel_cnn"}, ("pixel_cnn", 1, 64, 4)),
    ((1, 28, 28), {}, ("pixel_cnn", 1, 64, 8)), ((1, 28, 28), {"binarise": True}, ("transformer", 2, 128, 6)),
    ((1, 28, 28), {"binarise": True, "network": "pixel_cnn"}, ("pixel_cnn", 1, 64, 8)),
    ((1, 28, 28), {"binarise": True, "patch_size": 1}, ("pixel_cnn", 1, 64, 8)),
    ((1, 27, 28), {"binarise": True}, ("pixel_cnn", 1, 64, 8)), ((3, 32, 32), {}, ("pixel_cnn", 1, 64, 8)),
    ((3, 32, 32), {"objective": "masked"}, ("transformer", 1, 128, 6)),
    ((3, 32, 32), {"network": "transformer"}, ("transformer", 1, 128, 6)),
])  # fmt: skip
def test_the_recommended_network_and_entries_fit_the_data(
    shape: tuple[int, ...], given: dict[str, Any], found: tuple[str, int, int, int]
) -> None:
    data = SimpleNamespace(shape=shape)
    s = recommended(AutoregressiveSettings(output_dir=Path("unused"), dataset="unused", **given), data)
    assert (s.network, s.patch_size, s.width, s.layers) == found


def test_a_short_budget_is_offered_smaller_networks_unless_a_size_is_asked_for() -> None:
    data = SimpleNamespace(shape=(1, 28, 28))
    asked = AutoregressiveSettings(output_dir=Path("unused"), dataset="unused", budget="3m")
    offered = [(s.network, s.width, s.layers) for s in smaller(asked, data)]
    assert offered == [("pixel_cnn", 32, 3), ("pixel_cnn", 64, 4)]
    drawn = smaller(replace(asked, binarise=True), data)
    assert [(s.network, s.patch_size, s.max_steps) for s in drawn] == [("transformer", 2, 1800)] * 2
    assert not smaller(replace(asked, width=32), data) and not smaller(replace(asked, autoencoder="codes"), data)
    assert not smaller(asked, SimpleNamespace(shape=(1, 8, 8)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_vq_autoencoder(tmp_path_factory.mktemp("vq") / "model"))


def test_codes_are_entries_encoded_once_after_the_networks_were_tried_out(tmp_path: Path, model: str) -> None:
    e = engine(output_dir=tmp_path, autoencoder=model, class_conditional=True, condition_dropout=0.0)
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    loss, scalars = e.recipe.phases[0].loss(e.nets, batch, noise(), {})
    by_hand = e.nets["network"](batch["codes"], class_labels=batch["label"], log_prob=True).log_prob
    assert by_hand.shape == (16, 16)
    assert loss.item() == pytest.approx(-by_hand.mean().item(), abs=1e-6)
    assert scalars["bits_per_code"].item() == pytest.approx(loss.item() / math.log(2), abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "codes").iterdir()) == ["codes-00000000.safetensors"]
    with pytest.raises(ConfigError, match="--width"):
        engine(output_dir=tmp_path / "new", autoencoder=model, width=0)
    assert not (tmp_path / "new").exists()                                 # nothing was encoded


def test_a_run_of_codes_is_one_pipeline_with_its_autoencoder(
    tmp_path: Path, model: str
) -> None:
    words = ("--autoencoder", model, "--preview-images", "4", "--eval-split", "train[:50]", "--max-steps")
    runs.train_here("autoregressive", tmp_path / "whole", *words, "8", "--save-every", "4")
    lines = runs.metrics(tmp_path / "whole")
    assert lines[-1]["eval_bits_per_code"] > 0
    pipe = AutoPipeline.from_pretrained(tmp_path / "whole")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.sample_shape == (1, 8, 8)
    images = pipe(3, class_labels=1, output_type="pt").images
    assert images.shape == (3, 1, 8, 8)
    completed = pipe.complete(images, rows=4, class_labels=1, output_type="pt").images
    torch.testing.assert_close(completed[:, :, :4], images[:, :, :4], atol=1e-6, rtol=0)
    assert pipe.decode(next(iter(pipe.states(2, class_labels=1))), "pt").eq(0.5).all()
    with pytest.raises(ConfigError, match="codes of an autoencoder"):
        pipe.log_likelihood(images, class_labels=1)


def test_captions_condition_codes(tmp_path: Path) -> None:
    model = make_vq_autoencoder(tmp_path / "model", in_channels=3, out_channels=3)
    e = engine(output_dir=tmp_path, autoencoder=str(model), dataset="shapes", split="train[:32]", resolution=8,
               captions=True)  # fmt: skip
    losses = [line["loss"] for line in run(e, 3)]
    assert all(math.isfinite(loss) for loss in losses)
    pipe: Any = e.recipe.pipeline(e.nets)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", guidance_scale=2.0, output_type="pt").images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("changes", "words"), [
    ({"dataset": "ring8"}, "--dataset ring8: autoregression of codes is for images"),
    ({"dataset": "shapes", "resolution": 8}, "--autoencoder .* is for 1 channels"),
    ({"levels": 4}, "--levels, --binarise and --patch-size are for pixels"),
    ({"network": "pixel_cnn"}, "--network pixel_cnn is for pixels"), ({"streaming": True}, "--streaming"),
])  # fmt: skip
def test_codes_of_data_or_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], words: str, tmp_path: Path, model: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        engine(output_dir=tmp_path, autoencoder=model, **changes)


def test_masked_codes_are_drawn_in_parallel_steps_and_saved_with_their_autoencoder(tmp_path: Path, model: str) -> None:
    words = ("--autoencoder", model, "--objective", "masked", "--max-steps", "4", "--preview-images", "0")
    runs.train_here("autoregressive", tmp_path / "run", *words)
    pipe = AutoPipeline.from_pretrained(tmp_path / "run")
    assert type(pipe).__name__ == "MaskedGenerationPipeline"
    pipe.set_progress_bar_config(disable=True)
    states = list(pipe.states(2, class_labels=1, num_steps=3))
    assert [int((state < 0).sum()) > 0 for state in states] == [True, True, True, False]
    assert pipe(2, class_labels=1, num_steps=3, output_type="pt").images.shape == (2, 1, 8, 8)
