"""Images of a light figure on a dark ground, MNIST and its kind: how the figures lie in them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Grey = NDArray[np.float64]  # (H, W) in 0..1
DARK = 0.1  # the median of an image's border, at most
LIT = 0.2  # what belongs to the figure, at least
_SAMPLE = 500  # images of a training set: a thousandth is known well enough


@dataclass(frozen=True)
class Framing:
    """All lengths as shares of the image's side, of a training set.

    extent: the longer side of the figure's box (median); mass, box: how far the figure's centre of mass, and the
    middle of its box, lie from the image's middle (root mean square); stroke: how thick a line is (median).
    """

    extent: float
    mass: float
    box: float
    stroke: float


def framing(images: Tensor) -> tuple[float, ...]:
    """The numbers of a Framing for images float (N, C, H, W) in 0..1; empty where they are of another kind.

    They are of this kind when they are square and grey, and 9 of 10 have a dark border and something light within.
    """
    shown = images[torch.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).long()].double()
    if shown.shape[2] != shown.shape[3] or shown.shape[2] < 4 or not bool((shown == shown[:, :1]).all()):
        return ()
    found = [measured(image) for image in shown[:, 0].numpy() if is_light_on_dark(image)]
    if len(found) < 0.9 * len(shown):
        return ()
    extent, mass, box, stroke = (np.array(column) for column in zip(*found, strict=True))
    middle = tuple(float(np.sqrt((offset**2).mean())) for offset in (mass, box))
    return (float(np.median(extent)), *middle, float(np.median(stroke)))


def is_light_on_dark(image: Grey) -> bool:
    """Whether the border is dark and something within is light."""
    return bool(np.median(border(image)) <= DARK and image.max() >= 0.5)


def border(image: Grey) -> Grey:
    """The outermost pixels (n,)."""
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def measured(image: Grey) -> tuple[float, tuple[float, float], tuple[float, float], float]:
    """Of one light figure on dark ground: extent, offsets (y, x) of its mass and its box, stroke; see Framing."""
    side = max(image.shape)
    (top, bottom), (left, right) = bounds(image >= LIT)
    middle = (np.array(image.shape) - 1) / 2
    mass = (centre_of_mass(image) - middle) / side
    box = (np.array([top + bottom - 1, left + right - 1]) / 2 - middle) / side
    extent = max(bottom - top, right - left) / side
    return extent, (mass[0], mass[1]), (box[0], box[1]), stroke(image) / side


def bounds(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns, first and one past the last, that hold what is true."""
    spans = []
    for axis in (1, 0):
        filled = np.flatnonzero(mask.any(axis=axis))
        spans.append((int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1]


def centre_of_mass(image: Grey) -> NDArray[np.float64]:
    """(y, x), weighted by brightness."""
    weight = image.sum()
    return np.array([(image.sum(axis=1 - axis) * np.arange(n)).sum() / weight for axis, n in enumerate(image.shape)])


def stroke(image: Grey) -> float:
    """How thick its lines are in pixels: a line of width w and length l has the area w l and an outline of 2 l.

    The outline is the total variation, so that grey edges count right at any size.
    """
    padded = np.pad(image, 1)
    outline = np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    return float(2 * image.sum() / outline) if outline else 0.0
