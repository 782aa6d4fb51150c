"""Recipes with models of milliseconds, in this process: their settings, engines and steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hfgen import AutoencoderKL, AutoencoderKLPipeline, VQAutoencoder, VQAutoencoderPipeline
from hfgen.data import load_dataset
from hfgen.training import (
    autoencoder_kl,
    autoregressive,
    ddpm,
    gan,
    latent_diffusion,
    score_sde,
    tarflow,
    translation,
    vae,
    vq_autoencoder,
)
from hfgen.training.engine.loop import Build, Engine
from hfgen.training.engine.recipe import RecipeSpec


@dataclass(frozen=True)
class Tiny:
    """A recipe and the fields that make its model tiny."""

    recipe: RecipeSpec[Any]
    fields: dict[str, Any]

    def settings(self, **changes: Any) -> Any:
        """Return the recipe's settings, not yet completed."""
        return self.recipe.settings(**{"output_dir": Path("unused"), "max_steps": 20, **self.fields, **changes})

    def engine(self, dataset: str | None = None, build: Build | None = None, **changes: Any) -> Engine:
        """Return an engine of the completed settings; `build` in place of the recipe's."""
        settings = self.settings(**changes) if dataset is None else self.settings(dataset=dataset, **changes)
        data = self.recipe.open_data(settings)
        return Engine(self.recipe.recommended(settings, data), build or self.recipe.build, data, Accelerator(cpu=True))


DENOISER = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_head_dim": 4, "text_width": 16,
            "text_layers": 1, "batch_size": 16, "warmup_steps": 2, "learning_rate": 1e-3}  # fmt: skip
STEADY = {"batch_size": 16, "warmup_steps": 0, "lr_schedule": "constant"}

AUTOENCODER_KL = Tiny(autoencoder_kl.RECIPE, {
    **STEADY, "block_out_channels": (8, 16), "latent_channels": 2, "discriminator_width": 8, "adversarial_start": 0,
    "adversarial_weight": 0.5, "kl_weight": 1e-3,
})  # fmt: skip
AUTOREGRESSIVE = Tiny(autoregressive.RECIPE, {
    **STEADY, "network": "transformer", "width": 16, "layers": 1, "attention_head_dim": 8, "learning_rate": 1e-3,
    "text_width": 16, "text_layers": 1, "dropout": 0.0,
})  # fmt: skip
DDPM = Tiny(ddpm.RECIPE, {**DENOISER, "num_train_timesteps": 100})
GAN = Tiny(gan.RECIPE, {**STEADY, "width": 8})
LATENT_DIFFUSION = Tiny(latent_diffusion.RECIPE, {
    **DENOISER, **STEADY, "num_train_timesteps": 50,
})  # fmt: skip
SCORE_SDE = Tiny(score_sde.RECIPE, DENOISER)
TARFLOW = Tiny(tarflow.RECIPE, {
    **STEADY, "width": 16, "blocks": 2, "layers": 1, "attention_head_dim": 8, "learning_rate": 1e-3, "dropout": 0.0,
    "text_width": 16, "text_layers": 1,
})  # fmt: skip
TRANSLATION = Tiny(translation.RECIPE, {
    "resolution": 16, "width": 4, "blocks": 1, "discriminator_width": 4, "discriminator_layers": 1, "batch_size": 4,
    "learning_rate": 1e-3, "history": 6, "lr_schedule": "constant",
})  # fmt: skip
VAE = Tiny(vae.RECIPE, {**STEADY, "hidden": (16,), "latent_dim": (3,)})
VQ_AUTOENCODER = Tiny(vq_autoencoder.RECIPE, {
    **STEADY, "block_out_channels": (8, 16), "num_codes": 24, "code_dim": 3, "levels": (4, 3),
    "discriminator_width": 8, "adversarial_start": 0,
})  # fmt: skip


def run(engine: Engine, steps: int, first: int = 0) -> list[dict[str, float]]:
    """Return the scalars of each of `steps` steps of 20, from step `first` on."""
    return [engine.log.fetch(engine.accelerator) for _ in engine.train(first, steps, 20)]


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a network's tensors."""
    return {key: value.detach().clone() for key, value in net.state_dict().items()}


def make_autoencoder(folder: Path, channels: int, seed: int = 0) -> Path:
    """Return the folder of a small autoencoder with random weights, latents 2x4x4 of images 8x8, measured on some."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 8), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2,
    )  # fmt: skip
    assert vae.quant_conv is not None
    vae.quant_conv.bias.data[2:] -= 4                              # log sigma^2: more than noise is left of the images
    data = load_dataset("digits") if channels == 1 else load_dataset("shapes", split="train[:64]", resolution=8)
    shift, scale = autoencoder_kl.shift_and_scale(vae, iter([{"x": data.tensor()}]))
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    AutoencoderKLPipeline(vae).save_pretrained(folder)
    return folder


def make_vq_autoencoder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Return the folder of a small discrete autoencoder with random weights, 4x4 codes of images 8x8, many in use."""
    torch.manual_seed(seed)
    net = VQAutoencoder(**{
        "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 2, "num_vq_embeddings": 32, **changes,
    }).eval()  # fmt: skip
    if net.config["quantizer"] == "vq":
        with torch.no_grad():                                      # codes are latents of noise
            z = net.encode(torch.randn(8, net.config["in_channels"], 8, 8), return_dict=False)[0]
            net.quantize.embedding.weight.copy_(z.movedim(1, -1).flatten(0, -2)[:32])  # type: ignore[union-attr,arg-type]
    VQAutoencoderPipeline(net).save_pretrained(folder)
    return folder
