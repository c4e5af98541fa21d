"""Images of a light figure on a dark ground, MNIST and its kind: how the figures lie in them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# (H, W) in 0..1.
Grey = NDArray[np.float64]

# Highest median of a dark border.
DARK = 0.1

# Lowest value of a pixel of the figure.
LIT = 0.2

# Training images that are measured, at 0.1 ms each.
_SAMPLE = 200


@dataclass(frozen=True)
class Framing:
    """How figures lie in the images of a training set; all lengths are shares of the image's side.

    The order of the fields is that of DataSpec.framing.
    """

    # Longer side of the figure's box: 1st percentile, median and 99th percentile.
    smallest: float
    extent: float
    largest: float

    # Distance from the image's middle, along either side, of the figure's centre of mass and of the middle of its
    # box: 99th percentile.
    mass: float
    box: float

    # Width of a line, median.
    stroke: float

    @property
    def is_centred_by_mass(self) -> bool:
        """Whether figures were centred by their mass, as MNIST's were, and not by their box."""
        return self.mass <= self.box

    def matches(self, image: Grey) -> bool:
        """Whether the figure of a square image lies as in the training images."""
        if not is_light_on_dark(image):
            return False

        extent, mass, box, _ = measure_figure(image)
        offset = mass if self.is_centred_by_mass else box
        largest_offset = self.mass if self.is_centred_by_mass else self.box

        # A pixel more or less is rounding.
        pixel = 1 / len(image)
        has_size = self.smallest - pixel <= extent <= self.largest + pixel
        return has_size and max(map(abs, offset)) <= largest_offset + pixel / 2


def measure_framing(images: Tensor) -> tuple[float, ...]:
    """The numbers of a Framing for images float (N, C, H, W) in 0..1; empty if they are of another kind.

    They are of this kind if they are square and grey, and 9 of 10 have a dark border and something light within.
    """
    # Spread over the set, as images may be sorted by class.
    sample = images[torch.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).long()].double()
    if sample.shape[2] != sample.shape[3] or sample.shape[2] < 4 or not bool((sample == sample[:, :1]).all()):
        return ()

    # Photographs and dark figures on light ground are told by most of their images.
    figures = [measure_figure(image) for image in sample[:, 0].numpy() if is_light_on_dark(image)]
    if len(figures) < 0.9 * len(sample):
        return ()

    extents, mass, box, strokes = (np.array(column) for column in zip(*figures, strict=True))
    offsets = [float(np.quantile(np.abs(offset).max(axis=1), 0.99)) for offset in (mass, box)]
    return (*np.quantile(extents, [0.01, 0.5, 0.99]).tolist(), *offsets, float(np.median(strokes)))


def is_light_on_dark(image: Grey) -> bool:
    """Whether the border is dark and something within is light."""
    return bool(np.median(get_border(image)) <= DARK and image.max() >= 0.5)


def get_border(image: Grey) -> Grey:
    """The outermost pixels (n,)."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def measure_figure(image: Grey) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """Extent, offsets (y, x) of the mass and of the box, and stroke of a light figure on dark ground; see Framing."""
    side = max(image.shape)
    (top, bottom), (left, right) = find_bounds(image >= LIT)
    middle = (np.array(image.shape) - 1) / 2
    mass = (find_centre_of_mass(image) - middle) / side
    box = (np.array([top + bottom - 1, left + right - 1]) / 2 - middle) / side
    extent = max(bottom - top, right - left) / side
    return extent, (mass[0], mass[1]), (box[0], box[1]), measure_stroke(image) / side


def find_bounds(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns that hold a True, each as the first and one past the last."""
    # Axis 1 is reduced to find rows, axis 0 to find columns.
    spans = []
    for axis in (1, 0):
        filled = np.flatnonzero(mask.any(axis=axis))
        spans.append((int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1]


def find_centre_of_mass(image: Grey) -> NDArray[np.float64]:
    """(y, x), weighted by brightness."""
    weight = image.sum()
    centre = []
    for axis, length in enumerate(image.shape):
        profile = image.sum(axis=1 - axis)
        centre.append((profile * np.arange(length)).sum() / weight)
    return np.array(centre)


def measure_stroke(image: Grey) -> float:
    """Width of the lines in pixels: a line of width w and length l has the area w l and an outline of 2 l.

    The outline is the total variation, so that grey edges count right at any size.
    """
    # np.pad takes longer than all the rest.
    height, width = image.shape
    padded = np.zeros((height + 2, width + 2))
    padded[1:-1, 1:-1] = image

    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    return float(2 * image.sum() / outline) if outline else 0.0
