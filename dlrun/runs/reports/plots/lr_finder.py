"""The loss over growing learning rates."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dlrun.runs.reports.plots import canvas
from dlrun.runs.reports.plots.loss import FAINT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_range_test(
    rates: Sequence[float],
    losses: Sequence[float],
    smooth: ArrayLike,
    lowest: int,
    suggestion: float | None,
    diverging: float | None,
    title: str,
) -> "Figure":
    """Draw losses over learning rates, raw and smoothed, the suggested rate, and the diverging range in red.

    lowest: index of the lowest smoothed loss.
    """
    figure, axes = canvas.create_axes()
    curve = np.asarray(smooth, dtype=float)

    axes.plot(rates, losses, "-", color="tab:blue", alpha=FAINT, label="loss of a batch")
    axes.plot(rates, curve, "-", color="tab:blue", linewidth=2, label="smoothed")
    axes.plot(rates[lowest], curve[lowest], "o", color="tab:blue", label=f"about lowest, at {rates[lowest]:.2g}")
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:green", linestyle="--", label=f"suggested: {suggestion:g}")
    if diverging is not None:
        label = f"diverges from {diverging:.2g} on"
        axes.axvspan(diverging, max(rates[-1], diverging * 1.5), color="tab:red", alpha=0.15, label=label)

    # The top by the smoothed curve: single batches reach far beyond it once the loss diverges.
    margin = 0.05 * (curve.max() - curve.min() or 1.0)
    bottom = min(curve.min(), np.nanmin(losses)) - margin
    axes.set(xscale="log", ylim=(bottom, curve.max() + margin))
    axes.set(
        xlabel="optimizer.lr",
        ylabel="loss (mean per sample)",
        title=f"Learning-rate range test: {canvas.escape_label(title)}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
