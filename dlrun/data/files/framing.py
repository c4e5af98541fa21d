"""Images of a light figure on a dark ground, MNIST and its kind: how the figures lie in them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Grey = NDArray[np.float64]  # (H, W) in 0..1
DARK = 0.1  # the median of an image's border, at most
LIT = 0.2  # what belongs to the figure, at least
_SAMPLE = 200  # images of a training set: it takes 0.1 ms each


@dataclass(frozen=True)
class Framing:
    """Of a training set; all lengths are shares of the image's side.

    smallest, extent, largest: the longer side of the figure's box, of which 1 in 100 is smaller, its median, and of
    which 1 in 100 is larger; mass, box: how far the figure's centre of mass, and the middle of its box, lie at most
    from the image's middle, along either side, in 99 of 100 images; stroke: how thick a line is (median).
    """

    smallest: float
    extent: float
    largest: float
    mass: float
    box: float
    stroke: float

    @property
    def is_centred_by_mass(self) -> bool:
        """Whether figures were centred by their mass, as MNIST's were, and not by their box."""
        return self.mass <= self.box

    def matches(self, image: Grey) -> bool:
        """Whether a square image lies as those of the training did."""
        if not is_light_on_dark(image):
            return False
        extent, mass, box, _ = measure_figure(image)
        offset, most = (mass, self.mass) if self.is_centred_by_mass else (box, self.box)
        pixel = 1 / len(image)
        return self.smallest - pixel <= extent <= self.largest + pixel and max(map(abs, offset)) <= most + pixel / 2


def measure_framing(images: Tensor) -> tuple[float, ...]:
    """The numbers of a Framing for images float (N, C, H, W) in 0..1; empty where they are of another kind.

    They are of this kind when they are square and grey, and 9 of 10 have a dark border and something light within.
    """
    shown = images[torch.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).long()].double()
    if shown.shape[2] != shown.shape[3] or shown.shape[2] < 4 or not bool((shown == shown[:, :1]).all()):
        return ()
    found = [measure_figure(image) for image in shown[:, 0].numpy() if is_light_on_dark(image)]
    if len(found) < 0.9 * len(shown):
        return ()
    extents, mass, box, strokes = (np.array(column) for column in zip(*found, strict=True))
    offsets = [float(np.quantile(np.abs(offset).max(axis=1), 0.99)) for offset in (mass, box)]
    return (*np.quantile(extents, [0.01, 0.5, 0.99]).tolist(), *offsets, float(np.median(strokes)))


def is_light_on_dark(image: Grey) -> bool:
    """Whether the border is dark and something within is light."""
    return bool(np.median(get_border(image)) <= DARK and image.max() >= 0.5)


def get_border(image: Grey) -> Grey:
    """The outermost pixels (n,)."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def measure_figure(image: Grey) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """Of one light figure on dark ground: extent, offsets (y, x) of its mass and its box, stroke; see Framing."""
    side = max(image.shape)
    (top, bottom), (left, right) = find_bounds(image >= LIT)
    middle = (np.array(image.shape) - 1) / 2
    mass = (find_centre_of_mass(image) - middle) / side
    box = (np.array([top + bottom - 1, left + right - 1]) / 2 - middle) / side
    extent = max(bottom - top, right - left) / side
    return extent, (mass[0], mass[1]), (box[0], box[1]), measure_stroke(image) / side


def find_bounds(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns, first and one past the last, that hold what is true."""
    spans = []
    for axis in (1, 0):
        filled = np.flatnonzero(mask.any(axis=axis))
        spans.append((int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1]


def find_centre_of_mass(image: Grey) -> NDArray[np.float64]:
    """(y, x), weighted by brightness."""
    weight = image.sum()
    return np.array([(image.sum(axis=1 - axis) * np.arange(n)).sum() / weight for axis, n in enumerate(image.shape)])


def measure_stroke(image: Grey) -> float:
    """How thick its lines are in pixels: a line of width w and length l has the area w l and an outline of 2 l.

    The outline is the total variation, so that grey edges count right at any size.
    """
    height, width = image.shape
    padded = np.zeros((height + 2, width + 2))
    padded[1:-1, 1:-1] = image  # np.pad takes longer than all the rest
    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    return float(2 * image.sum() / outline) if outline else 0.0
