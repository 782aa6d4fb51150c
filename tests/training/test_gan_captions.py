"""GANs of captions: what both networks are given, wrong captions, exact resume, two processes, the user's commands."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline, GANPipeline
from hfgen.errors import ConfigError
from hfgen.models.text import token_ids
from hfgen.training.engine.mismatched import other_captions
from hfgen.training.engine.noise import Noise
from tests.command_line import hfgen
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import GAN, run, state

Train = Callable[..., subprocess.CompletedProcess]
CAPTIONED: dict[str, Any] = {"dataset": "shapes", "split": "train[:64]", "resolution": 8, "captions": True,
                             "text_width": 16, "text_layers": 1}  # fmt: skip
WORDS = "--dataset shapes --split train[:64] --resolution 8 --captions --text-width 16 --text-layers 1".split()


class Shape(NamedTuple):
    """Data as far as recommended values depend on them."""

    shape: tuple[int, ...]


def engine(**changes: Any) -> Any:
    return GAN.engine(**CAPTIONED, **changes)


def test_both_networks_get_the_text_and_real_images_of_wrong_captions_count_as_fakes_with_half_the_weight() -> None:
    e = engine(minibatch_stddev=0, discriminator_norm="none", loss="non_saturating")
    assert e.settings.wrong_conditions == 0.5
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    noise = Noise((0, 5, "discriminator", 0), 16, slice(16))
    with torch.no_grad():
        loss, scalars = e.recipe.phases[0].loss(e.nets, batch, noise, {})
    # Reed et al. 2016, algorithm 1, in probabilities
    wrong = other_captions(batch["caption"], noise.uniform("wrong caption"), e.dataset.captions)
    tokenizer = e.recipe.pipeline(e.nets).tokenizer
    right, other = (e.nets["text_encoder"](input_ids=token_ids(tokenizer, list(texts))).last_hidden_state
                    for texts in (batch["caption"], wrong))  # fmt: skip
    z = noise.normal("z", e.settings.latent_dim)
    made = e.nets["generator"](z, encoder_hidden_states=right).sample
    s_r, s_w, s_f = (e.nets["discriminator"](x, encoder_hidden_states=text).logits.double().sigmoid()
                     for x, text in ((batch["x"], right), (batch["x"], other), (made, right)))  # fmt: skip
    value = s_r.log().mean() + ((1 - s_w).log().mean() + (1 - s_f).log().mean()) / 2
    assert loss.item() == pytest.approx(-value.item(), abs=1e-5)
    assert scalars["D(x, wrong)"].item() == pytest.approx(s_w.mean().item(), abs=1e-6)


@pytest.mark.parametrize("choices", [{}, {"loss": "wasserstein_gp"}, {"loss": "relativistic"}], ids=str)
def test_the_text_encoder_is_trained_with_the_discriminator_and_averaged_for_the_pipeline(choices: Any) -> None:
    e = engine(**choices)
    before = {name: state(net) for name, net in e.nets.items()}
    assert e.settings.wrong_conditions == (0.0 if choices.get("loss") == "wasserstein_gp" else 0.5)
    assert set(e.averages) == {"generator", "text_encoder"}
    lines = run(e, 3)
    for line in lines:
        assert all(torch.isfinite(torch.tensor(value)) for value in line.values()), line
    for name, net in e.nets.items():
        weights = {key: value for key, value in net.named_parameters() if value.ndim > 1}
        still = [key for key, value in weights.items() if torch.equal(before[name][key], value)]
        assert not still, (name, still)
    assert [phase.trains for phase in e.recipe.phases] == [("discriminator", "text_encoder"), ("generator",)]


def test_captioned_images_of_32_pixels_have_a_narrow_pair_by_default_and_larger_ones_that_of_the_paper() -> None:
    recommended = GAN.recipe.recommended
    small, large, plain = (
        recommended(GAN.recipe.settings(output_dir=Path("unused"), captions=captions), Shape((3, side, side)))
        for captions, side in ((True, 32), (True, 64), (False, 32))
    )
    assert (small.width, small.batch_size, small.learning_rate, small.wrong_conditions) == (32, 32, 1e-3, 0.5)
    for other in (large, plain):
        assert (other.width, other.batch_size, other.learning_rate) == (64, 64, 2e-4)
    assert (large.wrong_conditions, plain.wrong_conditions) == (0.5, 0.0)


def test_a_given_text_encoder_is_not_trained(tmp_path: Path) -> None:
    e = engine()
    e.recipe.pipeline(e.nets).save_pretrained(tmp_path / "texts")
    given = GAN.engine(**{**CAPTIONED, "text_encoder": str(tmp_path / "texts")})
    before = state(given.nets["text_encoder"])
    run(given, 2)
    assert set(given.averages) == {"generator"}
    assert all(torch.equal(before[key], value) for key, value in given.nets["text_encoder"].state_dict().items())
    for key, value in e.nets["text_encoder"].state_dict().items():
        assert torch.equal(before[key], value)


def test_micro_batches_give_the_numbers_of_the_whole_batch() -> None:
    choices = {"loss": "wasserstein_gp", "generator_norm": "layer", "discriminator_norm": "layer"}
    for a, b in zip(run(engine(**choices), 3), run(engine(micro_batch_size=4, **choices), 3), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name


def test_a_user_trains_a_gan_of_captions_samples_a_prompt_and_evaluates_it(tmp_path: Path) -> None:
    trained = runs.train_here("gan", tmp_path / "run", words=[
        *WORDS, *"--max-steps 6 --batch-size 16 --width 8 --warmup-steps 0 --log-every 1 --threads 1".split(),
    ])  # fmt: skip
    assert len(trained) == 6 and all("D(x, wrong)" in line for line in trained)
    pipe = AutoPipeline.from_pretrained(tmp_path / "run")
    assert isinstance(pipe, GANPipeline)
    red, blue = (pipe(prompt=f"a large filled {colour} circle at the top left on white", output_type="pt",
                      generator=torch.Generator().manual_seed(0)).images for colour in ("red", "blue"))  # fmt: skip
    assert red.shape == (1, 3, 8, 8) and not torch.equal(red, blue)
    done = hfgen("sample", tmp_path / "run", "--prompt", "a red circle", "-n", "4", "-o", tmp_path / "grid.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == "RGB"
    done = hfgen("sample", tmp_path / "run", "-n", "4", "-o", tmp_path / "none.png")
    assert done.exit_code != 0 and "prompt must be given" in done.output
    done = hfgen("evaluate", tmp_path / "run", "--dataset", "shapes", "--split", "train[:64]", "--resolution", "8",
                 "--caption-column", "caption", "--num-samples", "64", "--metrics", "frechet",
                 "-o", tmp_path / "report.json")  # fmt: skip
    assert done.exit_code == 0 and "frechet" in (tmp_path / "report.json").read_text(), done.output


def test_killed_and_resumed_it_ends_in_the_same_bits(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = (*WORDS, "--max-steps", "16", "--save-every", "5", "--discriminator-steps", "2", "--class-conditional")
    train(tmp_path / "whole", *arguments, recipe="gan")
    process = start(tmp_path / "killed", *arguments, recipe="gan")
    wait_for_step(tmp_path / "killed", 8, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--dataset", "shapes", "--resume", recipe="gan")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert any("text_encoder" in key and "exp_avg" in key for key in runs.tensors(tmp_path / "whole"))


def test_two_processes_equal_one(tmp_path: Path, train: Train) -> None:
    arguments = (*WORDS, *"--max-steps 8 --save-every 0 --generator-norm layer --discriminator-norm none".split())
    train(tmp_path / "one", *arguments, recipe="gan")
    done = train(tmp_path / "two", *arguments, recipe="gan", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-3), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-3, rtol=0)           # Adam: two steps of 1e-3


def test_captions_that_cannot_be_are_errors() -> None:
    with pytest.raises(ConfigError, match="caption_column='caption' does not apply"):
        GAN.engine("ring8", captions=True)
    with pytest.raises(ConfigError, match="--text-encoder somewhere needs --captions"):
        GAN.engine("digits", text_encoder="somewhere")
    with pytest.raises(ConfigError, match=r"--wrong-conditions 0.5: the dataset 'shapes' has one caption only"):
        GAN.engine(**{**CAPTIONED, "split": "train[:1]"})
