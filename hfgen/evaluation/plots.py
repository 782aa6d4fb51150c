"""The plots of a report: quality against sampling time, and precision against recall, with intervals and floors."""

from pathlib import Path
from typing import Any

from hfgen.evaluation.result import Evaluation


def quality_against_time(rows: list[Evaluation], path: Path) -> bool:
    """Draw the Fréchet distance over the seconds that 64 samples take; return whether both are known of any model."""
    return _drawn(rows, path, ("seconds_per_64", "seconds per 64 samples"), ("frechet", "Fréchet distance"), True)


def precision_against_recall(rows: list[Evaluation], path: Path) -> bool:
    """Draw precision over recall; return whether both are known of any model."""
    return _drawn(rows, path, ("recall", "recall"), ("precision", "precision"), False)


def _drawn(rows: list[Evaluation], path: Path, x: tuple[str, str], y: tuple[str, str], logarithmic: bool) -> bool:
    """Draw one metric over another, a point a model, and in grey what real data score.

    Of estimates what they are at the count of the real data's, with the width of their intervals.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [row for row in rows if x[0] in row.metrics and y[0] in row.metrics]
    if not drawn:
        return False
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for i, row in enumerate(drawn):
        across, up = row.metrics[x[0]], row.metrics[y[0]]
        axes.errorbar(
            _level(across), _level(up), xerr=_reach(across), yerr=_reach(up), fmt="osD^vP*X"[i % 8], capsize=3,
            label=row.model.replace("$", r"\$"),
        )  # fmt: skip
    for span, name, label in ((axes.axvspan, x[0], None), (axes.axhspan, y[0], "real data")):
        floor = drawn[0].metrics[name]
        if "matched" in floor:
            span(floor["floor_low"], floor["floor_high"], color="grey", alpha=0.3, label=label, linewidth=0)
    if logarithmic:
        axes.set_xscale("log")
        if all(_level(row.metrics[y[0]]) > 0 for row in drawn):
            axes.set_yscale("log")
    axes.set_xlabel(_words(x, drawn[0].metrics))
    axes.set_ylabel(_words(y, drawn[0].metrics))
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return True


def _level(metric: dict[str, Any]) -> float:
    """Return where a model stands: at the count of the real data's floor, where there is one."""
    matched = metric.get("matched")
    return float(metric["value"] if matched is None else matched)


def _words(axis: tuple[str, str], metrics: dict[str, dict[str, Any]]) -> str:
    count = metrics[axis[0]].get("count")
    return axis[1] if count is None else f"{axis[1]}, {count:,} items a side"


def _reach(metric: dict[str, Any]) -> list[list[float]] | None:
    """Return how far an interval reaches to both sides of the value; None without one."""
    low, high, value = metric.get("low"), metric.get("high"), metric["value"]
    return None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
