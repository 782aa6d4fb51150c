"""Translation of drawn shapes: filled red to outlined blue and back, unpaired (CycleGAN) or with pairs (pix2pix).

    python -m tests.benchmarks.translation_shapes [--seeds 0 1 2] [--results shapes.jsonl] [--keep FOLDER]
        [--figure FILE] [-- FIELDS]

One run is 10,000 steps of 4 images of each domain at 32x32, a tenth of a second each on one core.
Unpaired, the domains' training items have different geometries. Measured on 500 held-out pairs, geometries that neither
network has seen: the mean absolute error in [-1, 1] over the pixels where input or truth differ from the background,
beside that of a blank picture and of the input itself; how many translations show the true shape, and how many all six
true factors, as pixel rules read them; the cycle reconstruction error over all pixels. FIELDS after `--` are those of
`hfgen train translation`, for all runs.

Runs in --keep are not trained again; their seconds and fields are kept there too, and other fields refused. A picture
of each run lies in its folder, that of the first one in --figure: of 12 held-out images A, G(A), F(G(A)) and the truth,
then the same from B.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hfgen import TranslationPipeline
from hfgen.data.shapes.captions import describe_images
from hfgen.data.shapes.dataset import domain_pair
from hfgen.data.shapes.scene import FACTORS
from hfgen.images import grid, to_pil
from hfgen.metrics.translation import cycle_error, translation_baselines, translation_error
from tests.benchmarks.harness import Row, collect, fitted, table

RECIPES = {"CycleGAN": "", "pix2pix": "--paired --split test[:4500]"}

HELD_OUT = "test[4500:]"
NUMBERS = ["error", "blank", "untranslated", "shape_kept", "all_kept", "cycle_error", "seconds"]
COLUMNS, LEAST_SIDE = 12, 48
"""Images of each domain in a picture, and pixels of their sides at least: 600 make the whole picture."""


def folder_of(job: Row, folder: Path) -> Path:
    """Return the folder of a recipe's run with a seed."""
    return folder / f"{job['recipe'].replace(' ', '-')}-{job['seed']}"


def run(job: Row, folder: Path, threads: int, more: list[str]) -> list[Row]:
    """Train one recipe with one seed, unless it is there; return the numbers of both directions."""
    out = folder_of(job, folder)
    fields = f"--dataset-a shapes:a --dataset-b shapes:b {RECIPES[job['recipe']]} --threads {threads} --save-every 0"
    seconds = fitted("translation", out, job["seed"], [*fields.split(), "--sample-every", "0", *more])
    pipeline = TranslationPipeline.from_pretrained(out / "model")
    picture(pipeline).save(out / "translations.png")
    return [{**measure(pipeline, direction), "seconds": seconds} for direction in ("a2b", "b2a")]


def there_and_back(pipeline: TranslationPipeline, x: Tensor, direction: str) -> tuple[Tensor, Tensor]:
    """Return the translations of images x (N, C, H, W) in [-1, 1], and what comes back, on that scale."""
    calls = (pipeline, pipeline.cycle)
    made, back = (call(x / 2 + 0.5, direction, batch_size=50, output_type="pt").images * 2 - 1 for call in calls)
    return made, back


def sheet(rows: list[Tensor]) -> Image.Image:
    """Return the first 12 of each row of images (N, C, H, W) in [-1, 1], enlarged to 600 pixels or more together."""
    return grid(to_pil(torch.cat([row[:COLUMNS] for row in rows])), COLUMNS, min_side=LEAST_SIDE)


def picture(pipeline: TranslationPipeline) -> Image.Image:
    """Return a picture of held-out images A, G(A), F(G(A)) and the true translation, then of the same from B."""
    a, b = (domain.tensor(COLUMNS) for domain in domain_pair(HELD_OUT))
    return sheet([a, *there_and_back(pipeline, a, "a2b"), b, b, *there_and_back(pipeline, b, "b2a"), a])


def measure(pipeline: TranslationPipeline, direction: str) -> Row:
    """Return what a pipeline makes of the 500 held-out images of a domain."""
    a, b = domain_pair(HELD_OUT)
    source, target = (a, b) if direction == "a2b" else (b, a)
    x, truth = source.tensor(), target.tensor()
    made, back = there_and_back(pipeline, x, direction)
    right = describe_images(made) == target.factors()
    return {
        "direction": direction,
        "error": translation_error(made, truth, x),
        **translation_baselines(truth, x),
        "shape_kept": float(right[:, list(FACTORS).index("shape")].double().mean()),
        "all_kept": float(right.all(1).double().mean()),
        "cycle_error": cycle_error(x, back),
    }


def main() -> None:
    """Print a row for each run, then the table of both directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", default=["CycleGAN"], choices=list(RECIPES))
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of each run.")
    parser.add_argument("--results", type=Path, help="Rows are kept here, and not computed again.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--figure", type=Path, help="File for the picture of the first recipe and seed.")
    parser.add_argument("fields", nargs="*", help="After --: further fields of the recipe.")
    options = parser.parse_args()
    jobs: list[Row] = [{"recipe": recipe, "seed": seed} for seed in options.seeds for recipe in options.recipes]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)

        def work(job: Row) -> Row:
            return {"directions": run(job, folder, options.threads, options.fields)}

        rows = collect(jobs, work, options.results, options.parallel)
        model = folder_of(jobs[0], folder) / "model"
        if options.figure is not None and model.exists():
            options.figure.parent.mkdir(parents=True, exist_ok=True)
            picture(TranslationPipeline.from_pretrained(model)).save(options.figure)
        elif options.figure is not None:
            print(f"no picture: --results has the row of a run that is not there, {model.parent}")
        elif options.keep is None:
            print("no picture was kept: they need --keep FOLDER or --figure FILE")
    print(table([{**row, **one} for row in rows for one in row["directions"]], ["recipe", "direction"], NUMBERS))


if __name__ == "__main__":
    main()
