"""Tiny pipelines of every family, run folders as training leaves them, and what is written in a card."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

import hfgen
from hfgen.cards.write import write_card
from hfgen.models.text import build_text_encoder, build_tokenizer

NAMES = ['it\'s "quoted"', "a: b # c", "line\nbreak\r\n---\n", "---"]
"""Names of classes that would break a card if they stood there as they are."""


def unet(**changes: Any) -> hfgen.UNet:
    return hfgen.UNet(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, **changes,
    ).eval()  # fmt: skip


def latent_diffusion(text: bool) -> hfgen.LatentDiffusionPipeline:
    """Return a pipeline that is told texts, or one of three classes."""
    vae = hfgen.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2,
    ).eval()  # fmt: skip
    parts = conditional(4, 2, text)
    parts["scheduler"] = hfgen.DDPMScheduler(num_train_timesteps=5, clip_sample=False)
    return hfgen.LatentDiffusionPipeline(vae=vae, **parts)


def conditional(side: int, channels: int, text: bool) -> dict[str, Any]:
    """Return a U-Net that is told texts, with what reads them, or one of three classes."""
    net = hfgen.ConditionalUNet(
        sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(8,), norm_num_groups=4,
        layers_per_block=1, attention_levels=(), attention_head_dim=4, cross_attention_dim=8 if text else None,
        num_class_embeds=None if text else 3,
    ).eval()  # fmt: skip
    tokenizer = build_tokenizer(["a red circle"])
    readers = {"text_encoder": build_text_encoder(tokenizer, 8, 1, 2).eval(), "tokenizer": tokenizer} if text else {}
    return {"unet": net, **readers}


def generator(**changes: Any) -> hfgen.DCGANGenerator:
    return hfgen.DCGANGenerator(resolution=8, channels=1, width=4, latent_dim=4, **changes).eval()


def classifier() -> hfgen.Classifier:
    return hfgen.Classifier(8, 1, num_classes=4, width=8, class_names=NAMES).eval()


def translator() -> hfgen.UNetTranslator:
    return hfgen.UNetTranslator(in_channels=1, out_channels=1, width=4, depth=2).eval()


MAKERS = {
    "DDPMPipeline": lambda: hfgen.DDPMPipeline(unet(), hfgen.DDPMScheduler(num_train_timesteps=5)),
    "DDPMPipeline of classes": lambda: hfgen.DDPMPipeline(
        unet(num_class_embeds=3), hfgen.DDPMScheduler(num_train_timesteps=5)
    ),
    "DDPMPipeline of text": lambda: hfgen.DDPMPipeline(
        scheduler=hfgen.DDPMScheduler(num_train_timesteps=5), **conditional(8, 1, True)
    ),
    "DDPMPipeline of points": lambda: hfgen.DDPMPipeline(
        hfgen.MLPDenoiser(hidden=8, layers=1).eval(), hfgen.DDPMScheduler(num_train_timesteps=5)
    ),
    "DDPMPipeline of the score SDE": lambda: hfgen.DDPMPipeline(unet(), hfgen.VPSDEScheduler()),
    "GANPipeline": lambda: hfgen.GANPipeline(generator()),
    "GANPipeline of classes": lambda: hfgen.GANPipeline(generator(num_classes=3)),
    "ControllableGANPipeline": lambda: hfgen.ControllableGANPipeline(generator(), classifier()),
    "VAEPipeline": lambda: hfgen.VAEPipeline(hfgen.VAE(resolution=8, hidden=(8,), latent_dim=2).eval()),
    "AutoencoderPipeline": lambda: hfgen.AutoencoderPipeline(hfgen.Autoencoder(8, 1, "mlp", (8,), 2).eval()),
    "AutoencoderKLPipeline": lambda: hfgen.AutoencoderKLPipeline(latent_diffusion(False).vae),
    "VQAutoencoderPipeline": lambda: hfgen.VQAutoencoderPipeline(hfgen.VQAutoencoder(
        1, 1, block_out_channels=(4,), norm_num_groups=2, sample_size=8, num_vq_embeddings=8,
    ).eval()),
    "LatentDiffusionPipeline": lambda: latent_diffusion(False),
    "LatentDiffusionPipeline of text": lambda: latent_diffusion(True),
    "AutoregressivePipeline": lambda: hfgen.AutoregressivePipeline(
        hfgen.ImageTransformer(17, (8, 8, 1), width=16, layers=1, heads=2).eval(), image_shape=(1, 8, 8), levels=17,
    ),
    "MaskedGenerationPipeline": lambda: hfgen.MaskedGenerationPipeline(
        hfgen.ImageTransformer(17, (8, 8, 1), width=16, layers=1, heads=2, causal=False).eval(), image_shape=(1, 8, 8),
        levels=17,
    ),
    "NormalizingFlowPipeline": lambda: hfgen.NormalizingFlowPipeline(
        hfgen.TarFlow(1, 8, 4, width=8, blocks=2, layers=1, heads=2).eval()
    ),
    "NormalizingFlowPipeline of classes": lambda: hfgen.NormalizingFlowPipeline(
        hfgen.TarFlow(1, 8, 4, width=8, blocks=2, layers=1, heads=2, num_class_embeds=3).eval()
    ),
    "ClassifierPipeline": lambda: hfgen.ClassifierPipeline(classifier()),
    "TranslationPipeline": lambda: hfgen.TranslationPipeline(translator(), translator()),
}


def blocks(text: str, language: str) -> list[str]:
    """Return the blocks of code in a card."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def make_run(path: Path, record: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Return a run folder as training leaves it; `record` are changes of run.json, None for none at all."""
    path.mkdir(parents=True)
    values = {"output_dir": str(path), "resume": False, "dataset": "digits", "split": "train", "seed": 3, "width": None}
    values |= {"batch_size": 16, "flip": False, "max_steps": 40, "budget": "3m", "learning_rate": 1e-5, **settings}
    (path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    lines = [{"step": 20, "loss": 1.0, "learning_rate": 1}, {"step": 40, "loss": 0.5, "D(x)": 0.25, "modes": 7.0}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 60, "loss": 9}]))
    known = {
        "recipe": "gan", "step": 40, "seconds": 1234.5, "evaluated": ["modes"], "hub": [], "changed": ["learning_rate"],
        "parameters": {"generator": 1000}, "versions": {"torch": "2"}, "data": {"items": 9, "shape": [1, 8, 8]},
        "hardware": {"device": "cpu", "name": "a processor", "processes": 2, "threads": 1},
    }  # fmt: skip
    if record is not None:
        (path / "run.json").write_text(json.dumps({**known, **record}))
    return path


def card_of(folder: Path, *args: Any, **kwargs: Any) -> str:
    """Return the text of a card that is written anew."""
    (folder / "README.md").unlink(missing_ok=True)
    return write_card(folder, *args, **kwargs).read_text()
