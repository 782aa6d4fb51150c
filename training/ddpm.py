"""Denoising diffusion probabilistic models (Ho et al. 2020): a network learns to see the noise in a noisy image.

    hfgen train ddpm --dataset digits --output-dir runs/digits
    accelerate launch training/ddpm.py --dataset digits --output-dir runs/digits
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.diffusion import PredictionType, Weighting, l_simple, min_snr_weights, vlb_weights
from hfgen.models.mlp import MLPDenoiser
from hfgen.models.unet import UNet
from hfgen.pipelines.ddpm import DDPMPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.schedulers.reverse import vlb_term
from hfgen.training import run
from hfgen.training.noise import Noise
from hfgen.training.phase import Batch, Phase, Recipe
from hfgen.training.preview import preview
from hfgen.training.settings import Settings, filled


@dataclass(kw_only=True)
class DenoiserSettings(Settings):
    """Fields of the network that sees the noise, and of its optimiser."""

    block_out_channels: tuple[int, ...] | None = None
    """Channels of the U-Net at each resolution, finest first; by default 32 64 for images below 16 pixels, 64 128 128
    below 64, else 64 128 256 256; for 2-D points the last is the width of the MLP, by default 128."""
    layers_per_block: int = 2
    """ResNet blocks at each resolution; for 2-D points the residual blocks of the MLP."""
    attention_levels: tuple[int, ...] = ()
    """Resolutions with self-attention, 0 being the finest; the middle always has it."""
    attention_head_dim: int = 32
    """Channels of each attention head."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    class_conditional: bool = False
    """Condition the network on the dataset's labels."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""


@dataclass(kw_only=True)
class DDPMSettings(DenoiserSettings):
    """Train a denoising diffusion model (Ho et al. 2020) on images or 2-D points."""

    num_train_timesteps: int = 1000
    """Diffusion steps T."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2"
    """Noise schedule; squaredcos_cap_v2 is the cosine schedule."""
    prediction_type: PredictionType = "epsilon"
    """What the network predicts: the noise, the image (sample), or the velocity."""
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
    settings = recommended(settings, dataset)
    learned = settings.variance_type == "learned_range"
    unet: Any = network(settings, dataset, learned)
    scheduler = DDPMScheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        prediction_type=settings.prediction_type,
        variance_type=settings.variance_type,
        clip_sample=len(dataset.shape) == 3,
    )
    weights = timestep_weights(settings, scheduler)

    def loss(nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        x_0 = batch["x"]
        eps = noise.normal("eps", *x_0.shape[1:])
        t = (noise.stratified("t") * settings.num_train_timesteps).long()
        x_t = scheduler.add_noise(x_0, eps, t)
        output = nets["unet"](x_t, t, class_labels=batch["label"] if settings.class_conditional else None).sample
        prediction = output[:, : x_0.shape[1]]
        target = {"epsilon": eps, "sample": x_0}.get(settings.prediction_type)
        error = l_simple(prediction, scheduler.get_velocity(x_0, eps, t) if target is None else target)
        mean = (weights.to(error.device)[t] * error).mean()
        if not learned:
            return mean, {"loss": mean.detach()}
        # L_simple + 0.001 L_vlb, the second of which trains the variance alone (Nichol and Dhariwal 2021, eq. 16)
        frozen = torch.cat([prediction.detach(), output[:, x_0.shape[1] :]], 1)
        vlb = (vlb_term(scheduler, frozen, t, x_t, x_0) * settings.num_train_timesteps / x_0[0].numel()).mean()
        loss = mean + settings.vlb_weight * vlb
        return loss, {"loss": loss.detach(), "simple": mean.detach(), "vlb": vlb.detach()}

    optimizer = torch.optim.AdamW(
        [p for p in unet.parameters() if p.requires_grad],
        lr=cast(float, settings.learning_rate),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return Recipe(
        nets={"unet": unet},
        phases=[Phase("ddpm", optimizer, ("unet",), loss)],
        pipeline=lambda nets: DDPMPipeline(unet=cast(UNet, nets["unet"]), scheduler=scheduler),
        preview=partial(
            preview, dataset=dataset, seed=settings.seed, labelled=settings.class_conditional,
            num_steps=min(50, settings.num_train_timesteps),
        ),
        averaged=("unet",),
        usage="hfgen sample {run} --num-steps 100 -n 64 --seed 0 -o grid.png",
    )  # fmt: skip


def network(settings: DenoiserSettings, dataset: Dataset, learned_variance: bool = False) -> UNet | MLPDenoiser:
    """Return the ε-predictor for the dataset's shape: a U-Net for images, an MLP for 2-D points."""
    if settings.class_conditional and not dataset.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {settings.dataset!r} has no labels")
    classes = dataset.num_classes if settings.class_conditional else None
    widths = cast(tuple[int, ...], settings.block_out_channels)
    if len(dataset.shape) == 1:
        if learned_variance:
            raise ConfigError("--variance-type learned_range is for images; points take fixed_small or fixed_large")
        return MLPDenoiser(
            dim=dataset.shape[0], hidden=widths[-1], layers=settings.layers_per_block, num_class_embeds=classes,
            data_mean=torch.as_tensor(dataset.mean).tolist(), data_std=torch.as_tensor(dataset.std).tolist(),
        )  # fmt: skip
    channels, height, width = dataset.shape
    attention = [level in settings.attention_levels for level in range(len(widths))]
    return UNet(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=2 * channels if learned_variance else channels,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        attention_head_dim=min(settings.attention_head_dim, *widths),
        norm_num_groups=min(32, widths[0] // 4),
        dropout=settings.dropout,
        num_class_embeds=classes,
    )


AnyDenoiser = TypeVar("AnyDenoiser", bound=DenoiserSettings)


def recommended(settings: AnyDenoiser, dataset: Dataset) -> AnyDenoiser:
    """Return the settings with what suits the dataset: on small images under three minutes on two cores."""
    in_plane = len(dataset.shape) == 1
    side = 0 if in_plane else max(dataset.shape[1:])
    widths = (128,) if in_plane else (32, 64) if side < 16 else (64, 128, 128) if side < 64 else (64, 128, 256, 256)
    values: dict[str, Any] = {"batch_size": 64, "block_out_channels": widths, "learning_rate": 2e-4}
    values["max_steps"] = 20_000
    if side < 16:
        values |= {"learning_rate": 2e-3, "max_steps": 1800}
    return filled(settings, values)


def timestep_weights(settings: DDPMSettings, scheduler: DDPMScheduler) -> Tensor:
    """Return the weight of the error at each timestep, (T,) float32, scaled to mean 1 for a bound's weighting."""
    if settings.weighting == "simple":
        return torch.ones(settings.num_train_timesteps)
    if settings.weighting == "min_snr":
        snr = scheduler.snr(torch.arange(settings.num_train_timesteps))
        return min_snr_weights(snr, settings.prediction_type, settings.snr_gamma).float()
    if settings.prediction_type != "epsilon":
        raise ConfigError("--weighting vlb is the bound's weight of the noise: it needs --prediction-type epsilon")
    if settings.variance_type == "learned_range":
        raise ConfigError("--weighting vlb is of a fixed variance; a learned one has the bound in its loss already")
    weights = vlb_weights(scheduler.alpha_bar, settings.variance_type)
    return (weights / weights.mean()).float()


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `hfgen train ddpm ARGUMENTS` (sys.argv by default)."""
    return run.main(DDPMSettings, build, arguments, recommended)


if __name__ == "__main__":
    from hfgen.training import ddpm

    raise SystemExit(ddpm.main())
