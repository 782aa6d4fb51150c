"""Models side by side: one table ordered by Fréchet distance, with intervals and ties, and files that show it."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfgen.cards.markdown import code, last_name, markdown, table
from hfgen.errors import ConfigError
from hfgen.evaluation.plots import precision_against_recall, quality_against_time
from hfgen.evaluation.result import Evaluation, error_of, floor_of, number, sampled_by, with_interval

COLUMNS = {
    "frechet": "Fréchet distance ↓", "kid": "KID ↓", "precision": "precision ↑", "recall": "recall ↑",
    "density": "density ↑", "coverage": "coverage ↑", "classes_covered": "classes", "label_kl": "KL to labels ↓",
    "modes_covered": "modes", "mode_kl": "KL to modes ↓", "high_quality": "high quality ↑", "log_p": "log p ↑",
    "accuracy_score": "accuracy score ↑", "memorisation_ratio": "memorisation ratio", "near_copies": "near-copies",
    "seconds_per_64": "seconds per 64", "evaluations_per_image": "evaluations", "parameters": "parameters",
    "training_seconds": "training seconds",
}  # fmt: skip
"""Metrics that have a column, and its head; ↓: less is better. The others follow in a list."""


@dataclass
class Report:
    """Evaluations of several models by the same data, `rows`, the best Fréchet distance first."""

    rows: list[Evaluation]

    def __post_init__(self) -> None:
        """Put the rows in order; those without a Fréchet distance stay last, as they came."""
        self.rows = sorted(self.rows, key=lambda row: row.metrics.get("frechet", {}).get("value", float("inf")))

    def ties(self) -> list[tuple[str, str]]:
        """Return the pairs of models whose 95 % intervals of the Fréchet distance overlap."""
        pairs = [(a, b) for i, a in enumerate(self.rows) for b in self.rows[i + 1 :]]
        return [(a.model, b.model) for a, b in pairs if _overlap(a, b)]

    def ranks(self) -> list[str]:
        """Return each model's rank: 1 and how many lie wholly below its interval, "=" where it ties with another."""
        tied = {name for pair in self.ties() for name in pair}
        ranks = [1 + sum(_below(other, row) for other in self.rows) for row in self.rows]
        known = [_interval(row) is not None for row in self.rows]
        marks = ["=" if row.model in tied else "" for row in self.rows]
        return [f"{rank}{mark}" if there else "" for rank, mark, there in zip(ranks, marks, known, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        rows = [{"rank": rank, **row.to_dict()} for rank, row in zip(self.ranks(), self.rows, strict=True)]
        return {"order": "frechet, ascending", "ties": [list(pair) for pair in self.ties()], "models": rows}

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """Return the report as Markdown that shows `pictures`, files beside it."""
        first = self.rows[0]
        parts = [
            f"# {len(self.rows)} models on {markdown(first.dataset)}",
            self._method(),
            table(*self._table()),
            self._said_ties(),
            *self._matched(),
            *([details] if (details := self._details()) else []),
            *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
        ]
        return "\n\n".join(parts) + "\n"

    def _method(self) -> str:
        first = self.rows[0]
        eye, s = first.extractor, first.settings
        counts = " / ".join(sorted({f"{row.samples['count']:,}" for row in self.rows}))
        held_out = first.held_out and f"{first.held_out['name']}, {first.held_out['count']:,} items"
        lines = [
            f"Each model made {counts} samples (seed {s['seed']}, batches of {s['batch_size']}, guidance scale "
            f"{s['guidance_scale']:g}); they are compared with {first.real['compared']:,} of {first.real['items']:,} "
            f"items of {markdown(first.dataset)}, split {markdown(first.split)}. Held out: "
            f"{markdown(held_out or 'none')}.",
            f"Features: {code(_without_path(eye['name']))}, weights {code(eye['weights_hash'][:16])}, resized: "
            f"{markdown(str(eye['resizer']))}. Brackets are 95 % bootstrap intervals; * marks what is as good as real "
            "data at equal counts.",
            *self._samplers(),
            "Versions: " + ", ".join(f"{name} {version}" for name, version in first.versions.items()) + ".",
        ]
        return "\n\n".join(lines)

    def _samplers(self) -> list[str]:
        """Return the sentence that names each model's sampler and steps; none where every model takes one step."""
        named = [(row.model, sampled_by(row.samples)) for row in self.rows]
        said = "; ".join(f"{markdown(model)}{how}" for model, how in named if how)
        return [f"Sampled: {said}."] if said else []

    def _table(self) -> list[tuple[str, ...]]:
        known = [name for name in COLUMNS if any(name in row.metrics for row in self.rows)]
        head = ("rank", "model", "family", *(COLUMNS[name] for name in known))
        lines = [
            (rank, markdown(row.model), markdown(row.family), *(_cell(row.metrics.get(name)) for name in known))
            for rank, row in zip(self.ranks(), self.rows, strict=True)
        ]
        return [head, *lines, ("", "real data", "", *(self._floor(name) for name in known))]

    def _floor(self, name: str) -> str:
        found = [row.metrics.get(name, {}) for row in self.rows]
        if any("matched" in metric for metric in found):
            return "below"
        return next((number(metric["floor"]) for metric in found if metric.get("floor") is not None), "")

    def _matched(self) -> list[str]:
        """Return the numbers at equal counts of samples and real items, and what real data score there."""
        names = [name for name in COLUMNS if any("matched" in row.metrics.get(name, {}) for row in self.rows)]
        if not names:
            return []
        counts = {row.metrics[name]["count"] for row in self.rows for name in names if name in row.metrics}
        known = [next(row.metrics[name] for row in self.rows if name in row.metrics) for name in names]
        floors = [with_interval(floor_of(metric)) for metric in known]
        lines = [(markdown(row.model), *(_at_count(row.metrics.get(name)) for name in names)) for row in self.rows]
        words = (
            f"At equal counts, {' / '.join(f'{count:,}' for count in sorted(counts))} items a side, where the bias is "
            "the same; real data are one half of them against the other, with the middle 95 % of 20 halvings:"
        )
        return [words, table(("model", *(COLUMNS[name] for name in names)), *lines, ("real data", *floors))]

    def _said_ties(self) -> str:
        if not any(map(_interval, self.rows)):
            return "The Fréchet distance was not measured; the order is that of the command."
        pairs = self.ties()
        if not pairs:
            return "No two intervals of the Fréchet distance overlap."
        listed = "; ".join(f"{markdown(a)} and {markdown(b)}" for a, b in pairs)
        return f"Ties (=), where the intervals of the Fréchet distance overlap: {listed}."

    def _details(self) -> str:
        lines = []
        for row in self.rows:
            others = {name: metric for name, metric in row.metrics.items() if name not in COLUMNS}
            said = [f"  - {markdown(name)}: {_detail(metric)}" for name, metric in others.items()]
            said += [f"  - {markdown(name)}: none, {markdown(reason)}" for name, reason in row.none.items()]
            lines += [f"- {markdown(row.model)}", *said] if said else []
        return "\n".join(lines)


def _without_path(extractor: str) -> str:
    kind, colon, model = extractor.partition(":")
    return f"{kind}{colon}{last_name(model)}"


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "none"
    missing = f" (without {markdown(', '.join(map(str, metric['missing'])))})" if metric.get("missing") else ""
    star = " *" if metric.get("at_floor") else ""
    return f"{with_interval(metric)}{star}{missing}"


def _at_count(metric: dict[str, Any] | None) -> str:
    matched = None if metric is None else metric.get("matched")
    return "none" if metric is None or matched is None else f"{number(matched)}{' *' if metric['at_floor'] else ''}"


def _detail(metric: dict[str, Any]) -> str:
    bits = f" ({number(metric['bits_per_dim'])} bits/dim)" if "bits_per_dim" in metric else ""
    words = [str(metric[key]) for key in ("unit", "of", "items") if key in metric]
    words += [error_of(metric)] if "standard_error" in metric else []
    return f"{with_interval(metric)}{bits}{markdown(', ' + ', '.join(words)) if words else ''}"


def _interval(row: Evaluation) -> tuple[float, float] | None:
    """Return the interval of the Fréchet distance, the value itself where it has none; None without the distance."""
    metric = row.metrics.get("frechet")
    if metric is None:
        return None
    low, high = metric.get("low"), metric.get("high")
    return (metric["value"], metric["value"]) if low is None or high is None else (low, high)


def _overlap(a: Evaluation, b: Evaluation) -> bool:
    one, other = _interval(a), _interval(b)
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def _below(a: Evaluation, b: Evaluation) -> bool:
    one, other = _interval(a), _interval(b)
    return one is not None and other is not None and one[1] < other[0]


def unique_names(rows: list[Evaluation]) -> list[Evaluation]:
    """Return the evaluations, a number behind the names of models that are there more than once."""
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.model] = seen.get(row.model, 0) + 1
        row.model = row.model if seen[row.model] == 1 else f"{row.model}-{seen[row.model]}"
    return rows


def require_matplotlib() -> None:
    """Raise ConfigError where matplotlib, which draws the plots, is missing."""
    if find_spec("matplotlib") is None:
        raise ConfigError("compare draws plots with matplotlib, which is not installed: pip install matplotlib")


def write_report(report: Report, folder: Path) -> None:
    """Write the report, the grids of samples and closest pairs, and the plots into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[list[Evaluation], Path], bool]] = {
        "quality_against_time.png": quality_against_time, "precision_against_recall.png": precision_against_recall,
    }  # fmt: skip
    pictures = [name for name, plot in plots.items() if plot(report.rows, folder / name)]
    for row in report.rows:
        for kind, picture in row.pictures.items():
            stem = f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '_', row.model)}"
            name = f"{stem}.png" if f"{stem}.png" not in pictures else f"{stem}-{len(pictures)}.png"
            picture.save(folder / name)
            pictures.append(name)
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(pictures), encoding="utf-8")
