"""A picture of one figure, brought to how the figures of the training images lie: a light one on a dark ground."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError
from dlrun.data.files import framing
from dlrun.data.files.framing import Framing, Grey

if TYPE_CHECKING:
    from PIL.Image import Image

_LARGEST = 400  # pixels a side to look for the figure at: a photograph holds no more of it
_FAINTEST = 0.1  # contrast, of the range of the pixels
_GROUND = 0.2  # below that share of the figure's brightness it is ground
_SPECK = 0.05  # of the largest part: what is smaller does not belong to the figure
_THIN, _THICK = 0.6, 1.0  # of the training's stroke: lines thinner than that become so thick


def frame_digit(image: "Image", side: int, frame: Framing) -> tuple[Grey, str]:
    """Pixels (side, side) in 0..1 with the figure as the training's lie, and what was done, in words.

    image: grey or colour, 8 bits a channel. DataError where nothing stands out from its ground.
    """
    light, inverted = _lifted(_reduced(image))
    kept = light * _largest_parts(light >= framing.LIT)
    (top, bottom), (left, right) = framing.find_bounds(kept >= framing.LIT)
    cut = kept[top:bottom, left:right]
    cut, thickened = _thickened(cut, frame.stroke * max(cut.shape) / frame.extent)
    scale = frame.extent * side / max(cut.shape)
    height, width = (max(round(n * scale), 1) for n in cut.shape)
    small = _resized(cut, height, width)
    of = image.width / light.shape[1]  # in pixels of the picture as it was given
    said = f"figure {round((right - left) * of)}×{round((bottom - top) * of)} of {image.width}×{image.height}"
    done = ["inverted"] * inverted + ["lines thickened"] * thickened
    placed = _placed(small / max(small.max(), 1e-6), side, frame.is_centred_by_mass)
    return placed, ", ".join([*done, f"{said} scaled to {width}×{height} and centred"])


def _reduced(image: "Image") -> Grey:
    """Grey in 0..1, no larger than need be; specks of a pixel are wiped off what is large."""
    from PIL import ImageFilter

    image = image.convert("L")
    image.thumbnail((_LARGEST, _LARGEST))
    if min(image.size) >= _LARGEST / 4:
        image = image.filter(ImageFilter.MedianFilter(3))
    return np.asarray(image, dtype=np.float64) / 255


def _lifted(grey: Grey) -> tuple[Grey, bool]:
    """The figure from 0 (ground) to 1, and whether it was darker than the ground.

    The ground is a plane through the border, as light falls unevenly on paper; grain there counts as ground too.
    """
    ground, grain = _ground(grey)
    difference = grey - ground
    inverted = bool((difference.clip(max=0) ** 2).sum() > (difference.clip(min=0) ** 2).sum())
    light = -difference if inverted else difference
    if light.max() < max(_FAINTEST, 4 * grain):
        raise DataError("nothing stands out from the ground")
    bright = np.median(light[light >= light.max() / 2])
    floor = max(_GROUND, 3 * grain / bright)
    return np.clip((light / bright - floor) / (1 - floor), 0, 1), inverted


def _ground(grey: Grey) -> tuple[Grey, float]:
    """The brightness of the ground everywhere, and the standard deviation of its grain."""
    rows, columns = np.indices(grey.shape, dtype=np.float64)
    terms = np.stack([np.ones_like(grey), rows / grey.shape[0], columns / grey.shape[1]], axis=-1)
    points = np.stack([framing.get_border(terms[..., i]) for i in range(3)], axis=1)
    values = framing.get_border(grey)
    near = np.abs(values - np.median(values)) <= 0.25  # a figure that touches the border is no ground
    for _ in range(2):
        plane, *_rest = np.linalg.lstsq(points[near], values[near], rcond=None)
        error = np.abs(points @ plane - values)
        near = error <= max(2.5 * float(np.median(error)), 0.02)
    found: Grey = terms @ plane
    return found, float(error[near].std())


def _largest_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What hangs together and is no speck, and the grey pixels around it."""
    from scipy import ndimage  # type: ignore[import-untyped]

    around = np.ones((3, 3))
    labels, count = ndimage.label(mask, around)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    kept = np.isin(labels, 1 + np.flatnonzero(sizes >= _SPECK * sizes.max()))
    found: NDArray[np.bool_] = ndimage.binary_dilation(kept, around)
    return found


def _thickened(cut: Grey, wanted: float) -> tuple[Grey, bool]:
    """With lines `wanted` pixels thick where they are much thinner: a pen is, on a large sheet."""
    from scipy import ndimage

    has = framing.measure_stroke(cut)
    if has >= _THIN * wanted:
        return cut, False
    by = max(round((_THICK * wanted - has) / 2), 1)
    y, x = np.indices((2 * by + 1, 2 * by + 1)) - by
    found: Grey = ndimage.grey_dilation(np.pad(cut, by), footprint=y**2 + x**2 <= by**2 + by)
    return found, True


def _resized(image: Grey, height: int, width: int) -> Grey:
    from PIL import Image

    small = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64).clip(0, 1)


def _placed(small: Grey, side: int, by_mass: bool) -> Grey:
    """On a dark square with its centre of mass, or its middle, in the middle; moved back where it would stick out."""
    at = framing.find_centre_of_mass(small) if by_mass else (np.array(small.shape) - 1) / 2
    corner = [round((side - 1) / 2 - c) for c in at]
    top, left = (min(max(c, 0), side - n) for c, n in zip(corner, small.shape, strict=True))
    square = np.zeros((side, side))
    square[top : top + small.shape[0], left : left + small.shape[1]] = small
    return square
