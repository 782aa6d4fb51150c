"""Latent against pixel diffusion, class-conditional, with the same time to train: quality, labels and seconds.

    python -m tests.benchmarks.latent_pixel --train mnist-train.parquet --test mnist-test.parquet --keep FOLDER

An autoencoder and a diffusion model in its latents are trained, then a DDPM of the pixels for as many seconds as both
took together; all in one resolution, from the same data. A classifier trained on the same images reads the class of
samples with random labels, and its features are those of the Frechet distance to the test images; `real` is what the
first training images score there. Runs in --keep are not trained again; their seconds and
fields are kept there too, and other fields refused.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from hfgen import AutoencoderKLPipeline, AutoPipeline, ClassifierPipeline
from hfgen.data import load_dataset
from hfgen.images import grid, to_pil
from hfgen.metrics.distances import frechet_distance
from hfgen.metrics.features import features_of, load_extractor
from hfgen.metrics.reconstruction import decibels
from tests.benchmarks.harness import Row, fitted, sample, table

SHOWN, TIMED = 60, 64
"""Images on a grid, six of each class; and images whose seconds are measured."""


def timed(model: Path, steps: int, sampler: str, repeats: int = 3) -> float:
    """Return the median seconds of 64 samples of a model at these steps, without guidance."""
    pipeline = AutoPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    seconds = []
    for _ in range(repeats):
        before = time.perf_counter()
        pipeline(batch_size=TIMED, num_steps=steps, class_labels=0, guidance_scale=1.0, sampler=sampler)
        seconds.append(time.perf_counter() - before)
    return sorted(seconds)[repeats // 2]


def main() -> None:
    """Train what is missing, then print the autoencoder's numbers and a line for each model and guidance scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="Dataset to train on, with labels, as for hfgen train.")
    parser.add_argument("--test", required=True, help="Dataset of real images to compare with.")
    parser.add_argument("--keep", type=Path, required=True, help="Folder for runs, grids and numbers.")
    parser.add_argument("--resolution", default="32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=10_000, help="Samples of each model and scale, and real images.")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0], help="Of guidance.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--autoencoder", default="", help="Further fields of its recipe, in one word.")
    parser.add_argument("--latent", default="", help="The same of the diffusion in latents.")
    parser.add_argument("--pixel", default="", help="The same of the diffusion of pixels.")
    parser.add_argument("fields", nargs="*", help="After --: further fields of every recipe.")
    o = parser.parse_args()
    o.keep.mkdir(parents=True, exist_ok=True)
    reader, vae, latent, pixel = (o.keep / f"{n}-{o.seed}" for n in ("classifier", "autoencoder", "latent", "pixel"))
    data = ["--dataset", o.train, "--resolution", o.resolution, "--save-every", "0", "--sample-every", "0", *o.fields]
    fitted("classifier", reader, 0, data)
    spent = fitted("autoencoder_kl", vae, o.seed, [*data, *o.autoencoder.split()])
    told = ["--class-conditional", *data]
    spent += fitted("latent_diffusion", latent, o.seed, ["--autoencoder", str(vae), *told, *o.latent.split()])
    took = fitted("ddpm", pixel, o.seed, [*told, "--budget", f"{spent:.0f}s", *o.pixel.split()])

    side = int(o.resolution)
    test = load_dataset(o.test, resolution=side)
    x, classes = test.tensor(o.number), test.labels()
    assert classes is not None
    back = AutoencoderKLPipeline.from_pretrained(vae).reconstruct(x / 2 + 0.5, output_type="pt").images * 2 - 1
    print(f"autoencoder: PSNR {decibels(float((back - x).square().mean())):.2f} dB on {len(x)} test images")
    read, extractor = ClassifierPipeline.from_pretrained(reader), load_extractor(f"classifier:{reader}")
    print(f"classifier: {float((read(x / 2 + 0.5).labels == classes[: len(x)]).double().mean()):.4f} right on them")

    def features(images: Tensor) -> Tensor:
        return features_of(extractor, images)

    real, labels = features(x), torch.arange(o.number) % int(test.num_classes or 1)
    floor = frechet_distance(real, features(load_dataset(o.train, resolution=side).tensor(o.number)))
    rows: list[Row] = [{"model": "real", "guidance": 1.0, "frechet": floor, "label": float("nan"), "train": 0.0}]
    rows += [{"model": "reconstructed", "guidance": 1.0, "frechet": frechet_distance(real, features(back)),
              "label": float("nan"), "train": 0.0}]  # fmt: skip
    for name, model, seconds in (("latent", latent, spent), ("pixel", pixel, took)):
        for scale in o.scales:
            made = sample(model, o.number, 1000 + o.seed, labels, num_steps=o.steps, sampler=o.sampler,
                          guidance_scale=scale)  # fmt: skip
            grid(to_pil(made[:SHOWN] * 2 - 1), 10).save(o.keep / f"{name}-{scale:g}.png")
            right = float((read(made).labels == labels).double().mean())
            rows.append({"model": name, "guidance": scale, "frechet": frechet_distance(real, features(made * 2 - 1)),
                         "label": right, "train": seconds})  # fmt: skip
            print(rows[-1], flush=True)
    print(table(rows, ["model", "guidance"], ["frechet", "label", "train"]))
    speed = {name: timed(model, o.steps, o.sampler) for name, model in (("latent", latent), ("pixel", pixel))}
    print(f"seconds per 64 images at {o.steps} steps: latent {speed['latent']:.2f}, pixel {speed['pixel']:.2f}, "
          f"ratio {speed['pixel'] / speed['latent']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
