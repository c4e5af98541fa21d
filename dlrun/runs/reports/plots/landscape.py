"""The loss of a model with one or two trained numbers, over those numbers, and the way the optimizer took."""

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
_CURVE, _SIDE = 201, 41  # points of a curve, and of each side of a surface: 1,681 forward passes, about 0.2 s
_MOST_POINTS = 500  # of the way shown
_FAR = 100.0  # times the first loss: what lies higher is left out, else a diverging way would hide the rest


@dataclass(frozen=True)
class Landscape:
    """Loss as a function of the trained numbers."""

    names: list[str]  # one or two
    loss: Callable[[Array], Array]  # points (N, len(names)) -> losses (N,)
    way: Array  # (epochs + 1, len(names)): the start and each epoch's end
    tried: Array  # (N, len(names)): the values an exhaustive search has tried


def list_trained_numbers(model: nn.Module) -> list[str]:
    """Names of the trained numbers: `weight`, or `weight[0]`, `weight[1]` of a longer tensor."""
    names = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = parameter.numel()
            shown = canvas.escape_label(name)
            names += [shown] if size == 1 else [f"{shown}[{i}]" for i in range(size)]
    return names


def make_loss_function(
    model: nn.Module, task: Objective, inputs: tuple[Tensor, ...], targets: Tensor
) -> Callable[[Array], Array]:
    """The mean loss per sample on these rows for given trained numbers; the model itself keeps its weights."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    share = float(task.count_targets(targets)) if task.reduction == "sum" else 1.0

    @torch.no_grad()
    def losses(points: Array) -> Array:
        found = []
        with evaluation_mode(model):
            for point in torch.from_numpy(np.asarray(points, dtype=np.float64)):
                pieces = point.split([p.numel() for p in parameters.values()])
                state = {
                    name: piece.to(p).view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)
                }
                found.append(task.compute_loss(torch.func.functional_call(model, state, inputs), targets) / share)
        return torch.stack(found).double().cpu().numpy() if found else np.empty(0)

    return losses


def draw_loss_landscape(land: Landscape) -> "Figure":
    """A curve over one number; over two a surface beside its contours."""
    way = _shown_way(land)
    points = np.concatenate([way.points, land.tried])
    center = np.zeros(len(land.names))
    if len(points):
        center = points[int(np.nanargmin(np.concatenate([way.losses, land.loss(land.tried)])))]
    reach = 1.25 * np.abs(points - center).max(0, initial=0)  # the best point lies in the middle
    reach = np.where(reach > 0, reach, np.maximum(1.0, np.abs(center)))
    figure = (_curve if len(land.names) == 1 else _surface)(land, way, center, reach)
    title = f"Loss over {' and '.join(land.names)}"
    if way.left_out:
        title += (
            f"\n(the optimizer left this range: {way.left_out} of {way.left_out + len(way.points)} points not shown)"
        )
    figure.suptitle(title)
    return figure


@dataclass(frozen=True)
class _Way:
    """The part of the way that can be shown."""

    points: Array
    losses: Array
    left_out: int
    ends_here: bool


def _shown_way(land: Landscape) -> _Way:
    """Without the points whose loss is far above the first one, or not finite."""
    points = land.way
    if len(points) > _MOST_POINTS:
        points = points[np.linspace(0, len(points) - 1, _MOST_POINTS).astype(int)]
    losses = land.loss(points)
    limit = _FAR * losses[0] if len(losses) and losses[0] > 0 else np.inf
    near = np.isfinite(points).all(1) & np.isfinite(losses) & (losses <= limit)
    return _Way(points[near], losses[near], int((~near).sum()), bool(near[-1:].all()))


def _curve(land: Landscape, way: _Way, center: Array, reach: Array) -> "Figure":
    figure, axes = canvas.create_axes()
    values = np.linspace(center[0] - reach[0], center[0] + reach[0], _CURVE)
    axes.plot(values, land.loss(values[:, None]), "-", color="gray", label="loss")
    if len(land.tried):
        tried = f"tried: {len(land.tried):,} values"
        axes.plot(land.tried[:, 0], land.loss(land.tried), "x", color="tab:green", ms=5, label=tried)
    _draw_way(axes, way, way.points[:, 0], way.losses)
    axes.set(xlabel=land.names[0], ylabel="loss (mean per sample)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _surface(land: Landscape, way: _Way, center: Array, reach: Array) -> "Figure":
    figure = canvas.create_figure(11.5, 5.2)
    across, up = (np.linspace(c - r, c + r, _SIDE) for c, r in zip(center, reach, strict=True))
    x, y = np.meshgrid(across, up)
    height = land.loss(np.stack([x.ravel(), y.ravel()], 1)).reshape(_SIDE, _SIDE)
    solid: Any = figure.add_subplot(1, 2, 1, projection="3d", computed_zorder=False)
    solid.plot_surface(x, y, height, cmap="viridis", alpha=0.75, rstride=1, cstride=1, linewidth=0, zorder=1)
    _draw_way(solid, way, *way.points.T, way.losses)
    solid.set(xlabel=land.names[0], ylabel=land.names[1], zlabel="loss")
    solid.view_init(elev=35, azim=-60)
    solid.zaxis.labelpad = 12  # room for numbers of five digits
    solid.set_box_aspect(None, zoom=0.8)  # else the label of the loss lies in the next picture
    flat = figure.add_subplot(1, 2, 2)
    shades = flat.contourf(across, up, height, levels=_levels(height), cmap="viridis")
    figure.colorbar(shades, ax=flat, label="loss (mean per sample)", format="%.3g")
    if len(land.tried):
        flat.plot(*land.tried.T, ".", color="white", ms=2, alpha=0.7, label=f"tried: {len(land.tried):,} points")
    _draw_way(flat, way, *way.points.T)
    flat.set(xlabel=land.names[0], ylabel=land.names[1])
    flat.legend(facecolor="lightgray", framealpha=0.9)
    return figure


def _levels(height: Array) -> Array | None:
    """Growing by squares, which gives even rings in a round bowl; None for a plane."""
    low, high = float(np.nanmin(height)), float(np.nanmax(height))
    low = 0.0 if 0 < low < 1e-3 * high else low  # a rounder number at the end of the scale
    return low + (high - low) * np.linspace(0, 1, 18) ** 2 if high > low else None


def _draw_way(axes: "Axes", way: _Way, *columns: Array) -> None:
    """The start, each epoch's end, and where it stopped; in front of everything."""
    if not len(way.points):
        return
    draw: Any = axes.plot  # of two columns, or on 3-D axes of three
    draw(*columns, ".-", color="tab:red", ms=4, linewidth=1, label="optimizer (a dot per epoch)", zorder=5)
    draw(*(c[:1] for c in columns), "o", color="white", mec="tab:red", ms=7, label="start", zorder=6)
    if way.ends_here:
        draw(*(c[-1:] for c in columns), "*", color="tab:red", mec="white", ms=12, label="end", zorder=7)
