"""Tiny networks of every class and kind, each with inputs for a batch: `VARIANTS[name]() -> (network, inputs)`.

`QUICK` names one or two networks of each family, for tests that take a second each; `FEW` is for longer ones.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hfgen
from tests.models import (
    test_autoencoder_kl,
    test_conditional_unet,
    test_image_transformer,
    test_pixel_cnn,
    test_tarflow,
    test_unet,
    test_vq_autoencoder,
)

BATCH = 4
Made = tuple[Any, dict[str, Any]]


def tensor(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape)


def labels(number: int) -> Tensor:
    return torch.arange(BATCH) % number


def times() -> Tensor:
    return torch.tensor([1, 400, 700, 999])[:BATCH]


def unet(**changes: Any) -> Made:
    net = hfgen.UNet(**{**test_unet.SMALL, **changes})
    c: Any = net.config
    size = (c.sample_size,) * 2 if isinstance(c.sample_size, int) else c.sample_size
    inputs = {"sample": tensor(c.in_channels, *size), "timestep": times()}
    if c.num_class_embeds or c.class_embed_type:
        inputs["class_labels"] = tensor(32) if c.class_embed_type == "identity" else labels(10)
    return net, inputs


def conditional_unet(**changes: Any) -> Made:
    net = hfgen.ConditionalUNet(**{**test_conditional_unet.SMALL, **changes})
    c: Any = net.config
    inputs = {"sample": tensor(c.in_channels, 8, 8), "timestep": times()}
    if c.num_class_embeds:
        inputs["class_labels"] = labels(c.num_class_embeds)
    if c.cross_attention_dim:
        inputs["encoder_hidden_states"] = tensor(5, c.cross_attention_dim)
    return net, inputs


def autoencoder_kl(**changes: Any) -> Made:
    net = hfgen.AutoencoderKL(**{**test_autoencoder_kl.SMALL, **changes})
    return net, {"sample": tensor(net.config["in_channels"], 16, 16)}


def vq_autoencoder(**changes: Any) -> Made:
    net = hfgen.VQAutoencoder(**{**test_vq_autoencoder.SMALL, **changes})
    return net, {"sample": tensor(net.config["in_channels"], 16, 16)}


def one(cls: Any, shape: tuple[int, ...], **settings: Any) -> Made:
    return cls(**settings), {"x": tensor(*shape)}


def gan(cls: Any, key: str, shape: tuple[int, ...], **settings: Any) -> Made:
    inputs = {key: tensor(*shape)}
    if settings.get("num_classes"):
        inputs["class_labels"] = labels(settings["num_classes"])
    if settings.get("text_width"):
        inputs["encoder_hidden_states"] = tensor(5, settings["text_width"])
    return cls(**settings), inputs


def denoiser(**settings: Any) -> Made:
    inputs = {"sample": tensor(2), "timestep": times()}
    if settings:
        inputs["class_labels"] = labels(3)
    return hfgen.MLPDenoiser(hidden=16, layers=2, time_embedding_dim=16, **settings), inputs


def masked_transformer() -> Made:
    net = hfgen.ImageTransformer(
        vocab_size=5, grid=(2, 3, 2), width=16, layers=2, heads=2, causal=False, tie_weights=True, num_class_embeds=3
    )
    return net, {"entries": torch.arange(BATCH * 12).view(BATCH, 12) % 6, "class_labels": labels(3)}


def patches(condition: int, **settings: Any) -> Made:
    inputs = {"x": tensor(3, 16, 16)}
    if condition:
        inputs["condition"] = tensor(condition, 16, 16)
    net = hfgen.PatchDiscriminator(condition_channels=condition, width=4, layers=1, **settings)
    return net, inputs


def transformer(**changes: Any) -> Made:
    net = hfgen.ImageTransformer(**{**test_image_transformer.SMALL, **changes})
    inputs: dict[str, Any] = {"entries": torch.randint(0, 5, (BATCH, net.num_entries))}
    if net.config["num_class_embeds"]:
        inputs["class_labels"] = labels(3)
    if net.config["text_width"]:
        inputs["encoder_hidden_states"] = tensor(4, net.config["text_width"])
    return net, inputs


def pixel_cnn(**changes: Any) -> Made:
    net = hfgen.PixelCNN(**{**test_pixel_cnn.SMALL, **changes})
    inputs: dict[str, Any] = {"entries": torch.randint(0, net.vocab_size, (BATCH, net.num_entries))}
    if net.config["num_class_embeds"]:
        inputs["class_labels"] = labels(3)
    if net.config["text_width"]:
        inputs["encoder_hidden_states"] = tensor(4, net.config["text_width"])
    return net, inputs


def tarflow(**changes: Any) -> Made:
    net = hfgen.TarFlow(**{**test_tarflow.SMALL, **changes})
    inputs: dict[str, Any] = {"sample": tensor(*net.shape)}
    if net.config["num_class_embeds"]:
        inputs["class_labels"] = labels(3)
    if net.config["text_width"]:
        inputs["encoder_hidden_states"] = tensor(5, net.config["text_width"])
    return net, inputs


def vae(cls: Any, **settings: Any) -> Made:
    net = cls(**{"resolution": 8, **settings})
    inputs: dict[str, Any] = {"x": tensor(*net.shape).sign(), "eps": net.normals(BATCH, 2)}
    if settings.get("num_classes"):
        inputs["class_labels"] = labels(settings["num_classes"])
    return net, inputs


IMAGE: dict[str, Any] = {"resolution": 8, "channels": 1, "width": 4}
WIDE: dict[str, Any] = {**IMAGE, "resolution": (8, 16)}
NOISE: dict[str, Any] = {**IMAGE, "latent_dim": 6}
MLP: dict[str, Any] = {"hidden": 8, "layers": 2}
PIXELS = (1, 8, 8)

VARIANTS: dict[str, Callable[[], Made]] = {
    # autoencoders
    "Autoencoder, mlp": partial(one, hfgen.Autoencoder, PIXELS, resolution=8, hidden=(12,), latent_dim=3),
    "Autoencoder, conv": partial(one, hfgen.Autoencoder, PIXELS, resolution=8, body="conv", hidden=(4,), latent_dim=3,
                                 code_activation="sigmoid"),
    "Autoencoder, tied": partial(one, hfgen.Autoencoder, PIXELS, resolution=8, body="conv", hidden=(4,), latent_dim=3,
                                 tied=True, output_activation="linear"),
    "VAE, mlp": partial(vae, hfgen.VAE, hidden=(12,), latent_dim=3),
    "VAE, conv with classes": partial(vae, hfgen.VAE, body="conv", hidden=(4, 6), latent_dim=3, num_classes=3),
    "VAE, points": partial(vae, hfgen.VAE, dim=2, hidden=(8,), likelihood="gaussian", learned_sigma=True),
    "VAE, planar flow": partial(vae, hfgen.VAE, hidden=(12,), latent_dim=3, posterior="planar", flow_steps=2),
    "VAE, inverse autoregressive flow": partial(vae, hfgen.VAE, hidden=(12,), latent_dim=3, flow_width=8,
                                                posterior="inverse_autoregressive"),
    "VAE, scales of pixels": partial(vae, hfgen.VAE, body="conv", hidden=(4,), latent_dim=3, likelihood="gaussian",
                                     sigma_per_pixel=True),
    "HierarchicalVAE": partial(vae, hfgen.HierarchicalVAE, hidden=((12,), (6, 5)), latent_dims=(4, 2),
                               likelihood="discretised_logistic"),
    # a classifier and denoisers of points
    "Classifier": partial(one, hfgen.Classifier, PIXELS, resolution=8, width=4),
    "Classifier, dropout": partial(one, hfgen.Classifier, (3, 28, 20), resolution=(28, 20), channels=3, width=4,
                                   dropout=0.5),
    "Classifier, codes": partial(one, hfgen.Classifier, PIXELS, resolution=8,
                                 encoder={"name": "Autoencoder", "resolution": 8, "hidden": (12,), "latent_dim": 3}),
    "MLPDenoiser": denoiser,
    "MLPDenoiser, classes": partial(denoiser, num_class_embeds=3),
    "ImageTransformer, masked entries": masked_transformer,
    # adversarial networks
    "DCGANGenerator, batch": partial(gan, hfgen.DCGANGenerator, "z", (6,), **NOISE),
    "DCGANGenerator, layer": partial(gan, hfgen.DCGANGenerator, "z", (6,), **NOISE, norm="layer"),
    "DCGANGenerator, spectral, classes": partial(gan, hfgen.DCGANGenerator, "z", (6,), **NOISE, norm="spectral",
                                                 num_classes=3),
    "DCGANDiscriminator, batch": partial(gan, hfgen.DCGANDiscriminator, "x", PIXELS, **IMAGE),
    "DCGANDiscriminator, spectral, pack": partial(gan, hfgen.DCGANDiscriminator, "x", (1, 8, 16), **WIDE,
                                                  norm="spectral", pack=2),
    "DCGANDiscriminator, deviation, classes": partial(gan, hfgen.DCGANDiscriminator, "x", PIXELS, **IMAGE,
                                                      norm="none", minibatch_stddev=2, num_classes=3),
    "BigGANGenerator, classes": partial(gan, hfgen.BigGANGenerator, "z", (6,), **NOISE, base_size=2, attention_size=4,
                                        num_classes=3, embedding_dim=5),
    "BigGANGenerator, layer": partial(gan, hfgen.BigGANGenerator, "z", (6,), **NOISE, attention_size=0, norm="layer"),
    "BigGANDiscriminator, classes": partial(gan, hfgen.BigGANDiscriminator, "x", (1, 8, 16), **WIDE, base_size=2,
                                            attention_size=4, num_classes=3),
    "ProgressiveGenerator, classes": partial(gan, hfgen.ProgressiveGenerator, "z", (6,), **NOISE, num_classes=3),
    "ProgressiveGenerator, fading": partial(gan, hfgen.ProgressiveGenerator, "z", (6,), **NOISE, base_size=2,
                                            level=1.5),
    "ProgressiveDiscriminator, classes": partial(gan, hfgen.ProgressiveDiscriminator, "x", (1, 8, 16), **WIDE,
                                                 minibatch_stddev=0, num_classes=3),
    "ProgressiveDiscriminator, fading": partial(gan, hfgen.ProgressiveDiscriminator, "x", PIXELS, **IMAGE,
                                                base_size=2, minibatch_stddev=2, level=0.5),
    "DCGANGenerator, classes, text": partial(gan, hfgen.DCGANGenerator, "z", (6,), **NOISE, num_classes=3,
                                             text_width=6),
    "DCGANDiscriminator, text, pack": partial(gan, hfgen.DCGANDiscriminator, "x", PIXELS, **IMAGE, norm="spectral",
                                              text_width=6, pack=2),
    "MLPGenerator": partial(gan, hfgen.MLPGenerator, "z", (16,), **MLP),
    "MLPGenerator, batch, classes": partial(gan, hfgen.MLPGenerator, "z", (16,), **MLP, norm="batch", num_classes=3),
    "MLPGenerator, affine": partial(gan, hfgen.MLPGenerator, "z", (16,), layers=0),
    "MLPDiscriminator, linear": partial(gan, hfgen.MLPDiscriminator, "x", (2,), layers=0),
    "MLPDiscriminator, waves": partial(gan, hfgen.MLPDiscriminator, "x", (2,), **MLP, frequencies=4),
    "MLPDiscriminator, spectral, deviation": partial(gan, hfgen.MLPDiscriminator, "x", (2,), **MLP, norm="spectral",
                                                     minibatch_stddev=2),
    "BEGANDiscriminator": partial(gan, hfgen.BEGANDiscriminator, "x", (1, 8, 16), **WIDE, code_dim=3, base_size=2,
                                  extra_layers=1),
    "BEGANDiscriminator, points": partial(gan, hfgen.BEGANDiscriminator, "x", (2,), dim=2, width=8, code_dim=1),
    # translators
    "ResNetTranslator": partial(one, hfgen.ResNetTranslator, (3, 16, 16), width=4, blocks=2),
    "ResNetTranslator, layer, dropout": partial(one, hfgen.ResNetTranslator, (3, 16, 16), out_channels=1, width=4,
                                                blocks=1, norm="layer", dropout=0.5),
    "UNetTranslator": partial(one, hfgen.UNetTranslator, (3, 16, 16), width=4, depth=3),
    "UNetTranslator, one stage": partial(one, hfgen.UNetTranslator, (3, 16, 16), width=4, depth=1, norm="none"),
    "PatchDiscriminator, condition": partial(patches, 1),
    "PatchDiscriminator, spectral": partial(patches, 0, norm="spectral"),
}  # fmt: skip
for name, changes in test_unet.VARIANTS.items():
    VARIANTS[f"UNet, {name}"] = partial(unet, **changes)
for name, changes in test_conditional_unet.VARIANTS.items():
    VARIANTS[f"ConditionalUNet, {name}"] = partial(conditional_unet, **changes)
VARIANTS["ConditionalUNet, classes without a text"] = partial(
    conditional_unet, cross_attention_dim=None, num_class_embeds=5
)
for name, changes in test_autoencoder_kl.VARIANTS.items():
    VARIANTS[f"AutoencoderKL, {name}"] = partial(autoencoder_kl, **changes)
for name, changes in {**test_vq_autoencoder.VARIANTS, "a grid": test_vq_autoencoder.FSQ}.items():
    VARIANTS[f"VQAutoencoder, {name}"] = partial(vq_autoencoder, **changes)

for name, changes in test_image_transformer.VARIANTS.items():
    VARIANTS[f"ImageTransformer, {name}"] = partial(transformer, **changes)
for name, changes in test_pixel_cnn.VARIANTS.items():
    VARIANTS[f"PixelCNN, {name}"] = partial(pixel_cnn, **changes)
for name, changes in test_tarflow.VARIANTS.items():
    VARIANTS[f"TarFlow, {name}"] = partial(tarflow, **changes)

QUICK = (
    "UNet, classes", "UNet, NCSN++ of one level", "ConditionalUNet, pooled text", "AutoencoderKL, one level",
    "VQAutoencoder, one level", "VQAutoencoder, a grid",
    "Autoencoder, conv", "VAE, conv with classes", "Classifier", "MLPDenoiser, classes",
    "ImageTransformer, masked entries",
    "DCGANGenerator, spectral, classes", "DCGANDiscriminator, text, pack", "MLPDiscriminator, spectral, deviation",
    "BigGANGenerator, classes", "BigGANDiscriminator, classes",
    "ProgressiveGenerator, fading", "ProgressiveDiscriminator, fading",
    "ResNetTranslator", "UNetTranslator", "ImageTransformer, rotary", "PixelCNN, classes and text",
    "TarFlow, classes and text",
    "PatchDiscriminator, spectral",
)  # fmt: skip


FEW = ("UNet, one level", "AutoencoderKL, one level", "VAE, mlp", "MLPDenoiser, classes",
       "MLPGenerator, batch, classes", "PatchDiscriminator, spectral")  # fmt: skip


def every_variant(quick: Collection[str] = QUICK) -> list[Any]:
    """Return parameters for pytest: all variants, those that are not `quick` marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in VARIANTS]
