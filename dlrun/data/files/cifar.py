"""The Python version of CIFAR-10 and CIFAR-100, described at cs.toronto.edu/~kriz/cifar.html.

Its files are pickles, which could run any code when opened: the reader here builds arrays and nothing else.
torchvision's own reader opens them with pickle.load, guarded by their md5 alone; here the archive's md5, the same that
torchvision knows, is checked when it is downloaded, and a file
that the user put in place can do no harm whatever it holds.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError, explain_unreadable


def read_batch(path: Path, label_key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 3, 32, 32) and labels (N,) of one file.

    Raises DataError for a file that is damaged, asks for code, or holds something else.
    """
    # 3072 bytes an image: 32x32 red, then green, then blue.
    batch = _read_dict(path)
    data = batch.get("data")
    labels = batch.get(label_key)

    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise _build_damage_error(path, "has no 'data' of bytes, 3072 an image")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(label) is int for label in labels):
        raise _build_damage_error(path, f"has no '{label_key}', one whole number an image")
    if not labels or min(labels) < 0 or max(labels) >= classes:
        raise _build_damage_error(path, f"has no images, or labels outside 0 to {classes - 1}")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def read_class_names(path: Path, key: str, classes: int) -> tuple[str, ...]:
    """The class names in a meta file; raises DataError as `read_batch` does."""
    names = _read_dict(path).get(key)
    if not isinstance(names, list) or len(names) != classes:
        raise _build_damage_error(path, f"has no '{key}', {classes} names")
    return tuple(_to_text(name) for name in names)


class _ArraysOnly(pickle.Unpickler):
    """Builds numbers, text, lists, dicts and arrays; refuses every other global name."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up what numpy's arrays are rebuilt with, whether old numpy (numpy.core) or new wrote them."""
        module = module.replace("numpy.core", "numpy._core")
        # Any other name could run code.
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    # In protocol 2 Python 3 writes bytes as a call to encode; only this encoding is needed.
    return text.encode("latin1")


_ALLOWED = {
    # Looked up by way of an array, as numpy keeps moving the modules these live in.
    ("numpy._core.multiarray", "_reconstruct"): np.empty(1).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.empty(1).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


def _read_dict(path: Path) -> dict[str, Any]:
    try:
        # The published files are from Python 2, whose strings are bytes: latin1 keeps them all.
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:
        # Damaged pickles fail in a dozen ways.
        damage = _build_damage_error(path, f"cannot be read as a CIFAR file ({type(error).__name__}: {error})")
        raise explain_unreadable(path, error) or damage from error

    if not isinstance(content, dict):
        raise _build_damage_error(path, "does not hold a dict")
    return {_to_text(key): value for key, value in content.items()}


def _to_text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _build_damage_error(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}: delete it and run again to download it anew")
