"""The sheet that pictures are drawn on: no pyplot, which keeps every figure alive and looks for a screen."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrun.core.terminal import escape_line
from dlrun.runs.reports.plots import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE_RANGE = 30  # largest over smallest value from which a linear axis would hide the small ones


def sheet(width: float = 6.4, height: float = 4.8, dpi: int = 110) -> "Figure":
    """An empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def single(width: float = 6.4, height: float = 4.8) -> tuple["Figure", "Axes"]:
    """A figure with one pair of axes."""
    figure = sheet(width, height)
    return figure, figure.add_subplot()


def pixels(figure: "Figure") -> NDArray[np.uint8]:
    """The drawn figure (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fonts.choose(figure)
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # fonts.note says it in a sentence
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(image: NDArray[np.uint8], path: Path) -> None:
    """Write pixels (H, W, 3); `Figure.savefig` would draw everything a second time."""
    from PIL import Image

    Image.fromarray(image).save(path)


def plain(text: object) -> str:
    """Text of the user's (class names, labels) as it stands: between dollar signs it would be read as a formula."""
    return escape_line(str(text)).replace("$", r"\$")


def plain_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(plain(line) for line in text.split("\n"))


def log_where_wide(axes: "Axes", values: ArrayLike) -> None:
    """A logarithmic y axis when positive values differ by more than a factor of 30."""
    shown = np.asarray(values, dtype=float)
    shown = shown[np.isfinite(shown)]
    if shown.size and shown.min() > 0 and shown.max() > _WIDE_RANGE * shown.min():
        axes.set_yscale("log")
