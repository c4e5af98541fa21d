"""Images above what an autoencoder makes of them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots.samples import convert_to_pixels, draw_tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pairs in a line, and in the picture.
_COLUMNS = 8
_MOST_PAIRS = 16


def draw_reconstructions(inputs: Tensor, values: Tensor, spec: DataSpec, split: str) -> "Figure":
    """Draw the first images of a split, and below each its reconstruction with the mean squared error.

    inputs and values: (N, input values), normalized as the model takes them.
    """
    count = min(len(inputs), _MOST_PAIRS)
    # Whole lines only, so that each image stands above its own reconstruction.
    columns = min(count, _COLUMNS)
    count -= count % columns

    errors = (inputs[:count] - values[:count]).double().square().mean(1)
    tiles = []
    titles = []
    for start in range(0, count, columns):
        rows = slice(start, start + columns)
        tiles += [inputs[rows], values[rows]]
        titles += [f"row {number}" for number in range(start, start + columns)]
        titles += [f"mse {error:.3g}" for error in errors[rows].tolist()]

    images = torch.cat(tiles).reshape(-1, *spec.input_shape)
    heading = f"{split}: images, and below them what the model makes of them"
    return draw_tiles(convert_to_pixels(images, spec), titles, heading=heading, columns=columns)
