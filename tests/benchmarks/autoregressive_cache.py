"""What the cache of keys and values saves: samples of a transformer with it and without it, entry by entry.

    python -m tests.benchmarks.autoregressive_cache [--side 28] [--images 4] [--width 128] [--layers 4] [--threads 2]

Both ways draw the same images from the same generators. Without the cache entry i runs the i entries before it again,
n (n + 1) / 2 inputs for each image; with it each input runs once, n in all.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from hfgen import AutoregressivePipeline, ImageTransformer


@dataclass(frozen=True)
class Cost:
    """Samples of one way: entries (B, n), inputs that the transformer ran for each image, and seconds."""

    entries: Tensor
    inputs: int
    seconds: float


def pipeline(side: int, width: int = 128, layers: int = 4, levels: int = 2) -> AutoregressivePipeline:
    """Return a pipeline of images (1, side, side) whose transformer has random weights, seed 0."""
    torch.manual_seed(0)
    net = ImageTransformer(levels, (side, side, 1), width=width, layers=layers, heads=width // 32)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=3 / width)
    pipe = AutoregressivePipeline(net.eval(), image_shape=(1, side, side), levels=levels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cost(pipe: AutoregressivePipeline, images: int, use_cache: bool) -> Cost:
    """Return the samples of `images` generators, their inputs and their seconds."""
    run = list[int]()
    hook = pipe.network.h[0].register_forward_pre_hook(lambda module, args: run.append(args[0].shape[1]))
    generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
    before = time.perf_counter()
    entries = pipe(images, generator=generators, use_cache=use_cache, output_type="latent").images
    seconds = time.perf_counter() - before
    hook.remove()
    return Cost(entries, sum(run), seconds)


@dataclass(frozen=True)
class Comparison:
    """Both ways: whether the samples are equal, inputs for each image and seconds, and their ratio."""

    equal: bool
    inputs_with: int
    inputs_without: int
    seconds_with: float
    seconds_without: float
    ratio: float


def compare(side: int, images: int, width: int = 128, layers: int = 4) -> Comparison:
    """Return the comparison of both ways, after a first sample that is not timed."""
    pipe = pipeline(side, width, layers)
    cost(pipe, 1, True)
    with_cache, without = cost(pipe, images, True), cost(pipe, images, False)
    return Comparison(
        torch.equal(with_cache.entries, without.entries), with_cache.inputs, without.inputs, with_cache.seconds,
        without.seconds, without.seconds / with_cache.seconds,
    )


def main() -> None:
    """Print the comparison as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(asdict(compare(given.side, given.images, given.width, given.layers))))


if __name__ == "__main__":
    main()
