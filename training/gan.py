"""Generative adversarial networks (Goodfellow et al. 2014): two networks play against each other.

    hfgen train gan --dataset digits --output-dir runs/gan
    accelerate launch training/gan.py --dataset digits --loss wasserstein_gp --output-dir runs/wgan
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hfgen.checks import require_number
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
from hfgen.losses.orthogonal import filters, orthogonal_penalty
from hfgen.metrics.modes import high_quality, high_quality_share, modes_captured
from hfgen.pipelines.gan import GANPipeline
from hfgen.training.began import Balance
from hfgen.training.began import discriminator as autoencoding_discriminator
from hfgen.training.denoiser import Conditions, open_dataset
from hfgen.training.engine.adversarial import optimizer
from hfgen.training.engine.gan_guard import guard
from hfgen.training.engine.mismatched import mismatched
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import preview
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.gan_networks import check_gan, networks
from hfgen.training.growth import growing
from hfgen.training.settings.gan import BOUNDED, SPEC, GANSettings

Nets = Mapping[str, nn.Module]
Losses = tuple[Tensor, dict[str, Tensor]]


def build(s: GANSettings, dataset: Dataset) -> Recipe:
    """Return both networks, their alternating phases and the pipeline of a GAN on `dataset`."""
    # build networks and losses
    check_gan(s)
    check_wrong_conditions(s, dataset)
    losses = GANLosses(s, dataset)
    conditions = losses.conditions
    generator, discriminator = networks(s, dataset, conditions.width)
    if s.loss == "began":
        discriminator = autoencoding_discriminator(s, dataset)
    nets: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator, **conditions.nets}
    balance = losses.objective if isinstance(losses.objective, Balance) else None
    if balance is not None:
        nets["balance"] = balance
    after = partial(clip_weights, discriminator, s.clip) if s.clip else None
    # count modes where they are known
    evaluate = None
    if isinstance(dataset, Toy) and dataset.modes is not None:
        evaluate = partial(mode_coverage, dataset=dataset, seed=s.seed)
    # add a phase for each network
    judging = {"discriminator": discriminator, **{name: conditions.nets[name] for name in conditions.trained}}
    weights_d = [weight for net in judging.values() for weight in net.parameters()]
    weights_g = list(generator.parameters())
    adam_d = optimizer(s.loss, weights_d, s.discriminator_learning_rate, s.discriminator_betas)
    adam_g = optimizer(s.loss, weights_g, s.learning_rate, s.betas)
    recipe = Recipe(
        nets=nets,
        phases=[
            Phase("discriminator", adam_d, (*judging,), losses.discriminator_loss, s.discriminator_steps, after),
            Phase("generator", adam_g, ("generator",), losses.generator_loss, after=balance and balance.update),
        ],
        pipeline=lambda nets: GANPipeline(nets["generator"], nets.get("text_encoder"), conditions.tokenizer),
        preview=partial(preview, dataset=dataset, seed=s.seed, labelled=s.class_conditional),
        averaged=("generator", *conditions.trained),
        evaluate=evaluate,
        guard=partial(guard, settings=s, points=len(dataset.shape) == 1),
        fetch=dict if balance is None else balance.fetch,
        usage=f"hfgen sample {{run}}{conditions.words()} -n 64 --seed 0 -o grid.png",
    )
    return growing(recipe, s) if s.network == "progressive" else recipe


class GANLosses:
    """The losses of the two phases of a step."""

    def __init__(self, settings: GANSettings, dataset: Dataset):
        self.settings, self.dataset, self.objective = settings, dataset, objective_of(settings)
        self.conditions = Conditions(settings, dataset)

    def discriminator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(1) D: maximise log D(x) + log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1), or the objective of --loss.

        Returns the mean loss with penalties, a scalar, and scalars to log. `batch["x"]`: images (B, C, H, W) in
        [-1, 1], or points (B, 2).
        """
        # generate samples for the batch's conditions
        x, labels, given = batch["x"], self.labels(batch), self.given(nets, batch)
        with torch.no_grad():
            generated = nets["generator"](noise.normal("z", self.settings.latent_dim), **given).sample.float()

        def critic(samples: Tensor) -> Tensor:
            return nets["discriminator"](samples, **given).logits

        # compute the objective, and the discriminator's mean verdicts
        real, fake = critic(x), critic(generated)                                # apart: batch norm must not mix them
        loss, seen = self.with_wrong_conditions(self.objective.d(real, fake), nets, batch, noise, real)
        says = self.objective.verdict(real.detach(), fake.detach())
        # compute numbers that the guard reads
        scalars = {"loss_discriminator": loss.detach(), "D(x)": says[0], "D(G(z))": says[1], **seen}
        scalars |= {"real_variance": variance(x), "energy_distance": energy_distance(x, generated)}
        scalars["rank_accuracy"] = (0.5 + (real - fake).detach().sign() / 2).mean()
        if labels is not None:
            scalars["real_class_variance"] = variance(x, labels)
            scalars["sample_class_variance"] = variance(generated, labels)
        if isinstance(self.dataset, Toy) and self.dataset.modes is not None:
            scalars["near_modes"] = near_modes(generated, self.dataset)
        return loss + self.penalties(critic, x, generated, noise), scalars

    def with_wrong_conditions(
        self, loss: Tensor, nets: Nets, batch: Batch, noise: Noise, real: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's loss with real samples of wrong conditions as fakes, and its verdict on those.

        The wrong ones are a share w of the fakes: (1 - w) d(real, fake) + w d(real, wrong), which is for w = 1/2 the
        loss of GAN-CLS (Reed et al. 2016, algorithm 1). `real`: logits of the batch with its own conditions.
        """
        # leave out networks without conditions
        share = self.settings.wrong_conditions
        if not share:
            return loss, {}
        # judge real samples with wrong conditions
        classes = self.dataset.num_classes if self.settings.class_conditional else None
        others = mismatched(batch, noise, classes, self.conditions.captions)
        wrong = nets["discriminator"](batch["x"], **self.given(nets, others)).logits
        verdict = self.objective.verdict(real.detach(), wrong.detach())[1]
        # weigh both kinds of fakes
        return (1 - share) * loss + share * self.objective.d(real, wrong), {"D(x, wrong)": verdict}

    def generator_loss(self, nets: Nets, batch: Batch, noise: Noise, memo: dict[str, Tensor]) -> Losses:
        """(2) G: maximise log D(G(z)) (Goodfellow et al. 2014, section 3), or the objective of --loss.

        Returns the mean loss, a scalar, and scalars to log. `batch["x"]`: images (B, C, H, W) in [-1, 1], or points
        (B, 2).
        """
        # generate samples, and judge them
        given = self.given(nets, batch)
        generated = nets["generator"](noise.normal("z", self.settings.latent_dim), **given).sample
        fake = nets["discriminator"](generated, **given).logits
        real = fake
        if self.settings.loss == "relativistic":
            real = nets["discriminator"](batch["x"], **given).logits
        # compute the objective
        loss = self.objective.g(fake, real)
        scalars = {"loss_generator": loss.detach(), "sample_variance": variance(generated.detach())}
        return loss + self.orthogonality(nets["generator"]), scalars

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

    def orthogonality(self, net: nn.Module) -> Tensor | float:
        """Return the weighted orthogonal penalty of a network's filters, a scalar (Brock et al. 2019, eq. 3)."""
        weight = self.settings.orthogonal_penalty
        return weight * orthogonal_penalty(filters(net)) if weight else 0.0

    def given(self, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        """Return the conditions of a batch as both networks take them.

        `class_labels`: (B,) int64 from 0 on; `encoder_hidden_states`: (B, L, F); {} for unconditional networks.
        """
        x: Tensor = batch["x"]
        return self.conditions.of(nets, batch, torch.zeros(len(x), dtype=torch.bool, device=x.device))

    def labels(self, batch: Batch) -> Tensor | None:
        """Return the classes that both networks are given, (B,) int64 from 0 on; None for networks without classes."""
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


def check_wrong_conditions(s: GANSettings, dataset: Dataset) -> None:
    """Raise ConfigError, naming the field, unless the share of wrong conditions is in [0, 1) and wrong ones exist."""
    # check the share
    require_number("--wrong-conditions", s.wrong_conditions, 0, 1, "[)")
    if not s.wrong_conditions:
        return
    if not (s.class_conditional or s.captions):
        raise ConfigError(f"--wrong-conditions {s.wrong_conditions} needs --class-conditional or --captions")
    if s.loss not in (*BOUNDED, "wasserstein"):
        raise ConfigError(f"--wrong-conditions {s.wrong_conditions}: with --loss {s.loss} their term has no bound; "
                          f"take --wrong-conditions 0, or one of the losses {', '.join(BOUNDED)}")  # fmt: skip
    # check that there are wrong classes and captions
    numbers = {"class": dataset.num_classes if s.class_conditional else None}
    if s.captions:
        numbers["caption"] = len(set(dataset.captions or ()))
    for name, number in numbers.items():
        if number == 1:
            raise ConfigError(f"--wrong-conditions {s.wrong_conditions}: the dataset {s.dataset!r} has one {name} only")


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


RECIPE = RecipeSpec(SPEC, build, open_dataset)

if __name__ == "__main__":
    from hfgen.training import gan

    raise SystemExit(main(gan.RECIPE))
