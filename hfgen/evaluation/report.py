"""Comparison of models: one table ordered by Fréchet distance, with intervals and ties, and its files."""

import itertools
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
"""Metrics that have a column, and its head; ↓: lower is better. The other metrics follow in a list."""


@dataclass
class Report:
    """Evaluations of several models by the same data: `rows`, the lowest Fréchet distance first."""

    rows: list[Evaluation]

    def __post_init__(self) -> None:
        """Sort the rows by Fréchet distance; rows without one come last, in their given order."""
        self.rows = sorted(self.rows, key=lambda row: row.metrics.get("frechet", {}).get("value", float("inf")))

    def ties(self) -> list[tuple[str, str]]:
        """Return the pairs of models whose 95 % intervals of the Fréchet distance overlap."""
        return [(a.model, b.model) for a, b in itertools.combinations(self.rows, 2) if _overlap(a, b)]

    def ranks(self) -> list[str]:
        """Return the rank of each model, with "=" if it ties with another; "" for models without a Fréchet distance.

        The rank is 1 + the number of models whose intervals lie wholly below that of this model.
        """
        tied = set(itertools.chain(*self.ties()))
        ranks = []
        for row in self.rows:
            rank = 1 + sum(_below(other, row) for other in self.rows)
            mark = "=" if row.model in tied else ""
            ranks.append("" if _interval(row) is None else f"{rank}{mark}")
        return ranks

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        rows = [{"rank": rank, **row.to_dict()} for rank, row in zip(self.ranks(), self.rows, strict=True)]
        return {"order": "frechet, ascending", "ties": list(map(list, self.ties())), "models": rows}

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """Return the report as Markdown, with `pictures`, the names of files beside it."""
        parts = [
            f"# {len(self.rows)} models on {markdown(self.rows[0].dataset)}",
            *self._method(),
            table(*self._table()),
            self._ties_in_words(),
            *self._matched(),
            self._details(),
            *(f"![{name.removesuffix('.png')}]({name})" for name in pictures),
        ]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _method(self) -> list[str]:
        """Return the paragraphs on samples, reference data, features, samplers and versions."""
        # count samples and held-out items
        first = self.rows[0]
        extractor, s = first.extractor, first.settings
        counts = " / ".join(sorted({f"{row.samples['count']:,}" for row in self.rows}))
        held_out = "none"
        if first.held_out:
            held_out = f"{first.held_out['name']}, {first.held_out['count']:,} items"
        # write a paragraph each
        return [
            f"Each model made {counts} samples (seed {s['seed']}, batches of {s['batch_size']}, guidance scale "
            f"{s['guidance_scale']:g}); they are compared with {first.real['compared']:,} of {first.real['items']:,} "
            f"items of {markdown(first.dataset)}, split {markdown(first.split)}. Held out: {markdown(held_out)}.",
            f"Features: {code(_without_path(extractor['name']))}, weights {code(extractor['weights_hash'][:16])}, "
            f"resized: {markdown(str(extractor['resizer']))}. Brackets are 95 % bootstrap intervals; * marks what is "
            "as good as real data at equal counts.",
            self._samplers(),
            "Versions: " + ", ".join(f"{name} {version}" for name, version in first.versions.items()) + ".",
        ]

    def _samplers(self) -> str:
        """Return the sentence on the sampler and the steps of each model; "" if every model takes one step."""
        named = []
        for row in self.rows:
            if words := sampled_by(row.samples):
                named.append(f"{markdown(row.model)}{words}")
        return f"Sampled: {'; '.join(named)}." if named else ""

    def _table(self) -> list[tuple[str, ...]]:
        """Return the head of the table, a line for each model, and the line of reference data."""
        # list the metrics that any model has
        computed = set(itertools.chain(*(row.metrics for row in self.rows)))
        names = [name for name in COLUMNS if name in computed]
        lines = [("rank", "model", "family", *(COLUMNS[name] for name in names))]
        # write a line for each model, then reference data
        for rank, row in zip(self.ranks(), self.rows, strict=True):
            cells = [_cell(row.metrics.get(name)) for name in names]
            lines.append((rank, markdown(row.model), markdown(row.family), *cells))
        return [*lines, ("", "real data", "", *map(self._floor, names))]

    def _floor(self, name: str) -> str:
        """Return the value of reference data for a metric, "below" if it stands in the table at equal counts."""
        if self._estimates(name):
            return "below"
        for row in self.rows:
            floor = row.metrics.get(name, {}).get("floor")
            if floor is not None:
                return number(floor)
        return ""

    def _estimates(self, name: str) -> list[dict[str, Any]]:
        """Return the estimates of a metric at equal counts, of the models that have one."""
        return [row.metrics[name] for row in self.rows if "matched" in row.metrics.get(name, {})]

    def _matched(self) -> list[str]:
        """Return a sentence and a table of estimates at equal counts, with the values of reference data."""
        # list metrics with such estimates
        names = [name for name in COLUMNS if self._estimates(name)]
        if not names:
            return []
        # format values of reference data, and counts
        estimates = list(map(self._estimates, names))
        floors = [with_interval(floor_of(first)) for first, *_ in estimates]
        counts = sorted({estimate["count"] for estimate in itertools.chain(*estimates)})
        # write sentence and table
        lines = [("model", *(COLUMNS[name] for name in names))]
        for row in self.rows:
            lines.append((markdown(row.model), *(_at_count(row.metrics.get(name)) for name in names)))
        words = (
            f"At equal counts, {' / '.join(map('{:,}'.format, counts))} items a side, where the bias is "
            "the same; real data are one half of them against the other, with the middle 95 % of 20 halvings:"
        )
        return [words, table(*lines, ("real data", *floors))]

    def _ties_in_words(self) -> str:
        """Return a sentence on the order of the models and their ties."""
        if not any(map(_interval, self.rows)):
            return "The Fréchet distance was not measured; the order is that of the command."
        pairs = self.ties()
        if not pairs:
            return "No two intervals of the Fréchet distance overlap."
        listed = "; ".join(f"{markdown(a)} and {markdown(b)}" for a, b in pairs)
        return f"Ties (=), where the intervals of the Fréchet distance overlap: {listed}."

    def _details(self) -> str:
        """Return a list of the metrics without a column, and of the reasons for missing metrics, by model."""
        lines = []
        for row in self.rows:
            # list metrics, then reasons
            details = []
            for name, metric in row.metrics.items():
                if name not in COLUMNS:
                    details.append(f"  - {markdown(name)}: {_detail(metric)}")
            for name, reason in row.none.items():
                details.append(f"  - {markdown(name)}: none, {markdown(reason)}")
            # put them under the name of the model
            if details:
                lines += [f"- {markdown(row.model)}", *details]
        return "\n".join(lines)


def _without_path(extractor: str) -> str:
    """Return the name of an extractor, without the folder of its model."""
    kind, colon, model = extractor.partition(":")
    return f"{kind}{colon}{last_name(model)}"


def _cell(metric: dict[str, Any] | None) -> str:
    """Return a metric as a cell of the table."""
    if metric is None:
        return "none"
    text = with_interval(metric)
    if metric.get("at_floor"):
        text += " *"
    if metric.get("missing"):
        text += f" (without {markdown(', '.join(map(str, metric['missing'])))})"
    return text


def _at_count(metric: dict[str, Any] | None) -> str:
    """Return an estimate at equal counts as a cell of the table."""
    if metric is None or metric.get("matched") is None:
        return "none"
    star = " *" if metric["at_floor"] else ""
    return f"{number(metric['matched'])}{star}"


def _detail(metric: dict[str, Any]) -> str:
    """Return a metric without a column in words: value, unit, quantity, items and standard error."""
    text = with_interval(metric)
    if "bits_per_dim" in metric:
        text += f" ({number(metric['bits_per_dim'])} bits/dim)"
    words = [str(metric[key]) for key in ("unit", "of", "items") if key in metric]
    if "standard_error" in metric:
        words.append(error_of(metric))
    return text + (markdown(", " + ", ".join(words)) if words else "")


def _interval(row: Evaluation) -> tuple[float, float] | None:
    """Return the interval of the Fréchet distance, (value, value) without an interval, None without a distance."""
    metric = row.metrics.get("frechet")
    if metric is None:
        return None
    low, high = metric.get("low"), metric.get("high")
    if low is None or high is None:
        return metric["value"], metric["value"]
    return low, high


def _overlap(a: Evaluation, b: Evaluation) -> bool:
    """Return whether the intervals of the Fréchet distance overlap."""
    one, other = _interval(a), _interval(b)
    return one is not None and other is not None and one[0] <= other[1] and other[0] <= one[1]


def _below(a: Evaluation, b: Evaluation) -> bool:
    """Return whether the interval of `a` lies wholly below that of `b`."""
    one, other = _interval(a), _interval(b)
    return one is not None and other is not None and one[1] < other[0]


def unique_names(rows: list[Evaluation]) -> list[Evaluation]:
    """Return the evaluations, with numbers after the names of models that occur more than once."""
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.model] = seen.get(row.model, 0) + 1
        if seen[row.model] > 1:
            row.model = f"{row.model}-{seen[row.model]}"
    return rows


def require_matplotlib() -> None:
    """Raise ConfigError if matplotlib, which draws the plots, is not installed."""
    if find_spec("matplotlib") is None:
        raise ConfigError("compare draws plots with matplotlib, which is not installed: pip install matplotlib")


def write_report(report: Report, folder: Path) -> None:
    """Write the report, the grids of samples, the closest pairs and the plots into `folder`."""
    # draw plots
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[list[Evaluation], Path], bool]] = {
        "quality_against_time.png": quality_against_time, "precision_against_recall.png": precision_against_recall,
    }  # fmt: skip
    names = [name for name, plot in plots.items() if plot(report.rows, folder / name)]

    # save pictures of each model
    for row in report.rows:
        for kind, picture in row.pictures.items():
            stem = f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '_', row.model)}"
            name = f"{stem}.png" if f"{stem}.png" not in names else f"{stem}-{len(names)}.png"
            picture.save(folder / name)
            names.append(name)

    # write the report
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / "report.json").write_text(text, encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(names), encoding="utf-8")
