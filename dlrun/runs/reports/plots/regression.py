"""What a regression has learnt: a curve through the data, predictions over true values, and the residuals."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas
from dlrun.runs.reports.plots.decision import denormalize, get_feature_label, spread_evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Inputs (N, 1) and targets (N, 1).
Rows = tuple[Tensor, Tensor]
# Inputs (N, 1) -> outputs (N, 1).
Function = Callable[[Tensor], Tensor]
_COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:orange"}
_GRID = 400
# Outputs that are drawn: a row of panels for each.
_MOST_TARGETS = 6
# Bins of the running mean.
_BINS = 12


def draw_curve_fit(
    rows: Mapping[str, Rows], model: Function, spec: DataSpec, truth: Function | None = None
) -> "Figure":
    """Draw the rows of each split over one feature, the learnt curve, and the true one if it is known."""
    figure, axes = canvas.create_axes()
    draw_curve(axes, rows, model, spec, truth)
    axes.set_title("Fit")
    return figure


def draw_curve(
    axes: "Axes", rows: Mapping[str, Rows], model: Function, spec: DataSpec, truth: Function | None, grid: int = _GRID
) -> None:
    """Draw a fit on existing axes, with the curves at `grid` evenly spaced points."""
    for split, (x, y) in rows.items():
        size = 6 if len(x) <= 200 else 3
        places = denormalize(x, spec)[:, 0]
        axes.plot(places, y[:, 0].cpu(), "o", ms=size, mew=0, alpha=0.5, c=_COLORS[split], label=split)

    low = min(float(x.min()) for x, _ in rows.values())
    high = max(float(x.max()) for x, _ in rows.values())
    inputs = spread_evenly(Tensor([low, high]).double(), grid).unsqueeze(1)
    places = denormalize(inputs, spec)[:, 0]
    if truth is not None:
        axes.plot(places, truth(inputs)[:, 0].cpu(), "--", color="black", linewidth=1.5, label="true")
    axes.plot(places, model(inputs)[:, 0], "-", color="tab:red", linewidth=2, label="model")

    axes.set(xlabel=canvas.escape_label(get_feature_label(spec)), ylabel="y")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_predictions(outputs: Tensor, targets: Tensor, split: str) -> "Figure":
    """Draw predicted over true values (N, 1), and beside them the residuals: for several features."""
    figure = canvas.create_figure(10.4, 4.8)
    left, right = figure.subplots(1, 2)
    true = targets[:, 0].double().numpy()
    predicted = outputs[:, 0].double().numpy()

    # The diagonal spans the true values: wild predictions must not stretch it.
    low = true.min()
    high = true.max()
    left.plot([low, high], [low, high], "-", color="gray", label="exact")
    left.plot(true, predicted, "o", ms=4, mew=0, alpha=0.5, label=split)
    left.set(xlabel="true value", ylabel="predicted value", title="Predictions")
    left.legend()

    residuals = predicted - true
    right.axhline(0, color="gray")
    right.plot(predicted, residuals, "o", ms=4, mew=0, alpha=0.5)
    rms = np.sqrt((residuals**2).mean())
    title = f"Residuals (root mean square {rms:.4g})"
    right.set(xlabel="predicted value", ylabel="predicted − true", title=title)

    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def draw_residuals(outputs: Tensor, targets: Tensor, names: Sequence[str], split: str) -> "Figure":
    """Draw, for each column of outputs and targets (N, columns), residuals over predictions and their spread."""
    count = min(outputs.shape[1], _MOST_TARGETS)
    figure = canvas.create_figure(9.6, 3.9 * count)
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=[2, 1], sharey="row")
    for column, (left, right) in enumerate(grid):
        predicted = outputs[:, column].double().numpy()
        true = targets[:, column].double().numpy()
        residuals = predicted - true

        _draw_over_predictions(left, predicted, residuals)
        title = f"Residuals on {split}"
        if outputs.shape[1] > 1:
            title = f"Residuals of {names[column]} on {split}"
        left.set(ylabel="predicted − true", title=canvas.escape_label(title))
        _draw_spread(right, residuals)
    return figure


def _draw_over_predictions(axes: "Axes", predicted: "np.ndarray", residuals: "np.ndarray") -> None:
    """Draw a dot a row, and a running mean, which stays at 0 if nothing is left to learn."""
    axes.axhline(0, color="gray", linewidth=1)
    size = 4 if len(predicted) < 2000 else 2
    axes.plot(predicted, residuals, "o", ms=size, mew=0, alpha=0.4, color="tab:blue")

    # The mean of a bin says nothing about fewer than 10 rows, nor do fewer than three bins.
    order = np.argsort(predicted, kind="stable")
    if len(order) >= 30:
        bins = np.array_split(order, min(_BINS, len(order) // 10))
        places = [float(predicted[rows].mean()) for rows in bins]
        means = [float(residuals[rows].mean()) for rows in bins]
        axes.plot(places, means, "-", color="tab:red", linewidth=2, label="running mean")
        axes.legend()

    axes.set(xlabel="predicted value")
    axes.grid(alpha=0.3)


def _draw_spread(axes: "Axes", residuals: "np.ndarray") -> None:
    """Draw a histogram beside the normal curve of the same mean and standard deviation."""
    mean = float(residuals.mean())
    std = float(residuals.std())
    bins = min(max(len(residuals) // 10, 10), 40)
    axes.hist(residuals, bins=bins, orientation="horizontal", color="tab:blue", alpha=0.6)

    low, high = axes.get_ylim()
    if std > 0:
        y = np.linspace(low, high, 200)
        width = (residuals.max() - residuals.min()) / bins
        # The density, scaled to the rows of a bin.
        curve = len(residuals) * width / (std * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((y - mean) / std) ** 2)
        axes.plot(curve, y, "-", color="black", linewidth=1, label="normal curve")
        axes.legend()

    axes.axhline(0, color="gray", linewidth=1)
    axes.set(xlabel="rows", title=f"mean {mean:.3g}, std {std:.3g}")
    axes.grid(alpha=0.3)
