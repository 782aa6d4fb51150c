"""Cards of published models: description, use, training data and metrics, read from the run.

hfgen writes the YAML head and one section between two marks; all other text of an existing card is kept.
"""

import inspect
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import EvalResult, ModelCardData

from hfgen.cards.emissions import emissions_of
from hfgen.cards.families import Model, diffusers_code, hfgen_code, read_model
from hfgen.cards.markdown import LIMITS, code, last_name, literal, markdown, plain, table
from hfgen.cards.metadata import CARD, LICENCE, update_card
from hfgen.cards.run import Number, RunSummary, read_run
from hfgen.hub.source import checked_source, install_lines
from hfgen.registry import SHIM, saved_name

PICTURE = "samples.png"

SHOWN_CLASSES = 20
"""Maximal number of class names in a card."""

NOT_RECORDED = "not recorded"


def write_card(
    folder: Path,
    run: Path | None = None,
    repo_id: str | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> Path:
    """Return the path of the card of the pipeline in `folder`, `README.md`, written or updated.

    `run`: run folder of the pipeline; without one the card says that the training is not known. `repo_id`: name in the
    card's code. Default: the name of the folder. `source`: where pip installs hfgen from. Default: HFGEN_SOURCE (no
    install line if it is not set). `licence` of the weights, by its name on the Hub. The same model gives the same
    bytes. Raises ConfigError as `update_card` and
    `checked_source`; the card is then unchanged.
    """
    source = checked_source(source)
    # model and run
    model = read_model(folder)
    summary = None if run is None else read_run(run)
    # name in the code, and title
    name = title = repo_id or last_name(str(folder.resolve()))
    if repo_id is None and summary is not None:
        title = summary.name
    # head and section
    picture = (folder / PICTURE).is_file()
    section = _section(model, name, summary, picture, source)
    head = _head(model, title, summary, picture)
    if licence is not None:
        head[LICENCE] = licence
    if run is not None and (emissions := emissions_of(run, "base_model" in head)) is not None:
        head["co2_eq_emissions"] = emissions
    return update_card(folder / CARD, head, title, section)


def write_component_card(folder: Path, cls: type, repo_id: str, source: str | None) -> Path:
    """Return the path of the card of the network or scheduler of class `cls` in `folder`, written or updated.

    `repo_id`: name in the card's code. `source`: where pip installs hfgen from. Raises ConfigError as `update_card`.
    """
    library, saved = saved_name(cls.__name__)
    kind = "scheduler" if issubclass(cls, SchedulerMixin) else "network"
    summary = (inspect.getdoc(cls) or "").partition("\n")[0]
    # use
    load = f"{kind} = hfgen.{cls.__name__}.from_pretrained({literal(repo_id)})"
    lines = [f"A {kind} without a pipeline, `{cls.__name__}` of hfgen. {summary}", "", "## Use", ""]
    lines += [*install_lines(source), "", *_fenced("python", f"import hfgen\n\n{load}"), ""]
    if library != SHIM:
        load = f"{kind} = {saved}.from_pretrained({literal(repo_id)})"
        lines += [f"In plain diffusers, without hfgen, it is a `{saved}`:", ""]
        lines += [*_fenced("python", f"from diffusers import {saved}\n\n{load}"), ""]
    # training and limits
    lines += ["## Training", "", f"Not known: the {kind} was published without its run folder.", "", "## Limits", ""]
    lines += [f"- {limit}" for limit in ("It is one component of a model; a pipeline of hfgen uses it.", *LIMITS)]
    head = {"library_name": "hfgen" if library == SHIM else library, "tags": ["hfgen", cls.__name__]}
    return update_card(folder / CARD, head, repo_id, lines)


def _head(model: Model, name: str, run: RunSummary | None, picture: bool) -> dict[str, Any]:
    """Return the YAML head of the card of a model called `name`, as the Hub reads it, without fields of users."""
    datasets: list[str] = []
    results: list[EvalResult] = []
    more: dict[str, Any] = {}
    if picture:
        more["widget"] = [{"text": "samples", "output": {"url": PICTURE}}]
    if run is not None and (base := run.base_model) is not None:
        more |= {"base_model": base, "base_model_relation": "finetune"}
    if run is not None:
        datasets = list(dict.fromkeys(data.hub_id for data in run.datasets() if data.hub))
        results = [_eval_result(model, number) for number in run.numbers() if _is_indexed(number)]
    data = ModelCardData(
        datasets=datasets or None,
        library_name="diffusers" if model.stock else "hfgen",
        pipeline_tag=model.task,
        tags=["hfgen", *model.family.tags],
        model_name=plain(name) if results else None,
        eval_results=results or None,
        **more,
    )
    head: dict[str, Any] = data.to_dict()
    return head


def _is_indexed(number: Number) -> bool:
    """Return whether a metric belongs in `model-index`: it is a loss, or measured by an evaluation."""
    return not number.command.endswith("training") or number.name.startswith("loss")


def _eval_result(model: Model, number: Number) -> EvalResult:
    """Return a metric in the Hub's schema; its interval and floor are arguments of the metric."""
    args: dict[str, Any] = {"command": number.command, "low": number.low, "high": number.high, "floor": number.floor}
    if number.low is not None:
        args["confidence"] = 0.95
    args["extractor"] = number.extractor
    # dataset, and the configuration of one on the Hub
    data = number.data
    dataset, _, config = data.name.partition(":") if data.hub else (plain(data.name), "", "")
    return EvalResult(
        task_type=model.task or "other",
        dataset_type=dataset,
        dataset_name=plain(data.name),
        dataset_config=config or None,
        dataset_split=plain(data.split),
        metric_type=plain(number.name),
        metric_name=plain(number.name),
        metric_value=number.value,
        metric_args={key: _plain(value) for key, value in args.items() if value is not None},
    )


def _plain(value: Any) -> Any:
    """Return a JSON value whose texts have printable characters alone."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return plain(value)
    return value


def _section(model: Model, name: str, run: RunSummary | None, picture: bool, source: str | None) -> list[str]:
    """Return the lines of hfgen's section, without marks and title."""
    # description and use
    lines = [model.family.description, ""]
    if picture:
        lines += ["<Gallery />", "", f"![Samples of the model]({PICTURE})", ""]
    lines += ["## Use", "", *install_lines(source), "", *_fenced("python", hfgen_code(model, name)), ""]
    if model.stock:
        lines += [f"In plain diffusers, without hfgen, it is a `{model.stock}`:", ""]
    else:
        lines += ["In diffusers, where hfgen is installed:", ""]
    lines += [*_fenced("python", diffusers_code(model, name)), ""]
    # run
    if run is None:
        lines += ["## Training", "", "Not known: the model was published without its run folder.", ""]
    else:
        lines += [*_data(run), *_training(run), *_metrics(run), *_reproduction(run)]
    # limits
    lines += ["## Limits", "", *(f"- {limit}" for limit in (*model.family.limits, *LIMITS))]
    return lines


def _data(run: RunSummary) -> list[str]:
    """Return the lines on the training data and their licence."""
    # table of the datasets
    rows = [(data.role, code(data.name), code(data.split), markdown(data.licence)) for data in run.datasets()]
    lines = ["## Data", "", table(("use", "dataset", "split", "licence of the data"), *rows), ""]
    # items, shape and classes
    data = run.record.get("data", {})
    facts = []
    if isinstance(data.get("items"), int):
        facts.append(f"{data['items']:,} items")
    if isinstance(data.get("shape"), list):
        facts.append(f"of shape {markdown(' x '.join(map(str, data['shape'])))}")
    if names := data.get("class_names"):
        facts.append(f"classes {', '.join(code(str(name)) for name in names[:SHOWN_CLASSES])}")
        if len(names) > SHOWN_CLASSES:
            facts[-1] += f" and {len(names) - SHOWN_CLASSES:,} more"
    if facts:
        lines += [f"{', '.join(facts)}.", ""]
    return lines


def _training(run: RunSummary) -> list[str]:
    """Return the lines on steps, batch, seed, hardware, versions and settings."""
    record, settings = run.record, run.settings
    duration, seconds = NOT_RECORDED, record.get("seconds")
    if isinstance(seconds, int | float):
        duration = f"{seconds:,.0f}"
    rows = [
        ("recipe", code(str(record.get("recipe", NOT_RECORDED)))),
        ("steps", f"{int(record.get('step') or settings.get('max_steps') or 0):,}"),
        ("batch", markdown(str(settings.get("batch_size")))),
        ("seed", markdown(str(settings.get("seed")))),
        ("seconds of training", duration),
        ("hardware", markdown(_machine(record.get("hardware", {})))),
        ("parameters", markdown(_listed(record.get("parameters", {}), ","))),
        ("versions", markdown(_listed(record.get("versions", {})))),
    ]
    lines = ["## Training", "", table(("", ""), *rows), "", "All settings that have a value:", ""]
    return [*lines, *_fenced("yaml", run.configuration()), ""]


def _machine(hardware: dict[str, Any]) -> str:
    """Return processes, device and threads of a run as text."""
    if not hardware:
        return NOT_RECORDED
    device = hardware.get("name") or hardware.get("device")
    return f"{hardware.get('processes')} process(es) on {device}, {hardware.get('threads')} thread(s) each"


def _listed(values: dict[str, Any], form: str = "") -> str:
    """Return names and formatted values as text, in the order of names."""
    return ", ".join(f"{name} {value:{form}}" for name, value in sorted(values.items())) or NOT_RECORDED


def _metrics(run: RunSummary) -> list[str]:
    """Return the table of metrics; [] if there are none."""
    rows = [_metric_row(number) for number in run.numbers()]
    if not rows:
        return []
    head = ("metric", "value", "95 % interval", "reference data", "data", "measured by")
    note = "A value without an interval is that of one run. A value of training is a mean over its last logged steps."
    return ["## Metrics", "", table(head, *rows), "", note, ""]


def _metric_row(number: Number) -> tuple[str, ...]:
    """Return the cells of a metric: name, value, interval, value of reference data, dataset, command."""
    interval = floor = ""
    if number.low is not None and number.high is not None:
        interval = f"{number.low:.6g} to {number.high:.6g}"
    if number.floor is not None:
        floor = f"{number.floor:.6g}"
    data = f"{code(number.data.name)}, {code(number.data.split)}"
    return code(number.name), f"{number.value:.6g}", interval, floor, data, markdown(number.command)


def _reproduction(run: RunSummary) -> list[str]:
    """Return the lines with the command that trains the model again."""
    command = run.command()
    if command is None:
        return ["## Reproduce", "", "The recipe was not recorded; only the settings above are known.", ""]
    note = (
        "The run is the same on any number of processes; its bits are equal on the same machine with the same threads "
        "and versions. Files and folders appear by their last name: replace it by your own path."
    )
    if objects := run.objects():
        names = " and ".join(code(f"<{field}>") for field in objects)
        note += f" {names} in the place of a name: a Python object was given to `hfgen.train`."
    return ["## Reproduce", "", *_fenced("bash", command), "", note, ""]


def _fenced(language: str, text: str) -> list[str]:
    """Return a block of code. No line that hfgen writes into one begins with a fence."""
    return [f"```{language}", text, "```"]
