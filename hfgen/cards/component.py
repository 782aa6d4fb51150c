"""Cards of networks and schedulers that are published alone, without a pipeline and a run."""

import inspect
from pathlib import Path

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hfgen.cards.markdown import LIMITS, literal
from hfgen.cards.metadata import CARD, update_card
from hfgen.hub.source import install_lines
from hfgen.registry import SHIM, saved_name


def write_component_card(folder: Path, cls: type, repo_id: str, source: str | None) -> Path:
    """Return the path of the card of the component of class `cls` in `folder`, written or updated.

    `repo_id`: name in the card's code. `source`: where pip installs hfgen from. Raises ConfigError as `update_card`.
    """
    library, saved = saved_name(cls.__name__)
    kind = "scheduler" if issubclass(cls, SchedulerMixin) else "network"
    what = (inspect.getdoc(cls) or "").partition("\n")[0]
    load = f"{kind} = hfgen.{cls.__name__}.from_pretrained({literal(repo_id)})"
    lines = [f"A {kind} by itself, `{cls.__name__}` of hfgen. {what}", "", "## Use", "", *install_lines(source), ""]
    lines += ["```python", "import hfgen", "", load, "```", ""]
    if library != SHIM:
        load = f"{kind} = {saved}.from_pretrained({literal(repo_id)})"
        lines += [f"In plain diffusers, without hfgen, it is a `{saved}`:", ""]
        lines += ["```python", f"from diffusers import {saved}", "", load, "```", ""]
    lines += ["## Training", "", f"Not known: this {kind} came without its run.", "", "## Limits", ""]
    lines += ["- It is one part of a model; a pipeline of hfgen uses it.", *(f"- {limit}" for limit in LIMITS)]
    head = {"library_name": "hfgen" if library == SHIM else library, "tags": ["hfgen", cls.__name__]}
    return update_card(folder / CARD, head, repo_id, lines)
