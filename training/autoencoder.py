"""Autoencoders: a network learns to draw an image again from a short code, d(e(x)) = x.

    hfgen train autoencoder --dataset digits --output-dir runs/codes
    hfgen train autoencoder --corruption gaussian --split "train[:80%]" --eval-split "train[80%:]" --output-dir runs/dae

One network; the variants differ in the loss (weight penalty, sparsity) or in the network's input (corruption).
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hfgen import images
from hfgen.data.dataset import Dataset
from hfgen.errors import ConfigError
from hfgen.losses.sparsity import kl_to_rate
from hfgen.metrics.reconstruction import decibels
from hfgen.models.autoencoder import Autoencoder
from hfgen.pipelines.autoencoder import AutoencoderPipeline
from hfgen.pipelines.base import Pipeline
from hfgen.training.engine.evaluation import BATCH_SIZE, batches_of, held_out
from hfgen.training.engine.noise import Noise
from hfgen.training.engine.phase import Batch, Phase, Recipe
from hfgen.training.engine.recipe import RecipeSpec, side_or_sides
from hfgen.training.engine.run import main
from hfgen.training.settings.autoencoder import SPEC, AutoencoderSettings, Corruption

HIGHEST: dict[str, float] = {"none": 0.0, "gaussian": 100.0, "salt_pepper": 1.0, "patch": 1.0}
"""The largest level of each kind."""


def corrupted(x: Tensor, noise: Noise, corruption: Corruption, level: float) -> Tensor:
    """Return images (B, C, H, W) in [-1, 1] corrupted.

    "gaussian": x + level n, n ~ N(0, I), not clipped (Vincent et al. 2010, section 3.3). "salt_pepper": each pixel
    becomes white or black, all channels alike, with probability level / 2 each (the same section). "patch": a box,
    `level` of the sides high and wide, at a random place, becomes the middle grey 0.
    """
    if corruption == "gaussian":
        return x + level * noise.normal("corruption", *x.shape[1:])
    if corruption == "salt_pepper":
        u = noise.uniform("corruption", 1, *x.shape[2:])                                 # (B, 1, H, W)
        return torch.where(u < level, torch.where(u < level / 2, 1.0, -1.0), x)
    if corruption == "patch":
        return torch.where(patches(noise, x.shape[2], x.shape[3], level), 0.0, x)
    return x


def patches(noise: Noise, height: int, width: int, level: float) -> Tensor:
    """Return which pixels lie in a random box of `level` height x `level` width, rounded, bool (B, 1, H, W)."""
    # choose rows and columns of the box
    inside = []
    for side, name in ((height, "rows"), (width, "columns")):
        length = max(1, round(level * side))
        first = (noise.uniform(f"patch {name}") * (side - length + 1)).long()[:, None]   # (B, 1)
        position = torch.arange(side, device=first.device)
        inside.append((position >= first) & (position < first + length))
    # intersect them
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


GRID_IMAGES = 16
"""Images on the grid, each beside its corruption and its reconstruction."""


def build(s: AutoencoderSettings, dataset: Dataset) -> Recipe:
    """Return the network, the one phase and the pipeline of an autoencoder of `dataset`."""
    # build the network
    check_autoencoder(s, dataset)
    net: Any = network(s, dataset)
    shown = held_out(s, dataset)

    # restore corrupted images: squared error and penalties
    def loss(nets: Mapping[str, nn.Module], batch: Batch, noise: Noise, memo: dict[str, Tensor]):  # type: ignore[no-untyped-def]
        x = batch["x"]
        out = nets["autoencoder"](corrupted(x, noise, s.corruption, s.corruption_level or 0.0))
        error = F.mse_loss(out.sample.float(), x)
        return error + penalty(s, net, out.latents.float()), {"loss": error.detach(), "activity": activity(out.latents)}

    # assemble the recipe
    return Recipe(
        nets={"autoencoder": net},
        phases=[Phase("autoencoder", torch.optim.Adam(net.parameters(), lr=s.learning_rate, fused=True),
                      ("autoencoder",), loss)],
        pipeline=lambda nets: AutoencoderPipeline(nets["autoencoder"]),
        preview=lambda pipeline: preview(pipeline, shown or dataset, s),
        averaged=("autoencoder",),
        evaluate=None if shown is None else lambda nets: evaluate(nets["autoencoder"], shown, s),
        usage="hfgen.AutoencoderPipeline.from_pretrained('{run}').reconstruct(images).images",
    )  # fmt: skip


def penalty(s: AutoencoderSettings, net: nn.Module, z: Tensor) -> Tensor | float:
    """Return the penalties on the weights and on the codes z (B, D), a non-negative scalar."""
    total: Tensor | float = 0.0
    if s.weight_penalty:
        total = s.weight_penalty * sum(p.square().sum() for p in net.parameters() if p.ndim > 1)
    if s.sparsity == "l1":
        total = total + s.sparsity_weight * z.abs().mean()
    if s.sparsity == "kl":
        total = total + s.sparsity_weight * kl_to_rate(z.mean(0), s.sparsity_rate).sum()
    return total


def activity(z: Tensor) -> Tensor:
    """Return the mean of |z| over codes z (B, D), a non-negative scalar."""
    return z.detach().float().abs().mean()


def network(s: AutoencoderSettings, dataset: Dataset) -> Autoencoder:
    """Return the autoencoder for the dataset's images."""
    return Autoencoder(
        resolution=side_or_sides(dataset),
        channels=dataset.shape[0],
        body=s.body,
        hidden=s.hidden,
        latent_dim=s.latent_dim,
        code_activation=s.code_activation,
        tied=s.tied,
        output_activation=s.output_activation,
    )


def check_autoencoder(s: AutoencoderSettings, dataset: Dataset) -> None:
    """Raise ConfigError for data that are no images, and for settings out of range, by name."""
    # check data and penalties
    if len(dataset.shape) != 3:
        raise ConfigError(f"--dataset {s.dataset}: an autoencoder is for images, these are points")
    for name in ("weight_penalty", "sparsity_weight"):
        if getattr(s, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(s, name)}")
    if not 0 < s.sparsity_rate < 1:
        raise ConfigError(f"--sparsity-rate must be between 0 and 1, got {s.sparsity_rate}")
    if s.sparsity == "kl" and s.code_activation != "sigmoid":
        raise ConfigError(f"--sparsity kl needs rates in [0, 1]: --code-activation sigmoid, got {s.code_activation}")
    # check the corruption
    if s.corruption == "none" and s.corruption_level:
        raise ConfigError(f"--corruption-level {s.corruption_level} needs --corruption gaussian, salt_pepper or patch")
    high = HIGHEST[s.corruption]
    if s.corruption != "none" and not 0 < (s.corruption_level or 0.0) <= high:
        given = f"for --corruption {s.corruption}, got {s.corruption_level}"
        raise ConfigError(f"--corruption-level must be above 0 and at most {high:g} {given}")


@torch.no_grad()
def evaluate(net: nn.Module, dataset: Dataset, s: AutoencoderSettings) -> dict[str, float]:
    """Return the PSNR in decibels of restored images, and that of the corrupted images they are restored from.

    Over all of a dataset, with the same corruption every time. Of completed images the given pixels are kept.
    """
    # sum the squared errors of restored and of corrupted images
    device = next(net.parameters()).device
    restored = given = 0.0
    for x, x_tilde, missing in corrupted_chunks(dataset, s):
        reconstruction = torch.where(missing, net(x_tilde.to(device)).sample.float().cpu(), x)
        restored += float((reconstruction - x).double().square().mean((1, 2, 3)).sum())
        given += float((x_tilde - x).double().square().mean((1, 2, 3)).sum())
    # convert to decibels
    numbers = {"eval_psnr": decibels(restored / len(dataset))}
    if s.corruption != "none":
        numbers["eval_psnr_corrupted"] = decibels(given / len(dataset))
    return numbers


def corrupted_chunks(dataset: Dataset, s: AutoencoderSettings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield all images in order, the same corrupted, (n, C, H, W) each, and the pixels to restore, bool (n, 1, H, W).

    The corruption is a function of the seed and the image's place in the dataset.
    """
    level = s.corruption_level or 0.0
    for number, batch in enumerate(batches_of(dataset)):
        x = batch["x"]
        noise = Noise((s.seed, number * BATCH_SIZE, "evaluation"), len(x), slice(None))
        missing = torch.ones_like(x[:, :1], dtype=torch.bool)
        if s.corruption == "patch":
            missing = patches(noise, x.shape[2], x.shape[3], level)
        yield x, corrupted(x, noise, s.corruption, level), missing


def preview(pipeline: Pipeline, dataset: Dataset, s: AutoencoderSettings) -> Image.Image:
    """Return a grid: the first 16 images, the same corrupted (if they are), and the restored ones."""
    # restore the first images
    x, x_tilde, missing = (some[:GRID_IMAGES] for some in next(corrupted_chunks(dataset, s)))
    net = cast(Any, pipeline).autoencoder
    with torch.no_grad():
        restored = torch.where(missing, net(x_tilde.to(pipeline.device)).sample.float().cpu(), x)
    # draw a row of each kind
    rows = [x, restored]
    if s.corruption != "none":
        rows.insert(1, x_tilde)
    return images.grid(images.to_pil(torch.cat(rows)), columns=len(x))


RECIPE = RecipeSpec(SPEC, build)

if __name__ == "__main__":
    from hfgen.training import autoencoder

    raise SystemExit(main(autoencoder.RECIPE))
