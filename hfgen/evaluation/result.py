"""The scores of a model and how they were measured: as JSON, and as a table for people."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = ("samples", "closest")


@dataclass
class Evaluation:
    """The numbers of a model and everything they depend on.

    `metrics`: for each name a `value` and, where they apply, `low` and `high`, the 95 % interval, `floor`, what real
    data score, with `floor_low` and `floor_high`, `matched`, the value at the floor's `count`, and `at_floor`, whether
    that is as good as real; `used`, of how many samples and real items, where features are kept of the first ones
    only. `none`: why a metric, or a group, does not apply. `extractor`: name, weights_hash, resizer
    and dim; `classifier` likewise, of the one that sees classes. `samples`, `real`, `held_out`: what was compared,
    with counts. `settings`: the arguments. `pictures`: grids of `samples` and of the `closest` pairs, not in the JSON.
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
        found = asdict(Evaluation(**{**vars(self), "pictures": {}}))
        found.pop("pictures")
        plain: dict[str, Any] = _plain(found)
        return plain

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the evaluation as JSON, and write it to `path`, with its pictures beside it, if one is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
            for name, picture in self.pictures.items():
                picture.save(path.with_name(f"{path.stem}-{name}.png"))
        return text

    def table(self) -> str:
        """Return a line for each metric, and for each that does not apply the reason."""
        real = f"{self.real['compared']:,} real items of {self.dataset} {self.split}"
        made, kept = self.samples["count"], self.samples["features"]
        samples = f"{made:,} samples{sampled_by(self.samples)}"
        samples += f" (features of {kept:,} kept)" if kept < made else ""
        title = f"{self.model} ({self.family}): {samples}, {real}"
        lines = [f"{title}, features {self.extractor['name']}"]
        width = max(map(len, [*self.metrics, *self.none]), default=0)
        lines += [f"{name:{width}}  {with_interval(row)}{_beside(row)}" for name, row in self.metrics.items()]
        lines += [f"{name:{width}}  none: {reason}" for name, reason in self.none.items()]
        return "\n".join(lines)


def sampled_by(samples: dict[str, Any]) -> str:
    """Return the sampler and the steps of the samples for people, such as " by dpmpp_2m in 20 steps"; "" of neither."""
    told = samples.get("told", {})
    steps = told.get("num_steps", told.get("num_inference_steps"))
    sampler = f" by {told['sampler']}" if "sampler" in told else ""
    return sampler + (f" in {steps:,} steps" if steps is not None else "")


def number(value: Any) -> str:
    """Return a number for people: four digits, thousands apart."""
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1e4):
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_interval(row: dict[str, Any]) -> str:
    """Return a metric's value and, where it has one, its interval, for people."""
    if row.get("low") is None or row.get("high") is None:
        return number(row["value"])
    return f"{number(row['value'])} [{number(row['low'])}, {number(row['high'])}]"


def error_of(row: dict[str, Any]) -> str:
    """Return the standard error of a mean over items, for people."""
    return f"standard error {number(row['standard_error'])}, {row['count']:,} items"


def floor_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return what real data score where a metric is estimated at equal counts, as a metric."""
    return {"value": row["floor"], "low": row["floor_low"], "high": row["floor_high"]}


def _beside(row: dict[str, Any]) -> str:
    """Return what real data score, for people, and the model at the same count where that is another one."""
    if row.get("matched") is not None:
        real = with_interval(floor_of(row))
        return f"  at {row['count']:,} a side {number(row['matched'])}, real data {real}"
    if row.get("standard_error") is not None:
        return f"  {error_of(row)}"
    return f"  real data {number(row['floor'])}" if row.get("floor") is not None else ""


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
