"""The translation recipe: three phases, cycles and identities, the pool of images, exact resume, processes."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hfgen import AutoPipeline, TranslationPipeline
from hfgen.errors import ConfigError
from hfgen.training.engine.image_pool import ImagePool
from hfgen.training.engine.lr_schedule import factor
from hfgen.training.engine.noise import Noise
from hfgen.training.translation import TranslationLosses
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import TRANSLATION, run, state

Train = Callable[..., subprocess.CompletedProcess]
engine = TRANSLATION.engine
PAIRS = {"paired": True, "split": "test", "history": None, "depth": 2}
LOSSES = ["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "wasserstein_gp", "relativistic", "kl",
          "squared_hellinger"]  # fmt: skip
NAMES = {
    "step", "learning_rate", "loss_adversarial", "loss_cycle", "loss_identity", "loss_generators",
    "loss_discriminator_a", "loss_discriminator_b", "D_A(x)", "D_A(G(y))", "D_B(x)", "D_B(G(y))",
    "grad_norm_generators", "grad_norm_discriminator_a", "grad_norm_discriminator_b",
}  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("choices", [{}, PAIRS], ids=["unpaired", "paired"])
def test_every_loss_trains_all_four_networks_and_logs_what_they_do(loss: Any, choices: dict[str, Any]) -> None:
    trained = engine(loss=loss, **choices)
    before = {name: state(net) for name, net in trained.nets.items()}
    lines = run(trained, 3)
    absent = {"loss_cycle", "loss_identity"} if choices else set()
    for line in lines:
        assert set(line) == NAMES - {"step", "learning_rate"} - absent | ({"loss_paired"} if choices else set())
        assert all(torch.isfinite(torch.tensor(value)) for value in line.values()), line
    for name, net in trained.nets.items():
        assert all(not torch.equal(before[name][key], p) for key, p in net.named_parameters() if p.ndim > 1), name


@pytest.mark.parametrize("loss", ["least_squares", "wasserstein_gp"])
def test_mixed_precision_agrees_with_full_precision(loss: Any) -> None:
    a, b = run(engine(loss=loss), 2), run(engine(loss=loss, mixed_precision="bf16"), 2)
    assert a != b                                                               # some of it did run in bf16
    for name in ("loss_generators", "loss_cycle", "loss_discriminator_a", "grad_norm_discriminator_b"):
        assert a[0][name] == pytest.approx(b[0][name], rel=0.05, abs=0.03), name


def test_each_phase_moves_its_own_networks_and_only_its_own_pool() -> None:
    trained = engine()
    moved: list[tuple[str, set[str]]] = []
    original = trained.optimise

    def watched(phase: Any, *rest: Any) -> None:
        before = {name: state(net) for name, net in trained.nets.items()}
        original(phase, *rest)
        changed = {n for n, net in trained.nets.items() if any(not torch.equal(before[n][k], v) for k, v in
                   net.state_dict().items())}  # fmt: skip
        moved.append((phase.name, changed))

    trained.optimise = watched  # type: ignore[method-assign]
    run(trained, 1)
    assert moved == [
        ("generators", {"generator_a2b", "generator_b2a"}),
        ("discriminator_a", {"discriminator_a", "history_a"}),
        ("discriminator_b", {"discriminator_b", "history_b"}),
    ]


def test_the_generators_loss_is_the_papers() -> None:
    trained = engine(cycle_weight=7.0, identity_weight=0.25)
    trained.power_iterations.advance(())
    game, nets = TranslationLosses(trained.settings), trained.nets  # type: ignore[arg-type]
    batch = next(trained.dataset.batches(seed=0, batch_size=4))
    memo: dict[str, torch.Tensor] = {}
    noise = Noise((0, 0, "generators", 0), 4, slice(0, 4))
    loss, scalars = game.generator_loss(nets, batch, noise, memo)
    a, b, G, F_ = batch["a"], batch["b"], nets["generator_a2b"], nets["generator_b2a"]
    fake_a, fake_b = F_(b).sample, G(a).sample
    logits = nets["discriminator_a"](fake_a).logits, nets["discriminator_b"](fake_b).logits
    game_a, game_b = ((some - 1).square().mean() for some in logits)
    cycle = F.l1_loss(F_(fake_b).sample, a) + F.l1_loss(G(fake_a).sample, b)
    identity = F.l1_loss(G(b).sample, b) + F.l1_loss(F_(a).sample, a)
    expected = game_a + game_b + 7 * cycle + 7 * 0.25 * identity                # Zhu et al. 2017, eq. 3 and section 5.2
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scalars["loss_cycle"], cycle.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(memo["fake_a"], fake_a.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(memo["fake_b"], fake_b.detach(), atol=1e-5, rtol=0)


def test_with_pairs_the_loss_is_pix2pixs_and_discriminators_see_both_images() -> None:
    trained = engine(**PAIRS)
    trained.power_iterations.advance(())
    game, nets = TranslationLosses(trained.settings), trained.nets  # type: ignore[arg-type]
    batch = next(trained.dataset.batches(seed=0, batch_size=4))
    memo: dict[str, torch.Tensor] = {}
    noise = Noise((0, 0, "generators", 0), 4, slice(0, 4))
    loss, _ = game.generator_loss(nets, batch, noise, memo)
    a, b = batch["a"], batch["b"]
    fake_a, fake_b = nets["generator_b2a"](b).sample, nets["generator_a2b"](a).sample
    logits = nets["discriminator_a"](fake_a, b).logits, nets["discriminator_b"](fake_b, a).logits
    expected = sum(F.softplus(-some).mean() for some in logits) + 100 * (F.l1_loss(fake_a, a) + F.l1_loss(fake_b, b))
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=0)
    loss, _ = game.discriminator_loss("b", nets, batch, noise, memo)
    real, fake = nets["discriminator_b"](b, a).logits, nets["discriminator_b"](fake_b, a).logits
    torch.testing.assert_close(loss, F.softplus(-real).mean() + F.softplus(fake).mean(), atol=1e-5, rtol=0)


def test_the_pool_holds_what_was_generated_and_gives_half_of_it_back() -> None:
    pool, shown, new = ImagePool(10, (1, 1, 1)), [], []
    for step in range(300):
        x = torch.arange(4.0).view(4, 1, 1, 1) + 4 * step
        out = pool(x, Noise((0, step, "discriminator_a", 0), 4, slice(0, 4)))
        fresh = out == x
        assert ((out <= x) & (out >= 0)).all()
        if step >= 50:
            shown += [out.flatten().tolist()]
            new += fresh.flatten().tolist()
    assert pool.held.all() and len(pool.images.unique()) == 10
    assert 0.44 < sum(new) / len(new) < 0.56                                    # 1,000 fair coins: four deviations
    old = [value for values in shown for value in values]
    assert len(old) == len(set(old))                                            # whatever comes back has left the pool


def test_the_pool_is_a_sequence_of_exchanges_at_places_of_their_own() -> None:
    pool, places = ImagePool(3, (1, 1, 1)), dict[int, float]()
    for step in range(40):
        noise = Noise((1, step, "discriminator_b", 0), 5, slice(0, 5))
        x = torch.randn(5, 1, 1, 1)
        met, exchanged = pool.meetings(noise)
        assert len(set(met.tolist())) == 5
        expected = []
        for value, place, exchange in zip(x.flatten().tolist(), met.tolist(), exchanged.tolist(), strict=True):
            if place < 3 and (exchange or place not in places):
                expected.append(places.get(place, value))
                places[place] = value
            else:
                expected.append(value)
        assert pool(x, noise).flatten().tolist() == expected
        assert {i: float(pool.images[i]) for i in places} == places and int(pool.held.sum()) == len(places)


@pytest.mark.parametrize("choices", [{}, PAIRS], ids=["unpaired", "paired"])
def test_micro_batches_give_the_losses_and_the_pools_of_the_whole_batch(choices: dict[str, Any]) -> None:
    whole, parts = (engine(learning_rate=1e-4, micro_batch_size=size, **choices) for size in (None, 1))
    for a, b in zip(run(whole, 6), run(parts, 6), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-4), name
    for name in whole.nets.keys() & {"history_a", "history_b"}:
        assert torch.equal(whole.nets[name].held, parts.nets[name].held)
        torch.testing.assert_close(whole.nets[name].images, parts.nets[name].images, atol=1e-5, rtol=0)


def test_a_step_that_is_not_finite_leaves_the_generators_and_the_pools_as_they_were() -> None:
    trained = engine()
    run(trained, 2)
    before = {name: state(net) for name, net in trained.nets.items()}
    with torch.no_grad():
        bad = next(trained.dataset.batches(seed=0, batch_size=4))
        bad["a"][:, 0, 0, 0] = float("nan")
    trained.step(2, [bad], 20)
    assert trained.non_finite["generators"] == trained.non_finite["discriminator_a"] == 1
    for name in before.keys() - {"discriminator_b"}:                            # which may have seen old images only
        found = trained.nets[name].state_dict()
        assert all(torch.equal(before[name][key], value) for key, value in found.items()), name


def test_an_image_that_is_not_finite_never_enters_the_pool() -> None:
    pool = ImagePool(4, (1, 2, 2))
    for step in range(60):
        x = torch.full((3, 1, 2, 2), float(step + 1))
        x[step % 3, 0, 1, 1] = float("nan")
        pool(x, Noise((0, step, "discriminator_a", 0), 3, slice(0, 3)))
        assert pool.images.isfinite().all() and bool((pool.held == (pool.images[:, 0, 0, 0] > 0)).all())
    assert pool.held.all()


def test_the_learning_rate_stays_for_the_first_half_and_falls_along_a_line_in_the_second() -> None:
    found = [factor("second_half", step, 100, 0) for step in (0, 49, 50, 75, 99)]
    assert found == pytest.approx([1, 1, 1, 0.5, 0.02])
    assert factor("second_half", 4, 100, 9) == 0.5                              # warm-up as of any other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digits"}, "--dataset digits: there are two here, --dataset-a and --dataset-b"),
        ({"cycle_weight": -1.0}, "--cycle-weight must be a number >= 0"),
        ({"history": -1}, "--history must be a number >= 0"),
        ({"betas": (0.5, 1.0)}, "--betas must be two numbers"),
        ({"discriminator_learning_rate": 0.0}, "--discriminator-learning-rate must be above 0"),
        ({"paired_weight": 1.0}, "--paired-weight 1.0: needs --paired"),
        ({**PAIRS, "history": 5}, "--history 5: with --paired"),
        ({**PAIRS, "skip_bad_images": True}, "--skip-bad-images would pair"),
        ({"adversarial_weight": 0.0, "cycle_weight": 0.0}, "are all 0"),
        ({"dataset_b": "digits", "identity_weight": 1.0}, "A and B have 3 and 1 channels"),
        ({"width": 0}, "width must be"),
        ({"crop": 33}, "does not fit"),
        ({"resolution": 17}, "divisible by 2 .* got 17x17; the nearest are 16x16 and 18x18"),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_it(changes: dict[str, Any], message: str) -> None:
    if "dataset_b" in changes:
        changes = {**changes, "resolution": 8, "discriminator_layers": 1}
    with pytest.raises(ConfigError, match=message):
        engine(**changes)


def test_domains_with_other_channels_need_no_identity_loss() -> None:
    with pytest.warns(UserWarning, match="are enlarged"):
        trained = engine(dataset_b="digits")
    (line,) = run(trained, 1)
    assert "loss_identity" not in line and "loss_cycle" in line
    assert trained.recipe.preview(trained.recipe.pipeline(trained.nets)).mode == "RGB"


def test_killed_and_resumed_it_ends_in_the_same_bits_four_networks_and_both_pools_included(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--max-steps", "24", "--save-every", "5", "--sample-every", "8", "--crop", "16", "--resolution", "20")
    done = train(tmp_path / "whole", *arguments, recipe="translation")
    assert "unpaired, random crops of 16x16" in done.stdout and "history_a" not in done.stdout
    process = start(tmp_path / "killed", *arguments, recipe="translation")
    wait_for_step(tmp_path / "killed", 13, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", "--resume", *arguments, recipe="translation")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    held = runs.tensors(tmp_path / "whole")
    for part in ("generators.generator_a2b.body.1.weight:exp_avg", "generators.generator_b2a.body.1.weight:exp_avg_sq",
                 "discriminator_a.discriminator_a.body.0.parametrizations.weight.original:exp_avg",
                 "discriminator_b.discriminator_b.body.0.parametrizations.weight.original:exp_avg"):  # fmt: skip
        assert f"optimizers/{part}" in held
    assert held["nets/history_a.held"].sum() >= 4 and held["nets/history_b.images"].abs().max() > 0
    assert all(set(line) == NAMES for line in runs.metrics(tmp_path / "whole"))
    assert {p.name for p in (tmp_path / "whole" / "samples").iterdir()} >= {"step-00000008.png", "step-00000024.png"}
    pipe = AutoPipeline.from_pretrained(tmp_path / "whole")
    assert isinstance(pipe, TranslationPipeline)
    assert pipe(torch.rand(2, 3, 24, 20), "b2a", output_type="pt").images.shape == (2, 3, 24, 20)


def test_two_processes_equal_one_the_pools_too(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "7", "--save-every", "0", "--learning-rate", "1e-4")  # at 1e-3 rounding errors grow
    train(tmp_path / "one", *arguments, recipe="translation")
    done = train(tmp_path / "two", *arguments, "--micro-batch-size", "1", recipe="translation", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-4), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-4, rtol=0)
