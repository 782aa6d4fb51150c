"""Figures of a lecture. One command trains the models of a figure, draws it and reports its numbers.

    python -m hfgen.figures first_attempts -o first_attempts.png

`FIGURES` is the table of names. A new figure is a function from keyword arguments to a PIL image, and an entry there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, cast

import torch
import tyro
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from tyro.conf import Positional, arg

from hfgen.checks import require_choice
from hfgen.data import load_dataset
from hfgen.data.order import derive_seed, stretch
from hfgen.errors import ConfigError, exit_code_of
from hfgen.images import grid, to_pil
from hfgen.losses.diffusion import l_simple
from hfgen.metrics.distances import frechet_ratio
from hfgen.models.unet import UNet
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.sampling.request import GRID_SUFFIXES
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.reverse import reverse_moments
from hfgen.training.engine.noise import Noise

Sampler = Callable[[int, int], Tensor]
"""(number, seed) -> samples (number, C, H, W) in [-1, 1]."""

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
STAGES = 50
MAX_IMAGES = 2000
"""Maximal number of images that a figure trains on, and of samples that it compares with them."""

COLUMNS, ROWS = 16, 2
"""Columns and rows of samples of each attempt."""


def train_one_shot(data: Tensor, steps: int, seed: int, sigma: float = 10.0) -> Sampler:
    """Return a sampler that denoises pure noise in one step: x = d(sigma eps), eps ~ N(0, I).

    d minimises E |d(x + sigma eps) - x|^2 over images x (N, C, H, W), so d(y) = E[x | y]. Noise much larger than the
    image hides all differences between images: every sample is nearly the mean E[x], a blur. For data N(m, C) it is
    m + C (C + sigma^2 I)^-1 (sigma eps - m). The input of the network is y / sqrt(1 + sigma^2), of unit variance.
    """
    # train d
    net = network(data, seed)

    def denoised(y: Tensor) -> Tensor:
        return net(y / math.hypot(1, sigma), 0).sample

    fit(net, data, lambda x, noise: l_simple(denoised(x + sigma * noise.normal("eps", *x.shape[1:])), x), steps, seed)

    # apply it once
    @torch.no_grad()
    def sampler(number: int, seed: int) -> Tensor:
        return denoised(sigma * pure_noise(data, number, seed))

    return sampler


def train_multi_stage(data: Tensor, steps: int, seed: int, stages: int = STAGES, start_std: float = 1.0) -> Sampler:
    """Return a sampler that starts from N(0, I) and removes a little noise at each stage: x_{t-1} = d(x_t, t).

    Noise is added as in DDPM, with its beta_t, but x_t is never scaled: x_t = x_{t-1} + sqrt(beta_t) eps, so that
    x_t = x_0 + sqrt(v_t) n with v_t = beta_1 + ... + beta_t, n ~ N(0, I). d minimises E |d(x_t, t) - x_{t-1}|^2:

        d(x_t, t) = E[x_{t-1} | x_t] = x_t - beta_t / sqrt(v_t) E[n | x_t],

    and the network learns E[n | x_t], in mean square, as the network of DDPM does. There are two errors. The chain ends
    near variance 1 + v_T, but sampling starts from N(0, I) (`start_std` = sqrt(v_T) comes close). And a stage that
    takes the mean and adds no noise is x_t + beta_t grad log p(x_t): for small steps this is twice the step of the
    probability flow (Song et al. 2021, eq. 13), an ascent to the same few smooth images. For data N(m, C) the product
    of all stages is m + C (C + v_T I)^-1 (x_T - m): the blur of one shot.
    """
    # train the network to predict n
    net, betas = network(data, seed), ddpm_scheduler(stages).betas
    roots = betas.cumsum(0).sqrt()                                                       # sqrt(v_t)

    def loss(x: Tensor, noise: Noise) -> Tensor:
        n, t = noise.normal("eps", *x.shape[1:]), (noise.stratified("t") * stages).long()
        return l_simple(net(x + roots[t][:, None, None, None] * n, t).sample, n)

    fit(net, data, loss, steps, seed)

    # apply every stage
    @torch.no_grad()
    def sampler(number: int, seed: int) -> Tensor:
        return denoise_by_stages(lambda x, t: net(x, t).sample, betas, start_std * pure_noise(data, number, seed))

    return sampler


def train_attenuated(data: Tensor, steps: int, seed: int, stages: int = STAGES, shared: bool = True) -> Sampler:
    """Return a sampler that starts from N(0, I) and applies a denoising autoencoder at each stage: x_{t-1} = d(x_t, t).

    Noise is added as in DDPM, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps, so that the chain ends in N(0, I),
    where sampling starts: the first error of `train_multi_stage` is gone. d is the mean of DDPM's step, at the same
    network. The second error stays: for data N(m, C) the product of all stages is E[x_0 | x_T],

        m + sqrt(alpha_bar_T) C (alpha_bar_T C + (1 - alpha_bar_T) I)^-1 (x_T - sqrt(alpha_bar_T) m),

    which is m for every x_T as alpha_bar_T falls to 0. Digits all end in one picture. Each mean is
    narrower than its x_{t-1}, by the variance that x_{t-1} has given x_t; DDPM draws noise of this variance. `shared`:
    one network for all autoencoders, with t as input; otherwise each stage has its own, trained for `steps`.
    """
    # train the network, or the networks, to predict eps
    scheduler = ddpm_scheduler(stages)
    own: list[int | None] = [None] if shared else list(range(stages))
    nets = [noise_predictor(data, steps, seed, scheduler, stage) for stage in own]
    # apply every stage
    return walk(data, scheduler, lambda x, t: nets[0 if shared else int(t[0])](x, t).sample)


def walk(
    data: Tensor, scheduler: DDPMScheduler, predict: Callable[[Tensor, Tensor], Tensor], noise: float = 0.0
) -> Sampler:
    """Return a sampler that walks from N(0, I) through the means of DDPM's steps, with a factor of their `noise`.

    `predict(x, t)`: eps in x (N, C, H, W) at t (N,). Factor 0 is a chain of denoising autoencoders, 1 is DDPM.
    """

    @torch.no_grad()
    def sampler(number: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample"))
        x = torch.randn(number, *data.shape[1:], generator=generator)
        for step in reversed(range(len(scheduler))):
            t = torch.full((number,), step)
            x, log_variance = reverse_moments(scheduler, predict(x, t), t, x)
            if noise and step:
                x = x + noise * (log_variance / 2).exp() * torch.randn(x.shape, generator=generator)
        return x

    return sampler


def train_ddpm(data: Tensor, steps: int, seed: int, stages: int = STAGES) -> Sampler:
    """Return the sampler of denoising diffusion with the network, data, stages and beta_t of `train_multi_stage`.

    x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps ends in N(0, I), where sampling starts; each step draws x_{t-1}
    from a Gaussian around the posterior mean, so noise is added again (Ho et al. 2020, algorithms 1 and 2).
    """
    # train the network to predict eps
    scheduler = ddpm_scheduler(stages)
    net = noise_predictor(data, steps, seed, scheduler)
    # sample with its pipeline
    pipeline = DDPMPipeline(unet=cast(UNet, net), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def sampler(number: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "sample"))
        images: Tensor = pipeline(batch_size=number, generator=generator, output_type="pt", return_dict=False)[0]
        return images * 2 - 1

    return sampler


def noise_predictor(
    data: Tensor, steps: int, seed: int, scheduler: DDPMScheduler, stage: int | None = None
) -> nn.Module:
    """Return a network trained on E |eps(x_t, t) - eps|^2 (Ho et al. 2020, eq. 14), at all t or at one `stage` alone.

    `data`: images x_0 (N, C, H, W) in [-1, 1].
    """
    net = network(data, seed)

    def loss(x: Tensor, noise: Noise) -> Tensor:
        eps, t = noise.normal("eps", *x.shape[1:]), (noise.stratified("t") * len(scheduler)).long()
        if stage is not None:
            t = torch.full_like(t, stage)
        return l_simple(net(scheduler.add_noise(x, eps, t), t).sample, eps)

    fit(net, data, loss, steps, seed)
    return net


def denoise_by_stages(predict: Callable[[Tensor, int], Tensor], betas: Tensor, x: Tensor) -> Tensor:
    """Return x after the stages t = T, ..., 1 of x <- x - beta_t / sqrt(v_t) n(x, t), v_t = beta_1 + ... + beta_t.

    x: (N, ...). `predict(x, t)`: the noise n in x, of unit variance, at the index t from 0 on; `betas`: (T,).
    """
    v = betas.cumsum(0)
    for t in reversed(range(len(betas))):
        x = x - betas[t] / v[t].sqrt() * predict(x, t)
    return x


def ddpm_scheduler(stages: int) -> DDPMScheduler:
    """Return the scheduler of `stages` steps with the cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""
    return DDPMScheduler(num_train_timesteps=stages, beta_schedule="squaredcos_cap_v2")


def network(data: Tensor, seed: int) -> nn.Module:
    """Return a small U-Net for images like `data`, (N, C, H, W) in [-1, 1]; its weights are a function of the seed."""
    channels, height, width = data.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))
        return UNet(
            sample_size=(height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
        )


def fit(net: nn.Module, data: Tensor, loss: Callable[[Tensor, Noise], Tensor], steps: int, seed: int) -> None:
    """Train `net` in place: Adam on the mean of `loss(x, noise)`, (B,), with a cosine learning rate that ends at 0.

    `data`: images (N, C, H, W) in [-1, 1].
    """
    optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        # draw a batch and its noise
        _, indices = stretch(seed, len(data), step * BATCH_SIZE, BATCH_SIZE)
        noise = Noise((seed, step, "figure", 0), BATCH_SIZE, slice(None))
        # step on the mean loss
        mean = loss(data[torch.from_numpy(indices)], noise).mean()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        schedule.step()


def pure_noise(data: Tensor, number: int, seed: int) -> Tensor:
    """Return `number` draws from N(0, I) of the shape of the images in `data`, a function of the seed."""
    return torch.randn(number, *data.shape[1:], generator=torch.Generator().manual_seed(derive_seed(seed, "sample")))


def spread(samples: Tensor) -> float:
    """Return the non-negative standard deviation between samples (N, ...): the root of their variance, averaged over
    dimensions."""
    return float(samples.flatten(1).var(0).mean().sqrt())


ATTEMPTS: dict[str, Callable[[Tensor, int, int], Sampler]] = {
    "one shot": train_one_shot,
    "multi-stage, unscaled": train_multi_stage,
    "multi-stage, attenuated": train_attenuated,
    "DDPM": train_ddpm,
}


@dataclass(frozen=True)
class Attempt:
    """Samples (N, C, H, W) in [-1, 1], their Fréchet ratio to the data, and the `spread` of samples and data."""

    name: str
    samples: Tensor
    frechet_ratio: float
    spread: float
    spread_of_data: float

    def numbers(self) -> list[str]:
        """Return the lines of text beside the samples, in characters of Pillow's default font."""
        return [f"Frechet ratio {self.frechet_ratio:.2f}", f"spread {self.spread:.2f} (data {self.spread_of_data:.2f})"]


def compare_attempts(data: Tensor, steps: int, seed: int, report: Callable[[str], None]) -> list[Attempt]:
    """Return the attempts, each trained for `steps` on images (N, C, H, W), and evaluated on N samples in [-1, 1].

    The Fréchet ratio is that of pixels; it is 1 for two halves of the data. The numbers of each attempt go to `report`.
    """
    attempts = []
    for name, train in ATTEMPTS.items():
        samples = train(data, steps, seed)(len(data), seed).clamp(-1, 1)
        ratio = frechet_ratio(data.flatten(1), samples.flatten(1))
        attempts.append(Attempt(name, samples, ratio, spread(samples), spread(data)))
        report(f"{name}: {', '.join(attempts[-1].numbers())}")
    return attempts


def first_attempts(
    dataset: str = "digits", steps: int = 1000, seed: int = 0, report: Callable[[str], None] = print
) -> Image.Image:
    """Return a sheet of training images and of samples of four attempts to make images from noise with a denoiser.

    They are denoising in one shot, denoising in stages without scaling, with attenuation, and DDPM, with the same
    network, data and `steps` of training. `dataset`: small images with even sides, of which the first 2,000 are used.
    The numbers of `compare_attempts` stand beside the samples and go to `report`, a line each. Raises ConfigError for
    points and for fewer than 1 step.
    """
    # load the data
    if steps < 1:
        raise ConfigError(f"steps must be at least 1, got {steps}")
    images = load_dataset(dataset)
    if len(images.shape) != 3:
        raise ConfigError(f"{dataset}: this figure is of images, and these are points; choose digits, for example")
    data = images.tensor(MAX_IMAGES)
    # draw a row of training images, and one of each attempt
    rows = [(["training images", f"spread {spread(data):.2f}"], to_pil(data[: ROWS * COLUMNS]))]
    for attempt in compare_attempts(data, steps, seed, report):
        rows.append(([attempt.name, *attempt.numbers()], to_pil(attempt.samples[: ROWS * COLUMNS])))
    return labelled_rows(rows)


def labelled_rows(rows: list[tuple[list[str], list[Image.Image]]], size: int = 14, margin: int = 8) -> Image.Image:
    """Return one RGB sheet of rows: lines of text on the left, pictures of one size on the right."""
    # measure text and pictures
    font = ImageFont.load_default(size)
    texts = [lines for lines, _ in rows]
    width = math.ceil(max(map(font.getlength, chain.from_iterable(texts)))) + 2 * margin
    grids = [grid(pictures, COLUMNS) for _, pictures in rows]
    height = max(max(g.height for g in grids), (size + 4) * max(map(len, texts))) + margin
    # draw one sheet
    sheet = Image.new("RGB", (width + max(g.width for g in grids) + margin, height * len(rows) + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (lines, picture) in enumerate(zip(texts, grids, strict=True)):
        top = margin + row * height
        draw.multiline_text((margin, top), "\n".join(lines), fill="black", font=font)
        sheet.paste(picture, (width, top))
    return sheet


FIGURES: dict[str, Callable[..., Image.Image]] = {"first_attempts": first_attempts}


@dataclass(frozen=True, kw_only=True)
class FigureRequest:
    """Make a figure."""

    figure: Annotated[Positional[str], arg(metavar="FIGURE", help=f"One of {', '.join(FIGURES)}.")]
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE")]
    """Picture, such as a.png."""
    dataset: str | None = None
    """Images. Default: digits."""
    steps: int | None = None
    """Training steps of each model. Default: those of the figure."""
    seed: int | None = None
    """Seed of weights, batches and noise. Default: 0."""

    def run(self) -> int:
        """Draw and save the figure; return 0. Raises ConfigError for another figure or suffix."""
        # check the request
        require_choice("FIGURE", self.figure, FIGURES)
        if self.output.suffix not in GRID_SUFFIXES:
            raise ConfigError(f"-o {self.output}: must end in one of {', '.join(GRID_SUFFIXES)}")
        # draw and save
        given = {"dataset": self.dataset, "steps": self.steps, "seed": self.seed}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        FIGURES[self.figure](**{name: value for name, value in given.items() if value is not None}).save(self.output)
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `python -m hfgen.figures NAME -o FILE` with `arguments` (sys.argv by default)."""
    return exit_code_of(tyro.cli(FigureRequest, args=arguments, prog="python -m hfgen.figures").run)


if __name__ == "__main__":
    from hfgen import figures

    raise SystemExit(figures.main())
