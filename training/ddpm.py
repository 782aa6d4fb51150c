"""Denoising diffusion probabilistic models (Ho et al. 2020): a network learns to see the noise in a noisy image.

    hfgen train ddpm --dataset digits --output-dir runs/digits
    accelerate launch training/ddpm.py --dataset digits --output-dir runs/digits
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.diffusion import PredictionType, Weighting, l_simple, min_snr_weights, vlb_weights
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.unet import UNet
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.forward import Marginals
from hfgen.schedulers.reverse import vlb_term
from hfgen.training.conditions import Conditions, ConditionSettings, open_dataset
from hfgen.training.engine import run
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.preview import GRID_IMAGES, denoised
from hfgen.training.engine.settings import filled


@dataclass(kw_only=True)
class DenoiserSettings(ConditionSettings):
    """Fields of the network that sees the noise, and of its optimiser."""

    block_out_channels: tuple[int, ...] | None = None
    """Channels of the U-Net at each resolution, finest first; by default 32 64 for images below 16 pixels, 64 128 128
    below 64, else 64 128 256 256; for 2-D points the last is the width of the MLP, by default 128."""
    layers_per_block: int | None = None
    """ResNet blocks at each resolution; for 2-D points the residual blocks of the MLP. By default 2, of latents from 8
    to 31 a side 1."""
    attention_levels: tuple[int, ...] | None = None
    """Resolutions with attention, 0 being the finest; the middle always has it. By default no other, but of networks
    that read captions, and of those for latents, all but the finest."""
    attention_head_dim: int = 32
    """Channels of each attention head."""
    prediction_type: PredictionType | None = None
    """Prediction target of the network: the noise (epsilon), x_0 (sample), or the velocity (v_prediction). Default:
    epsilon (v_prediction for latents and for points by score_sde, whose x_0 is not clipped: it is exact at the noisiest
    times)."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    preview_images: int = GRID_IMAGES
    """Images of each sample grid; 0 for no grids. With --budget fewer where they do not fit."""
    preview_steps: int | None = None
    """Denoising steps of each sample grid. Default: 50 (20 for score_sde). With --budget fewer where they do not
    fit."""


@dataclass(kw_only=True)
class DDPMSettings(DenoiserSettings):
    """Train a denoising diffusion model (Ho et al. 2020) on images or 2-D points."""

    num_train_timesteps: int = 1000
    """Diffusion steps T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    """Noise schedule; squaredcos_cap_v2 is the cosine schedule."""
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_large"
    """Variance of the reverse steps: the posterior's, beta_t, or one learned between them, of images."""
    vlb_weight: float = 0.001
    """Weight of the variational bound that a learned variance is trained on, beside the simple loss."""
    weighting: Weighting = "simple"
    """Weight of each timestep's error: 1 (simple), that of the variational bound (vlb), or min-SNR-gamma (min_snr)."""
    snr_gamma: float = 5.0
    """gamma of the min-SNR weighting."""


def build(settings: DDPMSettings, dataset: Dataset) -> Recipe:
    """Return the networks, the one phase and the pipeline of a DDPM on `dataset`."""
    s = recommended(settings, dataset)
    conditions = Conditions(s, dataset)
    unet: Any = network(s, dataset, s.variance_type == "learned_range", conditions.num_class_embeds, conditions.width)
    scheduler = DDPMScheduler(
        num_train_timesteps=s.num_train_timesteps, beta_schedule=s.beta_schedule,
        prediction_type=cast(PredictionType, s.prediction_type), variance_type=s.variance_type,
        clip_sample=len(dataset.shape) == 3,
    )  # fmt: skip
    nets = {"unet": unet, **conditions.nets}
    trained = ("unet", *conditions.trained)
    return Recipe(
        nets=nets,
        phases=[Phase("ddpm", optimizer(s, nets), trained, Denoising(s, scheduler, conditions, dataset.top + 1))],
        pipeline=lambda nets: DDPMPipeline(cast(UNet, nets["unet"]), scheduler, **conditions.parts(nets)),
        preview=denoised(s, dataset),
        averaged=trained,
        usage=f"hfgen sample {{run}}{conditions.words()} --num-steps 100 -n 64 --seed 0 -o grid.png",
    )  # fmt: skip


class Denoising:
    """The loss of the one phase: the error of the noise seen in noisy samples (Ho et al. 2020, eq. 14).

    Or of what else is predicted, weighted by timestep; of a learned variance, plus its part of the bound on pixels with
    so many grey `levels`.
    """

    def __init__(
        self, settings: DDPMSettings, scheduler: DDPMScheduler, conditions: Conditions, levels: int = 256
    ) -> None:
        self.settings, self.scheduler, self.conditions, self.levels = settings, scheduler, conditions, levels
        self.weights = timestep_weights(settings, scheduler)

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch, and its parts to log."""
        s, scheduler = self.settings, self.scheduler
        x_0 = drawn(batch, noise)
        eps = noise.normal("eps", *x_0.shape[1:])
        t = (noise.stratified("t") * s.num_train_timesteps).long()
        x_t = scheduler.add_noise(x_0, eps, t)
        output = nets["unet"](x_t, t, **self.conditions(nets, batch, noise)).sample
        prediction = output[:, : x_0.shape[1]]
        error = l_simple(prediction, target(scheduler, x_0, eps, t))
        mean = (self.weights.to(error.device)[t] * error).mean()
        if s.variance_type != "learned_range":
            return mean, {"loss": mean.detach()}
        # L_simple + 0.001 L_vlb, the second of which trains the variance alone (Nichol and Dhariwal 2021, eq. 16)
        frozen = torch.cat([prediction.detach(), output[:, x_0.shape[1] :]], 1)
        bound = vlb_term(scheduler, frozen, t, x_t, x_0, self.levels)
        vlb = (bound * s.num_train_timesteps / x_0[0].numel()).mean()
        loss = mean + s.vlb_weight * vlb
        return loss, {"loss": loss.detach(), "simple": mean.detach(), "vlb": vlb.detach()}


def target(scheduler: Marginals, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return what the network is to predict, eps, x_0 or the velocity, at the timesteps t (B,)."""
    known = {"epsilon": eps, "sample": x_0}.get(scheduler.config.prediction_type)
    return scheduler.get_velocity(x_0, eps, t) if known is None else known


def drawn(batch: Batch, noise: Noise) -> Tensor:
    """Return x_0: the batch's images or points; of latents, which have a deviation, draws of q(z|x)."""
    x: Tensor = batch["x"]
    return x + batch["std"] * noise.normal("posterior", *x.shape[1:]) if "std" in batch else x


def optimizer(settings: DenoiserSettings, nets: Mapping[str, nn.Module]) -> torch.optim.Optimizer:
    """Return AdamW for everything in the networks that is trained."""
    parameters = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
    rate = cast(float, settings.learning_rate)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay, fused=True)


def network(
    settings: DenoiserSettings,
    dataset: Dataset,
    learned_variance: bool = False,
    num_class_embeds: int | None = None,
    text_width: int | None = None,
) -> UNet | MLPDenoiser | ConditionalUNet:
    """Return the ε-predictor for the dataset's shape: a U-Net for images, told a text or not, an MLP for 2-D points."""
    widths, layers = cast(tuple[int, ...], settings.block_out_channels), cast(int, settings.layers_per_block)
    if len(dataset.shape) == 1:
        if learned_variance:
            raise ConfigError("--variance-type learned_range is for images; points take fixed_small or fixed_large")
        return MLPDenoiser(
            dim=dataset.shape[0], hidden=widths[-1], layers=layers,
            num_class_embeds=num_class_embeds, data_mean=torch.as_tensor(dataset.mean).tolist(),
            data_std=torch.as_tensor(dataset.std).tolist(),
        )  # fmt: skip
    if text_width is not None:
        return conditional_unet(settings, dataset, learned_variance, num_class_embeds, text_width)
    channels, height, width = dataset.shape
    attention = [level in (settings.attention_levels or ()) for level in range(len(widths))]
    return UNet(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        attention_head_dim=min(settings.attention_head_dim, *widths),
        norm_num_groups=min(32, widths[0] // 4),
        dropout=settings.dropout,
        num_class_embeds=num_class_embeds,
    )


def conditional_unet(
    settings: DenoiserSettings,
    dataset: Dataset,
    learned_variance: bool,
    num_class_embeds: int | None,
    text_width: int,
) -> ConditionalUNet:
    """Return the U-Net with transformer blocks, for images or latents that are told a text."""
    channels, height, width = dataset.shape
    widths = cast(tuple[int, ...], settings.block_out_channels)
    return ConditionalUNet(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=widths,
        layers_per_block=cast(int, settings.layers_per_block),
        attention_levels=cast(tuple[int, ...], settings.attention_levels),
        attention_head_dim=min(settings.attention_head_dim, *widths),
        cross_attention_dim=text_width,
        pooled_text=True,
        norm_num_groups=min(32, max(1, widths[0] // 4)),
        dropout=settings.dropout,
        num_class_embeds=num_class_embeds,
    )


AnyDenoiser = TypeVar("AnyDenoiser", bound=DenoiserSettings)


def recommended(settings: AnyDenoiser, dataset: Dataset) -> AnyDenoiser:
    """Return the settings with what suits the dataset: on small images under three minutes on two cores."""
    in_plane = len(dataset.shape) == 1
    side = 0 if in_plane else max(dataset.shape[1:])
    widths = (128,) if in_plane else (32, 64) if side < 16 else (64, 128, 128) if side < 64 else (64, 128, 256, 256)
    values: dict[str, Any] = {"batch_size": 64, "block_out_channels": widths, "learning_rate": 2e-4}
    levels = len(settings.block_out_channels or widths)
    values |= {"max_steps": 20_000, "attention_levels": upper_levels(levels) if settings.captions else ()}
    values |= {"prediction_type": "epsilon", "layers_per_block": 2, "preview_steps": 50}
    if side < 16:
        values |= {"learning_rate": 2e-3, "max_steps": 1800}
    return filled(settings, values)


SMALLER: tuple[dict[str, Any], ...] = (
    {"block_out_channels": (8, 16, 32), "batch_size": 16, "learning_rate": 2e-3},
    {"block_out_channels": (16, 32, 64), "batch_size": 32, "learning_rate": 1e-3},
    {"block_out_channels": (32, 64, 128), "batch_size": 32, "learning_rate": 5e-4},
)
"""Networks and batches for images of 16 pixels and more where time is short; from 64 pixels on one level more."""


def smaller(settings: AnyDenoiser, dataset: Dataset) -> list[AnyDenoiser]:
    """Return the settings with each network that is smaller than the recommended one, the smallest first.

    None of points and of images below 16 pixels, nor where the settings name a size of the network.
    """
    side = max(dataset.shape[1:], default=0)
    if side < 16 or settings.block_out_channels is not None or settings.layers_per_block is not None:
        return []
    sizes = [{**values, "layers_per_block": 1} for values in SMALLER]
    if side >= 64:
        sizes = [{**v, "block_out_channels": (*v["block_out_channels"], v["block_out_channels"][-1])} for v in sizes]
    return [recommended(filled(settings, values), dataset) for values in sizes]


def upper_levels(levels: int) -> tuple[int, ...]:
    """Return all of a number of levels but the finest, unless it is the only one."""
    return tuple(range(min(1, levels - 1), levels))


def timestep_weights(settings: DDPMSettings, scheduler: DDPMScheduler) -> Tensor:
    """Return the weight of the error at each timestep, (T,) float32, scaled to mean 1 for a bound's weighting."""
    if settings.weighting == "simple":
        return torch.ones(settings.num_train_timesteps)
    if settings.weighting == "min_snr":
        snr = scheduler.snr(torch.arange(settings.num_train_timesteps))
        return min_snr_weights(snr, cast(PredictionType, settings.prediction_type), settings.snr_gamma).float()
    if settings.prediction_type != "epsilon":
        raise ConfigError("--weighting vlb is the bound's weight of the noise: it needs --prediction-type epsilon")
    if settings.variance_type == "learned_range":
        raise ConfigError("--weighting vlb is of a fixed variance; a learned one has the bound in its loss already")
    weights = vlb_weights(scheduler.alpha_bar, settings.variance_type)
    return (weights / weights.mean()).float()


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `hfgen train ddpm ARGUMENTS` (sys.argv by default)."""
    return run.main(DDPMSettings, build, arguments, recommended, cast(Any, open_dataset), smaller)


if __name__ == "__main__":
    from hfgen.training import ddpm

    raise SystemExit(ddpm.main())
