"""How good a classifier is: the confusion matrix and the reliability diagram."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.engine.calibration import Calibration
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# More classes than that get no labels and no counts.
_MOST_LABELS = 30


def draw_confusion_matrix(targets: Tensor, predicted: Tensor, spec: DataSpec, split: str) -> "Figure":
    """Draw true classes (N,) as rows over predicted ones (N,) as columns, shaded by the share of the row."""
    size = max(spec.output_size, 2)
    # Each pair of classes has a number of its own, so that one bincount fills the matrix.
    counts = torch.bincount(targets * size + predicted, minlength=size * size).view(size, size).numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    # Half an inch a class, but never larger than a page.
    side = min(max(4.8, 0.5 * size + 2), 14)
    figure, axes = canvas.create_axes(side + 1, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    if size <= _MOST_LABELS:
        names = [canvas.escape_label(name) for name in spec.class_names or range(size)]
        _write_counts(axes, counts, shares, names)

    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion on {split}: {100 * accuracy:.2f} % right")
    return figure


def _write_counts(
    axes: "Axes", counts: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", shares: np.ndarray, names: list[str]
) -> None:
    """Write the class names at the sides and the counts into the cells."""
    size = len(names)
    axes.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(size), names)

    font_size = 7 if size > 12 else 9
    for i, j in np.ndindex(size, size):
        if counts[i, j]:
            color = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color=color, fontsize=font_size)


def draw_reliability(calibration: Calibration, split: str) -> "Figure":
    """Draw how often predictions of each probability come true, with the gap to the diagonal, over row counts."""
    figure = canvas.create_figure(5.4, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])

    counts = calibration.counts.numpy()
    confidence = calibration.confidence.numpy()
    frequency = calibration.frequency.numpy()
    bins = len(counts)
    width = 1 / bins
    middle = (np.arange(bins) + 0.5) / bins
    has_rows = counts > 0

    upper.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="calibrated")
    upper.bar(
        middle[has_rows], frequency[has_rows], width, color="tab:blue", alpha=0.75, edgecolor="white", label="came true"
    )
    bottom = np.minimum(frequency, confidence)[has_rows]
    gap = np.abs(frequency - confidence)[has_rows]
    hatching = {"facecolor": "none", "edgecolor": "tab:red", "hatch": "///", "linewidth": 0.8}
    upper.bar(middle[has_rows], gap, width, bottom=bottom, label="gap", **hatching)
    upper.set(ylabel="share that came true", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(f"Calibration on {split}: ECE {calibration.ece:.4f}")
    upper.legend(loc="upper left")

    lower.bar(middle, counts, width, color="tab:blue", alpha=0.75, edgecolor="white")
    lower.set(xlabel=f"probability of {canvas.escape_label(calibration.of)}", ylabel="rows")
    # A confident model has most rows in its last bin, beside which the others would vanish.
    canvas.use_log_scale_if_wide(lower, counts[has_rows])
    # On a log scale from 0.5, so that a bin of one row has a bar.
    lower.set_ylim(bottom=0.5 if lower.get_yscale() == "log" else 0)

    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure
