"""Which class is taken for which."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 30


def confusion_matrix(targets: Tensor, predicted: Tensor, spec: DataSpec, split: str) -> "Figure":
    """Rows are the true classes, columns the predicted; shaded by the share of the row."""
    size = max(spec.output_size, 2)
    table = torch.bincount(targets * size + predicted, minlength=size * size).view(size, size).numpy()
    side = min(max(4.8, 0.5 * size + 2), 14)
    figure, axes = canvas.single(side + 1, side)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    if size <= _MOST_LABELS:
        _write(axes, table, shares, [canvas.plain(n) for n in spec.class_names or range(size)])
    accuracy = table.trace() / max(table.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion on {split}: {100 * accuracy:.2f} % right")
    return figure


def _write(
    axes: "Axes", table: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", shares: np.ndarray, names: list[str]
) -> None:
    """The classes' names at the sides and the counts in the cells."""
    size = len(names)
    axes.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(size), names)
    for i, j in np.ndindex(size, size):
        if table[i, j]:
            color = "white" if shares[i, j] > 0.5 else "black"
            font = 7 if size > 12 else 9
            axes.text(j, i, f"{table[i, j]}", ha="center", va="center", color=color, fontsize=font)
