"""Rows of a NumPy file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlrun.core.errors import DataError
from dlrun.inference.predict.reader import Item


def read_array_rows(path: Path, shape: tuple[int, ...]) -> Iterator[Item]:
    """The rows of a .npy file (N, *shape) of numbers, read as they are needed; DataError for another shape.

    A file that would run code is refused.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError("there is no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"it cannot be read as an array: {' '.join(str(error).split())[:160]}") from error
    squeezed = tuple(n for n in shape if n != 1)
    if array.dtype.kind not in "fiub" or array.shape[1:] not in (shape, squeezed) or array.ndim == 0:
        said = f"it holds {array.dtype} of shape {'×'.join(map(str, array.shape))}"
        raise DataError(f"{said}, and the model takes numbers of N×{'×'.join(map(str, shape))}")
    for i, row in enumerate(array):
        yield Item(f"{path}[{i}]", np.array(row).reshape(shape))
