"""The result of an evaluation: the metrics of a model and their settings, as JSON and as a table."""

import dataclasses
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass
class Evaluation:
    """The metrics of a model and everything that they depend on.

    `metrics`: for each metric a dict with its `value` and, if they apply: `low` and `high`, the 95 % interval; `floor`,
    `floor_low` and `floor_high`, the value of reference data; `matched`, the value at the `count` of the floor;
    `at_floor`, whether the model is as good as reference data; `used`, the numbers of samples and items whose features
    are in memory. `none`: the reason for each metric, or group, that does not apply. `extractor`, and `classifier`,
    which predicts classes: name, weights_hash, resizer and dim. `samples`, `real`, `held_out`: the data and their
    counts. `settings`: those that decide the numbers. `pictures`: grids of `samples` and of the `closest` pairs, which
    the JSON does not hold.
    """

    model: str
    family: str
    dataset: str
    split: str
    metrics: dict[str, dict[str, Any]]
    none: dict[str, str]
    extractor: dict[str, Any]
    classifier: dict[str, Any] | None
    samples: dict[str, Any]
    real: dict[str, Any]
    held_out: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    processes: int = 1
    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as plain JSON; numbers that are not finite are texts."""
        values = asdict(dataclasses.replace(self, pictures={}))
        values.pop("pictures")
        plain: dict[str, Any] = _plain(values)
        return plain

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the evaluation as JSON; if a `path` is given, write it there, and the pictures beside it."""
        # encode
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            # write beside, then replace
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            for name, picture in self.pictures.items():
                picture.save(path.with_name(f"{path.stem}-{name}.png"))
        return text

    def table(self) -> str:
        """Return a title, a line for each metric, and the reason for each metric that does not apply."""
        # write the title
        real = f"{self.real['compared']:,} real items of {self.dataset} {self.split}"
        count, kept = self.samples["count"], self.samples["features"]
        samples = f"{count:,} samples{sampled_by(self.samples)}"
        if kept < count:
            samples += f" (features of {kept:,} kept)"
        lines = [f"{self.model} ({self.family}): {samples}, {real}, features {self.extractor['name']}"]
        # list the metrics
        width = max(map(len, [*self.metrics, *self.none]), default=0)
        lines += [f"{name:{width}}  {with_interval(row)}{_beside(row)}" for name, row in self.metrics.items()]
        lines += [f"{name:{width}}  none: {reason}" for name, reason in self.none.items()]
        return "\n".join(lines)


def sampled_by(samples: dict[str, Any]) -> str:
    """Return the sampler and the steps of the samples in words, such as " by dpmpp_2m in 20 steps"; "" without both."""
    arguments = samples.get("told", {})
    steps = arguments.get("num_steps", arguments.get("num_inference_steps"))
    words = ""
    if "sampler" in arguments:
        words += f" by {arguments['sampler']}"
    if steps is not None:
        words += f" in {steps:,} steps"
    return words


def number(value: Any) -> str:
    """Return a number as text: four digits, with commas between thousands."""
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1e4):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def with_interval(row: dict[str, Any]) -> str:
    """Return the value of a metric as text, with its interval if it has one."""
    if row.get("low") is None or row.get("high") is None:
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def error_of(row: dict[str, Any]) -> str:
    """Return the standard error of a mean over items as text."""
    return f"standard error {number(row['standard_error'])}, {row['count']:,} items"


def floor_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the value of reference data for an estimate at equal counts, as a metric."""
    return {"value": row["floor"], "low": row["floor_low"], "high": row["floor_high"]}


def _beside(row: dict[str, Any]) -> str:
    """Return the value of reference data as text, with that of the model at the same count if it is an estimate."""
    if row.get("matched") is not None:
        floor = with_interval(floor_of(row))
        return f"  at {row['count']:,} a side {number(row['matched'])}, real data {floor}"
    if row.get("standard_error") is not None:
        return f"  {error_of(row)}"
    if row.get("floor") is not None:
        return f"  real data {number(row['floor'])}"
    return ""


def _plain(value: Any) -> Any:
    """Return plain JSON: texts for keys and for numbers that are not finite, lists for tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
