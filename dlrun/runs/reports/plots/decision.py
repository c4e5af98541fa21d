"""Which class a model gives to each point of the plane."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas, features

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARGIN = 0.12  # of the data's range, beyond it
_SIDE = 160  # grid points a side
_LEGEND = 12  # more classes than that are not named


def decision_regions(
    probabilities: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: DataSpec, split: str
) -> "Figure":
    """The plane in the colours of the classes, mixed by their probabilities, under the rows x (N, 2) and y (N,).

    probabilities: inputs (N, 2) -> (N, classes), or (N,) of class 1 for two. RequestError without two features.
    """
    if spec.kind != "vector" or spec.input_size != 2:
        raise RequestError(
            f"a picture of the decision boundary needs 2 features, and this data has {spec.input_size}; "
            "take data with two, such as data=blobs"
        )
    figure, axes = canvas.single(7.0, 5.2)
    draw_regions(axes, probabilities, x, y, spec)
    predicted = _shares(probabilities, x).argmax(1)
    right = 100 * float((predicted == y.cpu().numpy()).mean())
    axes.set_title(f"Decision regions ({split}: {right:.2f} % right)")
    if max(spec.output_size, 2) == 2:
        _color_bar(figure, axes, spec)
    return figure


def draw_regions(
    axes: "Axes",
    probabilities: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    spec: DataSpec,
    side: int = _SIDE,
) -> None:
    """The same on axes that are there, from a grid of side × side points."""
    across, up = (features.even(x[:, i], side, _MARGIN) for i in (0, 1))
    grid = torch.cartesian_prod(up, across).flip(1)  # (side * side, 2), row by row from below
    shares = _shares(probabilities, grid).reshape(side, side, -1)
    corners = features.measured(grid[[0, -1]], spec)
    (left, bottom), (right, top) = corners
    colors = _colors(shares.shape[-1])
    shades = 0.5 + 0.5 * shares @ colors
    axes.imshow(
        shades.clip(0, 1),  # shares that sum to 1 but for rounding may go beyond
        origin="lower",
        extent=(left, right, bottom, top),
        aspect="auto",
        interpolation="bilinear",
    )
    _boundaries(axes, shares, np.linspace(left, right, side), np.linspace(bottom, top, side))
    place, classes = features.measured(x, spec), y.cpu().numpy()
    names = spec.class_names or tuple(str(i) for i in range(len(colors)))
    size = 5 if len(x) <= 500 else 3
    for number in np.unique(classes):
        at = place[classes == number]
        axes.plot(
            at[:, 0], at[:, 1], "o", ms=size, mec="white", mew=0.4, c=colors[number], label=canvas.plain(names[number])
        )
    axes.set(xlabel=canvas.plain(features.label(spec, 0)), ylabel=canvas.plain(features.label(spec, 1)))
    if len(colors) <= _LEGEND:
        axes.legend(title="true class", loc="upper right", framealpha=0.9)


def _shares(probabilities: Callable[[Tensor], Tensor], x: Tensor) -> NDArray[np.float64]:
    """(N, classes), two for a binary model; 0 where the model gives no number."""
    found = probabilities(x).detach().cpu().double()
    found = torch.stack([1 - found, found], dim=1) if found.dim() == 1 else found
    shares: NDArray[np.float64] = found.nan_to_num(0).numpy()
    return shares


def _colors(classes: int) -> NDArray[np.float64]:
    """(classes, 3): as different as they can be."""
    from matplotlib import colormaps

    table = colormaps["tab10" if classes <= 10 else "tab20" if classes <= 20 else "hsv"]
    return np.asarray(table(np.arange(classes) if classes <= 20 else np.arange(classes) / classes))[:, :3]


def _boundaries(
    axes: "Axes", shares: NDArray[np.float64], across: NDArray[np.float64], up: NDArray[np.float64]
) -> None:
    """A line where a class and the likeliest other one are equally likely; one line does for two classes."""
    for number in range(1 if shares.shape[-1] == 2 else 0, shares.shape[-1]):
        lead = shares[..., number] - np.delete(shares, number, axis=-1).max(-1)
        if lead.min() < 0 < lead.max():
            axes.contour(across, up, lead, levels=[0], colors="black", linewidths=1)


def _color_bar(figure: "Figure", axes: "Axes", spec: DataSpec) -> None:
    """What the shades stand for, with two classes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("classes", [tuple(c) for c in 0.5 + 0.5 * _colors(2)])
    name = spec.class_names[1] if spec.class_names else "1"
    figure.colorbar(ScalarMappable(cmap=shades), ax=axes, label=f"probability of {canvas.plain(name)}")
