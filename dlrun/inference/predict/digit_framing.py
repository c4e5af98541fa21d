"""A picture of one figure, framed as the training images frame theirs: light on dark, scaled and centred."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError
from dlrun.data.files import framing
from dlrun.data.files.framing import Framing, Grey

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of a side: a photograph shows no more of a figure.
_MAX_SIDE = 400
# Share of the range of pixel values by which a figure has to stand out.
_MIN_CONTRAST = 0.1
# Share of the figure's brightness below which a pixel is ground.
_GROUND_LEVEL = 0.2
# Share of the largest part's area below which a part is a speck, and not of the figure.
_SPECK_SIZE = 0.05
# Share of the training's stroke below which lines are thickened ...
_THIN_STROKE = 0.6
# ... to this share.
_TARGET_STROKE = 1.0


def frame_digit(image: "Image", side: int, frame: Framing) -> tuple[Grey, str]:
    """Return pixels (side, side) in 0..1 with the figure framed as in training, and a description of the changes.

    image: grey or colour, 8 bits per channel. DataError if nothing stands out from the ground.
    """
    light, is_inverted = _separate_figure(_load_grey(image))
    figure = light * _find_largest_parts(light >= framing.LIT)
    (top, bottom), (left, right) = framing.find_bounds(figure >= framing.LIT)
    figure = figure[top:bottom, left:right]
    figure, is_thickened = _thicken_lines(figure, frame.stroke * max(figure.shape) / frame.extent)

    scale = frame.extent * side / max(figure.shape)
    height = max(round(figure.shape[0] * scale), 1)
    width = max(round(figure.shape[1] * scale), 1)
    small = _resize(figure, height, width)
    # Bilinear scaling dims thin lines; the brightest pixel becomes 1 again.
    pixels = _place_in_square(small / max(small.max(), 1e-6), side, frame.is_centred_by_mass)

    # Sizes in the description are in pixels of the original picture.
    factor = image.width / light.shape[1]
    figure_width = round((right - left) * factor)
    figure_height = round((bottom - top) * factor)
    changes = []
    if is_inverted:
        changes.append("inverted")
    if is_thickened:
        changes.append("lines thickened")
    changes.append(
        f"figure {figure_width}×{figure_height} of {image.width}×{image.height} scaled to {width}×{height} and centred"
    )
    return pixels, ", ".join(changes)


def _load_grey(image: "Image") -> Grey:
    """Return grey pixels in 0..1, at most _MAX_SIDE wide and high."""
    from PIL import ImageFilter

    image = image.convert("L")
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    # The median removes specks of a pixel; in a small image it would remove lines too.
    if min(image.size) >= _MAX_SIDE / 4:
        image = image.filter(ImageFilter.MedianFilter(3))
    return np.asarray(image, dtype=np.float64) / 255


def _separate_figure(grey: Grey) -> tuple[Grey, bool]:
    """Return the figure on a scale from 0 (ground) to 1, and whether it was darker than the ground."""
    ground, grain = _fit_ground(grey)
    difference = grey - ground
    # More energy below the ground than above it: a dark figure.
    is_inverted = bool((difference.clip(max=0) ** 2).sum() > (difference.clip(min=0) ** 2).sum())
    light = -difference if is_inverted else difference
    if light.max() < max(_MIN_CONTRAST, 4 * grain):
        raise DataError("nothing stands out from the ground")

    # Three standard deviations of grain still count as ground.
    brightness = np.median(light[light >= light.max() / 2])
    floor = max(_GROUND_LEVEL, 3 * grain / brightness)
    return np.clip((light / brightness - floor) / (1 - floor), 0, 1), is_inverted


def _fit_ground(grey: Grey) -> tuple[Grey, float]:
    """Return the brightness of the ground at each pixel, and the standard deviation of its grain.

    A plane is fitted to the border, as light falls unevenly on paper.
    """
    rows, columns = np.indices(grey.shape, dtype=np.float64)
    terms = np.stack([np.ones_like(grey), rows / grey.shape[0], columns / grey.shape[1]], axis=-1)
    points = np.stack([framing.get_border(terms[..., i]) for i in range(3)], axis=1)
    values = framing.get_border(grey)

    # A figure that touches the border is no ground: fit, drop the outliers, fit again.
    is_ground = np.abs(values - np.median(values)) <= 0.25
    for _ in range(2):
        plane, *_rest = np.linalg.lstsq(points[is_ground], values[is_ground], rcond=None)
        error = np.abs(points @ plane - values)
        is_ground = error <= max(2.5 * float(np.median(error)), 0.02)

    ground: Grey = terms @ plane
    return ground, float(error[is_ground].std())


def _find_largest_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the connected parts without specks, with a margin of a pixel for the grey edge around them."""
    from scipy import ndimage  # type: ignore[import-untyped]

    neighbours = np.ones((3, 3))
    labels, count = ndimage.label(mask, neighbours)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    large_labels = 1 + np.flatnonzero(sizes >= _SPECK_SIZE * sizes.max())
    parts: NDArray[np.bool_] = ndimage.binary_dilation(np.isin(labels, large_labels), neighbours)
    return parts


def _thicken_lines(figure: Grey, stroke: float) -> tuple[Grey, bool]:
    """Thicken lines to `stroke` pixels if they are much thinner, like those of a pen on a large sheet."""
    from scipy import ndimage

    current_stroke = framing.measure_stroke(figure)
    if current_stroke >= _THIN_STROKE * stroke:
        return figure, False

    radius = max(round((_TARGET_STROKE * stroke - current_stroke) / 2), 1)
    y, x = np.indices((2 * radius + 1, 2 * radius + 1)) - radius
    # A disc thickens lines equally in all directions.
    disc = y**2 + x**2 <= radius**2 + radius
    thick_figure: Grey = ndimage.grey_dilation(np.pad(figure, radius), footprint=disc)
    return thick_figure, True


def _resize(image: Grey, height: int, width: int) -> Grey:
    from PIL import Image

    small = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64).clip(0, 1)


def _place_in_square(figure: Grey, side: int, by_mass: bool) -> Grey:
    """Place the figure on a dark square, centred by mass or by its box, and moved inside where it would stick out."""
    centre = framing.find_centre_of_mass(figure) if by_mass else (np.array(figure.shape) - 1) / 2
    height, width = figure.shape
    top = min(max(round((side - 1) / 2 - centre[0]), 0), side - height)
    left = min(max(round((side - 1) / 2 - centre[1]), 0), side - width)

    square = np.zeros((side, side))
    square[top : top + height, left : left + width] = figure
    return square
