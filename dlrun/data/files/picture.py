"""One image file at a time: checked, opened, and cut to a square."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, RequestError, explain_unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"
)  # fmt: skip

# Suffixes that not every installation reads, and what makes it read them.
_HEIF = (".heic", ".heif")
_AVIF = (".avif",)


@functools.cache
def list_suffixes() -> frozenset[str]:
    """Suffixes of image files that can be read here, in lower case."""
    from PIL import features

    suffixes = {*_SUFFIXES}
    if features.check("avif"):
        suffixes.update(_AVIF)
    if importlib.util.find_spec("pillow_heif"):
        suffixes.update(_HEIF)
    return frozenset(suffixes)


def suggest_decoder(suffix: str) -> str:
    """What to install for images of this suffix; "" for a suffix that is read, or that no package reads."""
    if suffix in list_suffixes():
        return ""
    if suffix in _HEIF:
        return "pip install pillow-heif reads them"
    return "pip install -U pillow reads them" if suffix in _AVIF else ""


def _register_decoders() -> None:
    # Pillow knows of the package only once it has been registered.
    if ".heic" in list_suffixes():
        importlib.import_module("pillow_heif").register_heif_opener()


def check_picture(path: Path, file: BinaryIO | None = None) -> None:
    """Raise DataError unless the file starts like an image; its pixels are not decoded.

    file: what to read, here and below, where `path` only names it, as with a member of an archive.
    """
    from PIL import Image

    _register_decoders()
    try:
        with Image.open(file or path) as image:
            # Decoding takes most of the time, and is done when the image is read.
            image.verify()
    except Exception as error:
        # Each of Pillow's decoders fails in its own way.
        raise _build_decode_error(path, error) from error


def check_background(color: str) -> None:
    """Raise RequestError unless Pillow knows the colour."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(color)
    except (ValueError, AttributeError) as error:
        raise RequestError(
            f"data.background={color} is no colour; type a name such as white, or '#ffffff' with its quotes"
        ) from error


def measure_range(path: Path, file: BinaryIO | None = None) -> tuple[float, float] | None:
    """Lowest and highest value of an image with more than 8 bits a pixel; None for other files."""
    from PIL import Image

    _register_decoders()
    try:
        with Image.open(file or path) as image:
            if not _is_deep(image):
                return None
            values = np.asarray(image)
    except Exception:
        # Whoever reads the image tells what is wrong with it.
        return None
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds pixels that are no finite numbers: replace it or remove it")
    return float(values.min()), float(values.max())


def read_picture(
    path: Path,
    image_size: int | tuple[int, int],
    grayscale: bool,
    background: str = "white",
    pixel_range: Sequence[float] = (),
    file: BinaryIO | None = None,
) -> Tensor:
    """Read an image as (1 or 3, height, width): resized until both sides are filled, then cut to the centre.

    image_size: one number for a square, or (height, width). Transparent images are laid on `background`. uint8, or
    float32 from 0 to 1 for one of more than 8 bits, if `pixel_range` says which values become 0 and 1.
    Raises DataError for a file that cannot be decoded.
    """
    return fit_image(open_picture(path, lambda _: background, pixel_range, file), image_size, grayscale)


def fit_image(image: "Image", image_size: int | tuple[int, int], grayscale: bool) -> Tensor:
    """Convert an open image as `read_picture` does."""
    from PIL import Image, ImageOps

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    mode = "L" if grayscale else "RGB"
    if image.mode not in ("F", mode):
        image = image.convert(mode)
    resized = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)

    # (H, W) or (H, W, C) to (C, H, W).
    pixels = torch.from_numpy(np.array(resized))
    if image.mode == "F":
        return pixels.repeat(1 if grayscale else 3, 1, 1)
    return pixels.unsqueeze(0) if grayscale else pixels.permute(2, 0, 1).contiguous()


def open_picture(
    path: Path,
    ground: "Callable[[Image], str]",
    pixel_range: Sequence[float] = (),
    file: BinaryIO | None = None,
) -> "Image":
    """Open an image with 8 bits a channel, without transparency, turned upright as its EXIF data says.

    Grey of more than 8 bits becomes floats (mode F), of which 0 and 1 are the two values of `pixel_range`, and others
    are clipped; without a range 16 bits are scaled to 8. Of an animation it is the first frame. ground: chooses the
    colour to lay behind a transparent image, which it is given as RGBA. Raises DataError for a file that cannot be
    decoded.
    """
    from PIL import Image, ImageOps

    _register_decoders()
    try:
        with Image.open(file or path) as image:
            upright = ImageOps.exif_transpose(image)
            return _scale(upright, pixel_range) if pixel_range and _is_deep(upright) else _flatten(upright, ground)
    except DataError:
        raise
    except Exception as error:
        # Each of Pillow's decoders fails in its own way.
        raise _build_decode_error(path, error) from error


def _is_deep(image: "Image") -> bool:
    """Whether an image is grey with more than 8 bits a pixel: 12, 16 or 32 bits, or floats."""
    return image.mode.startswith(("I", "F"))


def _scale(image: "Image", pixel_range: Sequence[float]) -> "Image":
    from PIL import Image

    low, high = pixel_range
    values = (np.asarray(image).astype(np.float64) - low) / (high - low)
    if not np.isfinite(values).all():
        raise ValueError("it holds pixels that are no finite numbers")
    return Image.fromarray(values.clip(0, 1).astype(np.float32))


def _flatten(image: "Image", ground: "Callable[[Image], str]") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255; 65535 = 257 * 255.
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range, save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground(rgba)), rgba)

    # Decode before the file is closed.
    image.load()
    return image


def _build_decode_error(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split()) or type(error).__name__
    advice = suggest_decoder(path.suffix.lower()) or "replace it or remove it"
    return explain_unreadable(path, error) or DataError(f"{path} cannot be read as an image ({why[:160]}): {advice}")
