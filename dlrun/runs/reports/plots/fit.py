"""What a regression has learnt: a curve through the data, or predictions over true values."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas, features

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = tuple[Tensor, Tensor]  # inputs (N, 1) and targets (N, 1)
Function = Callable[[Tensor], Tensor]  # inputs (N, 1) -> outputs (N, 1)
_COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:orange"}
_GRID = 400


def curve_fit(rows: Mapping[str, Rows], model: Function, spec: DataSpec, truth: Function | None = None) -> "Figure":
    """One feature: the rows of each split, the learnt curve, and the true one where it is known."""
    figure, axes = canvas.single()
    draw_curve(axes, rows, model, spec, truth)
    axes.set_title("Fit")
    return figure


def draw_curve(
    axes: "Axes", rows: Mapping[str, Rows], model: Function, spec: DataSpec, truth: Function | None, grid: int = _GRID
) -> None:
    """The same on axes that are there; the curves are asked at `grid` evenly spaced points of the range."""
    for split, (x, y) in rows.items():
        size = 6 if len(x) <= 200 else 3
        axes.plot(
            features.measured(x, spec)[:, 0],
            y[:, 0].cpu(),
            "o",
            ms=size,
            mew=0,
            alpha=0.5,
            c=_COLORS[split],
            label=split,
        )
    low, high = min(float(x.min()) for x, _ in rows.values()), max(float(x.max()) for x, _ in rows.values())
    even = features.even(Tensor([low, high]).double(), grid).unsqueeze(1)
    place = features.measured(even, spec)[:, 0]
    if truth is not None:
        axes.plot(place, truth(even)[:, 0].cpu(), "--", color="black", linewidth=1.5, label="true")
    axes.plot(place, model(even)[:, 0], "-", color="tab:red", linewidth=2, label="model")
    axes.set(xlabel=canvas.plain(features.label(spec)), ylabel="y")
    axes.grid(alpha=0.3)
    axes.legend()


def predictions(outputs: Tensor, targets: Tensor, split: str) -> "Figure":
    """Several features: predicted over true values (N, 1), and beside them what is left over."""
    figure = canvas.sheet(10.4, 4.8)
    left, right = figure.subplots(1, 2)
    true, found = targets[:, 0].double().numpy(), outputs[:, 0].double().numpy()
    low, high = true.min(), true.max()
    left.plot([low, high], [low, high], "-", color="gray", label="exact")
    left.plot(true, found, "o", ms=4, mew=0, alpha=0.5, label=split)
    left.set(xlabel="true value", ylabel="predicted value", title="Predictions")
    left.legend()
    error = found - true
    right.axhline(0, color="gray")
    right.plot(found, error, "o", ms=4, mew=0, alpha=0.5)
    rms = np.sqrt((error**2).mean())
    right.set(xlabel="predicted value", ylabel="predicted − true", title=f"Residuals (root mean square {rms:.4g})")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
