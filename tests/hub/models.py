"""One tiny pipeline of every family, random but lively, for tests of sharing and loading."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hfgen import (
    VAE,
    Autoencoder,
    AutoencoderKL,
    AutoencoderKLPipeline,
    AutoencoderPipeline,
    AutoregressivePipeline,
    BEGANDiscriminator,
    BigGANDiscriminator,
    BigGANGenerator,
    Classifier,
    ClassifierPipeline,
    ConditionalUNet,
    ControllableGANPipeline,
    DCGANDiscriminator,
    DCGANGenerator,
    DDPMPipeline,
    DDPMScheduler,
    GANPipeline,
    HierarchicalVAE,
    ImageTransformer,
    LatentDiffusionPipeline,
    MaskedGenerationPipeline,
    MLPDenoiser,
    MLPDiscriminator,
    MLPGenerator,
    NormalizingFlowPipeline,
    PatchDiscriminator,
    PixelCNN,
    ProgressiveDiscriminator,
    ProgressiveGenerator,
    ResNetTranslator,
    TarFlow,
    TranslationPipeline,
    UNet,
    UNetTranslator,
    VAEPipeline,
    VPSDEScheduler,
    VQAutoencoder,
    VQAutoencoderPipeline,
)
from hfgen.models.text import build_text_encoder, build_tokenizer

STEPS = 20


def unet(**changes: Any) -> UNet:
    """Return a U-Net for 8x8 images, with attention."""
    return UNet(**{
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), **changes,
    })  # fmt: skip


def tarflow() -> TarFlow:
    """Return a small flow of 8x8 images."""
    return TarFlow(1, 8, 4, width=16, blocks=2, layers=1, heads=2)


def image_transformer() -> ImageTransformer:
    """Return a small transformer over 16 entries of 3 values."""
    return ImageTransformer(3, (4, 4, 1), width=16, layers=1, heads=2)


def vq_autoencoder() -> VQAutoencoder:
    """Return a small discrete autoencoder for images (1, 8, 8)."""
    return VQAutoencoder(
        in_channels=1, out_channels=1, block_out_channels=(4, 8), norm_num_groups=2, sample_size=8,
        num_vq_embeddings=8, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def autoencoder_kl() -> AutoencoderKL:
    """Return a KL-autoencoder of 8x8 images in latents (2, 4, 4)."""
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip


def conditional_unet(**changes: Any) -> ConditionalUNet:
    """Return a U-Net with transformers for samples of 4x4."""
    return ConditionalUNet(**{
        "sample_size": 4, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
        "attention_levels": (1,), "attention_head_dim": 4, "pooled_text": True, **changes,
    })  # fmt: skip


def texts() -> dict[str, Any]:
    """Return an encoder of texts and its tokenizer."""
    tokenizer = build_tokenizer(["a red circle", "a blue square on white"])
    return {"text_encoder": build_text_encoder(tokenizer, 8, 1, 2), "tokenizer": tokenizer}


def latent_diffusion(parts: dict[str, Any], **changes: Any) -> LatentDiffusionPipeline:
    """Return a pipeline in the latents of `autoencoder_kl`; `changes` are those of the network."""
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, clip_sample=False)
    build = conditional_unet if "cross_attention_dim" in changes else unet
    net = build(**{"sample_size": 4, "in_channels": 2, "out_channels": 2, **changes})
    return LatentDiffusionPipeline(autoencoder_kl(), net, scheduler, **parts)


def controllable() -> ControllableGANPipeline:
    """Return a generator with a classifier of what it makes."""
    return ControllableGANPipeline(DCGANGenerator(8, 1, 4, 6), Classifier(8, 1, num_classes=4, width=8))


def plane() -> MLPDenoiser:
    """Return a denoiser of points, whose data have a mean and a standard deviation."""
    return MLPDenoiser(hidden=16, layers=2, time_embedding_dim=8, data_mean=[1.0, -2.0], data_std=[0.5, 3.0])


def ddpm() -> DDPMScheduler:
    """Return a scheduler of few steps."""
    return DDPMScheduler(num_train_timesteps=STEPS)


FAMILIES: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: DDPMPipeline(unet(), ddpm()),
    "ddpm-classes": lambda: DDPMPipeline(unet(num_class_embeds=4), ddpm()),
    "ddpm-text": lambda: DDPMPipeline(
        conditional_unet(in_channels=1, out_channels=1, cross_attention_dim=8), ddpm(), **texts()
    ),
    "score-sde": lambda: DDPMPipeline(unet(), VPSDEScheduler(num_train_timesteps=STEPS)),
    "ddpm-plane": lambda: DDPMPipeline(plane(), ddpm()),
    "gan": lambda: GANPipeline(DCGANGenerator(8, 1, 4, 6, num_classes=3)),
    "controllable-gan": controllable,
    "vae": lambda: VAEPipeline(VAE(8, hidden=(10,), latent_dim=3)),
    "hierarchical-vae": lambda: VAEPipeline(HierarchicalVAE(8, hidden=((10,), (5,)), latent_dims=(4, 2))),
    "autoencoder": lambda: AutoencoderPipeline(Autoencoder(8, 1, "mlp", (16,), 6)),
    "autoregressive": lambda: AutoregressivePipeline(image_transformer(), image_shape=(1, 4, 4), levels=3),
    "autoencoder-kl": lambda: AutoencoderKLPipeline(autoencoder_kl()),
    "vq-autoencoder": lambda: VQAutoencoderPipeline(vq_autoencoder()),
    "translation": lambda: TranslationPipeline(*(ResNetTranslator(*ends, 4, blocks=1) for ends in ((1, 3), (3, 1)))),
    "latent-diffusion": lambda: latent_diffusion({"null_condition": True}, num_class_embeds=4),
    "latent-diffusion-text": lambda: latent_diffusion(texts(), cross_attention_dim=8),
    "masked-generation": lambda: MaskedGenerationPipeline(
        ImageTransformer(3, (4, 4, 1), width=16, layers=1, heads=2, causal=False), image_shape=(1, 4, 4), levels=3
    ),
    "tarflow": lambda: NormalizingFlowPipeline(tarflow(), levels=17, noise_std=0.1),
    "classifier": lambda: ClassifierPipeline(
        Classifier(8, 1, num_classes=4, width=8, class_names=["ant", "bee", "cow", "dog"])
    ),
}
"""What builds each; `make` gives it weights."""

COMPONENTS: dict[str, Callable[[], Any]] = {
    "Autoencoder": lambda: Autoencoder(8, 1, "mlp", (16,), 6),
    "AutoencoderKL": autoencoder_kl,
    "BEGANDiscriminator": lambda: BEGANDiscriminator(8, 1, width=4, code_dim=3, base_size=2),
    "BigGANDiscriminator": lambda: BigGANDiscriminator(8, 1, 4, base_size=2, attention_size=4, num_classes=3),
    "BigGANGenerator": lambda: BigGANGenerator(8, 1, 4, 6, base_size=2, attention_size=4, num_classes=3),
    "Classifier": lambda: Classifier(8, 1, num_classes=4, width=8, class_names=["ant", "bee", "cow", "dog"]),
    "ConditionalUNet": lambda: conditional_unet(cross_attention_dim=8),
    "DCGANDiscriminator": lambda: DCGANDiscriminator(8, 1, width=4),
    "DCGANGenerator": lambda: DCGANGenerator(8, 1, 4, 6, num_classes=3),
    "DDPMScheduler": lambda: DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="squaredcos_cap_v2"),
    "HierarchicalVAE": lambda: HierarchicalVAE(8, hidden=((10,), (5,)), latent_dims=(4, 2)),
    "ImageTransformer": image_transformer,
    "MLPDenoiser": plane,
    "MLPDiscriminator": lambda: MLPDiscriminator(hidden=8, layers=1),
    "MLPGenerator": lambda: MLPGenerator(hidden=8, layers=1),
    "PixelCNN": lambda: PixelCNN(1, 8, levels=4, width=8, layers=1),
    "ProgressiveDiscriminator": lambda: ProgressiveDiscriminator(8, 1, 4, minibatch_stddev=0, level=0.5),
    "ProgressiveGenerator": lambda: ProgressiveGenerator(8, 1, 4, 6, level=0.5),
    "PatchDiscriminator": lambda: PatchDiscriminator(channels=1, width=4),
    "ResNetTranslator": lambda: ResNetTranslator(1, 3, 4, blocks=1),
    "TarFlow": tarflow,
    "UNet": unet,
    "VQAutoencoder": vq_autoencoder,
    "UNetTranslator": lambda: UNetTranslator(in_channels=1, out_channels=1, width=4, depth=2),
    "VAE": lambda: VAE(8, hidden=(10,), latent_dim=3),
    "VPSDEScheduler": lambda: VPSDEScheduler(num_train_timesteps=STEPS),
}
"""One small network or scheduler of every class; `make_component` gives it weights."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "ddpm": {"num_steps": 3},
    "score-sde": {"num_steps": 3},
    "ddpm-plane": {"num_steps": 3},
    "ddpm-text": {"num_steps": 3, "prompt": "a red circle"},
    "ddpm-classes": {"num_steps": 3, "class_labels": 1},
    "gan": {"class_labels": 1},
    "controllable-gan": {"target": 1, "num_steps": 2},
    "latent-diffusion": {"num_steps": 3, "class_labels": 1},
    "latent-diffusion-text": {"num_steps": 3, "prompt": "a red circle"},
}


def make(family: str, seed: int = 0) -> Any:
    """Return a pipeline of `family` in evaluation mode, whose weights are a function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FAMILIES[family]()
        for net in networks(pipe).values():
            _enliven(net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_component(name: str, seed: int = 0) -> Any:
    """Return a network in evaluation mode, whose weights are a function of `seed`, or a scheduler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        component = COMPONENTS[name]()
        if isinstance(component, torch.nn.Module):
            _enliven(component)
    return component


def _enliven(net: torch.nn.Module) -> None:
    for parameter in net.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def digest(pipe: Any) -> str:
    """Return a hash of every bit of every tensor of a pipeline, their names, types and shapes."""
    found = hashlib.sha256()
    for part, net in sorted(networks(pipe).items()):
        for key, tensor in sorted(net.state_dict().items()):
            found.update(f"{part} {key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def outputs(pipe: Any, family: str) -> np.ndarray:
    """Return what a pipeline of `family` makes of a seed, or of two random images: images, points or probabilities."""
    pipe.set_progress_bar_config(disable=True)
    images = torch.rand(2, 3 if family == "autoencoder-kl" else 1, 8, 8, generator=torch.Generator().manual_seed(1))
    if family == "classifier":
        return pipe(images).probabilities.numpy()
    if family.startswith(("autoencoder", "vq-autoencoder", "translation")):
        return np.asarray(pipe(images, output_type="np").images)
    settings = {"generator": torch.Generator().manual_seed(0), "batch_size": 2, **ARGUMENTS.get(family, {})}
    return np.asarray(pipe(output_type="np", **settings).images)
