"""The figures: what each attempt at generation by denoising does, beside closed forms, and the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from hfgen import figures
from hfgen.data import load_dataset
from hfgen.errors import ConfigError
from hfgen.images import grid, to_pil
from tests.training.runs import ROOT, environment

MEAN, STD = 0.2, 0.3                                   # of Gaussian "images", far enough inside [-1, 1]
DDPM_STAGES = 20


@pytest.fixture(scope="module")
def gaussian() -> Tensor:
    return MEAN + STD * torch.randn(2000, 1, 2, 2, generator=torch.Generator().manual_seed(5))


def root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_the_trained_one_shot_denoiser_is_the_conditional_mean_of_gaussian_data(gaussian: Tensor) -> None:
    sigma = 1.0
    y = sigma * figures.pure_noise(gaussian, 1000, seed=3)
    optimum = MEAN + STD**2 / (STD**2 + sigma**2) * (y - MEAN)
    samples = figures.train_one_shot(gaussian, steps=250, seed=0, sigma=sigma)(1000, 3)
    assert root_mean_square(samples - optimum) < 0.03                  # against a spread of 0.3 in the data


def test_one_shot_digits_are_all_the_mean_digit() -> None:
    data = load_dataset("digits").tensor()
    samples = figures.train_one_shot(data, steps=100, seed=0)(200, 0)
    assert figures.spread(samples) < 0.2 < 0.5 < figures.spread(data)
    assert root_mean_square(samples.mean(0) - data.mean(0)) < 0.15
    assert root_mean_square(data[:200] - data.mean(0)) > 0.5


def test_stages_of_perfect_denoisers_of_gaussian_data_telescope_to_the_blur_of_one_shot() -> None:
    variances, mean = torch.tensor([4.0, 1.0, 0.25, 0.01]), torch.tensor([0.5, -0.2, 0.0, 1.0])
    betas = torch.linspace(0.01, 0.9, 30)
    v, start = betas.cumsum(0), torch.randn(6, 4)

    def predict(x: Tensor, t: int) -> Tensor:
        return v[t].sqrt() * (x - mean) / (variances + v[t])           # E[n | x_t] of x_t = x_0 + sqrt(v_t) n

    end, x = figures.denoise_by_stages(predict, betas, start), start
    for before, after in zip([0.0, *v[:-1].tolist()][::-1], v.tolist()[::-1], strict=True):
        x = mean + (variances + before) / (variances + after) * (x - mean)         # Cov(x_{t-1}, x_t) / Var(x_t)
    torch.testing.assert_close(end, x, atol=1e-5, rtol=0)
    torch.testing.assert_close(end, mean + variances / (variances + v[-1]) * (start - mean), atol=1e-5, rtol=0)


@pytest.mark.parametrize("start_std", [1.0, 1.5])
def test_the_trained_stages_lose_the_spread_that_the_closed_form_says(gaussian: Tensor, start_std: float) -> None:
    stages = 5
    v_T = float(figures.ddpm_scheduler(stages).betas.sum())
    x_T = start_std * figures.pure_noise(gaussian, 1000, seed=3)
    optimum = MEAN + STD**2 / (STD**2 + v_T) * (x_T - MEAN)
    sampler = figures.train_multi_stage(gaussian, steps=250, seed=0, stages=stages, start_std=start_std)
    samples = sampler(1000, 3)
    assert figures.spread(optimum) < STD / 3
    assert abs(figures.spread(samples) - figures.spread(optimum)) < 0.02
    assert root_mean_square(samples - optimum) < 0.045


def test_perfect_stages_with_attenuation_end_in_the_mean_of_gaussian_data_whatever_the_start() -> None:
    scheduler, C = figures.ddpm_scheduler(10), STD**2
    alpha_bar = [1.0, *scheduler.alpha_bar.tolist()]
    start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    x, variance = start, 1.0
    for a, before in zip(alpha_bar[:0:-1], alpha_bar[-2::-1], strict=True):
        # E[x_{t-1} | x_t], and the variance that it leaves out
        slope = (a / before) ** 0.5 * (before * C + 1 - before) / (a * C + 1 - a)
        x = before**0.5 * MEAN + slope * (x - a**0.5 * MEAN)
        variance = slope**2 * variance + (before * C + 1 - before) - slope**2 * (a * C + 1 - a)
    last = alpha_bar[-1]
    product = MEAN + last**0.5 * C / (last * C + 1 - last) * (start - last**0.5 * MEAN)
    torch.testing.assert_close(x, product, atol=1e-9, rtol=0)
    assert float((x - MEAN).abs().max()) < 0.01 * STD
    assert variance == pytest.approx(C, rel=1e-3)                      # with that variance drawn as noise


@pytest.mark.parametrize("shared", [True, False])
def test_trained_stages_with_attenuation_lose_the_spread_and_keep_the_mean(shared: bool, gaussian: Tensor) -> None:
    sampler = figures.train_attenuated(gaussian, steps=200, seed=0, stages=4, shared=shared)
    samples = sampler(1000, 3)
    assert figures.spread(samples) < STD / 3
    assert root_mean_square(samples - MEAN) < STD / 3


def test_the_noise_of_each_step_is_all_that_ddpm_adds_to_stages_with_attenuation(gaussian: Tensor) -> None:
    scheduler = figures.ddpm_scheduler(6)
    net = figures.noise_predictor(gaussian, 30, 0, scheduler)
    noisy, plain = (figures.walk(gaussian, scheduler, lambda x, t: net(x, t).sample, noise)(20, 3) for noise in (1, 0))
    ddpm = figures.train_ddpm(gaussian, 30, 0, stages=6)(20, 3)
    torch.testing.assert_close(noisy, ddpm, atol=1e-4, rtol=0)
    assert torch.equal(plain, figures.train_attenuated(gaussian, 30, 0, stages=6)(20, 3))
    assert root_mean_square(plain - ddpm) > 0.05


def test_ddpm_with_the_same_network_and_steps_keeps_the_mean_and_the_spread_of_perfect_steps(gaussian: Tensor) -> None:
    alpha_bar = [1.0, *figures.ddpm_scheduler(DDPM_STAGES).alpha_bar.tolist()]
    mean, variance = 0.0, 1.0
    for a, before in zip(alpha_bar[:0:-1], alpha_bar[-2::-1], strict=True):
        beta = 1 - a / before
        shrink = STD**2 * a**0.5 / (STD**2 * a + 1 - a)              # E[x_0 | x_t] = MEAN + shrink (x_t - MEAN sqrt(a))
        of_x_0, of_x_t = before**0.5 * beta / (1 - a), (1 - beta) ** 0.5 * (1 - before) / (1 - a)
        mean = of_x_0 * (MEAN + shrink * (mean - a**0.5 * MEAN)) + of_x_t * mean
        variance = (of_x_0 * shrink + of_x_t) ** 2 * variance + beta * (1 - before) / (1 - a)
    samples = figures.train_ddpm(gaussian, steps=250, seed=0, stages=DDPM_STAGES)(1000, 3)
    assert variance**0.5 > 0.75 * STD
    assert abs(float(samples.mean()) - mean) < 0.04
    assert abs(figures.spread(samples) - variance**0.5) < 0.03


@pytest.mark.parametrize("name", figures.ATTEMPTS)
def test_samples_are_a_function_of_the_seeds_alone(name: str, gaussian: Tensor) -> None:
    train = figures.ATTEMPTS[name]
    state = torch.get_rng_state()
    first = train(gaussian, 2, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = train(gaussian, 2, 0), train(gaussian, 2, 1)
    assert torch.equal(first(4, 0), again(4, 0))
    assert not torch.equal(first(4, 0), first(4, 1))
    assert not torch.equal(first(4, 0), other(4, 0))


def test_spread_is_the_root_of_the_mean_variance_of_pixels() -> None:
    samples = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 1.0]]]])           # variances 2 and 0
    assert figures.spread(samples) == pytest.approx(1.0)


def test_rows_have_text_on_the_left_and_their_pictures_beside() -> None:
    first, second = (to_pil(torch.rand(20, 1, 8, 8) * 2 - 1) for _ in range(2))
    sheet = figures.labelled_rows([(["a"], first), (["long enough to be the widest", "b"], second)])
    expected = grid(first, figures.COLUMNS).convert("RGB")
    left = sheet.width - expected.width - 8
    for row, pictures in enumerate((first, second)):
        top = 8 + row * (expected.height + 8)
        box = (left, top, left + expected.width, top + expected.height)
        pasted = grid(pictures, figures.COLUMNS).convert("RGB")
        assert ImageChops.difference(sheet.crop(box), pasted).getbbox() is None
        text = sheet.crop((0, top, left, top + expected.height)).convert("L")
        assert text.getextrema() == (0, 255)


def test_the_command_writes_a_picture_and_prints_the_numbers_of_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "MAX_IMAGES", 40)
    output = tmp_path / "new" / "attempts.png"
    assert figures.main(["first_attempts", "-o", str(output), "--steps", "2", "--seed", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(figures.ATTEMPTS)
    data = load_dataset("digits").tensor(40)
    assert all("Frechet ratio" in line and f"(data {figures.spread(data):.2f})" in line for line in lines)
    with Image.open(output) as picture:
        real = grid(to_pil(data[:32]), 16).convert("RGB")
        left = picture.width - real.width - 8
        corner = picture.convert("RGB").crop((left, 8, left + real.width, 8 + real.height))
    assert ImageChops.difference(corner, real).getbbox() is None


def test_an_unknown_figure_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hfgen.figures", "nothing", "-o", str(tmp_path / "a.png")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nothing" in done.stderr and "first_attempts" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "a.txt"], "must end in one of .png"),
        (["-o", "a.png", "--steps", "0"], "steps must be at least 1, got 0"),
        (["-o", "a.png", "--dataset", "ring8"], "ring8: this figure is of images"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert figures.main(["first_attempts", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sides_that_the_network_cannot_halve_are_refused() -> None:
    with pytest.raises(ConfigError, match="divisible by 2"):
        figures.train_ddpm(torch.zeros(4, 1, 7, 8), 1, 0)
