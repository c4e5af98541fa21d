"""The IDX format of MNIST and its relatives, described at yann.lecun.com/exdb/mnist."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError, explain_unreadable

# Type code of the values in every file read here.
UNSIGNED_BYTE = 8


def find_idx(folder: Path, name: str) -> Path | None:
    """Path of the file, plain or gzipped; None if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The unsigned bytes of an IDX file as an array with that many dimensions.

    Raises DataError for a file that is not IDX, or whose size differs from its header.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise explain_unreadable(path, error) or _build_damage_error(path, f"cannot be read ({error})") from error

    # Header: two zeros, type code, number of dimensions, and each length as a big-endian integer.
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise _build_damage_error(path, f"does not start like an IDX file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise _build_damage_error(path, f"holds {len(content)} bytes where its header announces {expected}")
    # A view of the bytes that were read: nothing is copied.
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_labelled(images: Path, labels: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and labels (N,) of two IDX files.

    Raises DataError also if they do not belong together or a label is not below `classes`.
    """
    x = read_idx(images, 3)
    y = read_idx(labels, 1)
    if len(x) != len(y) or x.size == 0:
        raise _build_damage_error(
            images, f"holds {len(x)} images of {x.shape[1]}x{x.shape[2]}, {labels.name} {len(y)} labels"
        )
    if y.max() >= classes:
        raise _build_damage_error(labels, f"holds the label {y.max()} where {classes - 1} is the largest")
    return x, y


def _build_damage_error(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}: delete it and run again to download it anew")
