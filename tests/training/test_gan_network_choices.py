"""`hfgen train gan --network`: each network trains on images and resumes exactly, and refuses what it does not use."""

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfgen import AutoPipeline
from hfgen.errors import CheckpointError, ConfigError
from hfgen.losses.orthogonal import filters, orthogonal_penalty
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.settings import check_same, plain_values
from hfgen.training.gan import GANLosses
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import GAN, run

Train = Callable[..., subprocess.CompletedProcess]
BIGGAN: dict[str, Any] = {"network": "biggan", "width": 4, "latent_dim": 9}
engine = GAN.engine


def images(folder: Path, *shape: int) -> str:
    """Return the name of a file of 32 random images (H, W) or (H, W, 3) with the classes 0 and 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, *shape), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels, labels=np.arange(32) % 2)
    return str(folder / "images.npz")


@pytest.mark.parametrize(
    ("dataset", "network", "message"),
    [("ring8", "dcgan", "--network dcgan is for images; the dataset 'ring8' has points"),
     ("ring8", "biggan", "--network biggan is for images"),
     ("digits", "mlp", "--network mlp is for points; the dataset 'digits' has images")],
)  # fmt: skip
def test_a_network_for_other_data_is_an_error_that_names_both(dataset: str, network: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(dataset, network=network)


@pytest.mark.parametrize(
    ("network", "field", "value"),
    [("biggan", "pack", 2), ("biggan", "minibatch_stddev", 4), ("biggan", "discriminator_norm", "batch"),
     ("biggan", "generator_extra_layers", 1), ("biggan", "generator_norm", "spectral"),
     ("dcgan", "attention_size", 4)],
)  # fmt: skip
def test_a_field_that_the_network_does_not_use_is_an_error_that_names_both(
    network: Any, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"--{field.replace('_', '-')} {value}.* --network {network}"):
        engine(network=network, **{field: value})


def test_biggan_is_recommended_with_hinge_spectral_norm_attention_and_orthogonal_filters(tmp_path: Path) -> None:
    chosen = engine("shapes", network="biggan", resolution=16, split="train[:64]").settings
    assert (chosen.loss, chosen.discriminator_norm, chosen.generator_norm) == ("hinge", "spectral", "batch")
    assert chosen.attention_size == 8 and chosen.orthogonal_penalty == 1e-4
    assert chosen.discriminator_learning_rate > chosen.learning_rate
    plain = engine(network="biggan", loss="wasserstein_gp").settings       # digits: 8 x 8 from 2 x 2
    assert plain.loss == "wasserstein_gp" and plain.gradient_penalty > 0 and plain.attention_size == 4


@pytest.mark.parametrize("conditional", [True, False], ids=["classes", "no classes"])
def test_biggan_trains_on_images_that_are_not_square_with_classes_and_without(
    conditional: bool, tmp_path: Path
) -> None:
    trained = engine(images(tmp_path, 16, 24, 3), **BIGGAN, class_conditional=conditional)
    for line in run(trained, 2):
        assert all(torch.isfinite(torch.tensor(value)) for value in line.values()), line
    G, D = trained.nets["generator"], trained.nets["discriminator"]
    assert G.config["resolution"] == D.config["resolution"] == (16, 24)  # type: ignore[index]
    assert hasattr(G, "embedding") == hasattr(D, "classes") == conditional


@pytest.mark.parametrize("network", ["biggan", "dcgan"])
def test_the_orthogonal_penalty_of_the_generator_is_added_to_its_loss(network: Any) -> None:
    trained = engine(network=network, loss="hinge")
    for net in trained.nets.values():
        net.eval()
    batch = {"x": trained.dataset.tensor(16)}
    values = []
    for weight in (0.0, 30.0):
        settings = dataclasses.replace(trained.settings, orthogonal_penalty=weight)
        losses = GANLosses(settings, trained.dataset)  # type: ignore[arg-type]
        noise = Noise((0, 0, "generator", 0), 16, slice(16))
        values.append(float(losses.generator_loss(trained.nets, batch, noise, {})[0].detach()))
    expected = 30.0 * float(orthogonal_penalty(filters(trained.nets["generator"])).detach())
    assert values[1] - values[0] == pytest.approx(expected, rel=1e-4) and expected > 0.1


def test_biggan_conditional_is_trained_killed_resumed_to_the_same_bits_and_sampled_with_truncation(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    words = "--network biggan --class-conditional --max-steps 24 --save-every 7"
    arguments = words.split()
    train(tmp_path / "whole", *arguments, recipe="gan")
    process = start(tmp_path / "killed", *arguments, recipe="gan")
    wait_for_step(tmp_path / "killed", 10, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--resume", recipe="gan")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    # a smaller truncation gives latents nearer to 0, and images that differ less
    pipe: Any = AutoPipeline.from_pretrained(tmp_path / "whole")
    spread = []
    for truncation in (None, 0.5, 0.05):
        draws = torch.Generator().manual_seed(0)
        output = pipe(64, class_labels=3, truncation=truncation, generator=draws, output_type="pt")
        assert output.latents.abs().max() <= (truncation or 10)
        spread.append(float(output.images.std(0).mean()))
    assert spread[0] > spread[1] > spread[2]


def test_a_field_that_is_younger_than_a_run_counts_as_its_default_and_another_value_is_refused() -> None:
    now = engine().settings
    old = {k: v for k, v in plain_values(now).items() if k not in ("network", "fade_share", "stage_shares")}
    check_same(now, old, Path("run"))
    with pytest.raises(CheckpointError, match=r"run: cannot resume .*fade_share: 0.5 in the run, 0.25 asked"):
        check_same(dataclasses.replace(now, fade_share=0.25), old, Path("run"))


@pytest.mark.slow
def test_two_processes_with_biggan_and_layer_norm_equal_one(tmp_path: Path, train: Train) -> None:
    words = "--network biggan --loss hinge --generator-norm layer --class-conditional --max-steps 8 --save-every 0"
    train(tmp_path / "one", *words.split(), recipe="gan")
    done = train(tmp_path / "two", *words.split(), recipe="gan", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-3), (name, a, b)
