"""Progressive growing of both networks of a GAN (Karras et al. 2018): the level of each step, and losses at it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hfgen.errors import ConfigError
from hfgen.models.progressive import ProgressiveDiscriminator, ProgressiveGenerator, at_level
from hfgen.pipelines.gan import GANPipeline
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Loss, Recipe
from hfgen.training.settings.gan import GANSettings


def growing(recipe: Recipe, settings: GANSettings) -> Recipe:
    """Return the recipe of a GAN whose two networks grow while they train."""
    generator, discriminator = recipe.nets["generator"], recipe.nets["discriminator"]
    assert isinstance(generator, ProgressiveGenerator) and isinstance(discriminator, ProgressiveDiscriminator)
    growth = Growth(settings, generator, discriminator)
    return replace(
        recipe,
        nets={**recipe.nets, "growth": growth},
        phases=[replace(phase, loss=growth.during(phase.loss)) for phase in recipe.phases],
        pipeline=growth.pipeline,
        stages=growth.starts,
    )


class Growth(nn.Module):
    """The level of both networks, a function of the step; a buffer holds the last one, also in checkpoints.

    Each stage has its share of the steps. In the first `fade_share` of each but the smallest, its layers fade in.
    """

    level: Tensor

    def __init__(
        self, settings: GANSettings, generator: ProgressiveGenerator, discriminator: ProgressiveDiscriminator
    ) -> None:
        super().__init__()
        self._settings, self._networks, self._stages = settings, (generator, discriminator), generator.stages
        self._shares = shares_of(settings, self._stages)
        self.register_buffer("level", torch.zeros(()))
        for net in self._networks:
            net.grow(0.0)

    def starts(self, steps: int) -> tuple[int, ...]:
        """Return the first step of each stage, the smallest stage first; the last has one step at least."""
        ends = accumulate(self._shares[:-1])
        return (0, *(min(round(end * steps), steps - 1) for end in ends))

    def level_of(self, step: int, steps: int) -> float:
        """Return the level in [0, stages] at a step, from 0 on; it rises along a line while a stage fades in."""
        # find the stage
        starts = (*self.starts(steps), steps)
        stage = max(n for n in range(self._stages + 1) if starts[n] <= step)
        if stage == 0:
            return 0.0
        # fade it in
        fading = self._settings.fade_share * (starts[stage + 1] - starts[stage])
        return stage - 1 + min(1.0, (step + 1 - starts[stage]) / max(1.0, fading))

    def during(self, loss: Loss) -> Loss:
        """Return the loss of a phase with both networks, and the images of the batch, at the level of its step."""

        def at_its_level(
            nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
        ) -> tuple[Tensor, dict[str, Tensor]]:
            # let the networks grow
            level = self.level_of(noise.step, self._settings.max_steps)
            self.level.fill_(level)
            for net in self._networks:
                net.grow(level)
            # show images with as much detail
            return loss(nets, {**batch, "x": at_level(batch["x"], level, self._stages)}, noise, memo)

        return at_its_level

    def pipeline(self, nets: Mapping[str, Any]) -> GANPipeline:
        """Return the pipeline of a generator, averaged or not, at the level of the last step."""
        nets["generator"].grow(float(self.level))
        return GANPipeline(generator=nets["generator"])


def shares_of(s: GANSettings, stages: int) -> tuple[float, ...]:
    """Return the share of each stage in the steps, the smallest first; they sum to 1.

    Default: half of the steps for the full resolution, equal parts of the rest for the others. Raises ConfigError,
    naming the field, unless there are `stages` + 1 positive numbers.
    """
    shares = s.stage_shares
    if shares is None:
        return (*[0.5 / stages] * stages, 0.5)
    if len(shares) != stages + 1 or not all(0 < share < float("inf") for share in shares):
        raise ConfigError(f"--stage-shares must be {stages + 1} numbers above 0, one for each doubling and one for the "
                          f"smallest images, got {' '.join(map(str, shares))}")  # fmt: skip
    return tuple(share / sum(shares) for share in shares)
