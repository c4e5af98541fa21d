"""One image file at a time: checked, opened, and cut to a square."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.errors import DataError

if TYPE_CHECKING:
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


def read_picture(path: Path, image_size: int, grayscale: bool) -> Tensor:
    """uint8 (1 or 3, image_size, image_size): the shorter side resized to image_size, then the centre.

    Turned upright as its EXIF data says, transparency on white, 16-bit grey scaled to 8 bits, the first frame
    of an animation. Raises DataError for a file that cannot be decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            image = _flat(upright).convert("L" if grayscale else "RGB")
        square = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    except DataError:
        raise
    except Exception as error:  # as above
        raise _broken(path, error) from error
    pixels = torch.from_numpy(np.array(square))
    return pixels.unsqueeze(0) if grayscale else pixels.permute(2, 0, 1).contiguous()


def _flat(image: "Image") -> "Image":
    """The image with 8 bits a channel and nothing transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        values = np.asarray(image).astype(np.float64) / 257  # 65535 = 257 * 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image


def _broken(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{path} cannot be read as an image ({why[:160]}): replace it or remove it")
