"""What a regression leaves over."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TARGETS = 6
_RUNNING = 12  # bins for the running mean


def residual_plot(outputs: Tensor, targets: Tensor, names: Sequence[str], split: str) -> "Figure":
    """Outputs and targets (N, columns): per target the residuals over the predictions, and how they are spread."""
    shown = min(outputs.shape[1], _MOST_TARGETS)
    figure = canvas.sheet(9.6, 3.9 * shown)
    grid = figure.subplots(shown, 2, squeeze=False, width_ratios=[2, 1], sharey="row")
    for (left, right), column in zip(grid, range(shown), strict=True):
        found, true = (x[:, column].double().numpy() for x in (outputs, targets))
        _over_predictions(left, found, found - true)
        title = f"Residuals on {split}" if outputs.shape[1] == 1 else f"Residuals of {names[column]} on {split}"
        left.set(ylabel="predicted − true", title=canvas.plain(title))
        _spread(right, found - true)
    return figure


def _over_predictions(axes: "Axes", found: "np.ndarray", error: "np.ndarray") -> None:
    """A dot a row; a running mean, which lies at 0 where nothing is left to learn."""
    axes.axhline(0, color="gray", linewidth=1)
    axes.plot(found, error, "o", ms=4 if len(found) < 2000 else 2, mew=0, alpha=0.4, color="tab:blue")
    order = np.argsort(found, kind="stable")
    parts = (
        [part for part in np.array_split(order, min(_RUNNING, len(order) // 10)) if len(part)]
        if len(order) >= 30
        else []
    )
    if parts:
        places, means = ([float(values[part].mean()) for part in parts] for values in (found, error))
        axes.plot(places, means, "-", color="tab:red", linewidth=2, label="running mean")
        axes.legend()
    axes.set(xlabel="predicted value")
    axes.grid(alpha=0.3)


def _spread(axes: "Axes", error: "np.ndarray") -> None:
    """Their histogram, beside the normal curve of the same mean and standard deviation."""
    mean, std = float(error.mean()), float(error.std())
    axes.hist(error, bins=min(max(len(error) // 10, 10), 40), orientation="horizontal", color="tab:blue", alpha=0.6)
    low, high = axes.get_ylim()
    if std > 0:
        y = np.linspace(low, high, 200)
        width = (error.max() - error.min()) / min(max(len(error) // 10, 10), 40)
        curve = len(error) * width / (std * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((y - mean) / std) ** 2)
        axes.plot(curve, y, "-", color="black", linewidth=1, label="normal curve")
        axes.legend()
    axes.axhline(0, color="gray", linewidth=1)
    axes.set(xlabel="rows", title=f"mean {mean:.3g}, std {std:.3g}")
    axes.grid(alpha=0.3)
