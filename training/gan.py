"""Generative adversarial networks (Goodfellow et al. 2014): two networks play against each other.

    hfgen train gan --dataset digits --output-dir runs/gan
    accelerate launch training/gan.py --dataset digits --loss wasserstein_gp --output-dir runs/wgan
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.data.toy import Toy
from hfgen.errors import ConfigError
from hfgen.losses.adversarial import (
    F_DIVERGENCES,
    OBJECTIVES,
    Objective,
    clip_weights,
    gradient_penalty,
    zero_centred_penalty,
)
from hfgen.metrics.modes import high_quality, high_quality_share, modes_captured
from hfgen.models.dcgan import DCGANDiscriminator, DCGANGenerator
from hfgen.models.mlp import MLPDiscriminator, MLPGenerator
from hfgen.pipelines.gan import GANPipeline
from hfgen.training.began import Balance
from hfgen.training.began import discriminator as autoencoding_discriminator
from hfgen.training.engine.adversarial import optimizer
from hfgen.training.engine.gan_guard import guard
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import preview
from hfgen.training.engine.recipe import RecipeSpec, mean_and_std, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.gan import SPEC, GANSettings

Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]


def build(s: GANSettings, dataset: Dataset) -> Recipe:
    """Return both networks, their alternating phases and the pipeline of a GAN on `dataset`."""
    # build networks and losses
    check_gan(s)
    generator, discriminator = networks(s, dataset)
    if s.loss == "began":
        discriminator = autoencoding_discriminator(s, dataset)
    losses = GANLosses(s, dataset)
    nets: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
    balance = losses.objective if isinstance(losses.objective, Balance) else None
    if balance is not None:
        nets["balance"] = balance
    after = partial(clip_weights, discriminator, s.clip) if s.clip else None
    # count modes where they are known
    evaluate = None
    if isinstance(dataset, Toy) and dataset.modes is not None:
        evaluate = partial(mode_coverage, dataset=dataset, seed=s.seed)
    # add a phase for each network
    weights_d, weights_g = discriminator.parameters(), generator.parameters()
    adam_d = optimizer(s.loss, weights_d, s.discriminator_learning_rate, s.discriminator_betas)
    adam_g = optimizer(s.loss, weights_g, s.learning_rate, s.betas)
    return Recipe(
        nets=nets,
        phases=[
            Phase("discriminator", adam_d, ("discriminator",), losses.discriminator_loss, s.discriminator_steps, after),
            Phase("generator", adam_g, ("generator",), losses.generator_loss, after=balance and balance.update),
        ],
        pipeline=lambda nets: GANPipeline(generator=nets["generator"]),
        preview=partial(preview, dataset=dataset, seed=s.seed, labelled=s.class_conditional),
        averaged=("generator",),
        evaluate=evaluate,
        guard=partial(guard, settings=s, points=len(dataset.shape) == 1),
        fetch=dict if balance is None else balance.fetch,
    )


class GANLosses:
    """The losses of the two phases of a step."""

    def __init__(self, settings: GANSettings, dataset: Dataset):
        self.settings, self.dataset, self.objective = settings, dataset, objective_of(settings)

    def discriminator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) D: maximise log D(x) + log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1), or the objective of --loss.

        Returns the mean loss with penalties, a scalar, and scalars to log. `batch["x"]`: images (B, C, H, W) in
        [-1, 1], or points (B, 2).
        """
        # generate samples for the batch's classes
        x, labels = batch["x"], self.labels(batch)
        with torch.no_grad():
            generated = nets["generator"](noise.normal("z", self.settings.latent_dim), labels).sample.float()

        def critic(samples: Tensor) -> Tensor:
            return nets["discriminator"](samples, labels).logits

        # compute the objective, and the discriminator's mean verdicts
        real, fake = critic(x), critic(generated)                                # apart: batch norm must not mix them
        loss = self.objective.d(real, fake)
        says = self.objective.verdict(real.detach(), fake.detach())
        # compute numbers that the guard reads
        scalars = {"loss_discriminator": loss.detach(), "D(x)": says[0], "D(G(z))": says[1]}
        scalars |= {"real_variance": variance(x), "energy_distance": energy_distance(x, generated)}
        scalars["rank_accuracy"] = (0.5 + (real - fake).detach().sign() / 2).mean()
        if labels is not None:
            scalars["real_class_variance"] = variance(x, labels)
            scalars["sample_class_variance"] = variance(generated, labels)
        if isinstance(self.dataset, Toy) and self.dataset.modes is not None:
            scalars["near_modes"] = near_modes(generated, self.dataset)
        return loss + self.penalties(critic, x, generated, noise), scalars

    def generator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(2) G: maximise log D(G(z)) (Goodfellow et al. 2014, section 3), or the objective of --loss.

        Returns the mean loss, a scalar, and scalars to log. `batch["x"]`: images (B, C, H, W) in [-1, 1], or points
        (B, 2).
        """
        # generate samples, and judge them
        labels = self.labels(batch)
        generated = nets["generator"](noise.normal("z", self.settings.latent_dim), labels).sample
        fake = nets["discriminator"](generated, labels).logits
        real = fake
        if self.settings.loss == "relativistic":
            real = nets["discriminator"](batch["x"], labels).logits
        # compute the objective
        loss = self.objective.g(fake, real)
        return loss, {"loss_generator": loss.detach(), "sample_variance": variance(generated.detach())}

    def penalties(self, critic: Any, x: Tensor, generated: Tensor, noise: Noise) -> Tensor | float:
        """Return the weighted gradient penalties at x and generated samples (B, ...), a non-negative scalar.

        Gulrajani et al. 2017, eq. 3, and R1 and R2 (Mescheder et al. 2018, eq. 9 and 10).
        """
        # add the penalty between x and generated samples
        s = self.settings
        total: Tensor | float = 0.0
        if s.gradient_penalty:
            total = s.gradient_penalty * gradient_penalty(critic, x, generated, noise.uniform("eta"))
        # add R1 and R2
        every = s.penalty_every
        if noise.step % every == 0:
            decay = every * s.penalty_end ** (noise.step / s.max_steps)
            for weight, samples in ((s.r1, x), (s.r2, generated)):
                if weight:
                    total = total + weight * decay * zero_centred_penalty(critic, samples)
        return total

    def labels(self, batch: Batch) -> Tensor | None:
        """Return the classes that both networks are given, (B,) int64 from 0 on; None for unconditional ones."""
        return batch["label"] if self.settings.class_conditional else None


def objective_of(s: GANSettings) -> Objective | Balance:
    """Return the objective of --loss. Raises ConfigError for a field that only other losses have."""
    # refuse fields of other losses
    owners = {"generator_loss": tuple(F_DIVERGENCES), "gamma": ("began",), "lambda_k": ("began",),
              "code_dim": ("began",)}  # fmt: skip
    for name, losses in owners.items():
        if getattr(s, name) is not None and s.loss not in losses:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(s, name)}: --loss {s.loss} has none; it is for "
                              f"{', '.join(losses)}")  # fmt: skip
    # choose
    if s.loss == "began":
        return Balance(s.gamma, s.lambda_k)
    if s.loss in F_DIVERGENCES:
        return F_DIVERGENCES[s.loss].objective(saturating=s.generator_loss == "minimax")
    return OBJECTIVES[s.loss]


def variance(x: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the variance over samples (B, ...), averaged over dimensions, as half the mean square of differences.

    Of consecutive samples, so that it is a mean over pairs, and does not depend on how a batch is divided. With
    `labels` (B,) pairs of two classes count as 0: the variance within classes, times the share of other pairs. The
    result is a non-negative scalar.
    """
    a, b = pairs(x.float())
    square = (a - b).square().flatten(1).mean(1) / 2
    if labels is not None:
        square = square * torch.eq(*pairs(labels))
    return square.mean()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'| of samples (B, ...), unbiased (Székely & Rizzo 2013, eq. 5).

    A scalar: in expectation 0 where both have one distribution, > 0 elsewhere. |.| is the root mean square over
    dimensions, and pairs are those of `variance`; an x never meets the y of its row, which may have the same class.
    """
    (a, b), (c, d) = pairs(x.float()), pairs(y.float())

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().flatten(1).mean(1).sqrt().mean()

    return distance(a, d) + distance(b, c) - distance(a, b) - distance(c, d)


def pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second sample of each pair of consecutive ones in x (B, ...), both (B // 2, ...)."""
    halves = x[: len(x) // 2 * 2].unflatten(0, (-1, 2))
    return halves[:, 0], halves[:, 1]


def near_modes(x: Tensor, dataset: Toy) -> Tensor:
    """Return the share of points (B, 2), standardised, within three sigma of the mixture's nearest mode, in [0, 1]."""
    mean, std = torch.as_tensor(dataset.mean, device=x.device), torch.as_tensor(dataset.std, device=x.device)
    return high_quality(x * std + mean, cast(Tensor, dataset.modes), dataset.sigma).float().mean()


def networks(s: GANSettings, dataset: Dataset) -> tuple[nn.Module, nn.Module]:
    """Return generator and discriminator for the dataset's shape: convolutional for images, MLPs for 2-D points."""
    if s.class_conditional and not dataset.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
    # collect arguments of generator and discriminator
    classes = dataset.num_classes if s.class_conditional else None
    given: dict[str, Any] = {"latent_dim": s.latent_dim, "norm": s.generator_norm, "num_classes": classes}
    other: dict[str, Any] = {"pack": s.pack, "minibatch_stddev": s.minibatch_stddev, "norm": s.discriminator_norm}
    other["num_classes"] = classes
    # build MLPs for points
    if len(dataset.shape) == 1:
        size: dict[str, Any] = {"dim": dataset.shape[0], "hidden": s.width, "layers": s.layers}
        generator = MLPGenerator(**size, **given, **mean_and_std(dataset))
        return generator, MLPDiscriminator(**size, **other, frequencies=s.frequencies)
    # build convolutional networks for images
    size = {"resolution": side_or_sides(dataset), "channels": dataset.shape[0], "width": s.width}
    size["base_size"] = s.base_size
    generator_ = DCGANGenerator(**size, **given, extra_layers=s.generator_extra_layers)
    return generator_, DCGANDiscriminator(**size, **other, extra_layers=s.discriminator_extra_layers)


def check_gan(s: GANSettings) -> None:
    """Raise ConfigError, naming the field, for values that no GAN can use, and for packs that do not fit the batch."""
    # check the ranges of single fields
    for name in ("discriminator_steps", "discriminator_learning_rate", "penalty_every", "penalty_end", "pack"):
        if not getattr(s, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(s, name)}")
    for name in ("gradient_penalty", "r1", "r2", "clip"):
        if not 0 <= getattr(s, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a number >= 0, got {getattr(s, name)}")
    for name in ("betas", "discriminator_betas"):
        if not all(0 <= beta < 1 for beta in getattr(s, name)):
            raise ConfigError(f"--{name.replace('_', '-')} must be two numbers in [0, 1), got {getattr(s, name)}")
    # check that packs and groups fit into a micro-batch
    per_process = s.batch_size // PartialState().num_processes
    unit, micro = s.pack * max(1, s.minibatch_stddev), min(s.micro_batch_size or per_process, per_process)
    if micro % unit:
        raise ConfigError(f"--batch-size {s.batch_size}: {micro} samples go through the discriminator at once; that "
                          f"must be a multiple of {unit} (--pack x --minibatch-stddev)")  # fmt: skip


def mode_coverage(nets: Mapping[str, Any], dataset: Toy, seed: int) -> dict[str, float]:
    """Return the modes captured and the share of high quality among 2,500 samples (Srivastava et al. 2017)."""
    # sample
    pipeline = GANPipeline(generator=nets["generator"])
    generator = torch.Generator().manual_seed(seed)
    points = pipeline(batch_size=2500, generator=generator, output_type="pt", return_dict=False)[0].cpu()
    # compare with the modes
    modes = cast(Tensor, dataset.modes)
    return {
        "modes": float(modes_captured(points, modes, dataset.sigma)),
        "high_quality": high_quality_share(points, modes, dataset.sigma),
    }


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import gan

    raise SystemExit(main(gan.RECIPE))
