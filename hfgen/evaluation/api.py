"""The judge: one way to measure every family, and to put models side by side.

    found = hfgen.evaluate("runs/digits", "digits", num_samples=500, num_steps=50)
    print(found.table())
    hfgen.compare(["runs/vae", "runs/gan", "runs/ddpm"], "digits", "report")

Several processes share the sampling and the features, with the same result:

    accelerate launch -m hfgen.cli evaluate runs/digits --dataset digits
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfgen import runs
from hfgen.errors import ConfigError
from hfgen.evaluation.distributed import finish, is_first
from hfgen.evaluation.evaluator import Evaluator
from hfgen.evaluation.model import Subject, open_subject
from hfgen.evaluation.report import Report, require_matplotlib, unique_names, write_report
from hfgen.evaluation.result import Evaluation
from hfgen.evaluation.settings import Settings, known_groups

__all__ = ["Evaluation", "Report", "compare", "evaluate"]


def evaluate(
    pipeline: Any,
    dataset: Any,
    *,
    metrics: str | Sequence[str] | None = None,
    num_samples: int | None = None,
    features: str = "pixels",
    classifier: str | None = None,
    seed: int = 0,
    num_steps: int | None = None,
    guidance_scale: float = 1.0,
    sampler: str | None = None,
    batch_size: int = 64,
    split: str = "train",
    held_out: Any = None,
    held_out_split: str | None = None,
    neighbours: int = 5,
    resamples: int | None = None,
    likelihood_images: int | None = None,
    likelihood_seconds: float = 15.0,
    importance_samples: int = 100,
    classifier_steps: int = 500,
    cache: bool = True,
    progress: bool = True,
    **data_options: Any,
) -> Evaluation:
    """Return what a model scores, every number with its interval and what real data score, and why others do not apply.

    pipeline: a run folder, a pipeline folder, a Hub id, a pipeline of hfgen or diffusers, or anything that gives images
        when called, as PIL images, arrays or tensors; it is called by its signature: `batch_size`, `generator`,
        `num_steps` or `num_inference_steps`, `class_labels`, `prompt`, `guidance_scale`, `output_type`, of which it
        needs only the first.
    dataset: the real data, named as for training, or a `Dataset`; `split` of it. `data_options`: `resolution`,
        `channels`, `image_column`, `label_column`, `caption_column`, `background` and so on, as of `load_dataset`.
    metrics: groups by name, of frechet, kid, prdc, diversity, likelihood, usefulness, privacy, cost; by default all
        but usefulness, which trains classifiers.
    num_samples: by default as many as there are real items, at most 10,000. Samples stream: features are kept, up to
        1 GiB, images are not.
    features: the extractor: pixels, classifier:MODEL, dinov2, clip, inception. classifier: a model of `hfgen train
        classifier` that sees the classes of samples; that of the features, if they are a classifier's.
    seed: sample i is a function of the model, this and i. Classes and captions come in the real data's proportions.
    sampler: Default: dpmpp_2m for a denoiser of hfgen with the scheduler of its training ("ddpm" asks for ancestral
        sampling, "reverse_sde" for that of the SDE), else the model's own. num_steps: Default: those of the sampler in
        the table of samplers. guidance_scale: Default: 1, not guided. The result names all three.
    held_out, held_out_split: real data that the model has not seen, for memorisation, usefulness and likelihoods; a
        dataset, by default the same one, and its split. Of toy sets fresh points.
    neighbours: k of precision, recall, density, coverage. resamples: of the bootstrap, by default 1,000, fewer for many
        features; those four take as many halvings, at most 100. classifier_steps: of each classifier that
        usefulness trains.
    likelihood_seconds: the time that the bound, and the likelihood by the ODE, of a diffusion model may each take, for
        as many of 64 items as fit in (4 at least), with 100 draws of the bound's terms and a tolerance of 1e-4; their
        rows have a standard error and the number of items. likelihood_images: take exactly so many items instead, all
        terms and 1e-5, however long that takes. importance_samples: draws of z for each of a VAE's 1,000 items.
    cache: keep what was computed under HFGEN_CACHE (by default ~/.cache/hfgen), by hash of weights, data, settings and
        versions, so that the same evaluation is instant the second time. The hash of a pipeline in memory also covers
        its attributes and its first 16 samples in 2 steps; one with attributes that cannot be compared is not kept.

    Under several processes all return the same; the pictures too. Errors: ConfigError and DataError, in one line.
    """
    settings = Settings(
        known_groups(metrics), num_samples, features, classifier, seed, num_steps, guidance_scale, sampler, batch_size,
        neighbours, resamples, likelihood_images, likelihood_seconds, importance_samples, classifier_steps,
    )  # fmt: skip
    known = {"split": split, "held_out": held_out, "held_out_split": held_out_split}
    judge = Evaluator(dataset, settings, cache=cache, progress=progress, **known, **data_options)
    subject = open_subject(pipeline)
    judge.plan(subject)
    with judge.progress:
        return judge(subject)


def compare(
    models: Sequence[Any] | Mapping[str, Any],
    dataset: Any,
    output: str | Path,
    *,
    metrics: str | Sequence[str] | None = None,
    split: str = "train",
    held_out: Any = None,
    held_out_split: str | None = None,
    cache: bool = True,
    progress: bool = True,
    data_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Report:
    """Return the models side by side, by the same data, seed, extractor and settings, and write that to `output`.

    `models`: as of `evaluate`, or by the names that they shall have. `settings`: further arguments of `evaluate`;
    `num_steps`, `sampler` and `guidance_scale` reach the models that take them. `data_options`: of `load_dataset`.
    Nothing is trained, but by usefulness. Written are `report.md`, `report.json`, a grid of each model's samples, and
    plots of quality against sampling time and of precision against recall. Rows are ordered by Fréchet distance, with
    intervals, and ties said. Raises ConfigError where matplotlib is missing, before anything is sampled.
    """
    require_matplotlib()
    named = models if isinstance(models, Mapping) else dict(enumerate(models))
    if not named:
        raise ConfigError("compare needs at least one model")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; the report is written to a folder")
    asked = Settings(metrics=known_groups(metrics), **settings)
    judge = Evaluator(
        dataset, asked, split=split, held_out=held_out, held_out_split=held_out_split, cache=cache, progress=progress,
        **(data_options or {}),
    )  # fmt: skip
    for name, model in named.items():                                  # what is impossible is told before the work;
        judge.plan(_named(name, model), lenient=True)                  # one model at a time is in memory
    with judge.progress:
        rows = [judge(_named(name, model), lenient=True) for name, model in named.items()]
    report = Report(unique_names(rows))
    if judge.processes.first:
        write_report(report, folder)
    return report


def _named(name: Any, model: Any) -> Subject:
    """Return what is judged, under a name that is a text."""
    subject = open_subject(model)
    subject.name = name if isinstance(name, str) else subject.name
    return subject


def evaluate_to(model: str, dataset: str, output: Path | None, **settings: Any) -> str:
    """Return the table that `hfgen evaluate` prints, "" where another process prints it; the JSON goes to `output`.

    By default to `evaluation.json` in the run folder that the model is or is part of; nowhere for other models.
    """
    if output is not None and output.suffix != ".json":
        raise ConfigError(f"-o {output}: must end in .json")
    found = evaluate(model, dataset, **settings)
    run = runs.find(model)
    path = output if output is not None or run is None else run / runs.EVALUATION
    first = is_first()
    if first and path is not None:
        found.to_json(path)
    finish()
    return "" if not first else found.table() + (f"\nwritten to {path}" if path else "")


def compare_to(models: list[str], dataset: str, output: Path, **settings: Any) -> str:
    """Return what `hfgen compare` prints, "" where another process prints it."""
    report = compare(models, dataset, output, **settings)
    first = is_first()
    finish()
    lines = [f"{rank:>3} {row.model}" for rank, row in zip(report.ranks(), report.rows, strict=True)]
    return "\n".join([*lines, f"written to {output / 'report.md'}"]) if first else ""
