"""Images side by side, each with a few words above it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_TILES = 24
_GAP, _LINE = 0.12, 0.155  # inches between two images, and of a line of words


def image_grid(images: Tensor, targets: Tensor, spec: DataSpec) -> "Figure":
    """The first images of a split (N, C, H, W) with their classes, normalization undone."""
    named = targets[:MOST_TILES].tolist()
    titles = [spec.class_names[t] if spec.class_names and isinstance(t, int) else str(t) for t in named]
    return tiles(shown_pixels(images[:MOST_TILES], spec), titles)


def shown_pixels(images: Tensor, spec: DataSpec) -> NDArray[np.float32]:
    """(N, C, H, W) as the model takes it -> (N, H, W, C) in 0..1."""
    images = images.float().cpu()
    if spec.mean:
        shape = (1, -1, 1, 1)
        images = images * torch.tensor(spec.std).view(shape) + torch.tensor(spec.mean).view(shape)
    shown: NDArray[np.float32] = images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return shown


def tiles(pixels: NDArray[np.float32], titles: Sequence[str], width: float = 1.1, heading: str = "") -> "Figure":
    """Images (N, H, W, C), eight in a line and `width` inches each, with a title each of equally many lines.

    All lie on one pair of axes that is measured in inches: a pair for each would take ten times as long to draw.
    """
    columns = min(8, len(pixels))
    lines = -(-len(pixels) // columns)
    wide = width - _GAP
    tall = wide * pixels.shape[1] / pixels.shape[2]
    words = _LINE * (1 + titles[0].count("\n"))
    top = _LINE * 1.4 * (1 + heading.count("\n")) if heading else 0.05
    right, bottom = columns * width, lines * (tall + words + _GAP) + top
    figure = canvas.sheet(right, bottom)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (image, title) in enumerate(zip(pixels, titles, strict=True)):
        x = (number % columns) * width + _GAP / 2
        y = (number // columns) * (tall + words + _GAP) + words + top
        shown = image if image.shape[-1] in (3, 4) else image[..., 0]
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(x, x + wide, y + tall, y))
        axes.text(x + wide / 2, y - 0.03, canvas.plain_lines(title), fontsize=8, ha="center", va="bottom")
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    figure.suptitle(canvas.plain_lines(heading), fontsize=10, y=1 - 0.05 / bottom)
    return figure
