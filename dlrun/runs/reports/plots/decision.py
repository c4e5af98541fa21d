"""What a classifier makes of one or two features: the class regions of the plane, or the probability over one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Margin around the data, in ranges of the data.
_MARGIN = 0.12
# Grid points a side of the decision regions.
_SIDE = 160
# More classes than that are not named in a legend.
_MOST_IN_LEGEND = 12

# Margin of the probability curve, wide enough to see the S level off.
_CURVE_MARGIN = 0.5
_CURVE_POINTS = 1001


def draw_decision_regions(
    probabilities: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: DataSpec, split: str
) -> "Figure":
    """Draw the plane in the colours of the classes, mixed by their probabilities, under the rows.

    probabilities: inputs (N, 2) -> (N, classes), or (N,) of class 1 for two classes. x: rows (N, 2);
    y: class numbers (N,). RequestError unless the data has two features.
    """
    if spec.kind != "vector" or spec.input_size != 2:
        raise RequestError(
            f"a picture of the decision boundary needs 2 features, and this data has {spec.input_size}; "
            "take data with two, such as data=blobs"
        )

    figure, axes = canvas.create_axes(7.0, 5.2)
    draw_regions(axes, probabilities, x, y, spec)
    predictions = _compute_shares(probabilities, x).argmax(1)
    right = 100 * float((predictions == y.cpu().numpy()).mean())
    axes.set_title(f"Decision regions ({split}: {right:.2f} % right)")
    if max(spec.output_size, 2) == 2:
        _draw_color_bar(figure, axes, spec)
    return figure


def draw_regions(
    axes: "Axes",
    probabilities: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    spec: DataSpec,
    side: int = _SIDE,
) -> None:
    """Draw decision regions on existing axes, from a grid of side × side points."""
    across = spread_evenly(x[:, 0], side, _MARGIN)
    up = spread_evenly(x[:, 1], side, _MARGIN)
    # (side * side, 2), row by row from below.
    grid = torch.cartesian_prod(up, across).flip(1)
    shares = _compute_shares(probabilities, grid).reshape(side, side, -1)

    corners = denormalize(grid[[0, -1]], spec)
    (left, bottom), (right, top) = corners
    colors = _choose_colors(shares.shape[-1])
    shades = 0.5 + 0.5 * shares @ colors
    axes.imshow(
        # Rounding may push shares beyond a sum of 1.
        shades.clip(0, 1),
        origin="lower",
        extent=(left, right, bottom, top),
        aspect="auto",
        interpolation="bilinear",
    )
    _draw_boundaries(axes, shares, np.linspace(left, right, side), np.linspace(bottom, top, side))
    _draw_rows(axes, denormalize(x, spec), y.cpu().numpy(), spec, colors)

    axes.set(
        xlabel=canvas.escape_label(get_feature_label(spec, 0)),
        ylabel=canvas.escape_label(get_feature_label(spec, 1)),
    )
    if len(colors) <= _MOST_IN_LEGEND:
        axes.legend(title="true class", loc="upper right", framealpha=0.9)


def _draw_rows(
    axes: "Axes",
    points: NDArray[np.float64],
    classes: NDArray[np.int64],
    spec: DataSpec,
    colors: NDArray[np.float64],
) -> None:
    names = spec.class_names or tuple(str(i) for i in range(len(colors)))
    size = 5 if len(points) <= 500 else 3
    for number in np.unique(classes):
        members = points[classes == number]
        label = canvas.escape_label(names[number])
        axes.plot(members[:, 0], members[:, 1], "o", ms=size, mec="white", mew=0.4, c=colors[number], label=label)


def _compute_shares(probabilities: Callable[[Tensor], Tensor], x: Tensor) -> NDArray[np.float64]:
    """Return probabilities (N, classes), with two columns for a binary model, and 0 for NaN."""
    values = probabilities(x).detach().cpu().double()
    if values.dim() == 1:
        values = torch.stack([1 - values, values], dim=1)
    shares: NDArray[np.float64] = values.nan_to_num(0).numpy()
    return shares


def _choose_colors(classes: int) -> NDArray[np.float64]:
    """Return (classes, 3) colours that differ as much as possible."""
    from matplotlib import colormaps

    if classes <= 20:
        table = colormaps["tab10" if classes <= 10 else "tab20"]
        return np.asarray(table(np.arange(classes)))[:, :3]
    return np.asarray(colormaps["hsv"](np.arange(classes) / classes))[:, :3]


def _draw_boundaries(
    axes: "Axes", shares: NDArray[np.float64], across: NDArray[np.float64], up: NDArray[np.float64]
) -> None:
    """Draw a line where a class and the likeliest other one are equally likely."""
    # One line does for two classes.
    first = 1 if shares.shape[-1] == 2 else 0
    for number in range(first, shares.shape[-1]):
        lead = shares[..., number] - np.delete(shares, number, axis=-1).max(-1)
        # matplotlib warns of a contour that does not occur.
        if lead.min() < 0 < lead.max():
            axes.contour(across, up, lead, levels=[0], colors="black", linewidths=1)


def _draw_color_bar(figure: "Figure", axes: "Axes", spec: DataSpec) -> None:
    """Explain the shades of two classes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    ends = [tuple(color) for color in 0.5 + 0.5 * _choose_colors(2)]
    shades = LinearSegmentedColormap.from_list("classes", ends)
    name = spec.class_names[1] if spec.class_names else "1"
    figure.colorbar(ScalarMappable(cmap=shades), ax=axes, label=f"probability of {canvas.escape_label(name)}")


def draw_probability_curve(
    probability: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: DataSpec, split: str
) -> "Figure":
    """Draw P(class 1) over the one feature, the rows x (N, 1) at y (N,) of 0 or 1, and the 0.5 crossings.

    probability: inputs (N, 1) -> (N,).
    """
    figure, axes = canvas.create_axes()
    grid = spread_evenly(x, _CURVE_POINTS, _CURVE_MARGIN).unsqueeze(1)
    places = denormalize(grid, spec)[:, 0]
    curve = probability(grid).double().cpu().numpy()

    name = canvas.escape_label(spec.class_names[1] if spec.class_names else "1")
    axes.plot(places, curve, "-", color="tab:red", linewidth=2, label=f"P({name})")
    rows = denormalize(x, spec)[:, 0]
    axes.plot(rows, y.cpu(), "o", ms=7, mew=0, alpha=0.6, color="tab:blue", label=f"{split} rows")

    axes.axhline(0.5, color="gray", linewidth=0.8)
    for value in find_crossings(places, curve):
        axes.axvline(value, color="gray", linestyle="--", label=f"even odds at {value:.4g}")

    names = tuple(canvas.escape_label(class_name) for class_name in spec.class_names) or ("0", "1")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_yticks(ticks, [f"0 ({names[0]})", "0.25", "0.5", "0.75", f"1 ({names[1]})"])
    feature = canvas.escape_label(get_feature_label(spec))
    axes.set(
        xlabel=feature,
        ylabel=f"probability of {name}",
        ylim=(-0.05, 1.05),
        title=f"Probability over {feature}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def find_crossings(x: NDArray[np.float64], curve: NDArray[np.float64]) -> list[float]:
    """Return where the curve passes 0.5, by linear interpolation between its points."""
    # By sign changes: the curve of a deep net may cross several times.
    is_over = curve > 0.5
    before = np.flatnonzero(is_over[:-1] != is_over[1:])
    share = (0.5 - curve[before]) / (curve[before + 1] - curve[before])
    crossings: list[float] = (x[before] + share * (x[before + 1] - x[before])).tolist()
    return crossings


def get_feature_label(spec: DataSpec, column: int = 0) -> str:
    """Return the feature's name, else x, or x1, x2, ... if there are several."""
    if spec.feature_names:
        return spec.feature_names[column]
    return "x" if spec.input_size == 1 else f"x{column + 1}"


def denormalize(x: Tensor, spec: DataSpec) -> NDArray[np.float64]:
    """Return rows (N, features) in the units they were measured in."""
    flat = x.detach().flatten(1).double().cpu()
    # Inputs are normalized for the model; axes show the units of the file.
    if spec.mean:
        std = torch.tensor(spec.std, dtype=torch.float64)
        mean = torch.tensor(spec.mean, dtype=torch.float64)
        flat = flat * std + mean
    return flat.numpy()


def spread_evenly(x: Tensor, points: int, margin: float = 0.0) -> Tensor:
    """Return evenly spaced values (points,) float64 over the range of x, wider by `margin` ranges at each end."""
    low = float(x.min())
    high = float(x.max())
    # A constant feature has no range that could be widened.
    extra = margin * (high - low) if high > low else 1.0
    return torch.linspace(low - extra, high + extra, points, dtype=torch.float64)
