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

# Three lines of eight.
MOST_TILES = 24
# Inches between two images, and of a line of words.
_GAP = 0.12
_LINE = 0.155


def draw_image_grid(images: Tensor, targets: Tensor, spec: DataSpec) -> "Figure":
    """Draw the first images of a split (N, C, H, W) with their classes or labels, normalization undone."""
    titles = []
    for target in targets[:MOST_TILES].tolist():
        if spec.task == "multilabel":
            names = spec.class_names or [str(number) for number in range(len(target))]
            titles.append(" ".join(name for name, holds in zip(names, target, strict=True) if holds))
            continue
        is_named = spec.class_names and isinstance(target, int)
        titles.append(spec.class_names[target] if is_named else str(target))
    return draw_tiles(convert_to_pixels(images[:MOST_TILES], spec), titles)


def convert_to_pixels(images: Tensor, spec: DataSpec) -> NDArray[np.float32]:
    """Convert images (N, C, H, W) as the model takes them to pixels (N, H, W, C) in 0..1."""
    images = images.float().cpu()
    if spec.mean:
        std = torch.tensor(spec.std).view(1, -1, 1, 1)
        mean = torch.tensor(spec.mean).view(1, -1, 1, 1)
        images = images * std + mean
    pixels: NDArray[np.float32] = images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pixels


def draw_tiles(
    pixels: NDArray[np.float32], titles: Sequence[str], width: float = 1.1, heading: str = "", columns: int = 8
) -> "Figure":
    """Draw images (N, H, W, C), `columns` in a line and `width` inches each, with a title above each.

    All titles have the same number of lines. All images lie on one pair of axes, measured in inches: a pair for
    each would take ten times as long to draw.
    """
    columns = min(columns, len(pixels))
    lines = -(-len(pixels) // columns)

    # Sizes in inches, from the top left corner.
    image_width = width - _GAP
    image_height = image_width * pixels.shape[1] / pixels.shape[2]
    title_height = _LINE * (1 + titles[0].count("\n"))
    top = _LINE * 1.4 * (1 + heading.count("\n")) if heading else 0.05
    right = columns * width
    bottom = lines * (image_height + title_height + _GAP) + top

    figure = canvas.create_figure(right, bottom)
    # Everything has its place in inches already.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, (image, title) in enumerate(zip(pixels, titles, strict=True)):
        x = (number % columns) * width + _GAP / 2
        y = (number // columns) * (image_height + title_height + _GAP) + title_height + top
        picture = image if image.shape[-1] in (3, 4) else image[..., 0]
        extent = (x, x + image_width, y + image_height, y)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent)
        axes.text(x + image_width / 2, y - 0.03, canvas.escape_lines(title), fontsize=8, ha="center", va="bottom")

    axes.set(xlim=(0, right), ylim=(bottom, 0))
    figure.suptitle(canvas.escape_lines(heading), fontsize=10, y=1 - 0.05 / bottom)
    return figure
