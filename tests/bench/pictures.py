"""The tables as pictures."""

import statistics
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from core import WHAT, microseconds
from matplotlib import pyplot
from side import SIDES

Found = dict[str, Any]
_OURS, _LIMIT, _OTHERS = "#1f6fb4", "#9aa5ae", "#d9a066"  # dlrun, what it is measured by, what one would use instead
_COLOURS = {"dlrun": _OURS, "dlrun bf16": _OURS, "hand-written": _LIMIT, "pure compute": _LIMIT}


def core(table: list[Found], machine: str, path: Path) -> None:
    """A panel a row: microseconds a step of each side, with the lowest and highest of the rounds."""
    columns = min(len(table), 2)
    lines = -(-len(table) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(6.2 * columns, 2.7 * lines + 0.9), squeeze=False)
    for axis in axes.flat[len(table) :]:
        axis.set_axis_off()
    for measurement, axis in zip(table, axes.flat, strict=False):
        _panel(measurement, axis)
    figure.suptitle("Microseconds a step, median and range: shorter is faster", fontsize=12)
    caption = textwrap.fill(machine, 100 * columns)
    figure.text(0.5, 0.004, caption, ha="center", va="bottom", fontsize=7, color="0.4")
    figure.tight_layout(rect=(0, 0.1 / lines, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(measurement: Found, axis: Any) -> None:
    sides = [name for name in SIDES if "seconds" in measurement["sides"].get(name, {})]
    for place, name in enumerate(reversed(sides)):
        steps = [1e6 * s / measurement["steps"] for s in measurement["sides"][name]["seconds"]]
        middle = statistics.median(steps)
        axis.barh(place, middle, color=_COLOURS.get(name, _OTHERS), height=0.7)
        axis.plot([min(steps), max(steps)], [place, place], color="0.25", linewidth=1)
        axis.annotate(
            f"{middle:,.0f}", (max(steps), place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.set_yticks(range(len(sides)), reversed(sides), fontsize=8)
    axis.margins(x=0.15)
    axis.set_xlim(left=0)
    if "dlrun" in sides:
        axis.axvline(microseconds(measurement, "dlrun"), color=_OURS, linewidth=0.8, linestyle=":")
    axis.set_title(f"{measurement['row']['name']}: {WHAT[measurement['row']['name']]}", fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def scale(table: list[Found], machine: str, path: Path) -> None:
    """A panel an axis: cost of a step, or of an epoch where rows grow, on logarithmic scales."""
    names = list(dict.fromkeys(measurement["axis"] for measurement in table))
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False)
    for name, axis in zip(names, axes.flat, strict=True):
        points = [measurement for measurement in table if measurement["axis"] == name]
        for side, colour in {"dlrun": _OURS, "hand-written": "0.45", "Lightning": _OTHERS}.items():
            sides = [p for p in points if "seconds" in p["sides"].get(side, {})]
            if sides:
                divisor = "epochs" if name == "rows" else "steps"
                values = [_per(p, side, divisor) for p in sides]
                axis.plot([p["value"] for p in sides], values, "o-", color=colour, label=side, markersize=4)
        axis.set_xscale("linear" if name == "epochs" else "log")
        axis.set_yscale("linear" if name == "epochs" else "log")
        if name == "epochs":
            axis.set_ylim(bottom=0)
        axis.set_xlabel({"epochs": "epochs so far", "width": "width ×"}.get(name, name))
        axis.set_ylabel("ms an epoch" if name == "rows" else "ms a step")
        axis.grid(alpha=0.25)
    axes.flat[0].legend(fontsize=8)
    figure.text(0.5, 0.005, textwrap.shorten(machine, 200), ha="center", fontsize=7, color="0.4")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _per(measurement: Found, side: str, divisor: str) -> float:
    """Milliseconds, median, of one step or epoch."""
    count = measurement["row"]["epochs"] if divisor == "epochs" else measurement["steps"]
    return 1e3 * statistics.median(measurement["sides"][side]["seconds"]) / float(count)
