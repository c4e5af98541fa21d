"""Rows of the user's own in .npy files, which may be larger than the memory: they are mapped, and read by the batch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.data.hints import missing
from dlrun.data.partition import partition
from dlrun.data.rows import Rows
from dlrun.data.spec import DataSpec, Kind, Splits, TaskName
from dlrun.errors import DataError

Numbers = NDArray[Any]
_LOOKED_AT = 4096  # training rows that mean and deviation are taken of


class Mapped(Dataset[Any]):
    """Rows of a mapped array, read when they are asked for: float32 inputs, normalized, and targets, held in memory.

    A batch is one read (`__getitems__`, which torch's DataLoader asks for). bytes_a_row: of an input as float32.
    """

    draws_random_numbers = False

    def __init__(self, x: Numbers, targets: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.x, self.targets = x, targets
        shape = (-1, *[1] * (x.ndim - 2))
        self.mean, self.std = (torch.tensor(list(values)).view(shape) for values in (mean, std))
        self.bytes_a_row = 4 * int(np.prod(x.shape[1:]))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([row])
        return inputs[0], targets[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and targets (B, ...) of the rows named."""
        return _scaled(self.x[rows]).sub_(self.mean).div_(self.std), self.targets[rows]


def arrays(
    path: str,
    task: Literal["regression", "binary", "multiclass"] | None = None,
    class_names: list[str] | None = None,
    test_fraction: float = 0.2,
    normalize: bool = True,
    seed: int = 0,
) -> Splits:
    """x.npy and y.npy in the folder `path`, and test_x.npy and test_y.npy where there is a test part.

    x: (N, features), or images (N, H, W) or (N, channels, H, W), of uint8 (0 to 255, taken as 0 to 1) or floats.
    y: whole numbers for classes counted from 0, floats (N,) or (N, columns) for regression. normalize: by mean and
    deviation of a feature or channel over at most 4,096 training rows. Nothing but y is read as a whole.
    Raises DataError for files that are missing, damaged, or hold something else.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise missing(folder, "data.path")
    x, y = _opened(folder / "x.npy"), _opened(folder / "y.npy")
    kind = _kind(x, folder / "x.npy")
    found = _task(y, folder / "y.npy", task)
    targets = _targets(x, y, folder / "y.npy", found)
    if kind == "image" and x.ndim == 3:
        x = x[:, None]
    classes = () if found == "regression" else _class_names(targets, found, class_names)
    has_test = (folder / "test_x.npy").exists()
    train, held_out = partition(len(x), 0.0 if has_test else test_fraction, seed)
    mean, std = _constants(x, train) if normalize else ([0.0] * x.shape[1], [1.0] * x.shape[1])
    whole = Mapped(x, targets, mean, std)
    test: Dataset[Any] | None = None
    if has_test:
        test = _test_part(folder, x, whole, found, len(classes))
    elif len(held_out):
        test = _rows(whole, held_out)
    outputs = targets.shape[1] if found == "regression" else 1 if found == "binary" else len(classes)
    spec = DataSpec(kind, tuple(x.shape[1:]), found, outputs, classes, mean=tuple(mean), std=tuple(std))
    return Splits(whole if has_test or not len(held_out) else _rows(whole, train), None, test, spec)


def _rows(whole: Mapped, index: Numbers) -> Dataset[Any]:
    return Rows(whole, torch.from_numpy(index))


def _test_part(folder: Path, x: Numbers, whole: Mapped, task: TaskName, classes: int) -> Mapped:
    """test_x.npy and test_y.npy, which look like the training part."""
    other, y = _opened(folder / "test_x.npy"), _opened(folder / "test_y.npy")
    other = other[:, None] if other.ndim == 3 else other
    if other.shape[1:] != x.shape[1:] or other.dtype != x.dtype:
        raise DataError(
            f"{folder / 'test_x.npy'} has rows of {other.shape[1:]} {other.dtype}, and x.npy of {x.shape[1:]} "
            f"{x.dtype}; write both alike"
        )
    targets = _targets(other, y, folder / "test_y.npy", task)
    if task != "regression" and int(targets.max()) >= max(classes, 2):
        raise DataError(f"{folder / 'test_y.npy'} holds class {int(targets.max())}, which y.npy does not have")
    made = Mapped(other, targets, [0.0], [1.0])
    made.mean, made.std = whole.mean, whole.std
    return made


def _opened(path: Path) -> Numbers:
    """A .npy file, mapped: copied on writing, so that torch may think that it can write to it."""
    if not path.exists():
        raise missing(path, "data.path")
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a whole .npy file of numbers ({error}); write it with numpy.save") from error
    if len(getattr(found, "shape", ())) == 0 or len(found) == 0:
        raise DataError(f"{path} holds no rows; write an array with a row a sample")
    return cast(Numbers, found)


def _kind(x: Numbers, path: Path) -> Kind:
    if x.dtype != np.uint8 and not (np.issubdtype(x.dtype, np.floating) and x.dtype.itemsize <= 8):
        raise DataError(f"{path} holds {x.dtype}; write uint8 (0 to 255) or float32")
    if x.ndim == 2:
        return "vector"
    if x.ndim in (3, 4):
        return "image"
    raise DataError(f"{path} has shape {x.shape}; write (rows, features), or images (rows, channels, height, width)")


def _task(y: Numbers, path: Path, asked: TaskName | None) -> TaskName:
    whole = np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_
    if not whole and not np.issubdtype(y.dtype, np.floating):
        raise DataError(f"{path} holds {y.dtype}; write whole numbers for classes, floats for regression")
    if asked not in (None, "regression") and not whole:
        raise DataError(f"{path} holds {y.dtype}, and data.task={asked} takes whole numbers; write those")
    return asked or ("binary" if y.dtype == np.bool_ else "multiclass" if whole else "regression")


def _targets(x: Numbers, y: Numbers, path: Path, task: TaskName) -> Tensor:
    """y as DataSpec wants it: one target a row, in memory."""
    if len(x) != len(y):
        raise DataError(
            f"{path} has {len(y):,} rows, and {path.name.replace('y.npy', 'x.npy')} {len(x):,}; write as many"
        )
    if task == "regression":
        values = torch.from_numpy(np.array(y, dtype=np.float32)).view(len(y), -1)
        if not bool(values.isfinite().all()):
            raise DataError(f"{path} holds values that are not finite; remove those rows")
        return values
    labels = torch.from_numpy(np.array(y, dtype=np.int64).reshape(len(y), -1))
    if labels.shape[1] != 1:
        raise DataError(f"{path} has {labels.shape[1]} columns; write one class a row, or data.task=regression")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (task == "binary" and high > 1):
        wanted = "0 and 1" if task == "binary" else "whole numbers from 0"
        raise DataError(f"{path} holds classes from {low} to {high}, and data.task={task} takes {wanted}")
    return labels.squeeze(1)


def _class_names(targets: Tensor, task: TaskName, named: list[str] | None) -> tuple[str, ...]:
    count = 2 if task == "binary" else int(targets.max()) + 1
    if named is not None and len(named) < count:
        raise DataError(f"data.class_names has {len(named)} names, and y.npy {count} classes; name each")
    return tuple(named or (str(i) for i in range(count)))


def _constants(x: Numbers, rows: Numbers) -> tuple[list[float], list[float]]:
    """Mean and deviation a feature or channel, over rows spread through the training part."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(np.int64)]
    parts = np.array_split(chosen, math.ceil(len(chosen) / 128))  # not all at once: 4,096 photographs are 2 GB
    shift = _columns(x, parts[0]).mean(1)  # about the mean: sums of squares around it lose no digits
    count, total, squares = 0, torch.zeros_like(shift), torch.zeros_like(shift)
    for part in parts:
        values = _columns(x, part) - shift.unsqueeze(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    centre = total / count
    spread = (squares / count - centre.square()).clamp_min(0).sqrt().tolist()
    return (shift + centre).tolist(), [s if s > 1e-12 else 1.0 for s in spread]


def _columns(x: Numbers, rows: Numbers) -> Tensor:
    """float64 (features or channels, numbers) of some rows."""
    return _scaled(x[rows]).transpose(0, 1).flatten(1).double()


def _scaled(values: Numbers) -> Tensor:
    """float32, uint8 from 0 to 1."""
    read = torch.from_numpy(np.ascontiguousarray(values))
    return read.float().div_(255) if read.dtype == torch.uint8 else read.to(torch.float32, copy=True)
