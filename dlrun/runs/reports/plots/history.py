"""Metrics over the epochs of one training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"train": "tab:blue", "val": "tab:orange"}

# Panels side by side.
_COLUMNS = 2


def draw_history(rows: Sequence[dict[str, float]]) -> "Figure":
    """Draw each metric over the epochs, a panel for each, training and validation in one.

    rows: of metrics.jsonl, at least one.
    """
    keys = dict.fromkeys(key for row in rows for key in row if key.partition("/")[0] in _COLORS)
    names = list(dict.fromkeys(key.partition("/")[2] for key in keys))
    lines = -(-len(names) // _COLUMNS)
    figure = canvas.create_figure(4.6 * min(len(names), _COLUMNS), 3.0 * lines)

    for i, name in enumerate(names):
        axes = figure.add_subplot(lines, min(len(names), _COLUMNS), i + 1)
        for split, color in _COLORS.items():
            if f"{split}/{name}" not in keys:
                continue
            epochs = [row["epoch"] for row in rows]
            # Epochs without the metric are gaps of the line.
            values = [row.get(f"{split}/{name}", np.nan) for row in rows]
            # A line of a single epoch has no length.
            axes.plot(epochs, values, "." if len(rows) == 1 else "-", color=color, label=split)
            canvas.use_log_scale_if_wide(axes, values)
        axes.set(title=canvas.escape_label(name), xlabel="epoch")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
