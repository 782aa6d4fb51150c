"""The plots of a report: quality against sampling time, and precision against recall, with intervals and floors."""

from pathlib import Path
from typing import Any, NamedTuple

from hfgen.evaluation.result import Evaluation

MARKERS = "osD^vP*X"


class Axis(NamedTuple):
    """An axis of a plot: the metric that it shows, and its label."""

    metric: str
    label: str


def quality_against_time(rows: list[Evaluation], path: Path) -> bool:
    """Draw the Fréchet distance over the seconds of 64 samples; return whether any model has both."""
    x, y = Axis("seconds_per_64", "seconds per 64 samples"), Axis("frechet", "Fréchet distance")
    return _drawn(rows, path, x, y, logarithmic=True)


def precision_against_recall(rows: list[Evaluation], path: Path) -> bool:
    """Draw precision over recall; return whether any model has both."""
    return _drawn(rows, path, Axis("recall", "recall"), Axis("precision", "precision"), logarithmic=False)


def _drawn(rows: list[Evaluation], path: Path, x: Axis, y: Axis, logarithmic: bool) -> bool:
    """Draw one metric over another, one point for each model, and in grey the values of reference data.

    Estimates stand at their values at the count of the floor, with the widths of their intervals.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # choose models that have both metrics
    drawn = [row for row in rows if x.metric in row.metrics and y.metric in row.metrics]
    if not drawn:
        return False

    # draw one point for each model
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for i, row in enumerate(drawn):
        across, up = row.metrics[x.metric], row.metrics[y.metric]
        axes.errorbar(
            _value(across), _value(up), xerr=_errors(across), yerr=_errors(up), fmt=MARKERS[i % len(MARKERS)],
            capsize=3, label=row.model.replace("$", r"\$"),
        )  # fmt: skip

    # draw values of reference data
    first = drawn[0].metrics
    _draw_floor(axes.axvspan, first[x.metric], None)
    _draw_floor(axes.axhspan, first[y.metric], "real data")

    # set scales and labels, write the file
    if logarithmic:
        axes.set_xscale("log")
        if all(_value(row.metrics[y.metric]) > 0 for row in drawn):
            axes.set_yscale("log")
    axes.set_xlabel(_label(x, first))
    axes.set_ylabel(_label(y, first))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return True


def _draw_floor(span: Any, metric: dict[str, Any], label: str | None) -> None:
    """Draw the interval of the floor of an estimate as a grey band."""
    if "matched" in metric:
        span(metric["floor_low"], metric["floor_high"], color="grey", alpha=0.3, label=label, linewidth=0)


def _value(metric: dict[str, Any]) -> float:
    """Return the value at the count of the floor if there is one, else the value."""
    matched = metric.get("matched")
    return float(metric["value"] if matched is None else matched)


def _label(axis: Axis, metrics: dict[str, dict[str, Any]]) -> str:
    """Return the label of an axis, with the count of the floor if there is one."""
    count = metrics[axis.metric].get("count")
    return axis.label if count is None else f"{axis.label}, {count:,} items a side"


def _errors(metric: dict[str, Any]) -> list[list[float]] | None:
    """Return the distances from the value to the ends of its interval; None without an interval."""
    low, high, value = metric.get("low"), metric.get("high"), metric["value"]
    return None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
