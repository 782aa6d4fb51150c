"""`hfgen train gan --loss began`: k_t by hand, exact resume, micro-batches and two processes, and the guard."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfgen import AutoPipeline
from hfgen.errors import ConfigError
from hfgen.loading import checkpoint
from hfgen.losses.adversarial import began_balance, began_convergence, began_d, began_g
from hfgen.training.began import Balance
from hfgen.training.engine.noise import Noise
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import GAN, run

Train = Callable[..., subprocess.CompletedProcess]
BEGAN = "--loss began --width 4 --code-dim 4 --lambda-k 0.05 --gamma 0.7".split()
FIELDS: dict[str, Any] = {
    "loss": "began", "width": 4, "lambda_k": 0.05, "gamma": 0.5, "generator_norm": "layer", "learning_rate": 2e-3,
    "discriminator_learning_rate": 2e-3,
}  # fmt: skip


def test_the_losses_and_the_balance_are_the_equations_of_the_paper() -> None:
    real, fake = torch.tensor([-0.4, -0.2]), torch.tensor([-0.1, -0.3, -0.2])                  # outputs -L(v)
    torch.testing.assert_close(began_d(real, fake, torch.tensor(0.25)), torch.tensor(0.3 - 0.25 * 0.2))
    torch.testing.assert_close(began_g(fake), torch.tensor(0.2))
    L_x, L_g = torch.tensor(0.3), torch.tensor(0.2)
    torch.testing.assert_close(began_balance(torch.tensor(0.5), L_x, L_g, 0.5, 0.1), torch.tensor(0.5 + 0.1 * -0.05))
    assert began_balance(torch.tensor(0.001), L_x, L_g, 0.5, 0.1) == 0                         # clipped to [0, 1]
    assert began_balance(torch.tensor(0.999), L_x, L_g, 0.9, 0.1) == 1
    torch.testing.assert_close(began_convergence(L_x, L_g, 0.5), torch.tensor(0.3 + 0.05))


def test_k_moves_once_a_step_by_the_means_of_its_two_phases_and_the_log_has_it() -> None:
    trained = GAN.engine(**FIELDS, discriminator_steps=2, warmup_steps=0)
    k = 0.0
    for step in range(4):
        (line,) = run(trained, 1, first=step)
        L_x, L_g, gamma = -line["D(x)"], line["loss_generator"], 0.5
        assert line["loss_discriminator"] == pytest.approx(L_x + k * line["D(G(z))"], abs=1e-6)   # the k before
        k = min(1.0, max(0.0, k + 0.05 * (gamma * L_x - L_g)))
        found = trained.fetch()
        assert found["k"] == pytest.approx(k, abs=1e-6)
        assert found["M_global"] == pytest.approx(L_x + abs(gamma * L_x - L_g), abs=1e-6)
    assert trained.fetch() == {} and 0 < k < 1


def test_each_network_follows_the_gradient_of_its_own_loss() -> None:
    trained = GAN.engine(**FIELDS, warmup_steps=0)
    balance, nets = trained.nets["balance"], trained.nets
    assert isinstance(balance, Balance)
    balance.k.fill_(0.3)
    D, G = nets["discriminator"], nets["generator"]
    noise = Noise((0, 0, "discriminator", 0), 16, slice(16))
    x = next(trained.dataset.batches(seed=0, batch_size=16, first=0, rows=slice(16), device=trained.device))
    loss, _ = trained.recipe.phases[0].loss(nets, x, noise, {})
    made = G(noise.normal("z", trained.settings.latent_dim)).sample.detach()  # type: ignore[attr-defined]

    def error(v: torch.Tensor) -> torch.Tensor:
        return (v - D.reconstruct(v)).abs().mean()  # type: ignore[operator]

    by_hand = error(x["x"]) - 0.3 * error(made)
    gradients = [torch.autograd.grad(value, list(D.parameters())) for value in (loss, by_hand)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_a_step_that_is_not_finite_changes_neither_k_nor_the_mean() -> None:
    balance = Balance(0.5, 0.1)
    balance.d(torch.tensor([-0.9]), torch.tensor([-0.1])), balance.g(torch.tensor([-0.1]), torch.tensor([0.0]))
    balance.update()
    k = float(balance.k)
    balance.d(torch.tensor([float("nan")]), torch.tensor([-0.1])), balance.g(torch.tensor([-0.1]), torch.tensor([0.0]))
    balance.update()
    assert k == pytest.approx(0.035) and float(balance.k) == k
    assert balance.fetch() == pytest.approx({"k": 0.035, "M_global": 0.9 + 0.35}, abs=1e-6)


@pytest.mark.parametrize("dataset", ["digits", "ring8"])
def test_micro_batches_give_the_k_and_the_losses_of_the_whole_batch(dataset: str) -> None:
    whole, parts = GAN.engine(dataset, **FIELDS), GAN.engine(dataset, micro_batch_size=4, **FIELDS)
    for step in range(4):
        (a,), (b,) = run(whole, 1, first=step), run(parts, 1, first=step)
        assert whole.fetch() == pytest.approx(parts.fetch(), abs=1e-5)
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name
    assert float(whole.nets["balance"].k) > 0  # type: ignore[arg-type]


def test_killed_and_resumed_it_ends_in_the_same_bits_k_included(
    tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = ("--max-steps", "16", "--save-every", "5", "--log-every", "2", *BEGAN)
    train(tmp_path / "whole", *arguments, recipe="gan")
    process = start(tmp_path / "killed", *arguments, recipe="gan")
    wait_for_step(tmp_path / "killed", 4, process)                        # lines, of two steps each
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", *arguments, "--resume", recipe="gan")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    saved = checkpoint.newest(tmp_path / "whole" / "checkpoints")
    assert saved is not None
    last = runs.metrics(tmp_path / "whole")[-1]
    assert float(load_file(saved / "nets.safetensors")["balance.k"]) == pytest.approx(last["k"]) and last["k"] > 0
    assert all("M_global" in line for line in runs.metrics(tmp_path / "whole"))
    assert len(AutoPipeline.from_pretrained(tmp_path / "whole")(batch_size=2).images) == 2


def test_two_processes_have_the_k_of_one(tmp_path: Path, train: Train) -> None:
    arguments = ("--max-steps", "12", "--save-every", "0", *BEGAN)
    train(tmp_path / "one", *arguments, recipe="gan")
    done = train(tmp_path / "two", *arguments, "--micro-batch-size", "4", recipe="gan", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=2e-5, rel=1e-4), (name, a, b)
    assert runs.metrics(tmp_path / "one")[-1]["k"] > 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"loss": "began", "class_conditional": True}, "--class-conditional True: the discriminator of --loss began"),
     ({"loss": "began", "pack": 2}, "--pack 2"), ({"loss": "began", "r1": 1.0}, "--r1 1.0"),
     ({"loss": "began", "gamma": 1.5}, r"--gamma must be in \[0, 1\], got 1.5"),
     ({"loss": "hinge", "gamma": 0.5}, "--gamma 0.5: --loss hinge has none; it is for began"),
     ({"code_dim": 8}, "--code-dim 8: --loss non_saturating has none")],
)  # fmt: skip
def test_a_field_that_the_loss_does_not_use_is_an_error_that_names_it(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GAN.engine(**fields)


@pytest.mark.slow
def test_the_guard_stops_a_collapsed_generator_and_advises_only_fields_that_began_has(
    tmp_path: Path, train: Train
) -> None:
    """A generator that hardly learns makes one image for ever."""
    frozen = ("--learning-rate", "1e-9", "--discriminator-learning-rate", "1e-3", "--gamma", "0.5", "--log-every", "20")
    done = train(tmp_path, *BEGAN, *frozen, "--max-steps", "420", "--stop-on-collapse", recipe="gan", code=1)
    assert "the generator has collapsed" in done.stderr and "--gamma 0.7" in done.stderr
    assert "--pack" not in done.stderr and "--r1" not in done.stderr
