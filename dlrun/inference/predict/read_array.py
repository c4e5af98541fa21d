"""Rows of a NumPy file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlrun.core.errors import DataError
from dlrun.inference.predict.reader import Item


def read_array_rows(path: Path, shape: tuple[int, ...]) -> Iterator[Item]:
    """Yield the rows of a .npy file (N, *shape) of numbers, read when they are needed; DataError for another shape.

    A file that would run code is refused.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError("there is no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"it cannot be read as an array: {' '.join(str(error).split())[:160]}") from error

    # Grey images are often saved without their one channel.
    squeezed_shape = tuple(size for size in shape if size != 1)
    # Images with the channels last, (N, H, W, C).
    if len(shape) == 3 and array.ndim == 4 and array.shape[1:] == (*shape[1:], shape[0]) != shape:
        array = array.transpose(0, 3, 1, 2)
    if array.dtype.kind not in "fiub" or array.shape[1:] not in (shape, squeezed_shape) or array.ndim == 0:
        array_shape = "×".join(map(str, array.shape))
        row_shape = "×".join(map(str, shape))
        raise DataError(f"it holds {array.dtype} of shape {array_shape}, and the model takes numbers of N×{row_shape}")

    for number, row in enumerate(array):
        yield Item(f"{path}[{number}]", np.array(row).reshape(shape))
