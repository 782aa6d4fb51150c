"""The picture that a run draws of its model now and then."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from hfgen import images
from hfgen.data.dataset import Dataset
from hfgen.logging import is_progress_bar_enabled
from hfgen.pipelines.base import Pipeline
from hfgen.training.engine.distributed import StopSignal
from hfgen.training.engine.loop import Engine
from hfgen.training.engine.settings import GRID_IMAGES
from hfgen.training.engine.state import served_networks

GRID_POINTS = 2000
"""Points of a plot of samples."""

ANCESTRAL_STEPS = 50
"""Denoising steps below which the ancestral sampler leaves noise, and a grid is drawn by DDIM."""


def preview(
    pipeline: Pipeline, dataset: Dataset, seed: int, labelled: bool, count: int = GRID_IMAGES, **choices: Any
) -> Image.Image:
    """Return a grid of `count` images (of all classes in turn if `labelled`), or a plot of 2,000 points over the real
    ones.

    A dataset's first captions are the prompts. The noise is the same every time, so that the pictures of a run show one
    set of samples growing. `choices` are further arguments of the pipeline.
    """
    # collect the conditions
    in_plane = len(dataset.shape) == 1
    count = GRID_POINTS if in_plane else count
    if labelled:
        choices["class_labels"] = torch.arange(count) % (dataset.num_classes or 1)
    if dataset.captions is not None:
        choices["prompt"] = [dataset.captions[i % len(dataset.captions)] for i in range(count)]
    # sample
    generator = torch.Generator().manual_seed(seed)
    output = "pt" if in_plane else "pil"
    samples = pipeline(batch_size=count, generator=generator, output_type=output, **choices).images
    # draw a grid, or a plot
    if not in_plane:
        return images.grid(samples)
    real = dataset.tensor(count)
    reach = float(dataset.tensor().abs().max()) * 1.2
    return images.scatter(samples, -reach, reach, behind=real)


def denoised(settings: Any, dataset: Dataset, sampler: str | None = None) -> Callable[[Pipeline], Image.Image] | None:
    """Return the function that draws the sample grid of a denoiser, in `preview_steps` steps of `sampler`; None for no
    grids.

    Default: the training scheduler's ancestral sampler, DDIM for fewer than 50 steps, and than those of training.
    """
    # leave out grids of no images
    s = settings
    if not s.preview_images:
        return None
    # choose steps and sampler
    T = getattr(s, "num_train_timesteps", s.preview_steps)
    steps = min(s.preview_steps, T)
    if sampler is None and steps < min(ANCESTRAL_STEPS, T):
        sampler = "ddim"
    return partial(
        preview, dataset=dataset, seed=s.seed, labelled=s.class_conditional, count=s.preview_images, num_steps=steps,
        sampler=sampler,
    )  # fmt: skip


@contextmanager
def networks_in_use(engine: Engine, stop: StopSignal) -> Iterator[Mapping[str, nn.Module]]:
    """Give the networks as users get them; a stop signal raises Interrupted before the next layer that is evaluated."""
    # add hooks, and set evaluation mode
    nets = served_networks(engine.nets, engine.averages)
    hooks = [module.register_forward_pre_hook(stop.check) for net in nets.values() for module in net.modules()]
    for net in nets.values():
        net.eval()
    # undo both
    try:
        yield nets
    finally:
        for hook in hooks:
            hook.remove()
        engine.resume_training()


def preview_and_evaluate(engine: Engine, stop: StopSignal) -> Image.Image | None:
    """Evaluate the networks as the recipe does, and return their sample grid, if they have one."""
    with networks_in_use(engine, stop) as nets:
        if engine.recipe.evaluate is not None:
            engine.recipe.evaluate(nets)
        return draw(engine, nets)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def draw(engine: Engine, nets: Mapping[str, nn.Module], progress: bool = False) -> Image.Image | None:
    """Return the sample grid of the networks, None of a recipe without one.

    `progress` shows a bar of denoising steps, on a terminal only: elsewhere a second bar does not stay on its line.
    """
    if engine.recipe.preview is None:
        return None
    pipeline = engine.recipe.pipeline(nets)
    shown = progress and sys.stderr.isatty() and is_progress_bar_enabled()
    pipeline.set_progress_bar_config(desc="preview", leave=False, disable=not shown)
    return engine.recipe.preview(pipeline)
