"""Image files, as the training images were: in size and colours, and figures on a ground as figures lay there."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, MisfitError
from dlrun.data.files.framing import Framing
from dlrun.data.files.picture import EXTENSIONS, fit_image, open_picture
from dlrun.data.files.pixels import normalize_
from dlrun.data.files.table import parse_numbers
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.digit_framing import frame_digit
from dlrun.inference.predict.read_array import read_array_rows
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, list_files, read_lines

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_PATH = 4096
_LISTS = (".txt", ".lst")  # a path a line


class ImageReader:
    """A reader of images: (C, H, W) as `spec` says, pixels / 255, normalized as in training."""

    takes = "image files, folders of them, a .txt file or - with a path a line, and .npy arrays"

    def __init__(self, spec: DataSpec, framing: tuple[float, ...], crops: bool) -> None:
        """framing: see framing.py; crops: whether training cut the centre out of images that are not square."""
        if spec.input_shape[0] not in (1, 3):
            self.takes = "a .npy array of images"
        self.spec, self.crops = spec, crops
        self.frame = Framing(*framing) if framing else None

    def read_items(self, word: str) -> Iterator[Item]:
        """See Reader."""
        path = Path(word)
        if path.suffix == ".npy":
            yield from read_array_rows(path, self.spec.input_shape)
        elif word == STDIN or path.suffix.lower() in _LISTS:
            for place, line in read_lines(word):
                yield self._of_line(place, line)
        elif path.is_dir():
            yield from (Item(str(file), file) for file in list_files(path, tuple(sorted(EXTENSIONS))))
        else:
            yield Item(word, path)

    def _of_line(self, place: str, line: str) -> Item:
        """A line of text: the path of an image, or the numbers of its pixels."""
        cells = line.replace(",", " ").split()
        numbers = parse_numbers(cells) if len(cells) > 1 else None
        if numbers is None:
            if len(line) > _LONGEST_PATH:
                return Item(place, None, error=f"the line of {len(line):,} letters is neither a path nor numbers")
            return Item(line, Path(line))

        shape = self.spec.input_shape
        if len(cells) != math.prod(shape):
            sizes = "×".join(map(str, shape))
            return Item(
                place, None, error=f"the row holds {len(cells)} numbers, and an image {math.prod(shape)} ({sizes})"
            )
        pixels = np.array(numbers, dtype=np.float64).reshape(shape)
        if pixels.min() < 0 or pixels.max() > 1:
            return Item(place, None, error="pixels as numbers are from 0 to 1: divide them by the largest there can be")
        return Item(place, pixels)

    def prepare(self, item: Item) -> Prepared:
        """See Reader."""
        if isinstance(item.content, Path):
            pixels, note = self._opened(item.content)
        else:
            array = np.asarray(item.content)
            if not np.isfinite(array).all():
                raise DataError("it holds what is not a finite number")
            pixels, note = torch.from_numpy(array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)), ""
        return Prepared((normalize_(pixels, self.spec.mean, self.spec.std) if self.spec.mean else pixels,), note)

    def _opened(self, path: Path) -> tuple[Tensor, str]:
        """Pixels float32 (C, H, W) in 0..1, and what was done."""
        if not path.is_file():
            raise explain_missing(str(path), self.takes)
        channels, height, width = self.spec.input_shape
        if channels not in (1, 3):
            raise MisfitError(f"this model takes images of {channels} channels, which no image file holds")
        image = open_picture(path, choose_background if self.frame else lambda _: "white")
        pixels = fit_image(image, (height, width), channels == 1)
        resized = _resized(image, height, width)
        if self.frame is None:
            return pixels.float().div_(255), resized
        if self.crops or image.width == image.height:  # else a figure at the side would be cut
            for tried, said in ((pixels, ""), (255 - pixels, "inverted")):
                if self.frame.matches(tried.double().mean(0).div(255).numpy()):
                    return tried.float().div_(255), ", ".join(filter(None, [said, resized]))
        grey, note = frame_digit(image, height, self.frame)
        return torch.from_numpy(grey.astype(np.float32)).repeat(channels, 1, 1), note

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """See Reader."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def _resized(image: "Image", height: int, width: int) -> str:
    """What `fitted` does, in words."""
    if image.size == (width, height):
        return ""
    cut = ", its centre" if abs(image.width * height - image.height * width) > max(image.size) else ""
    return f"{image.width}×{image.height} to {width}×{height}{cut}"


def choose_background(image: "Image") -> str:
    """The ground on which what is seen of a transparent image (RGBA) stands out."""
    pixels = np.asarray(image.convert("RGBA"), dtype=np.float64)
    opacity = pixels[..., 3]
    if not opacity.any():
        raise DataError("the image is transparent everywhere")
    grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    return "black" if (grey * opacity).sum() / opacity.sum() > 127.5 else "white"
