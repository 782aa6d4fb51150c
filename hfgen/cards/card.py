"""Cards of models: description, use, training data and metrics, read from the run.

hfgen writes the YAML head and one section between two marks; all other text of an existing card is kept.
"""

from pathlib import Path

from hfgen.cards.data import head_of
from hfgen.cards.families import Model, diffusers_code, hfgen_code, read_model
from hfgen.cards.markdown import LIMITS, code, last_name, markdown, table
from hfgen.cards.metadata import CARD, update_card
from hfgen.cards.run import Number, RunSummary, read_run
from hfgen.hub.source import checked_source, install_lines

PICTURE = "samples.png"

SHOWN_CLASSES = 20
"""Maximal number of class names in a card."""


def write_card(
    folder: Path, run: Path | None = None, repo_id: str | None = None, source: str | None = None
) -> Path:
    """Return the path of the card of the pipeline in `folder`, `README.md`, written or updated.

    `run`: run folder of the pipeline; without one the card says that the training is not known. `repo_id`: name in the
    card's code. Default: the name of the folder. `source`: where pip installs hfgen from. Default: HFGEN_SOURCE (no
    install line if it is not set). The same model gives the same bytes. Raises ConfigError as `update_card` and
    `checked_source`; the card is then unchanged.
    """
    source = checked_source(source)
    model, known = read_model(folder), None if run is None else read_run(run)
    name = repo_id or last_name(str(folder.resolve()))
    title = repo_id or (known.name if known else name)
    picture = (folder / PICTURE).is_file()
    section = _section(model, name, known, picture, source)
    return update_card(folder / CARD, head_of(model, title, known), title, section)


def _section(model: Model, name: str, run: RunSummary | None, picture: bool, source: str | None) -> list[str]:
    """Return the lines of hfgen's section, without marks and title."""
    lines = [model.family.what, ""]
    if picture:
        lines += [f"![Samples of the model]({PICTURE})", ""]
    lines += ["## Use", "", *install_lines(source), "", *_fenced("python", hfgen_code(model, name)), ""]
    if model.stock:
        lines += [f"In plain diffusers, without hfgen, it is a `{model.stock}`:", ""]
    else:
        lines += ["In diffusers, where hfgen is installed:", ""]
    lines += [*_fenced("python", diffusers_code(model, name)), ""]
    if run is None:
        lines += ["## Training", "", "Not known: this folder came without its run.", ""]
    else:
        lines += [*_data(run), *_training(run), *_metrics(run), *_again(run)]
    lines += ["## Limits", "", *(f"- {limit}" for limit in model.family.limits)]
    return [*lines, *(f"- {limit}" for limit in LIMITS)]


def _data(run: RunSummary) -> list[str]:
    """Return the lines on the training data and their licence."""
    rows = [(data.role, code(data.name), code(data.split), markdown(data.licence)) for data in run.datasets()]
    lines = ["## Data", "", table(("for", "dataset", "split", "licence of the data"), *rows), ""]
    data = run.record.get("data", {})
    facts = []
    if isinstance(data.get("items"), int):
        facts.append(f"{data['items']:,} items")
    if isinstance(data.get("shape"), list):
        facts.append(f"of shape {markdown(' x '.join(map(str, data['shape'])))}")
    if names := [str(name) for name in data.get("class_names") or []]:
        more = f" and {len(names) - SHOWN_CLASSES:,} more" if len(names) > SHOWN_CLASSES else ""
        facts.append(f"classes {', '.join(code(name) for name in names[:SHOWN_CLASSES])}{more}")
    return [*lines, f"{', '.join(facts)}.", ""] if facts else lines


def _training(run: RunSummary) -> list[str]:
    """Return the lines on steps, batch, seed, hardware, versions and configuration."""
    record, settings = run.record, run.settings
    unknown = "not recorded"
    hardware, versions = record.get("hardware", {}), record.get("versions", {})
    seconds = record.get("seconds")
    machine = f"{hardware.get('processes')} process(es) on {hardware.get('name') or hardware.get('device')}, " \
              f"{hardware.get('threads')} thread(s) each" if hardware else unknown  # fmt: skip
    parameters = ", ".join(f"{name} {count:,}" for name, count in sorted(record.get("parameters", {}).items()))
    rows = [
        ("recipe", code(str(record.get("recipe", unknown)))),
        ("steps", f"{int(record.get('step') or settings.get('max_steps') or 0):,}"),
        ("batch", markdown(str(settings.get("batch_size")))),
        ("seed", markdown(str(settings.get("seed")))),
        ("seconds of training", f"{seconds:,.0f}" if isinstance(seconds, int | float) else unknown),
        ("hardware", markdown(machine)),
        ("parameters", markdown(parameters or unknown)),
        ("versions", markdown(", ".join(f"{name} {found}" for name, found in sorted(versions.items())) or unknown)),
    ]
    lines = ["## Training", "", table(("", ""), *rows), "", "All settings that have a value:", ""]
    return [*lines, *_fenced("yaml", run.configuration()), ""]


def _metrics(run: RunSummary) -> list[str]:
    """Return the table of metrics; [] if there are none."""
    numbers = run.numbers()
    if not numbers:
        return []
    head = ("metric", "value", "95 % interval", "reference data", "data", "by")
    rows = [
        (code(n.name), f"{n.value:.6g}", _interval(n), "" if n.floor is None else f"{n.floor:.6g}",
         f"{code(n.data.name)}, {code(n.data.split)}", markdown(n.command))
        for n in numbers
    ]  # fmt: skip
    note = "Values without an interval are those of one run; values of training are means over its last logged steps."
    return ["## Metrics", "", table(head, *rows), "", note, ""]


def _interval(number: Number) -> str:
    if number.low is None or number.high is None:
        return ""
    return f"{number.low:.6g} to {number.high:.6g}"


def _again(run: RunSummary) -> list[str]:
    """Return the lines with the command that trains the model again."""
    command = run.command()
    if command is None:
        return ["## Reproduce", "", "The recipe was not recorded; only the settings above are known.", ""]
    note = (
        "The run is the same on any number of processes; bits are equal on the same machine, with the same threads and "
        "versions. Files and folders are given by their last name: replace it by your own path."
    )
    return ["## Reproduce", "", *_fenced("bash", command), "", note, ""]


def _fenced(language: str, text: str) -> list[str]:
    """Return a block of code. No line that hfgen writes into one begins with a fence."""
    return [f"```{language}", text, "```"]
