"""Evaluation: one way to measure models of every family, and to compare them.

    result = hfgen.evaluate("runs/digits", "digits", num_samples=500, num_steps=50)
    print(result.table())
    hfgen.compare(["runs/vae", "runs/gan", "runs/ddpm"], "digits", "report")
    hfgen.evaluate("outputs", "digits")                             # a folder of images, whoever made them

Several processes share the sampling and the features, with the same result:

    accelerate launch -m hfgen evaluate runs/digits --dataset digits
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfgen import runs
from hfgen.errors import ConfigError
from hfgen.evaluation.distributed import finish, is_first
from hfgen.evaluation.evaluator import Evaluator
from hfgen.evaluation.model import EvaluatedModel, load_model
from hfgen.evaluation.report import Report, require_matplotlib, unique_names, write_report
from hfgen.evaluation.result import Evaluation
from hfgen.evaluation.settings import EvaluationArguments, names_of, with_arguments

__all__ = ["Evaluation", "Report", "compare", "evaluate"]


@with_arguments
def evaluate(pipeline: Any, dataset: Any, **settings: Any) -> Evaluation:
    """Return the metrics of a model or of samples, each with its interval and the value of reference data.

    pipeline: A run folder, a pipeline folder, a Hub id, a pipeline of hfgen or diffusers, or any callable that returns
        images as PIL images, arrays or tensors. It is called by its signature: `batch_size`, `generator`, `num_steps`
        or `num_inference_steps`, `class_labels`, `prompt`, `guidance_scale`, `output_type`; only the first is required.
        Or samples that are there already: a folder, a pattern, a `.npz`, `.npy` or parquet file, or an object as
        `hfgen.data.load_dataset` takes it, such as a tensor or a list of PIL images. They get the numbers of a pipeline
        that returns them, and all are used.
    dataset: The reference data, as for training: a name, folder, file, Hub id or object. Classes and captions are drawn
        in its proportions.

    Samples stream: features are kept, up to 1 GiB, images are not. The result names the sampler, the steps and the
    guidance scale. The cache key of a pipeline in memory also covers its attributes and its first 16 samples in 2
    steps; a pipeline with attributes that cannot be compared is not cached. Under several processes all return the same
    result. Raises ConfigError and DataError, each in one line.
    """
    arguments, options = _arguments(settings)
    evaluator = Evaluator(dataset, arguments, **options)
    model = load_model(pipeline)
    evaluator.plan(model)
    with evaluator.progress:
        return evaluator(model)


@with_arguments
def compare(
    models: Sequence[Any] | Mapping[str, Any],
    dataset: Any,
    output: str | Path,
    *,
    data_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Report:
    """Return a report of models side by side, by the same data, seed, extractor and settings, and write it to `output`.

    models: A list of models as for `evaluate`, or a mapping from names to models.
    dataset: The reference data, as for `evaluate`.
    output: Folder for `report.md`, `report.json`, a grid of each model's samples, and plots of quality against sampling
        time and of precision against recall.

    Nothing is trained, except by usefulness. `num_steps`, `sampler` and `guidance_scale` apply to the models that take
    them. Rows are ordered by Fréchet distance; the report names ties. Raises ConfigError if matplotlib is missing,
    before anything is sampled.
    """
    # check the arguments
    require_matplotlib()
    named = models if isinstance(models, Mapping) else dict(enumerate(models))
    if not named:
        raise ConfigError("compare needs at least one model")
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; the report is written to a folder")
    arguments, options = _arguments({**settings, **(data_options or {})})

    # check every model before the first one is sampled; one model at a time is in memory
    evaluator = Evaluator(dataset, arguments, **options)
    for name, model in named.items():
        evaluator.plan(_named(name, model), lenient=True)

    # evaluate, and write the report
    with evaluator.progress:
        rows = [evaluator(_named(name, model), lenient=True) for name, model in named.items()]
    report = Report(unique_names(rows))
    if evaluator.processes.first:
        write_report(report, folder)
    return report


def _arguments(settings: Mapping[str, Any]) -> tuple[EvaluationArguments, dict[str, Any]]:
    """Return the arguments of an evaluation, and the remaining settings, which are for `load_dataset`."""
    options = dict(settings)
    known = {name: options.pop(name) for name in names_of(EvaluationArguments) if name in options}
    return EvaluationArguments(**known), options


def _named(name: Any, model: Any) -> EvaluatedModel:
    """Return the model under its name in a mapping; a model of a list keeps its own name."""
    opened = load_model(model)
    if isinstance(name, str):
        opened.name = name
    return opened


def evaluate_to(model: str, dataset: str, output: Path | None, arguments: EvaluationArguments) -> str:
    """Return the table that `hfgen evaluate` prints, "" where another process prints it; the JSON goes to `output`.

    Default: `evaluation.json` in the run folder that the model is or is part of; no file for other models.
    """
    if output is not None and output.suffix != ".json":
        raise ConfigError(f"-o {output}: must end in .json")
    # evaluate
    result = evaluate(model, dataset, **vars(arguments))
    # write in the first process
    run = runs.find(model)
    path = output if output is not None or run is None else run / runs.EVALUATION
    first, text = is_first(), result.table()
    if first and path is not None:
        result.to_json(path)
        text += f"\nwritten to {path}"
    finish()
    return text if first else ""


def compare_to(models: Sequence[str], dataset: str, output: Path, arguments: EvaluationArguments) -> str:
    """Return the text that `hfgen compare` prints, "" where another process prints it."""
    report = compare(models, dataset, output, **vars(arguments))
    first = is_first()
    finish()
    lines = [f"{rank:>3} {row.model}" for rank, row in zip(report.ranks(), report.rows, strict=True)]
    return "\n".join([*lines, f"written to {output / 'report.md'}"]) if first else ""
