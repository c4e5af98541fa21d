"""The loss over epochs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAINT = 0.45


def smoothed(values: ArrayLike) -> NDArray[np.float64]:
    """s ← m s + (1 - m) x from s = 0, divided by 1 - m^n after n values, so that the start is not too low.

    The memory m is 0.9, an average over about 10 values; less (down to 0.5) for fewer than 50 values, where 0.9 would
    lie far above a falling curve. The correction is Adam's (Kingma & Ba 2015, section 3). What is not finite stays a
    gap and is passed over.
    """
    numbers = np.asarray(values, dtype=float)
    memory = min(max(1 - 5 / max(len(numbers), 1), 0.5), 0.9)
    found, mean, count = [], 0.0, 0
    for value in numbers:
        if np.isfinite(value):
            mean, count = memory * mean + (1 - memory) * value, count + 1
        found.append(mean / (1 - memory**count) if np.isfinite(value) else np.nan)
    return np.array(found)


def loss_curves(rows: Sequence[dict[str, float]]) -> "Figure":
    """Training and validation loss over epochs, raw (its lowest value marked) and smoothed."""
    figure, axes = canvas.single()
    epochs = [row["epoch"] for row in rows]
    shown: list[float] = []
    for key, color in (("train/loss", "tab:blue"), ("val/loss", "tab:orange")):
        values = np.array([row.get(key, np.nan) for row in rows])
        if not np.isfinite(values).any():
            continue
        shown += values.tolist()
        best = int(np.nanargmin(values))
        axes.plot(epochs, values, "-", color=color, alpha=FAINT, label=key)
        axes.plot(epochs, smoothed(values), "-", color=color, linewidth=2, label=f"{key}, smoothed")
        axes.plot(epochs[best], values[best], "o", color=color)
    canvas.log_where_wide(axes, shown)
    axes.set(xlabel="epoch", ylabel="loss (mean per sample)", title="Loss (dots: lowest)")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    if shown:
        axes.legend()
    return figure
