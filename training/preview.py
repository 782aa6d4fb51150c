"""The picture that a run draws of its model now and then."""

from typing import Any

import torch
from PIL import Image

from hfgen import images
from hfgen.data.dataset import Dataset
from hfgen.pipelines.base import Pipeline


def preview(pipeline: Pipeline, dataset: Dataset, seed: int, labelled: bool, **choices: Any) -> Image.Image:
    """Return a grid of 64 images (of all classes in turn if `labelled`), or a plot of 2,000 points over the real ones.

    Images of a dataset with captions are asked for by the first of them.
    The noise is the same every time, so that the pictures of a run show one set of samples growing. `choices` are
    further arguments of the pipeline.
    """
    in_plane = len(dataset.shape) == 1
    count = 2000 if in_plane else 64
    if labelled:
        choices["class_labels"] = torch.arange(count) % (dataset.num_classes or 1)
    if dataset.captions is not None:
        choices["prompt"] = [dataset.captions[i % len(dataset.captions)] for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    output = "pt" if in_plane else "pil"
    samples = pipeline(batch_size=count, generator=generator, output_type=output, **choices).images
    if not in_plane:
        return images.grid(samples)
    real = dataset.tensor(count)
    reach = float(dataset.tensor().abs().max()) * 1.2
    return images.scatter(samples, -reach, reach, behind=real)
