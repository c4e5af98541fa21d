"""Figures without pyplot, which keeps every figure alive and looks for a screen."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlrun.core.garbage import pause_collection
from dlrun.core.terminal import escape_line
from dlrun.runs.reports.plots import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ratio of the largest to the smallest value from which a linear axis hides the small ones.
_WIDE_RANGE = 30


def load() -> None:
    """Import what figures need, ahead of the first one."""
    with pause_collection():
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


def create_figure(width: float = 6.4, height: float = 4.8, dpi: int = 110) -> "Figure":
    """Create an empty figure; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def create_axes(width: float = 6.4, height: float = 4.8) -> tuple["Figure", "Axes"]:
    """Create a figure with one pair of axes."""
    figure = create_figure(width, height)
    return figure, figure.add_subplot()


def render_pixels(figure: "Figure") -> NDArray[np.uint8]:
    """Render a figure to pixels (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # Last of all, when every text of the figure is there.
    fonts.choose_fonts(figure)
    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # `fonts.describe_missing_letters` reports these in one sentence.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(image: NDArray[np.uint8], path: Path) -> None:
    """Write pixels (H, W, 3) as PNG; `Figure.savefig` would draw the figure a second time."""
    from PIL import Image

    Image.fromarray(image).save(path)


def escape_label(text: object) -> str:
    """Escape a user's text (class names, labels): matplotlib reads text between dollar signs as a formula."""
    return escape_line(str(text)).replace("$", r"\$")


def escape_lines(text: str) -> str:
    """Escape a user's text of several lines."""
    return "\n".join(escape_label(line) for line in text.split("\n"))


def use_log_scale_if_wide(axes: "Axes", values: ArrayLike) -> None:
    """Use a logarithmic y axis if all values are positive and differ by more than a factor of 30."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size and numbers.min() > 0 and numbers.max() > _WIDE_RANGE * numbers.min():
        axes.set_yscale("log")
