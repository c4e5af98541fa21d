"""Image files, converted to the size and colours of the training images; figures are framed as in training."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, MisfitError
from dlrun.data.files.framing import Framing
from dlrun.data.files.picture import fit_image, list_suffixes, open_picture
from dlrun.data.files.pixels import normalize_
from dlrun.data.files.table import parse_numbers
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.digit_framing import frame_digit
from dlrun.inference.predict.read_array import read_array_rows
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files, read_lines

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_PATH_LENGTH = 4096
# Text files with a path per line.
_LIST_ENDINGS = (".txt", ".lst")
# Files of many pictures with their classes, which are data, and no pictures.
_SET_ENDINGS = (".tar", ".parquet", ".arrow")
_SET_ERROR = (
    "it holds pictures with their classes; dlrun eval RUN data.path=<it>, of a run on such data, writes a prediction a "
    "row to predictions.csv"
)


class ImageReader:
    """A reader of images: (C, H, W) as `spec` says, pixels / 255, normalized as in training."""

    accepted_inputs = "image files, folders of them, a .txt file or - with a path a line, and .npy arrays"

    def __init__(self, spec: DataSpec, framing: tuple[float, ...], crops: bool, background: str | None = None) -> None:
        """framing: fields of a Framing; empty if the images hold no figures.

        crops: whether training cut the centre out of images that are not square. background: colour behind transparent
        images in training; None if they had none.
        """
        if spec.input_shape[0] not in (1, 3):
            self.accepted_inputs = "a .npy array of images"
        self.spec = spec
        self.crops = crops
        self.background = background
        self.frame = Framing(*framing) if framing else None

    def read_items(self, word: str) -> Iterator[Item]:
        """Yield the images that a word names: an array, a list of paths, a folder or an image file."""
        path = Path(word)
        if path.suffix == ".npy":
            yield from read_array_rows(path, self.spec.input_shape)
        elif word == STDIN or path.suffix.lower() in _LIST_ENDINGS:
            for place, line in read_lines(word):
                yield self._parse_line(place, line)
        elif path.suffix.lower() in _SET_ENDINGS:
            yield Item(word, None, error=_SET_ERROR)
        elif path.is_dir():
            for file in list_files(path, tuple(sorted(list_suffixes()))):
                yield Item(str(file), file)
        else:
            # A path without a file gets its error when it is prepared.
            yield Item(word, path)

    def _parse_line(self, place: str, line: str) -> Item:
        """Parse a line of text: the path of an image, or the values of its pixels."""
        cells = line.replace(",", " ").split()
        numbers = parse_numbers(cells) if len(cells) > 1 else None
        if numbers is None:
            if len(line) > _MAX_PATH_LENGTH:
                return Item(place, None, error=f"the line of {len(line):,} letters is neither a path nor numbers")
            return Item(line, Path(line))

        shape = self.spec.input_shape
        count = math.prod(shape)
        if len(cells) != count:
            sizes = "×".join(map(str, shape))
            return Item(place, None, error=f"the row holds {len(cells)} numbers, and an image {count} ({sizes})")

        pixels = np.array(numbers, dtype=np.float64).reshape(shape)
        if pixels.min() < 0 or pixels.max() > 1:
            return Item(place, None, error="pixels as numbers are from 0 to 1: divide them by the largest there can be")
        return Item(place, pixels)

    def prepare(self, item: Item) -> Prepared:
        """Open the image, or convert the array, and normalize its pixels."""
        note = ""
        if isinstance(item.content, Path):
            pixels, note = self._open_image(item.content)
        else:
            array = np.asarray(item.content)
            if not np.isfinite(array).all():
                raise DataError("it holds what is not a finite number")
            # Only bytes are known to reach 255; other numbers are taken as they are.
            largest = 255 if array.dtype == np.uint8 else 1
            pixels = torch.from_numpy(array.astype(np.float32) / largest)

        if self.spec.mean:
            pixels = normalize_(pixels, self.spec.mean, self.spec.std)
        return Prepared((pixels,), note)

    def _open_image(self, path: Path) -> tuple[Tensor, str]:
        """Return float32 pixels (C, H, W) in 0..1, and a description of the changes."""
        if not path.is_file():
            raise explain_missing(str(path), self.accepted_inputs)
        channels, height, width = self.spec.input_shape
        if channels not in (1, 3):
            raise MisfitError(f"this model takes images of {channels} channels, which no image file holds")

        image = open_picture(path, self._choose_background, self.spec.pixel_range)
        pixels = fit_image(image, (height, width), channels == 1)
        resizing = _describe_resizing(image, height, width)
        if pixels.is_floating_point():
            return pixels, resizing
        if self.frame is None:
            return pixels.float().div_(255), resizing

        # A figure that is already framed as in training is left alone. Of an image that is not square, fit_image cut
        # the centre, and with it perhaps a figure at the side: there the figure is framed, unless training crops too.
        if self.crops or image.width == image.height:
            for candidate, change in ((pixels, ""), (255 - pixels, "inverted")):
                if self.frame.matches(candidate.double().mean(0).div(255).numpy()):
                    note = ", ".join(filter(None, [change, resizing]))
                    return candidate.float().div_(255), note

        grey, note = frame_digit(image, height, self.frame)
        return torch.from_numpy(grey.astype(np.float32)).repeat(channels, 1, 1), note

    def _choose_background(self, image: "Image") -> str:
        if self.background is not None:
            return self.background
        return choose_background(image) if self.frame else "white"

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Stack images to (N, C, H, W)."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def _describe_resizing(image: "Image", height: int, width: int) -> str:
    """Describe the change that `fit_image` makes; empty for an image of the right size."""
    if image.size == (width, height):
        return ""
    # Rounding to whole pixels counts as the same proportions.
    is_cropped = abs(image.width * height - image.height * width) > max(image.size)
    centre = ", its centre" if is_cropped else ""
    return f"{image.width}×{image.height} to {width}×{height}{centre}"


def choose_background(image: "Image") -> str:
    """Return the background on which the visible part of a transparent image (RGBA) stands out, black or white."""
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float64)
    opacity = pixels[..., 3]
    if not opacity.any():
        raise DataError("the image is transparent everywhere")

    # Luma of ITU-R BT.601, which Pillow's "L" uses too.
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    mean = (grey * opacity).sum() / opacity.sum()
    return "black" if mean > 127.5 else "white"
