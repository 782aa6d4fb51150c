"""Score-based generative modelling through an SDE (Song et al. 2021): a network learns the score at every time.

    hfgen train score_sde --dataset digits --output-dir runs/digits-sde
    accelerate launch training/score_sde.py --dataset digits --output-dir runs/digits-sde
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.losses.diffusion import l_simple
from hfgen.models.unet import UNet
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.schedulers.vp_sde import VPSDEScheduler
from hfgen.training import run
from hfgen.training.conditions import Conditions, open_dataset
from hfgen.training.ddpm import DenoiserSettings, network, optimizer, recommended
from hfgen.training.noise import Noise
from hfgen.training.phase import Batch, Phase, Recipe
from hfgen.training.preview import preview


@dataclass(kw_only=True)
class ScoreSDESettings(DenoiserSettings):
    """Train a score model of the variance-preserving SDE (Song et al. 2021) on images or 2-D points."""

    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    """Rate beta(t) of the SDE: linear from 0.1 to 20, or that of the cosine schedule (squaredcos_cap_v2)."""
    t_min: float = 1e-3
    """Time at which training and sampling end; 1e-3 is the noise of DDPM's first step, 1e-5 is for likelihoods."""
    weighting: Literal["simple", "likelihood"] = "simple"
    """lambda(t) of the score's error: sigma_t^2, which is the error of the noise, or beta(t), which bounds the
    likelihood."""
    importance_sampling: bool = False
    """Draw t with a density in proportion to beta / sigma^2, which leaves the likelihood weighting with no weights."""


def build(settings: ScoreSDESettings, dataset: Dataset) -> Recipe:
    """Return the networks, the one phase and the pipeline of a score model on `dataset`."""
    settings = recommended(settings, dataset)
    conditions = Conditions(settings, dataset)
    unet: Any = network(settings, dataset, False, conditions.num_class_embeds, conditions.width)
    sde = VPSDEScheduler(
        beta_schedule=settings.beta_schedule, t_min=settings.t_min, clip_sample=len(dataset.shape) == 3
    )

    def loss(nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        """Return E_t lambda_t E|s_theta + eps / sigma_t|^2 = E_t lambda_t / sigma_t^2 E|eps_theta - eps|^2."""
        x_0 = batch["x"]
        eps = noise.normal("eps", *x_0.shape[1:])
        t = sde.time_drawn(noise.stratified("t"), settings.importance_sampling)
        timestep = sde.timestep_of(t)
        x_t = sde.add_noise(x_0, eps, timestep)
        prediction = nets["unet"](x_t, timestep.float(), **conditions(nets, batch, noise)).sample
        mean = (time_weights(settings, sde, t).float() * l_simple(prediction, eps)).mean()
        return mean, {"loss": mean.detach()}

    nets = {"unet": unet, **conditions.nets}
    trained = ("unet", *conditions.trained)
    return Recipe(
        nets=nets,
        phases=[Phase("score_sde", optimizer(settings, nets), trained, loss)],
        pipeline=lambda nets: DDPMPipeline(cast(UNet, nets["unet"]), cast(Any, sde), **conditions.parts(nets)),
        preview=partial(
            preview, dataset=dataset, seed=settings.seed, labelled=settings.class_conditional, sampler="ode_heun",
            num_steps=25,
        ),
        averaged=trained,
        usage=f"hfgen sample {{run}}{conditions.words()} --sampler ode_heun --num-steps 25 -n 64 --seed 0 -o grid.png",
    )  # fmt: skip


def time_weights(settings: ScoreSDESettings, sde: VPSDEScheduler, t: Tensor) -> Tensor:
    """Return lambda_t / sigma_t^2 over the density of t, (B,), float64, of mean 1 over the times that are drawn."""
    density = sde.likelihood_weight(t)                                     # of t with importance sampling, over uniform
    if settings.weighting == "likelihood":
        return torch.ones_like(t) if settings.importance_sampling else density
    return 1 / density if settings.importance_sampling else torch.ones_like(t)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `hfgen train score_sde ARGUMENTS` (sys.argv by default)."""
    return run.main(ScoreSDESettings, build, arguments, recommended, cast(Any, open_dataset))


if __name__ == "__main__":
    from hfgen.training import score_sde

    raise SystemExit(score_sde.main())
