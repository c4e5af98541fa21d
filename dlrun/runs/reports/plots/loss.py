"""The loss over epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Opacity of raw curves beside smoothed ones.
FAINT = 0.45

# Fewer values are a curve that shows all there is, and smoothing would only lag behind it.
FEWEST_TO_SMOOTH = 50

# Of the moving average: it is over about ten values.
_MEMORY = 0.9


def smooth(values: ArrayLike) -> NDArray[np.float64]:
    """Smooth a curve: s ← m s + (1 - m) x from s = 0, divided by 1 - m^n after n values.

    The division keeps the start from being too low; it is Adam's (Kingma & Ba 2015, section 3). The memory m is 0.9.
    Values that are not finite stay gaps and do not count.
    """
    averages = []
    mean = 0.0
    count = 0
    for value in np.asarray(values, dtype=float):
        if not np.isfinite(value):
            averages.append(np.nan)
            continue
        mean = _MEMORY * mean + (1 - _MEMORY) * value
        count += 1
        averages.append(mean / (1 - _MEMORY**count))
    return np.array(averages)


def draw_loss_curves(rows: Sequence[dict[str, float]]) -> "Figure":
    """Draw training and validation loss over epochs, raw (lowest values marked) and, from 50 epochs on, smoothed."""
    figure, axes = canvas.create_axes()
    epochs = [row["epoch"] for row in rows]
    losses: list[float] = []
    for key, color in (("train/loss", "tab:blue"), ("val/loss", "tab:orange")):
        values = np.array([row.get(key, np.nan) for row in rows])
        if not np.isfinite(values).any():
            continue

        losses += values.tolist()
        best = int(np.nanargmin(values))
        if len(values) < FEWEST_TO_SMOOTH:
            axes.plot(epochs, values, "-", color=color, linewidth=2, label=key)
        else:
            axes.plot(epochs, values, "-", color=color, alpha=FAINT, label=key)
            axes.plot(epochs, smooth(values), "-", color=color, linewidth=2, label=f"{key}, smoothed")
        axes.plot(epochs[best], values[best], "o", color=color)

    # By both curves, since they share the axis.
    canvas.use_log_scale_if_wide(axes, losses)
    axes.set(xlabel="epoch", ylabel="loss (mean per sample)", title="Loss (dots: lowest)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if losses:
        axes.legend()
    return figure
