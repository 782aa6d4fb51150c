"""The GAN recipe: two players and their phases, exact resume, two processes, and a guard against collapse."""

import math
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.data.toy import Toy
from hfgen.errors import CheckpointError, ConfigError
from hfgen.loading import checkpoint
from hfgen.training.engine.mismatched import other_classes
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.settings import check_same, plain_values, write_yaml
from hfgen.training.gan import GANLosses, energy_distance, near_modes, variance
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import GAN, run, state

Train = Callable[..., subprocess.CompletedProcess]
NAMES = {
    "step", "loss_discriminator", "loss_generator", "D(x)", "D(G(z))", "grad_norm_discriminator", "grad_norm_generator",
    "sample_variance", "real_variance", "energy_distance", "rank_accuracy", "learning_rate",
}  # fmt: skip


engine = GAN.engine
LOSSES = ["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "wasserstein_gp", "relativistic", "kl",
          "reverse_kl", "jensen_shannon", "pearson", "squared_hellinger"]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_both_networks_and_logs_what_both_do(loss: Any) -> None:
    trained = engine(loss=loss)
    before = {name: state(net) for name, net in trained.nets.items()}
    lines = run(trained, 3)
    for line in lines:
        assert set(line) == NAMES - {"step", "learning_rate"}
        assert all(torch.isfinite(torch.tensor(value)) for value in line.values()), line
    for name, net in trained.nets.items():
        assert all(not torch.equal(before[name][key], value) for key, value in net.named_parameters() if value.ndim > 1)


def test_jensen_shannon_trains_the_networks_that_minimax_and_the_log_d_trick_train() -> None:
    """Its losses differ from theirs by constants: `--loss jensen_shannon --generator-loss minimax` and default."""
    for generator_loss, loss in (("minimax", "minimax"), (None, "non_saturating")):
        ours, known = engine(loss="jensen_shannon", generator_loss=generator_loss), engine(loss=loss)
        run(ours, 3), run(known, 3)
        for name in ours.nets:
            for key, value in state(known.nets[name]).items():
                torch.testing.assert_close(state(ours.nets[name])[key], value, atol=1e-5, rtol=0)


def test_a_generators_loss_for_another_loss_than_an_f_divergence_is_an_error_that_names_it() -> None:
    assert engine(loss="kl").settings.generator_loss == "non_saturating"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="--generator-loss minimax: --loss hinge has none"):
        engine(loss="hinge", generator_loss="minimax")


def test_each_phase_moves_its_own_network_only_and_the_discriminator_k_times() -> None:
    trained = engine(loss="non_saturating", discriminator_steps=3)
    moved: list[tuple[str, set[str]]] = []
    original = trained.optimise

    def watched(phase: Any, *rest: Any) -> None:
        before = {name: state(net) for name, net in trained.nets.items()}
        original(phase, *rest)
        changed = {n for n, net in trained.nets.items()
                   if any(not torch.equal(before[n][k], p) for k, p in net.named_parameters())}  # fmt: skip
        moved.append((phase.name, changed))

    trained.optimise = watched  # type: ignore[method-assign]
    run(trained, 1)
    assert moved == [("discriminator", {"discriminator"})] * 3 + [("generator", {"generator"})]


def test_the_clipped_critic_stays_in_its_box() -> None:
    trained = engine(loss="wasserstein", clip=0.02, learning_rate=1e-2)
    run(trained, 2)
    critic = torch.cat([p.detach().flatten() for p in trained.nets["discriminator"].parameters()])
    assert critic.abs().max() <= 0.02 and (critic.abs() == critic.new_tensor(0.02)).float().mean() > 0.05


@pytest.mark.parametrize("loss", ["wasserstein_gp", "relativistic"])
def test_penalties_stay_in_float32_under_mixed_precision_and_agree_with_full_precision(loss: Any) -> None:
    full, half = engine(loss=loss), engine(loss=loss, mixed_precision="bf16")
    a, b = run(full, 3), run(half, 3)
    assert a != b                                                       # the rest did run in bf16
    for name in ("loss_discriminator", "grad_norm_discriminator"):
        assert a[0][name] == pytest.approx(b[0][name], rel=0.05, abs=0.02)


def test_the_penalty_is_evaluated_every_nth_step_with_n_times_the_weight_and_fades() -> None:
    trained = engine("ring8", r1=2.0, r2=0.0, penalty_every=4, penalty_end=1e-2, loss="relativistic")
    from hfgen.training.settings.gan import recommended

    game = GANLosses(recommended(trained.settings, trained.dataset), trained.dataset)  # type: ignore[arg-type]
    x = torch.randn(6, 2)
    slope = torch.tensor([3.0, 4.0])
    noises = [Noise((0, step, "discriminator", 0), 6, slice(6)) for step in (0, 1, 8)]
    found = [float(game.penalties(lambda v: v @ slope, x, x, noise)) for noise in noises]
    assert found == pytest.approx([2.0 * 4 * 25 / 2, 0.0, 2.0 * 4 * 25 / 2 * 0.01 ** (8 / 20)], rel=1e-5)


@pytest.mark.parametrize(
    "choices",
    [{"loss": "wasserstein_gp", "generator_norm": "layer"}, {"loss": "hinge", "generator_norm": "spectral"},
     {"loss": "pearson", "generator_norm": "layer", "discriminator_norm": "layer"}],
    ids=["layer", "spectral", "pearson"],
)
def test_micro_batches_give_the_losses_of_the_whole_batch_where_no_batch_statistics_are_involved(
    choices: dict[str, Any],
) -> None:
    choices = {**choices, "pack": 2, "minibatch_stddev": 2}
    whole, parts = engine(**choices), engine(micro_batch_size=4, **choices)
    for a, b in zip(run(whole, 5), run(parts, 5), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-5), name      # Adam magnifies rounding


def test_a_batch_that_packs_do_not_divide_is_an_error_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"--batch-size 16: 16 samples .* multiple of 3 \(--pack"):
        engine(pack=3, minibatch_stddev=0)
    with pytest.raises(ConfigError, match="multiple of 8"):
        engine(pack=2, minibatch_stddev=4, micro_batch_size=4)
    with pytest.raises(ConfigError, match="has no labels"):
        engine("ring8", class_conditional=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("discriminator_steps", 0), ("discriminator_learning_rate", -1e-3), ("r1", -1.0),
     ("gradient_penalty", float("nan")), ("penalty_end", 0.0), ("betas", (0.5, 1.0)), ("clip", -0.01),
     ("pack", 0), ("width", -8)],
)  # fmt: skip
def test_an_impossible_setting_is_an_error_that_names_it(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{field.replace('_', '[-_]')} must be"):
        engine(**{field: value})


def test_real_samples_of_wrong_classes_count_as_fakes_with_their_share() -> None:
    share = 0.25
    trained = engine(class_conditional=True, wrong_conditions=share, minibatch_stddev=0, discriminator_norm="none")
    game = GANLosses(trained.settings, trained.dataset)
    batch = next(trained.dataset.batches(seed=0, batch_size=16))
    noise = Noise((0, 5, "discriminator", 0), 16, slice(16))
    with torch.no_grad():
        loss, scalars = game.discriminator_loss(trained.nets, batch, noise, {})
    # Reed et al. 2016, algorithm 1, in probabilities, with the share 1/2 replaced
    x, labels, net = batch["x"], batch["label"], trained.nets["discriminator"]
    wrong = other_classes(labels, noise.uniform("wrong class"), 10)
    made = trained.nets["generator"](noise.normal("z", trained.settings.latent_dim), labels).sample
    right, mismatch, fake = (net(*pair).logits.double().sigmoid() for pair in ((x, labels), (x, wrong), (made, labels)))
    value = right.log().mean() + (1 - share) * (1 - fake).log().mean() + share * (1 - mismatch).log().mean()
    assert float(loss) == pytest.approx(-value.item(), abs=1e-5)
    assert float(scalars["D(x, wrong)"]) == pytest.approx(mismatch.mean().item(), abs=1e-6)
    assert (wrong != labels).all()


def test_a_discriminator_tells_real_digits_of_wrong_classes_from_those_of_right_ones() -> None:
    told, last = dict[float, float](), dict[float, dict[str, float]]()
    for share in (0.0, 0.5):
        trained = engine(class_conditional=True, wrong_conditions=share, learning_rate=2e-3, width=16, batch_size=64)
        last[share] = run(trained, 60)[-1]
        batch = next(trained.dataset.batches(seed=1, batch_size=640))
        x, labels, net = batch["x"], batch["label"], trained.nets["discriminator"]
        with torch.no_grad():
            right, wrong = (net(x, one).logits.sigmoid().mean() for one in (labels, (labels + 1) % 10))
        told[share] = float(right - wrong)
    assert told[0.5] > told[0.0] + 0.1 and "D(x, wrong)" not in last[0.0], told
    assert last[0.5]["D(x)"] - last[0.5]["D(x, wrong)"] > 0.1


@pytest.mark.parametrize(
    ("dataset", "fields", "share"),
    [("digits", {}, 0.0), ("digits", {"class_conditional": True}, 0.5),
     ("digits", {"class_conditional": True, "loss": "hinge"}, 0.5),
     ("digits", {"class_conditional": True, "loss": "wasserstein_gp"}, 0.0)],
)  # fmt: skip
def test_half_the_fakes_of_a_conditional_gan_of_images_are_real_where_the_loss_is_bounded(
    dataset: str, fields: dict[str, Any], share: float
) -> None:
    assert engine(dataset, **fields).settings.wrong_conditions == share


def test_an_old_run_goes_on_without_wrong_conditions(tmp_path: Path) -> None:
    settings = engine(class_conditional=True, output_dir=tmp_path).settings
    write_yaml(settings, tmp_path / "config.yaml")
    words = ["--output-dir", str(tmp_path), "--resume"]
    assert GAN.recipe.spec.parse(words).wrong_conditions == 0.5
    lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
    (tmp_path / "config.yaml").write_text("".join(line for line in lines if "wrong_conditions" not in line))
    assert GAN.recipe.spec.parse(words).wrong_conditions == 0.0
    assert GAN.recipe.spec.parse(words[:2]).wrong_conditions is None


def test_a_run_from_before_a_plain_field_has_its_default(tmp_path: Path) -> None:
    settings = engine().settings
    stored = {name: value for name, value in plain_values(settings).items() if name not in ("captions", "text_width")}
    check_same(settings, stored, tmp_path)
    with pytest.raises(CheckpointError, match="text_width: 128 in the run, 64 asked"):
        check_same(replace(settings, text_width=64), stored, tmp_path)


def test_wrong_conditions_need_conditions_and_a_share_below_1() -> None:
    with pytest.raises(ConfigError, match="with --loss wasserstein_gp their term has no bound; take --wrong-cond"):
        engine(class_conditional=True, wrong_conditions=0.5, loss="wasserstein_gp")
    with pytest.raises(ConfigError, match=r"--wrong-conditions 0.5 needs --class-conditional"):
        engine(wrong_conditions=0.5)
    with pytest.raises(ConfigError, match=r"--wrong-conditions must be a number in \[0, 1\), got 1.0"):
        engine(class_conditional=True, wrong_conditions=1.0)


def test_layers_0_trains_a_linear_classifier_that_leads_an_affine_generator_to_the_mean_of_the_data(
    tmp_path: Path,
) -> None:
    words = ("--dataset moons --layers 0 --loss non_saturating --learning-rate 1e-2 --warmup-steps 0 --ema-decay 0 "
             "--r1 1 --threads 1 --save-every 0 --sample-every 0").split()  # fmt: skip
    off = {}
    for steps in ("1", "500"):
        runs.train_here("gan", tmp_path / steps, "--max-steps", steps, words=words)
        points = AutoPipeline.from_pretrained(tmp_path / steps)(batch_size=5000, output_type="pt").images
        off[steps] = float((points.mean(0) - load_dataset("moons").mean).abs().max())  # type: ignore[union-attr]
    assert off["1"] > 0.2 and off["500"] < 0.1, off
    held = {key: tuple(v.shape) for key, v in runs.tensors(tmp_path / "500").items() if "nets/discriminator" in key}
    assert held == {"nets/discriminator.head.weight": (1, 2), "nets/discriminator.head.bias": (1,)}


def test_variance_of_pairs_is_unbiased_and_does_not_depend_on_how_the_batch_is_divided() -> None:
    x = 3 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) + 5
    assert float(variance(x)) == pytest.approx(9, rel=0.03)
    torch.testing.assert_close(variance(x), (variance(x[:8000]) * 0.4 + variance(x[8000:]) * 0.6), atol=1e-4, rtol=0)


def test_variance_within_classes_leaves_pairs_of_two_classes_out() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (40_000,), generator=draws)
    x = 10 * labels[:, None].float() + 3 * torch.randn(40_000, 2, generator=draws)
    assert float(variance(x, labels)) == pytest.approx(9 / 4, rel=0.05)
    assert float(variance(10 * labels[:, None].float(), labels)) == 0


def test_the_energy_distance_is_that_of_gaussians_and_does_not_depend_on_how_the_batch_is_divided() -> None:
    draws = torch.Generator().manual_seed(0)
    x, other = torch.randn(100_000, 1, generator=draws), torch.randn(100_000, 1, generator=draws)
    far = 4 * (math.exp(-1) / math.sqrt(math.pi) + 1 - math.erfc(1) - 1 / math.sqrt(math.pi))  # E|N(m, 2)|, m = 2
    assert float(energy_distance(x, other)) == pytest.approx(0, abs=0.02)
    assert float(energy_distance(x, other + 2)) == pytest.approx(far, abs=0.02)
    parts = energy_distance(x[:40_000], other[:40_000]) * 0.4 + energy_distance(x[40_000:], other[40_000:]) * 0.6
    torch.testing.assert_close(energy_distance(x, other), parts, atol=1e-5, rtol=0)


def test_the_energy_distance_of_one_image_repeated_is_the_mean_distance_of_real_ones() -> None:
    x = load_dataset("digits").tensor()
    repeated = x[:1].expand_as(x)
    mean = sum(float((a - x).square().flatten(1).mean(1).sqrt().mean()) for a in x[:100]) / 100
    found = float(torch.stack([energy_distance(x, x[i : i + 1].expand_as(x)) for i in range(100)]).mean())
    assert float(energy_distance(x, repeated)) > 0.3 and found == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("name", ["ring8", "grid25"])
def test_the_share_near_modes_is_that_of_real_and_of_shifted_points_however_the_batch_is_divided(name: str) -> None:
    dataset = load_dataset(name)
    assert isinstance(dataset, Toy)
    x = (dataset.tensor(40_000) - dataset.mean) / dataset.std
    assert float(near_modes(x, dataset)) == pytest.approx(1 - math.exp(-9 / 2), abs=0.003)
    shift = torch.tensor([6 * dataset.sigma, 0.0]) / dataset.std
    assert float(near_modes(x + shift, dataset)) < 0.01
    mixed = torch.cat([x[:10_000], x[10_000:] + shift])
    parts = near_modes(mixed[:16_000], dataset) * 0.4 + near_modes(mixed[16_000:], dataset) * 0.6
    torch.testing.assert_close(near_modes(mixed, dataset), parts, atol=1e-6, rtol=0)
    assert float(parts) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("dataset", "logged"), [("grid25", True), ("moons", False), ("digits", False)])
def test_the_share_near_modes_is_logged_where_the_modes_are_known(dataset: str, logged: bool) -> None:
    (line,) = run(engine(dataset), 1)
    assert ("near_modes" in line) == logged and 0 <= line.get("near_modes", 0) <= 1


def test_micro_batches_of_one_train_in_silence_and_resume_after_the_last_line(tmp_path: Path, train: Train) -> None:
    fields = ("--micro-batch-size", "1", "--minibatch-stddev", "0", "--log-every", "2", "--warmup-steps", "0")
    done = train(tmp_path, *fields, "--batch-size", "4", "--max-steps", "4", recipe="gan")
    lines = runs.metrics(tmp_path)
    assert all(line["energy_distance"] is line["sample_variance"] is None for line in lines), lines
    again = train(tmp_path, *fields, "--batch-size", "4", "--max-steps", "4", "--resume", recipe="gan")
    assert "finished step 4" in again.stdout and "warning: step" not in done.stdout + again.stdout
    assert runs.metrics(tmp_path) == lines


def test_killed_and_resumed_it_ends_in_the_same_bits_both_optimisers_and_batch_statistics_included(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--max-steps", "30", "--save-every", "7", "--discriminator-steps", "2", "--class-conditional",
                 "--wrong-conditions", "0.5")  # fmt: skip
    train(tmp_path / "whole", *arguments, recipe="gan")
    process = start(tmp_path / "killed", *arguments, recipe="gan")
    wait_for_step(tmp_path / "killed", 16, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--resume", recipe="gan")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    held = runs.tensors(tmp_path / "whole")
    for part in ("discriminator.discriminator.body.0.weight:exp_avg", "generator.generator.body.0.weight:exp_avg_sq"):
        assert f"optimizers/{part}" in held
    assert any("running_mean" in key and key.startswith("nets/generator") for key in held)
    classes = {"sample_class_variance", "real_class_variance"}
    assert all(set(line) == NAMES | classes | {"D(x, wrong)"} for line in runs.metrics(tmp_path / "whole"))


@pytest.mark.parametrize(
    "choices",
    ["--loss wasserstein_gp --generator-norm layer --discriminator-norm layer --discriminator-steps 2",
     "--loss hinge --generator-norm spectral --discriminator-norm spectral --pack 2 --minibatch-stddev 2",
     "--class-conditional --wrong-conditions 0.5 --generator-norm layer --discriminator-norm none",
     "--loss kl --generator-loss minimax --generator-norm layer --discriminator-norm layer"],
    ids=["layer", "spectral", "wrong", "kl"],
)  # fmt: skip
def test_two_processes_equal_one_where_no_batch_statistics_are_involved(
    choices: str, tmp_path: Path, train: Train
) -> None:
    arguments = ("--max-steps", "12", "--save-every", "0", *choices.split())
    train(tmp_path / "one", *arguments, recipe="gan")
    done = train(tmp_path / "two", *arguments, recipe="gan", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-4), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=2e-3, rtol=0)  # Adam: two steps of 1e-3 at most


def test_two_processes_with_batch_norm_stop_and_resume_exactly(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--max-steps", "16", "--save-every", "5")
    done = train(tmp_path / "whole", *arguments, processes=2, recipe="gan")
    assert "BatchNorm2d: depends on how the batch is divided; resuming is exact all the same" in done.stdout
    process = start(tmp_path / "killed", *arguments, processes=2, recipe="gan")
    wait_for_step(tmp_path / "killed", 8, process)
    process.terminate()
    process.communicate(timeout=60)
    saved = checkpoint.newest(tmp_path / "killed" / "checkpoints")
    assert saved is not None and checkpoint.step_of(saved) >= 5
    train(tmp_path / "killed", "--resume", processes=2, recipe="gan")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


FROZEN = ("--max-steps", "420", "--learning-rate", "1e-9", "--log-every", "20", "--save-every", "170")
"""A new generator makes one grey image."""


def test_a_lasting_collapse_is_said_once_and_a_killed_run_says_the_same(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    done = train(tmp_path / "whole", *FROZEN, recipe="gan")
    said = [line for line in done.stdout.splitlines() if line.startswith("warning: step")]
    assert len(said) == 1 and "the generator has collapsed" in said[0], done.stdout
    assert 340 <= int(said[0].split()[2].strip(":")) <= 400
    process = start(tmp_path / "killed", *FROZEN, recipe="gan")
    wait_for_step(tmp_path / "killed", 10, process)                    # lines, of 20 steps each
    process.kill()
    process.communicate()
    resumed = train(tmp_path / "killed", *FROZEN, "--resume", recipe="gan")
    assert "continued from step 170" in resumed.stdout and said[0] in resumed.stdout.splitlines()
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_lasting_collapse_stops_the_run_if_asked_with_everything_saved(tmp_path: Path, train: Train) -> None:
    done = train(tmp_path, *FROZEN, "--stop-on-collapse", recipe="gan", code=1)
    assert "error: stopped at step 3" in done.stderr and "the generator has collapsed" in done.stderr
    assert "Traceback" not in done.stderr
    saved = checkpoint.newest(tmp_path / "checkpoints")
    assert saved is not None and f"stopped at step {checkpoint.step_of(saved)}:" in done.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(AutoPipeline.from_pretrained(tmp_path)(batch_size=2).images) == 2
    done = train(tmp_path, *FROZEN, "--resume", recipe="gan")            # who resumes it has read the warning
    assert "finished step 420" in done.stdout


@pytest.mark.parametrize(
    ("dataset", "network", "message"),
    [("ring8", "dcgan", "--network dcgan is for images; the dataset 'ring8' has points"),
     ("digits", "mlp", "--network mlp is for points; the dataset 'digits' has images")],
)  # fmt: skip
def test_a_network_for_other_data_is_an_error_that_names_both(dataset: str, network: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine(dataset, network=network)
