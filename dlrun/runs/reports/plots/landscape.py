"""The loss of a model over its one or two trained numbers, and the path of the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlrun.engine.evaluation import evaluation_mode
from dlrun.engine.objective import Objective
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
# Points of a curve.
_CURVE = 201
# Points of each side of a surface: 1,681 forward passes, about 0.2 s.
_SIDE = 41
# Points of the path that are drawn.
_MOST_POINTS = 500
# Points with more than this times the first loss are left out: a diverging path would hide the rest.
_FAR = 100.0


@dataclass(frozen=True)
class Landscape:
    """Loss as a function of the trained numbers."""

    # One or two names of trained numbers.
    names: list[str]
    # Points (N, len(names)) -> losses (N,).
    loss: Callable[[Array], Array]
    # The optimizer's path (epochs + 1, len(names)): the start and each epoch's end.
    path: Array
    # Values (N, len(names)) that an exhaustive search has tried.
    trials: Array


def list_trained_numbers(model: nn.Module) -> list[str]:
    """List the trained numbers by name: `weight`, or `weight[0]`, `weight[1]` of a longer tensor."""
    names = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        label = canvas.escape_label(name)
        if parameter.numel() == 1:
            names.append(label)
        else:
            names += [f"{label}[{i}]" for i in range(parameter.numel())]
    return names


def make_loss_function(
    model: nn.Module, task: Objective, inputs: tuple[Tensor, ...], targets: Tensor
) -> Callable[[Array], Array]:
    """Return a function from trained numbers to the mean loss per sample; the model keeps its weights."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]
    # The axis is the mean per sample, also for a loss that sums.
    share = float(task.count_targets(targets)) if task.reduction == "sum" else 1.0

    @torch.no_grad()
    def compute_losses(points: Array) -> Array:
        losses = []
        with evaluation_mode(model):
            for point in torch.from_numpy(np.asarray(points, dtype=np.float64)):
                state = {}
                for (name, p), piece in zip(parameters.items(), point.split(sizes), strict=True):
                    state[name] = piece.to(p).view_as(p)
                outputs = torch.func.functional_call(model, state, inputs)
                losses.append(task.compute_loss(outputs, targets) / share)
        return torch.stack(losses).double().cpu().numpy() if losses else np.empty(0)

    return compute_losses


def draw_loss_landscape(landscape: Landscape) -> "Figure":
    """Draw a curve over one number, or over two a surface beside its contours."""
    path = _select_path(landscape)
    points = np.concatenate([path.points, landscape.trials])
    center = np.zeros(len(landscape.names))
    if len(points):
        center = points[int(np.nanargmin(np.concatenate([path.losses, landscape.loss(landscape.trials)])))]

    # The best point lies in the middle.
    reach = 1.25 * np.abs(points - center).max(0, initial=0)
    # A path of one point has no extent: show a unit around it, or its own size.
    reach = np.where(reach > 0, reach, np.maximum(1.0, np.abs(center)))
    if len(landscape.names) == 1:
        figure = _draw_curve(landscape, path, center, reach)
    else:
        figure = _draw_surface(landscape, path, center, reach)

    title = f"Loss over {' and '.join(landscape.names)}"
    if path.left_out:
        total = path.left_out + len(path.points)
        title += f"\n(the optimizer left this range: {path.left_out} of {total} points not shown)"
    figure.suptitle(title)
    return figure


@dataclass(frozen=True)
class _Path:
    """The part of the optimizer's path that is drawn."""

    points: Array
    losses: Array
    left_out: int
    # Whether the last point is drawn.
    ends_here: bool


def _select_path(landscape: Landscape) -> _Path:
    """Leave out the points whose loss is far above the first one, or not finite."""
    points = landscape.path
    if len(points) > _MOST_POINTS:
        # Evenly thinned, with both ends.
        points = points[np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int)]

    losses = landscape.loss(points)
    limit = _FAR * losses[0] if len(losses) and losses[0] > 0 else np.inf
    is_near = np.isfinite(points).all(1) & np.isfinite(losses) & (losses <= limit)
    return _Path(points[is_near], losses[is_near], int((~is_near).sum()), bool(is_near[-1:].all()))


def _draw_curve(landscape: Landscape, path: _Path, center: Array, reach: Array) -> "Figure":
    figure, axes = canvas.create_axes()
    values = np.linspace(center[0] - reach[0], center[0] + reach[0], _CURVE)
    axes.plot(values, landscape.loss(values[:, None]), "-", color="gray", label="loss")
    if len(landscape.trials):
        label = f"tried: {len(landscape.trials):,} values"
        axes.plot(landscape.trials[:, 0], landscape.loss(landscape.trials), "x", color="tab:green", ms=5, label=label)
    _draw_path(axes, path, path.points[:, 0], path.losses)

    axes.set(xlabel=landscape.names[0], ylabel="loss (mean per sample)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _draw_surface(landscape: Landscape, path: _Path, center: Array, reach: Array) -> "Figure":
    figure = canvas.create_figure(11.5, 5.2)
    across = np.linspace(center[0] - reach[0], center[0] + reach[0], _SIDE)
    up = np.linspace(center[1] - reach[1], center[1] + reach[1], _SIDE)
    x, y = np.meshgrid(across, up)
    height = landscape.loss(np.stack([x.ravel(), y.ravel()], 1)).reshape(_SIDE, _SIDE)

    solid: Any = figure.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
    solid.plot_surface(x, y, height, cmap="viridis", alpha=0.75, rstride=1, cstride=1, linewidth=0, zorder=1)
    _draw_path(solid, path, *path.points.T, path.losses)
    solid.set(xlabel=landscape.names[0], ylabel=landscape.names[1], zlabel="loss")
    solid.view_init(elev=35, azim=-60)
    # Room for numbers of five digits.
    solid.zaxis.labelpad = 12
    # Otherwise the label of the loss lies in the next picture.
    solid.set_box_aspect(None, zoom=0.8)

    flat = figure.add_subplot(1, 2, 2)
    shades = flat.contourf(across, up, height, levels=_choose_levels(height), cmap="viridis")
    figure.colorbar(shades, ax=flat, label="loss (mean per sample)", format="%.3g")
    if len(landscape.trials):
        label = f"tried: {len(landscape.trials):,} points"
        flat.plot(*landscape.trials.T, ".", color="white", ms=2, alpha=0.7, label=label)
    _draw_path(flat, path, *path.points.T)
    flat.set(xlabel=landscape.names[0], ylabel=landscape.names[1])
    flat.legend(facecolor="lightgray", framealpha=0.9)
    return figure


def _choose_levels(height: Array) -> Array | None:
    """Choose contour levels that grow by squares, which gives even rings in a round bowl; None for a plane."""
    low = float(np.nanmin(height))
    high = float(np.nanmax(height))
    if 0 < low < 1e-3 * high:
        # A rounder number at the end of the scale.
        low = 0.0
    # Also for NaN, of which no comparison is true.
    if not high > low:
        return None
    return low + (high - low) * np.linspace(0, 1, 18) ** 2


def _draw_path(axes: "Axes", path: _Path, *columns: Array) -> None:
    """Draw the start, each epoch's end, and the last point, in front of everything."""
    if not len(path.points):
        return
    # 2-D axes plot two columns, 3-D axes three.
    draw: Any = axes.plot
    draw(*columns, ".-", color="tab:red", ms=4, linewidth=1, label="optimizer (a dot per epoch)", zorder=5)

    start = [column[:1] for column in columns]
    draw(*start, "o", color="white", mec="tab:red", ms=7, label="start", zorder=6)
    if path.ends_here:
        end = [column[-1:] for column in columns]
        draw(*end, "*", color="tab:red", mec="white", ms=12, label="end", zorder=7)
