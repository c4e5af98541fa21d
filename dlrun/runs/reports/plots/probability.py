"""The probability of class 1 over the one feature there is."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas, features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEYOND = 0.5  # of the data's range, at each end: the S is seen to level off
_POINTS = 1001


def probability_curve(
    probability: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, spec: DataSpec, split: str
) -> "Figure":
    """P(class 1) as `probability` gives it ((N, 1) -> (N,)), the rows x (N, 1) at 0 or 1, and the 0.5 crossings."""
    figure, axes = canvas.single()
    even = features.even(x, _POINTS, _BEYOND).unsqueeze(1)
    place, curve = features.measured(even, spec)[:, 0], probability(even).double().cpu().numpy()
    name = canvas.plain(spec.class_names[1] if spec.class_names else "1")
    feature = canvas.plain(features.label(spec))
    axes.plot(place, curve, "-", color="tab:red", linewidth=2, label=f"P({name})")
    rows = features.measured(x, spec)[:, 0]
    axes.plot(rows, y.cpu(), "o", ms=7, mew=0, alpha=0.6, color="tab:blue", label=f"{split} rows")
    axes.axhline(0.5, color="gray", linewidth=0.8)
    for value in crossings(place, curve):
        axes.axvline(value, color="gray", linestyle="--", label=f"even odds at {value:.4g}")
    names = tuple(canvas.plain(n) for n in spec.class_names) or ("0", "1")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_yticks(ticks, [f"0 ({names[0]})", "0.25", "0.5", "0.75", f"1 ({names[1]})"])
    axes.set(xlabel=feature, ylabel=f"probability of {name}", ylim=(-0.05, 1.05), title=f"Probability over {feature}")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def crossings(x: NDArray[np.float64], curve: NDArray[np.float64]) -> list[float]:
    """Where the curve passes 0.5, by straight lines between its points."""
    over = curve > 0.5
    at = np.flatnonzero(over[:-1] != over[1:])
    share = (0.5 - curve[at]) / (curve[at + 1] - curve[at])
    found: list[float] = (x[at] + share * (x[at + 1] - x[at])).tolist()
    return found
