"""One image file at a time: checked, opened, and cut to a square."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


def check_picture(path: Path) -> None:
    """Raise DataError unless the file starts like an image; its pixels are not decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise _broken(path, error) from error


def read_picture(path: Path, image_size: int | tuple[int, int], grayscale: bool) -> Tensor:
    """uint8 (1 or 3, height, width): resized until both sides are filled, then the centre.

    image_size: one number for a square, or (height, width). Else as `open_picture`.
    """
    return fit_image(open_picture(path, lambda _: "white"), image_size, grayscale)


def fit_image(image: "Image", image_size: int | tuple[int, int], grayscale: bool) -> Tensor:
    """The same of an image that is open."""
    from PIL import Image, ImageOps

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = image.convert("L" if grayscale else "RGB")
    pixels = torch.from_numpy(np.array(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)))
    return pixels.unsqueeze(0) if grayscale else pixels.permute(2, 0, 1).contiguous()


def open_picture(path: Path, ground: "Callable[[Image], str]") -> "Image":
    """The image with 8 bits a channel and nothing transparent, upright as its EXIF data says.

    16-bit grey is scaled to 8 bits; of an animation it is the first frame. ground: the colour to lay behind a
    transparent image, which it is given as RGBA. Raises DataError for a file that cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            return _flat(ImageOps.exif_transpose(opened), ground)
    except DataError:
        raise
    except Exception as error:  # as above
        raise _broken(path, error) from error


def _flat(image: "Image", ground: "Callable[[Image], str]") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.float64) / 257  # 65535 = 257 * 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground(seen)), seen)
    image.load()
    return image


def _broken(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split()) or type(error).__name__
    return unreadable(path, error) or DataError(
        f"{path} cannot be read as an image ({why[:160]}): replace it or remove it"
    )
