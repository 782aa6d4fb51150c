"""The recipe of the discrete autoencoder: losses, the moving codebook, use and collapse, exact runs, refusals."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.losses.adversarial import hinge_d, hinge_g
from hfgen.metrics.reconstruction import psnr
from hfgen.models.quantizers import VectorQuantizer
from hfgen.training.engine.codebook import CodeUse, MovingCodebook
from hfgen.training.engine.noise import Noise
from hfgen.training.first_stage import FirstStageLosses
from hfgen.training.settings.vq_autoencoder import recommended
from hfgen.training.vq_autoencoder import LOW, PATIENCE, RECIPE, CodeLosses, guard
from tests.training import runs
from tests.training.test_exact_resume import wait_for_step
from tests.training.tiny import VQ_AUTOENCODER, run, state

Train = Callable[..., subprocess.CompletedProcess]

settings, engine = VQ_AUTOENCODER.settings, VQ_AUTOENCODER.engine
train_here = partial(runs.train_here, "vq_autoencoder")
KINDS: dict[str, dict[str, Any]] = {"ema": {}, "gradient": {"codebook": "gradient"}, "fsq": {"quantizer": "fsq"}}


# the moving codebook, alone


def noise(step: int = 0, rows: slice = slice(0, 8)) -> Noise:
    return Noise((0, step, "autoencoder", 0), 8, rows)


def moving(dead: float = 0.0, known: bool = True, codes: int = 6) -> tuple[VectorQuantizer, Any]:
    quantize = VectorQuantizer(codes, 2)
    torch.nn.init.normal_(quantize.embedding.weight)
    quantize.hold_codebook()
    return quantize, MovingCodebook(quantize, 8 * 4, 0.9, dead, known)


def test_two_steps_of_the_codebook_are_the_closed_form_of_moving_k_means() -> None:
    quantize, use = moving()
    e = quantize.embedding.weight.double().clone()
    n_sum, m_sum = torch.full((6,), 32 / 6).double(), e * 32 / 6
    for step in range(2):
        z = torch.randn(8, 2, 2, 2)
        rows = z.movedim(1, -1).reshape(-1, 2).double()
        nearest = (rows[:, None] - e).square().sum(-1).argmin(1)
        for k in range(6):
            n_sum[k] = 0.9 * n_sum[k] + 0.1 * (nearest == k).sum()
            m_sum[k] = 0.9 * m_sum[k] + 0.1 * rows[nearest == k].sum(0)
        e = m_sum / n_sum[:, None]
        use.collect(z, quantize.nearest(z), noise(step))
        use.update()
        torch.testing.assert_close(quantize.embedding.weight.double(), e, atol=1e-6, rtol=0)
        torch.testing.assert_close(use.counts.double(), n_sum, atol=1e-5, rtol=0)


def test_a_dead_code_becomes_a_vector_of_the_batch_and_a_live_one_stays() -> None:
    quantize, use = moving(dead=0.5)
    with torch.no_grad():
        quantize.embedding.weight[2:] += 100.0                                 # no vector is near these
    lively = set[int]()
    for step in range(9):
        z = torch.randn(8, 2, 2, 2)
        before = quantize.embedding.weight.clone()
        codes = quantize.nearest(z)
        use.collect(z, codes, noise(step))
        use.update()
        rows = z.movedim(1, -1).reshape(-1, 2)
        jumped = {k for k in range(6) if (quantize.embedding.weight[k] - before[k]).norm() > 50}
        for k in jumped:
            assert (rows == quantize.embedding.weight[k]).all(1).any()
        lively |= jumped
    assert lively == {2, 3, 4, 5} and quantize.embedding.weight.abs().max() < 50
    assert len({tuple(row) for row in quantize.embedding.weight.tolist()}) == 6


def test_the_first_batch_replaces_an_unknown_codebook_and_keeps_a_known_one() -> None:
    z = torch.randn(8, 2, 2, 2) + 30
    rows = z.movedim(1, -1).reshape(-1, 2)
    for known in (False, True):
        quantize, use = moving(dead=0.5, known=known)
        use.collect(z, quantize.nearest(z), noise())
        use.update()
        replaced = [(rows == e).all(1).any().item() for e in quantize.embedding.weight]
        assert sum(replaced) >= 5 if not known else not any(replaced)          # one code may have won the whole batch


def test_the_codebook_is_the_same_however_the_batch_is_divided() -> None:
    z = torch.randn(8, 2, 2, 2)
    found = []
    for parts in ([slice(0, 8)], [slice(0, 2), slice(2, 4), slice(4, 8)]):
        torch.manual_seed(1)
        quantize, use = moving(dead=0.9)
        for rows in parts:
            use.collect(z[rows], quantize.nearest(z[rows]), noise(rows=rows))
        use.update()
        found.append((quantize.embedding.weight.clone(), use.counts.clone(), use.used.clone()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_use_and_perplexity_are_those_of_all_codes_since_the_last_fetch() -> None:
    use = CodeUse(10)
    for codes in ([0, 0, 1, 1], [2, 2, 3, 3]):
        use.collect(torch.zeros(1, 2, 2, 2), torch.tensor(codes).view(1, 2, 2), noise())
        use.update()
    assert use.fetch() == {"codes_used": pytest.approx(0.4), "perplexity": pytest.approx(4.0)}
    assert use.fetch() == {}


# the losses of a step


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_numbers_of_the_whole_batch(kind: str) -> None:
    choices = {**KINDS[kind], "adversarial_weight": 0.5, "adversarial_start": 2}
    whole, parts = engine(**choices), engine(micro_batch_size=4, **choices)
    for a, b in zip(run(whole, 4), run(parts, 4), strict=True):
        assert a.keys() == b.keys() >= {"loss", "reconstruction", "grad_norm_autoencoder"}
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), name
    assert {"loss_discriminator", "adversarial", "adversarial_balance"} <= a.keys()
    numbers = [e.recipe.fetch() for e in (whole, parts)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6) and numbers[0]["perplexity"] > 2
    for name, tensor in state(whole.nets["autoencoder"]).items():
        torch.testing.assert_close(tensor, state(parts.nets["autoencoder"])[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_paper(kind: str) -> None:
    e = engine(adversarial_weight=0.0, commitment_weight=0.4, reconstruction="l2", **KINDS[kind])
    net: Any = e.nets["autoencoder"]
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    out = net(batch["x"])
    expected = (out.sample - batch["x"]).square().mean()
    distance = (out.latents - out.vectors).square().mean()
    expected = expected + {"ema": 0.4, "gradient": 1.4, "fsq": 0.0}[kind] * distance
    e.optimise(e.recipe.phases[0], 0, 0, batch, [{}])
    line = e.log.fetch(e.accelerator)
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-5)
    if kind != "fsq":
        assert line["commitment"] == pytest.approx(distance.item(), rel=1e-5)
    moved = [key for key, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert ("quantize.embedding.weight" in moved) == (kind == "gradient")
    assert "encoder.conv_in.weight" in moved                                   # straight through the codes


def test_the_adversarial_terms_are_those_that_the_other_autoencoder_has() -> None:
    assert issubclass(CodeLosses, FirstStageLosses)
    e = engine(adversarial_weight=0.7)
    net, judge = e.nets["autoencoder"], e.nets["discriminator"]
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    x = batch["x"]
    made = net(x).sample
    last: Any = net.decoder.conv_out.weight  # type: ignore[union-attr]
    error, fooled = (made - x).abs().mean(), hinge_g(judge(made).logits)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, fooled)]
    balance, expected = (norms[0] / (norms[1] + 1e-6)).item(), hinge_d(judge(x).logits, judge(made).logits).item()
    first, second = e.recipe.phases
    e.optimise(first, 0, 0, batch, [{}])
    assert e.log.fetch(e.accelerator)["loss_discriminator"] == pytest.approx(expected, rel=1e-5)
    fooled = hinge_g(judge(made).logits)                                       # the discriminator has taken its step
    e.optimise(second, 0, 0, batch, [{}])
    line = e.log.fetch(e.accelerator)
    assert line["adversarial_balance"] == pytest.approx(balance, rel=1e-4)
    parts = line["reconstruction"] + 0.25 * line["commitment"] + 0.7 * balance * fooled.item()
    assert line["loss"] == pytest.approx(parts, rel=1e-4)


def test_a_step_that_is_not_finite_changes_neither_codebook_nor_counts() -> None:
    e = engine(adversarial_weight=0.0)
    run(e, 2)
    before = {name: state(net) for name, net in e.nets.items()}
    batch = next(e.dataset.batches(seed=0, batch_size=16))
    batch["x"][0, 0, 0, 0] = torch.nan
    e.optimise(e.recipe.phases[0], 2, 0, batch, [{}])
    for name, net in e.nets.items():
        for key, tensor in state(net).items():
            assert torch.equal(tensor, before[name][key]), (name, key)


def test_half_precision_stays_finite_and_close() -> None:
    for kind in KINDS.values():
        lines = run(engine(mixed_precision="bf16", adversarial_weight=0.0, **kind), 6)
        exact = run(engine(adversarial_weight=0.0, **kind), 6)
        for a, b in zip(lines, exact, strict=True):
            assert all(torch.tensor(list(a.values())).isfinite())
            assert a["reconstruction"] == pytest.approx(b["reconstruction"], abs=0.03)


# whole runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_run_reconstructs_held_out_digits(kind: str, tmp_path: Path) -> None:
    words = "--split train[:80%] --eval-split train[80%:] --max-steps 150 --batch-size 32 --learning-rate 5e-3"
    choice = {"ema": [], "gradient": ["--codebook", "gradient"], "fsq": ["--quantizer", "fsq"]}[kind]
    size = "--block-out-channels 16 32 --num-codes 64 --levels 4 4 4 --code-dim 8".split()
    log = train_here(tmp_path, *words.split(), *size, *choice, "--log-every", "25")
    rest = load_dataset("digits", split="train[80%:]").tensor()
    blank = psnr(rest.mean(0).expand(len(rest), -1, -1, -1), rest)
    assert log[-1]["eval_psnr"] > blank + 4 and log[-1]["reconstruction"] < 0.5 * log[0]["reconstruction"]
    assert 5 < log[-1]["perplexity"] <= 64 and 0.1 < log[-1]["codes_used"] <= 1
    pipeline: Any = AutoPipeline.from_pretrained(tmp_path)
    restored = pipeline.reconstruct(rest / 2 + 0.5, output_type="pt").images * 2 - 1
    assert psnr(restored, rest) == pytest.approx(log[-1]["eval_psnr"], abs=0.5)             # clipped to [-1, 1]
    with Image.open(tmp_path / "samples" / "step-00000150.png") as drawn:
        assert drawn.mode == "L"
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    if kind == "fsq":
        assert index["autoencoder"] == ["hfgen_shim", "VQAutoencoder"]
        return
    stock = diffusers.VQModel.from_pretrained(tmp_path / "model" / "autoencoder")
    with torch.no_grad():
        torch.testing.assert_close(stock(rest).sample, pipeline.autoencoder(rest).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["ema", pytest.param("gradient", marks=pytest.mark.slow)])
def test_killed_and_resumed_it_ends_in_the_same_bits(
    kind: str, tmp_path: Path, start: Callable[..., subprocess.Popen], train: Train
) -> None:
    arguments = f"--max-steps 24 --save-every 3 --log-every 2 --codebook {kind} --dead-below 0.5".split()
    train(tmp_path / "whole", *arguments, recipe="vq_autoencoder")
    process = start(tmp_path / "killed", *arguments, recipe="vq_autoencoder")
    wait_for_step(tmp_path / "killed", 4, process)
    process.kill()
    process.communicate()
    done = train(tmp_path / "killed", *arguments, "--resume", recipe="vq_autoencoder")
    assert "continued from step" in done.stdout
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert {"nets/codebook.counts", "nets/codebook.used"} <= runs.tensors(tmp_path / "whole").keys() or kind != "ema"


EVERY_KIND = ["ema", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gradient", "fsq"))]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_two_processes_with_micro_batches_equal_one(kind: str, tmp_path: Path, train: Train) -> None:
    choice = {"ema": "--dead-below 0.5", "gradient": "--codebook gradient", "fsq": "--quantizer fsq"}[kind]
    words = f"--max-steps 8 --save-every 0 --adversarial-weight 0.5 --adversarial-start 4 {choice}"
    arguments = words.split()
    train(tmp_path / "one", *arguments, recipe="vq_autoencoder")
    done = train(tmp_path / "two", *arguments, "--micro-batch-size", "4", recipe="vq_autoencoder", processes=2)
    assert "2 process(es)" in done.stdout and "Warning" not in done.stderr, done.stderr
    for a, b in zip(runs.metrics(tmp_path / "one"), runs.metrics(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys() >= {"codes_used", "perplexity"}
        for name in a:
            assert a[name] == pytest.approx(b[name], abs=1e-4, rel=1e-4), (name, a, b)
    first, second = runs.tensors(tmp_path / "one"), runs.tensors(tmp_path / "two")
    for key in first:
        if key.startswith("nets") and "to_k.bias" not in key:      # softmax does not see it: its gradient is rounding
            torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


def test_a_run_that_starts_from_another_keeps_its_codes(tmp_path: Path) -> None:
    train_here(tmp_path / "first", "--max-steps", "20", "--log-every", "10")
    log = train_here(tmp_path / "second", "--start-from", str(tmp_path / "first"), "--max-steps", "1")
    codebooks = [AutoPipeline.from_pretrained(tmp_path / name).autoencoder.quantize.embedding.weight  # type: ignore[attr-defined]
                 for name in ("first", "second")]  # fmt: skip
    assert log[-1]["perplexity"] > 1
    assert (codebooks[0] - codebooks[1]).norm() < 0.1 * codebooks[0].norm()


# collapse, settings


def test_a_perplexity_that_stays_low_is_warned_of_once_with_advice_that_fits() -> None:
    chosen = recommended(settings(codebook="gradient", num_codes=100), load_dataset("digits"))
    memory: dict[str, Any] = {}
    heard = []
    for step in range(0, 5 * PATIENCE, 50):
        recovered = 3 * PATIENCE < step < 3 * PATIENCE + 100
        memory, warning = guard(memory, {"step": step, "perplexity": 50.0 if recovered else 100 * LOW - 1}, chosen, 100)
        memory = json.loads(json.dumps(memory))
        if warning:
            heard.append((step, warning))
    assert [step for step, _ in heard] == [PATIENCE, 3 * PATIENCE + 100 + PATIENCE]
    assert "the perplexity is at most 5% of the 100 codes, now 4.0. Try --codebook ema" in heard[0][1]
    assert guard(memory, {"step": 1, "eval_psnr": 3.0}, chosen, 100) == (memory, None)
    for changes, words in (({"quantizer": "fsq"}, "Try fewer or smaller --levels"), ({}, "Try --quantizer fsq, --num")):
        other = recommended(settings(**changes), load_dataset("digits"))
        _, warning = guard({"since": 0}, {"step": PATIENCE, "perplexity": 0.5}, other, 24)
        assert warning is not None and words in warning


def test_a_codebook_that_collapses_in_a_run_is_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--codebook gradient --num-codes 512 --learning-rate 1e-6 --max-steps 330 --log-every 10 --batch-size 4"
    train_here(tmp_path, *words.split())
    assert "warning: step 310: the codebook has collapsed: since step 10 " in capsys.readouterr().out


def test_recommended_sizes_fit_the_images_and_give_way_to_given_ones(tmp_path: Path) -> None:
    def of(width: int, height: int, **given: Any) -> Any:
        for i in range(2):
            Image.new("RGB", (width, height)).save(tmp_path / f"{i}.png")
        return recommended(RECIPE.settings(output_dir=Path("unused"), **given), load_dataset(tmp_path))

    for side, grid in ((8, 4), (28, 7), (32, 8), (64, 16), (256, 32)):
        assert side >> (len(of(side, side).block_out_channels) - 1) == grid
    assert (of(8, 8).num_codes, of(32, 32).adversarial_weight, of(64, 64).adversarial_weight) == (128, 0.0, 0.5)
    assert of(8, 8, num_codes=7).num_codes == 7 and of(30, 30).block_out_channels == (16, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ring8"}, "--dataset ring8: an autoencoder is for images"),
        ({"commitment_weight": -1.0}, "--commitment-weight must not be negative, got -1.0"),
        ({"num_codes": 0}, "--num-codes must be at least 1, got 0"),
        ({"code_dim": 0}, "--code-dim must be at least 1, got 0"),
        ({"codebook_decay": 1.0}, r"--codebook-decay must be in \[0, 1\), got 1.0"),
        ({"dead_below": -0.1}, r"--dead-below must be in \[0, 1\), got -0.1"),
        ({"levels": (5, 1)}, r"--levels must be numbers of at least 2, such as 8 5 5 5, got \(5, 1\)"),
        ({"block_out_channels": (4,) * 5}, "--block-out-channels .* divide the sides by 16, and those of 8x8 images"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RECIPE.create(settings(**changes), load_dataset(changes.get("dataset", "digits")))
