"""Translation of drawn shapes: filled red to outlined blue and back, unpaired (CycleGAN) or with pairs (pix2pix).

    python -m tests.benchmarks.translation_shapes [--seeds 0 1 2] [--results shapes.jsonl] [--keep FOLDER] [-- FIELDS]

One run is 10,000 steps of 4 images of each domain at 32x32, a tenth of a second each on one core.
Unpaired, the domains' training items have different geometries. Measured on 500 held-out pairs, geometries that neither
network has seen: the mean absolute error in [-1, 1] over the pixels where input or truth differ from the background,
beside that of a blank picture and of the input itself; how many translations show the true shape, and how many all six
true factors, as pixel rules read them; the cycle reconstruction error over all pixels. FIELDS after `--` are those of
`hfgen train translation`, for all runs.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from hfgen import TranslationPipeline
from hfgen.data.captions import describe_images
from hfgen.data.scenes import FACTORS
from hfgen.data.shapes import domain_pair
from hfgen.images import grid, to_pil
from hfgen.metrics.translation import cycle_error, translation_baselines, translation_error
from tests.benchmarks.harness import Row, collect, table, train

RECIPES = {"CycleGAN": "", "pix2pix": "--paired --split test[:4500]"}

HELD_OUT = "test[4500:]"
NUMBERS = ["error", "blank", "untranslated", "shape_kept", "all_kept", "cycle_error", "seconds"]


def run(job: Row, folder: Path, threads: int, more: list[str]) -> list[Row]:
    """Train one recipe with one seed; return the numbers of both directions."""
    out = folder / f"{job['recipe']}-{job['seed']}"
    fields = f"--dataset-a shapes:a --dataset-b shapes:b {RECIPES[job['recipe']]} --threads {threads} --save-every 0"
    seconds = train("translation", out, job["seed"], [*fields.split(), "--sample-every", "0", *more])
    pipeline = TranslationPipeline.from_pretrained(out / "model")
    return [{**measure(pipeline, direction, out), "seconds": seconds} for direction in ("a2b", "b2a")]


def measure(pipeline: TranslationPipeline, direction: str, out: Path | None = None) -> Row:
    """Return what a pipeline makes of the 500 held-out images of a domain; draw some into the folder `out`."""
    a, b = domain_pair(HELD_OUT)
    source, target = (a, b) if direction == "a2b" else (b, a)
    x, truth = source.tensor(), target.tensor()
    made = pipeline(x / 2 + 0.5, direction, batch_size=50, output_type="pt").images * 2 - 1
    back = pipeline.cycle(x / 2 + 0.5, direction, batch_size=50, output_type="pt").images * 2 - 1
    if out is not None:
        rows = torch.cat([some[:16] for some in (x, made, truth, back)])
        grid(to_pil(rows), columns=16).save(out / f"{direction}.png")
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
    parser.add_argument("fields", nargs="*", help="After --: further fields of the recipe.")
    options = parser.parse_args()
    jobs: list[Row] = [{"recipe": recipe, "seed": seed} for seed in options.seeds for recipe in options.recipes]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)

        def work(job: Row) -> Row:
            return {"directions": run(job, folder, options.threads, options.fields)}

        rows = collect(jobs, work, options.results, options.parallel)
    print(table([{**row, **one} for row in rows for one in row["directions"]], ["recipe", "direction"], NUMBERS))


if __name__ == "__main__":
    main()
