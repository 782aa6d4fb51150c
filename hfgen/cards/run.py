"""Summary of a run for the card of its model: data, settings, metrics, and the command that trains it again.

No path is published: local files and folders appear by their last name, Hub ids in full.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfgen import runs
from hfgen.cards.markdown import last_name, literal, plain, shell
from hfgen.checks import is_name_of_object
from hfgen.data import BUILT_IN
from hfgen.errors import ConfigError

HERE_ONLY = {"output_dir", "config", "resume", "tracker", "tracker_public", "device", "publish_to"}
HERE_ONLY |= {"log_every", "save_every", "sample_every", "keep_checkpoints"}
"""Settings of output and logging, which do not change the result of a run."""

EVALUATED_DOMAINS = ("eval_dataset_a", "eval_dataset_b", "eval_split", "eval_split_b")
"""Settings of the evaluation data of a translation, if they differ from the training data."""

SHOWN_ALWAYS = ("dataset", "max_steps", "seed")
DIGITS = "CC BY 4.0 (Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, as in scikit-learn)"


@dataclass(frozen=True)
class Data:
    """A dataset: use in the run, name without any path, whether the name is a Hub id, split and licence."""

    role: str
    name: str
    hub: bool
    split: str
    licence: str

    @property
    def hub_id(self) -> str:
        """Return the Hub id alone, without a configuration."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Number:
    """A metric: value, data and command, and, if known, its 95 % interval and the value of reference data."""

    name: str
    value: float
    data: Data
    command: str
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    extractor: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunSummary:
    """Content of a run folder: settings, record, the last value of each logged number, and evaluation.

    A missing file is {}.
    """

    name: str
    settings: dict[str, Any]
    record: dict[str, Any]
    log: dict[str, float]
    evaluation: dict[str, Any]

    def public(self, field: str) -> Any:
        """Return the value of a setting, paths replaced by their last name."""
        value = self.settings.get(field)
        if field in self.record.get("hub", ()) or value in BUILT_IN:
            return value
        return _without_paths(value)

    def data(self, role: str, field: str, *splits: str) -> Data:
        """Return the dataset in a field; its split is the first of the fields `splits` that has a value."""
        value, name = self.settings.get(field), str(self.public(field))
        split = next((str(self.settings[key]) for key in splits if self.settings.get(key)), "train")
        return Data(role, name, field in self.record.get("hub", ()), _without_paths(split), licence_of(value))

    def datasets(self) -> list[Data]:
        """Return the training data of the run, and last its evaluation data if they differ."""
        if not self.settings.get("dataset"):
            return self.domains()
        datasets = [self.data("training", "dataset", "split")]
        if self.settings.get("eval_dataset"):
            datasets.append(self.data("evaluation", "eval_dataset", "eval_split"))
        elif self.settings.get("eval_split"):
            datasets.append(self.data("evaluation", "dataset", "eval_split"))
        return datasets

    @property
    def base_model(self) -> str | None:
        """Return the Hub id of the model whose weights training started from; None if it is not on the Hub."""
        if "start_from" not in self.record.get("hub", ()):
            return None
        return str(self.settings["start_from"])

    def domains(self) -> list[Data]:
        """Return the training data of domains A and B, and last their evaluation data if they differ."""
        # training data
        splits = {"a": ("split",), "b": ("split_b", "split")}
        domains = [self.data(f"domain {side.upper()}", f"dataset_{side}", *splits[side]) for side in splits]
        # evaluation data
        if any(map(self.settings.get, EVALUATED_DOMAINS)):
            for side, keys in splits.items():
                own = f"eval_dataset_{side}"
                field = own if self.settings.get(own) else f"dataset_{side}"
                eval_keys = [f"eval_{key}" for key in keys]
                domains.append(self.data(f"evaluation {side.upper()}", field, *eval_keys))
        return domains

    def shown_settings(self) -> dict[str, Any]:
        """Return the settings that have a value and change the result of a run, without paths."""
        shown = {}
        for key, value in self.settings.items():
            if key not in HERE_ONLY and value not in (None, ""):
                shown[key] = self.public(key)
        return shown

    def numbers(self) -> list[Number]:
        """Return the metrics of an evaluation, if there is one, then the last values of training."""
        datasets = self.datasets()
        numbers = self._evaluated()
        for name, value in self.log.items():
            if name.startswith("eval_") or name in self.record.get("evaluated", ()):
                of_domain_a = name.endswith(("_a", "_a2b")) and not self.settings.get("dataset")
                data = datasets[-2] if of_domain_a else datasets[-1]
                numbers.append(Number(name, value, data, "hfgen train, evaluation"))
            else:
                numbers.append(Number(name, value, datasets[0], "hfgen train, training"))
        return numbers

    def _evaluated(self) -> list[Number]:
        """Return the metrics of evaluation.json, with their intervals."""
        if not self.evaluation:
            return []
        # dataset; only a Hub id that training also read is known to be one
        given, split = str(self.evaluation.get("dataset")), str(self.evaluation.get("split", "train"))
        on_hub = any(data.hub and given == data.name for data in self.datasets())
        name = given if on_hub or given in BUILT_IN else last_name(given)
        data = Data("evaluation", name, on_hub, _without_paths(split), licence_of(given))
        # metrics
        extractor = _without_paths(self.evaluation.get("extractor")) or None
        numbers = []
        for name, metric in self.evaluation.get("metrics", {}).items():
            if (value := _finite(metric.get("value"))) is not None:
                low, high, floor = (_finite(metric.get(key)) for key in ("low", "high", "floor"))
                numbers.append(Number(name, value, data, "hfgen evaluate", low, high, floor, extractor))
        return numbers

    def command(self) -> str | None:
        """Return the command that trains this model again, one field a line; None if the recipe is not recorded."""
        # recipe
        recipe = self.record.get("recipe")
        if not isinstance(recipe, str):
            return None
        # settings that differ from the defaults
        shown = {*SHOWN_ALWAYS, *self.record.get("changed", ())}
        if self.settings.get("max_steps"):
            shown.discard("budget")
        lines = [f"hfgen train {shell(recipe)}"]
        for key, value in self.shown_settings().items():
            if key in shown:
                lines.append(_flag(key, value))
        lines.append(f"--output-dir {shell(self.name)}")
        return " \\\n    ".join(lines)

    def objects(self) -> list[str]:
        """Return the settings whose values are names of Python objects, such as `<dataset>`."""
        return [key for key, value in self.settings.items() if is_name_of_object(value)]

    def configuration(self) -> str:
        """Return the settings as YAML that `hfgen train --config` reads, a line each."""
        return "\n".join(f"{key}: {literal(value)}" for key, value in self.shown_settings().items())


def licence_of(dataset: Any) -> str:
    """Return the licence of a dataset, given by its name in the settings."""
    if dataset == "digits":
        return DIGITS
    if dataset in BUILT_IN:
        return "none needed, drawn by rule"
    return "not known here; see the dataset"


def read_run(folder: Path) -> RunSummary:
    """Return the content of a run folder. Raises ConfigError for other folders, and for files that cannot be read."""
    # read the files
    settings, record, evaluation = runs.settings(folder), runs.record(folder), runs.evaluation(folder)
    # check the metrics
    metrics = evaluation.get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(metric, dict) for metric in metrics.values()):
        path = folder / runs.EVALUATION
        raise ConfigError(f"{path}: 'metrics' must hold objects by name, got {metrics!r:.80}")
    # name and log
    name = last_name(str(settings.get("output_dir") or folder.resolve().name)) or "run"
    log = _last_numbers(runs.metrics(folder), record.get("step"))
    return RunSummary(name, settings, record, log, evaluation)


def _last_numbers(lines: list[dict[str, Any]], step: Any) -> dict[str, float]:
    """Return the last finite value of each logged number, up to `step` if that is an int."""
    last: dict[str, float] = {}
    for numbers in lines:
        if isinstance(step, int) and numbers["step"] > step:
            continue
        for key, value in numbers.items():
            if key not in ("step", "learning_rate") and _finite(value) is not None:
                last[key] = value
    return last


def _finite(value: Any) -> float | None:
    """Return `value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _without_paths(value: Any) -> Any:
    """Return a JSON value; every text with a path separator is replaced by its last name."""
    if isinstance(value, str) and {"/", "\\"} & {*value}:
        return last_name(value)
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, dict):
        return {plain(str(key)): _without_paths(item) for key, item in value.items()}
    return value


def _flag(key: str, value: Any) -> str:
    """Return a field and its value as words of a command."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        if value:
            return f"--{name}"
        return f"--no-{name}"
    if isinstance(value, list):
        return " ".join([f"--{name}", *(shell(str(item)) for item in value)])
    if str(value).startswith("-"):
        return f"--{name}={shell(str(value))}"                                          # no option of its own
    return f"--{name} {shell(str(value))}"
