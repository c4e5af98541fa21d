"""How often a classifier is right, by how sure it was."""

from typing import TYPE_CHECKING

import numpy as np

from dlrun.engine.calibration import Calibration
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_diagram(found: Calibration, split: str) -> "Figure":
    """Frequency over probability in bins, with the gap to the diagonal, and below it where the rows lie."""
    figure = canvas.sheet(5.4, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    counts, said, came = (x.numpy() for x in (found.counts, found.confidence, found.frequency))
    bins = len(counts)
    middle, width, filled = (np.arange(bins) + 0.5) / bins, 1 / bins, counts > 0
    upper.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="calibrated")
    upper.bar(middle[filled], came[filled], width, color="tab:blue", alpha=0.75, edgecolor="white", label="came true")
    bottom, gap = np.minimum(came, said)[filled], np.abs(came - said)[filled]
    hatched = {"facecolor": "none", "edgecolor": "tab:red", "hatch": "///", "linewidth": 0.8}
    upper.bar(middle[filled], gap, width, bottom=bottom, label="gap", **hatched)
    upper.set(ylabel="share that came true", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"Calibration on {split}: ECE {found.ece:.4f}")
    upper.legend(loc="upper left")
    lower.bar(middle, counts, width, color="tab:blue", alpha=0.75, edgecolor="white")
    lower.set(xlabel=f"probability of {canvas.plain(found.of)}", ylabel="rows")
    canvas.log_where_wide(lower, counts[filled])
    lower.set_ylim(bottom=0.5 if lower.get_yscale() == "log" else 0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure
