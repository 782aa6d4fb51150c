"""Latent diffusion (Rombach et al. 2022): denoising diffusion in the latents of an autoencoder that stays as it is.

    hfgen train autoencoder_kl --dataset shapes --output-dir runs/autoencoder
    hfgen train latent_diffusion --autoencoder runs/autoencoder --dataset shapes --captions --output-dir runs/latent

Images are encoded once. Conditions, classes or captions, are left out at random, so that samples can be guided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn

from hfgen import images
from hfgen.data import load_dataset
from hfgen.data.dataset import Dataset
from hfgen.data.images import Images
from hfgen.errors import ConfigError
from hfgen.losses.diffusion import l_simple
from hfgen.models.autoencoder_kl import AutoencoderKL
from hfgen.models.conditional_unet import ConditionalUNet
from hfgen.models.text import build_text_encoder, build_tokenizer, token_ids
from hfgen.pipelines.base import Pipeline
from hfgen.pipelines.latent_diffusion import LatentDiffusionPipeline
from hfgen.schedulers.ddpm import DDPMScheduler
from hfgen.training import run
from hfgen.training.ddpm import DDPMSettings, timestep_weights
from hfgen.training.latent_data import Latents, encoded, load_autoencoder
from hfgen.training.noise import Noise
from hfgen.training.phase import Batch, Phase, Recipe
from hfgen.training.settings import filled

SHOWN = 64
"""Images on the grid."""


@dataclass(kw_only=True)
class LatentDiffusionSettings(DDPMSettings):
    """Train a diffusion model in the latents of an autoencoder, told nothing, the class, or a caption."""

    autoencoder: str
    """Run, model folder or Hub id of the autoencoder (hfgen train autoencoder_kl); its weights are not trained."""
    attention_levels: tuple[int, ...] | None = None  # type: ignore[assignment]
    """Resolutions with transformer blocks, 0 being the finest; by default all but that; the middle always has one."""
    captions: bool = False
    """Condition the network on the dataset's captions, with a text encoder that is trained along."""
    caption_column: str | None = None
    """Column that holds the captions, with --captions; "caption" if not given."""
    condition_dropout: float = 0.1
    """Share of samples whose class or caption is left out, which guidance needs (Ho and Salimans 2021)."""
    text_width: int = 128
    """Features of each token of the text encoder."""
    text_layers: int = 2
    """Layers of the text encoder."""
    max_words: int = 4096
    """Most frequent words of the captions that are one token each."""


def open_latents(settings: LatentDiffusionSettings) -> Latents:
    """Return the latents of the dataset that the settings name, encoded into the run's folder unless they are there."""
    s = settings
    check(s)
    names = ("split", "image_column", "label_column", "resolution", "channels", "background", "skip_bad_images")
    choices = {name: getattr(s, name) for name in (*names, "flip", "num_workers")}
    captions = (s.caption_column or "caption") if s.captions else None
    vae = cast(AutoencoderKL, load_autoencoder(s.autoencoder).to(PartialState().device))
    source = load_dataset(s.dataset, caption_column=captions, **choices)
    if not isinstance(source, Images):
        raise ConfigError(f"--dataset {s.dataset}: latent diffusion is for images, these are points")
    if s.class_conditional and not source.num_classes:
        raise ConfigError(f"--class-conditional: the dataset {s.dataset!r} has no labels")
    if source.shape[0] != vae.config["in_channels"]:
        raise ConfigError(f"--autoencoder {s.autoencoder}: is for {vae.config['in_channels']} channels, the images of "
                          f"{s.dataset} have {source.shape[0]}; see --channels")  # fmt: skip
    source.flip = False                                             # mirrored copies are encoded on their own
    return encoded(source, vae, s.flip, s.output_dir / "latents")


def build(settings: LatentDiffusionSettings, dataset: Dataset) -> Recipe:
    """Return U-Net, text encoder if any, the one phase and the pipeline of a diffusion model of latents."""
    latents = cast(Latents, dataset)
    s = recommended(settings, latents)
    scheduler = DDPMScheduler(
        num_train_timesteps=s.num_train_timesteps, beta_schedule=s.beta_schedule, prediction_type=s.prediction_type,
        variance_type=s.variance_type, clip_sample=False,
    )  # fmt: skip
    tokenizer: Any = None
    unet: Any = network(s, latents)
    nets: dict[str, nn.Module] = {"unet": unet}
    if s.captions:
        tokenizer = build_tokenizer(latents.captions or [], s.max_words)
        nets["text_encoder"] = build_text_encoder(tokenizer, s.text_width, s.text_layers, max(1, s.text_width // 32))
    vae = load_autoencoder(s.autoencoder)
    optimizer = torch.optim.AdamW(
        [p for net in nets.values() for p in net.parameters()], lr=cast(float, s.learning_rate),
        weight_decay=s.weight_decay, fused=True,
    )  # fmt: skip
    return Recipe(
        nets=nets,
        phases=[Phase("latent_diffusion", optimizer, tuple(nets), Denoising(s, latents, scheduler, tokenizer))],
        pipeline=lambda nets: pipeline(nets, vae, scheduler, tokenizer),
        preview=lambda pipeline: preview(pipeline, latents, s),
        averaged=tuple(nets),
        usage="hfgen sample {run} --num-steps 100 -n 64 --seed 0 -o grid.png",
    )


class Denoising:
    """The loss of the one phase: the error of the noise seen in noisy latents (Rombach et al. 2022, eq. 3)."""

    def __init__(
        self, settings: LatentDiffusionSettings, latents: Latents, scheduler: DDPMScheduler, tokenizer: Any
    ) -> None:
        self.settings, self.scheduler, self.tokenizer = settings, scheduler, tokenizer
        self.null = latents.num_classes
        self.weights = timestep_weights(settings, scheduler)
        self.nothing = None if tokenizer is None else token_ids(tokenizer, [""])

    def __call__(
        self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch, and the same to log."""
        s, scheduler = self.settings, self.scheduler
        shape = batch["x"].shape[1:]
        z_0 = batch["x"] + batch["std"] * noise.normal("posterior", *shape)
        eps = noise.normal("eps", *shape)
        t = (noise.stratified("t") * s.num_train_timesteps).long()
        z_t = scheduler.add_noise(z_0, eps, t)
        prediction = nets["unet"](z_t, t, **self.conditions(nets, batch, noise)).sample
        target = {"epsilon": eps, "sample": z_0}.get(s.prediction_type)
        error = l_simple(prediction, scheduler.get_velocity(z_0, eps, t) if target is None else target)
        mean = (self.weights.to(error.device)[t] * error).mean()
        return mean, {"loss": mean.detach()}

    def conditions(self, nets: Mapping[str, nn.Module], batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return what the U-Net is told of each sample; of some, at random, nothing."""
        s, told = self.settings, {}
        left_out = noise.uniform("condition") < s.condition_dropout                     # (B,)
        if s.class_conditional:
            told["class_labels"] = torch.where(left_out, cast(int, self.null), batch["label"])
        if self.nothing is not None:
            ids = token_ids(self.tokenizer, batch["caption"], left_out.device)
            ids = torch.where(left_out[:, None], self.nothing.to(ids.device), ids)       # (B, L)
            told["encoder_hidden_states"] = nets["text_encoder"](input_ids=ids).last_hidden_state
        return told


def network(s: LatentDiffusionSettings, latents: Latents) -> ConditionalUNet:
    """Return the U-Net for latents, with the null class behind the dataset's classes where it is told those."""
    channels, height, width = latents.shape
    widths = cast(tuple[int, ...], s.block_out_channels)
    null = s.class_conditional and s.condition_dropout > 0
    return ConditionalUNet(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=s.layers_per_block,
        attention_levels=cast(tuple[int, ...], s.attention_levels),
        attention_head_dim=min(s.attention_head_dim, *widths),
        cross_attention_dim=s.text_width if s.captions else None,
        norm_num_groups=min(32, max(1, widths[0] // 4)),
        dropout=s.dropout,
        num_class_embeds=cast(int, latents.num_classes) + null if s.class_conditional else None,
        null_class=null,
    )


def pipeline(
    nets: Mapping[str, nn.Module], vae: AutoencoderKL, scheduler: DDPMScheduler, tokenizer: Any
) -> LatentDiffusionPipeline:
    """Return the pipeline of the networks, the autoencoder on their device."""
    unet = cast(ConditionalUNet, nets["unet"])
    text_encoder = cast(Any, nets.get("text_encoder"))
    return LatentDiffusionPipeline(vae.to(unet.device), unet, scheduler, text_encoder, tokenizer)


def preview(pipeline: Pipeline, latents: Latents, s: LatentDiffusionSettings) -> Image.Image:
    """Return a grid of 64 samples, of all classes in turn or of the first captions, with the same noise every time."""
    told: dict[str, Any] = {"batch_size": SHOWN, "num_steps": min(50, s.num_train_timesteps)}
    if s.class_conditional:
        told["class_labels"] = torch.arange(SHOWN) % (latents.num_classes or 1)
    if latents.captions is not None:
        told["prompt"] = [latents.captions[i % len(latents.captions)] for i in range(SHOWN)]
    scale = None if s.condition_dropout else 1.0
    return images.grid(pipeline(guidance_scale=scale, generator=torch.Generator().manual_seed(s.seed), **told).images)


def check(s: LatentDiffusionSettings) -> None:
    """Raise ConfigError, naming the field, for settings that no run can use."""
    if not 0 <= s.condition_dropout < 1:
        raise ConfigError(f"--condition-dropout must be in [0, 1), got {s.condition_dropout}")
    if s.caption_column is not None and not s.captions:
        raise ConfigError(f"--caption-column {s.caption_column} needs --captions")
    if s.streaming:
        raise ConfigError("--streaming: images are encoded once, all of them; leave it out")
    if s.variance_type == "learned_range":
        raise ConfigError("--variance-type learned_range is for images; latents take fixed_small or fixed_large")


def recommended(settings: LatentDiffusionSettings, dataset: Dataset) -> LatentDiffusionSettings:
    """Return the settings with what suits the latents: three resolutions, or what their sides can be halved to."""
    side = max(dataset.shape[1:])
    possible = min((s & -s).bit_length() for s in dataset.shape[1:])                 # levels: one more than halvings
    widths = ((64, 128) if side < 8 else (64, 128, 128) if side < 32 else (128, 256, 256))[:possible]
    levels = len(settings.block_out_channels or widths)
    values: dict[str, Any] = {"batch_size": 64, "block_out_channels": widths, "learning_rate": 5e-4}
    values |= {"max_steps": 20_000 if side >= 8 else 4000, "attention_levels": tuple(range(min(1, levels - 1), levels))}
    return filled(settings, values)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of `hfgen train latent_diffusion ARGUMENTS` (sys.argv by default)."""
    opened = cast(Any, open_latents)
    return run.main(LatentDiffusionSettings, cast(Any, build), arguments, cast(Any, recommended), opened)


if __name__ == "__main__":
    from hfgen.training import latent_diffusion

    raise SystemExit(latent_diffusion.main())
