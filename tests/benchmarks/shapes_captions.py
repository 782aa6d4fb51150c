"""Models of shapes conditioned on captions: are colour and shape right in combinations that were never trained on?

    python -m tests.benchmarks.shapes_captions [--model diffusion] [--keep FOLDER] [--seed 0] [--threads 2]
        [--figure captions.png] [--scales 1 2 4 8]

An autoencoder of `shapes` at 32x32, then a model of its latents with a text encoder trained along: diffusion, or of a
discrete autoencoder's codes an autoregressive one or masked generation; or a GAN of the pixels, which has no
autoencoder and no guidance. Then 500 full captions of combinations in the training data, all 500 that are held out, and
these again in short, such as "a large red circle at the top left"; at each guidance scale, diffusion in 20 steps of
DPM-Solver++(2M), masked generation in 12. A checker by pixel rules reads what the images show of what was said.
`checker` is its verdict on real images with their captions, `reconstructed` on what the autoencoder makes of those: no
model in its latents can do better. Runs in --keep are not trained again; their seconds and fields are kept there too,
and other fields refused.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hfgen import AutoPipeline
from hfgen.data import load_dataset
from hfgen.data.order import Ints
from hfgen.data.shapes.captions import UNSEEN, captions_of, check_captions, factors_of
from hfgen.data.shapes.dataset import Shapes, held_out
from hfgen.data.shapes.scene import FACTORS
from hfgen.images import grid, to_pil
from tests.benchmarks.harness import Row, fitted

AUTOENCODER = "--dataset shapes --resolution 32"
MODEL = "--dataset shapes --captions"
MODELS: dict[str, tuple[str | None, str, str, dict[str, Any]]] = {
    "diffusion": ("autoencoder_kl", "latent_diffusion", "", {"num_steps": 20, "sampler": "dpmpp_2m"}),
    "autoregressive": ("vq_autoencoder", "autoregressive", "--resolution 32", {}),
    "masked": ("vq_autoencoder", "autoregressive", "--resolution 32 --objective masked", {"num_steps": 12}),
    "gan": (None, "gan", "--resolution 32", {}),
}
"""Recipe of the autoencoder, if any, recipe of the model with its own fields, and arguments of its samples."""

SCALES = (1.0, 2.0, 4.0, 8.0)
IMAGES, BATCH = 500, 100
SHORT = ("size", "colour", "shape", "place")
"""What a short caption names."""


def shortened(factors: Ints) -> list[str]:
    """Return the caption of each row of a matrix of factors (N, 6) without fill and background."""
    named = [name in SHORT for name in FACTORS]
    return captions_of(np.where(named, factors, UNSEEN))


def shares(images: Tensor, captions: list[str]) -> Row:
    """Return the shares of images (N, 3, H, W) in [-1, 1] right in colour and shape, in each factor, and in all.

    Of the factors that the captions name.
    """
    named = (factors_of(captions) != UNSEEN).any(0).tolist()
    checked = check_captions(images, captions).items()
    right = {name: values for (name, values), given in zip(checked, named, strict=True) if given}
    both = right["colour"] & right["shape"]
    every = torch.stack(list(right.values())).all(0)
    found = {"colour and shape": both, **right, "all": every}
    return {name: float(values.double().mean()) for name, values in found.items()}


def generated(
    pipeline: Any, captions: list[str], scale: float, seed: int, choices: dict[str, Any] = MODELS["diffusion"][3]
) -> Tensor:
    """Return one image for each caption, (N, 3, H, W) in [-1, 1]; `choices`: further arguments of the call."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for first in range(0, len(captions), BATCH):
        told: dict[str, Any] = {"prompt": captions[first : first + BATCH], **choices}
        if pipeline.guidable:
            told["guidance_scale"] = scale
        result: Any = pipeline(generator=generator, output_type="pt", **told)
        parts.append(result.images)
    return torch.cat(parts) * 2 - 1


def main() -> None:
    """Train both models and print a line for each kind of caption and each guidance scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="diffusion")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--figure", type=Path, help="File for a grid of held-out captions at the scale nearest 4.")
    parser.add_argument("--autoencoder", default="", help="Further fields of its recipe, in one word.")
    parser.add_argument("--diffusion", default="", help="The same of the model.")
    parser.add_argument("--trained", type=Path, help="Run of the model that is judged in place of the one in --keep.")
    parser.add_argument("--draws", nargs="*", default=[], help="Numbers for the samples, such as temperature=0.6.")
    options = parser.parse_args()
    common = ["--threads", options.threads, "--save-every", "0", "--sample-every", "0"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        first, recipe, own, choices = MODELS[options.model]
        model, seconds = folder / f"{options.model}-{options.seed}", dict[str, float]()
        words, vae = [*MODEL.split(), *own.split()], None
        if first is not None:
            vae = folder / f"{'autoencoder' if options.model == 'diffusion' else first}-{options.seed}"
            fields = [*AUTOENCODER.split(), *common, *options.autoencoder.split()]
            seconds["autoencoder"] = fitted(first, vae, options.seed, fields)
            words += ["--autoencoder", str(vae)]
        seconds[options.model] = fitted(recipe, model, options.seed, [*words, *common, *options.diffusion.split()])
        print("seconds:", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
        drawn = {name: float(number) for name, _, number in (draw.partition("=") for draw in options.draws)}
        report(vae, options.trained or model, options.seed, options.figure, choices | drawn, options.scales)


def report(
    vae: Path | None, model: Path, seed: int, figure: Path | None, choices: dict[str, Any], scales: Sequence[float]
) -> None:
    """Print the shares of real, reconstructed and generated images, and the seconds of one image."""
    # load model and data
    pipeline: Any = AutoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    real, trained = (cast(Shapes, load_dataset("shapes", split=split)) for split in ("test", "train"))
    x, captions = real.tensor(IMAGES), captions_of(real.factors()[:IMAGES].numpy())
    # check real images, and reconstructed ones
    show("checker", shares(x, captions))
    if vae is not None:
        back = AutoPipeline.from_pretrained(vae).reconstruct(x / 2 + 0.5, output_type="pt").images * 2 - 1
        print(f"autoencoder: PSNR {10 * torch.log10(4 / (back - x).square().mean()):.1f} dB")
        show("reconstructed", shares(back, captions))
    # check generated images
    told = {"trained on": captions_of(trained.factors()[:IMAGES].numpy()), "held out": captions_of(held_out()),
            "short": shortened(held_out())}  # fmt: skip
    scales = scales if pipeline.guidable else [1.0]
    for kind, texts in told.items():
        for scale in scales:
            before = time.monotonic()
            images = generated(pipeline, texts, scale, 1000 + seed, choices)
            each = (time.monotonic() - before) / len(texts)
            show(f"{kind}, guidance {scale:g}, {each:.2g} s each", shares(images, texts))
            if figure is not None and kind == "held out" and scale == min(scales, key=lambda one: abs(one - 4)):
                grid(to_pil(images[:32]), columns=8).save(figure)


def show(name: str, row: Row) -> None:
    """Print one line."""
    print(f"{name:40}" + " | ".join(f"{key} {100 * value:.1f} %" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
