"""Score-based generative modelling through an SDE (Song et al. 2021): a network learns the score at every time.

    hfgen train score_sde --dataset digits --output-dir runs/digits-sde
    accelerate launch training/score_sde.py --dataset digits --output-dir runs/digits-sde
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.losses.diffusion import l_simple
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.schedulers.vp_sde import VPSDEScheduler
from hfgen.training.denoiser import Conditions, network, open_dataset, optimizer, target
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import denoised
from hfgen.training.engine.recipe import RecipeSpec
from hfgen.training.engine.run import main
from hfgen.training.settings.score_sde import SPEC, ScoreSDESettings


def build(s: ScoreSDESettings, dataset: Dataset) -> Recipe:
    """Return the networks, the one phase and the pipeline of a score model on `dataset`."""
    # build networks and SDE
    conditions = Conditions(s, dataset)
    unet: Any = network(s, dataset, False, conditions.num_class_embeds, conditions.width)
    sde: Any = VPSDEScheduler(
        beta_schedule=s.beta_schedule, prediction_type=s.prediction_type, t_min=s.t_min,
        clip_sample=len(dataset.shape) == 3,
    )  # fmt: skip
    # assemble the recipe
    nets = {"unet": unet, **conditions.nets}
    trained = ("unet", *conditions.trained)
    return Recipe(
        nets=nets,
        phases=[Phase("score_sde", optimizer(s, nets), trained, ScoreLoss(s, sde, conditions))],
        pipeline=lambda nets: DDPMPipeline(nets["unet"], sde, **conditions.parts(nets)),
        preview=denoised(s, dataset, "dpmpp_2m"),
        averaged=trained,
        usage=conditions.usage(),
    )


class ScoreLoss:
    """Loss of the one phase: E_t lambda_t E|s_theta + eps / sigma_t|^2 (Song et al. 2021, eq. 7).

    With s_theta = -eps_theta / sigma_t it is E_t lambda_t / sigma_t^2 E|eps_theta - eps|^2. Where the network predicts
    x_0 or the velocity, `time_weights` turn their error into that of the noise.
    """

    def __init__(self, settings: ScoreSDESettings, sde: VPSDEScheduler, conditions: Conditions) -> None:
        self.settings, self.sde, self.conditions = settings, sde, conditions

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch, a scalar >= 0, and the same to log.

        `batch["x"]`: images (B, C, H, W) in [-1, 1], or points (B, 2).
        """
        s, sde, x_0 = self.settings, self.sde, batch["x"]
        # draw noise and times
        eps = noise.normal("eps", *x_0.shape[1:])
        t = sde.time_drawn(noise.stratified("t"), s.importance_sampling)               # float64 on the CPU
        timestep = sde.timestep_of(t)
        # diffuse the batch, and predict
        x_t = sde.add_noise(x_0, eps, timestep)
        prediction = nets["unet"](x_t, timestep.float().to(x_t.device), **self.conditions(nets, batch, noise)).sample
        # weigh the errors by time
        error = l_simple(prediction, target(sde, x_0, eps, timestep))
        mean = (time_weights(s, sde, t).float().to(error.device) * error).mean()
        return mean, {"loss": mean.detach()}


def time_weights(settings: ScoreSDESettings, sde: VPSDEScheduler, t: Tensor) -> Tensor:
    """Return the weight > 0 of the prediction's error, divided by the density of t, (B,), float64.

    That of the noise has lambda_t / sigma_t^2, of mean 1 over the times that are drawn; it is gamma^2 times the
    velocity's, and gamma^2 / sigma^2 times that of x_0.
    """
    density = sde.likelihood_weight(t)                                     # of t with importance sampling, over uniform
    # turn the error into that of the noise
    gamma, sigma = sde.gamma(t), sde.sigma(t)
    of_noise = {"epsilon": gamma**0, "v_prediction": gamma**2, "sample": (gamma / sigma) ** 2}
    factor = of_noise[sde.config.prediction_type]
    # weigh the loss, over the density
    if settings.weighting == "likelihood":
        return factor if settings.importance_sampling else factor * density
    return factor / density if settings.importance_sampling else factor


RECIPE = RecipeSpec(SPEC, build, open_dataset)

if __name__ == "__main__":
    from hfgen.training import score_sde

    raise SystemExit(main(score_sde.RECIPE))
