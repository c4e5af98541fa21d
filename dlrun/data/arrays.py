"""Rows of the user's own in .npy files, which may be larger than the memory: they are mapped, and read by the batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError, unreadable
from dlrun.core.suggest import missing
from dlrun.data.datasets import Rows, partition
from dlrun.data.origin import Origin
from dlrun.data.spec import MOST_CLASSES, DataSpec, Kind, Splits, TaskName

Numbers = NDArray[Any]
_LOOKED_AT = 4096  # training rows that mean and deviation are taken of


class Mapped(Dataset[Any]):
    """Rows of a mapped array, read when they are asked for: float32 inputs, normalized, and targets, held in memory.

    A batch is one read (`__getitems__`, which torch's DataLoader asks for). bytes_a_row: of an input as float32.
    """

    draws_random_numbers = False

    def __init__(self, x: Numbers, targets: Tensor, mean: Sequence[float], std: Sequence[float], path: Path) -> None:
        """path: of the file that x is mapped from."""
        self.x, self.targets = x, targets
        self.origin = Origin.from_position(str(path), len(x))
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
    """x.npy and y.npy in the folder `path`; val_x.npy and val_y.npy, test_x.npy and test_y.npy where there are such.

    x: (N, features), or images (N, H, W) or (N, channels, H, W), of uint8 (0 to 255, taken as 0 to 1) or floats.
    y: whole numbers for classes counted from 0, floats (N,) or (N, columns) for regression. normalize: by mean and
    deviation of a feature or channel over at most 4,096 training rows. Nothing but y is read as a whole.
    Raises DataError for files that are missing, damaged, or hold something else.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        file = DataError(f"data.path={folder} is a file; type the folder that x.npy and y.npy lie in")
        raise file if folder.exists() else missing(folder, "data.path")
    x, y = _opened(folder / "x.npy"), _opened(folder / "y.npy")
    kind = _kind(x, folder / "x.npy")
    found = _task(y, folder / "y.npy", task)
    targets, notes = _targets(x, y, folder / "y.npy", found)
    if kind == "image" and x.ndim == 3:
        x = x[:, None]
    classes = () if found == "regression" else _class_names(targets, folder / "y.npy", found, class_names)
    has_test = any((folder / f"test_{name}.npy").exists() for name in "xy")
    nothing_to_learn = ""
    if classes and bool((targets == targets[0]).all()):
        nothing_to_learn = (
            f"{folder / 'y.npy'} holds class {int(targets[0])} in every row, so there is nothing to tell apart"
        )
    train, held_out = partition(len(x), 0.0 if has_test else test_fraction, seed)
    mean, std = _constants(x, train, folder / "x.npy") if normalize else ([0.0] * x.shape[1], [1.0] * x.shape[1])
    whole = Mapped(x, targets, mean, std, folder / "x.npy")
    val, test = (_further_part(folder, name, whole, found, len(classes)) for name in ("val", "test"))
    outputs = targets.shape[1] if found == "regression" else 1 if found == "binary" else len(classes)
    spec = DataSpec(kind, tuple(x.shape[1:]), found, outputs, classes, mean=tuple(mean), std=tuple(std))
    unheeded = {}
    if has_test:
        unheeded["test_fraction"] = f"test_x.npy in {folder} is the test part"
    if found == "regression" and class_names is not None:
        unheeded["class_names"] = "they are for classes, and this is regression; type data.task=multiclass"
    splits = Splits(whole, val, test, spec, notes, nothing_to_learn=nothing_to_learn, unheeded=unheeded)
    if not len(held_out):
        return splits
    return replace(splits, train=_rows(whole, train), test=_rows(whole, held_out))


def _rows(whole: Mapped, index: Numbers) -> Dataset[Any]:
    return Rows(whole, torch.from_numpy(index))


def _further_part(folder: Path, name: str, train: Mapped, task: TaskName, classes: int) -> Mapped | None:
    """test_x.npy and test_y.npy, say, which look like the training part; null where there is neither."""
    paths = [folder / f"{name}_{which}.npy" for which in "xy"]
    if not any(path.exists() for path in paths):
        return None
    x, y = map(_opened, paths)
    x = x[:, None] if x.ndim == 3 else x
    if x.shape[1:] != train.x.shape[1:] or x.dtype != train.x.dtype:
        raise DataError(
            f"{paths[0]} has rows of {x.shape[1:]} {x.dtype}, and x.npy of {train.x.shape[1:]} "
            f"{train.x.dtype}; write both alike"
        )
    targets, _ = _targets(x, y, paths[1], task)
    if task == "regression" and targets.shape[1:] != train.targets.shape[1:]:
        raise DataError(f"{paths[1]} has {targets.shape[1]} columns, and y.npy {train.targets.shape[1]}; write as many")
    if task != "regression" and int(targets.max()) >= classes:
        raise DataError(
            f"{paths[1]} holds class {int(targets.max())}, which y.npy does not have; name all in data.class_names"
        )
    made = Mapped(x, targets, [0.0], [1.0], paths[0])
    made.mean, made.std = train.mean, train.std
    return made


def _opened(path: Path) -> Numbers:
    """A .npy file, mapped: copied on writing, so that torch may think that it can write to it."""
    if not path.exists():
        raise DataError(f"{path} does not exist; write it with numpy.save, a row a sample")
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        damage = DataError(f"{path} is not a whole .npy file of numbers ({error}); write it with numpy.save")
        raise unreadable(path, error) or damage from error
    if len(getattr(found, "shape", ())) == 0 or len(found) == 0:
        raise DataError(f"{path} holds no rows; write an array with a row a sample")
    if not found.dtype.isnative:
        raise DataError(f"{path} holds {found.dtype} in another machine's byte order; write it with numpy.save here")
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
    return asked or ("binary" if y.dtype == np.bool_ else "multiclass" if whole else "regression")


def _targets(x: Numbers, y: Numbers, path: Path, task: TaskName) -> tuple[Tensor, tuple[str, ...]]:
    """y as DataSpec wants it, one target a row, in memory; and notes of how it was taken."""
    if len(x) != len(y):
        raise DataError(
            f"{path} has {len(y):,} rows, and {path.name.replace('y.npy', 'x.npy')} {len(x):,}; write as many"
        )
    if y.ndim > 2:
        raise DataError(f"{path} has shape {y.shape}; write (rows,), or (rows, columns) for regression")
    if task != "regression":
        return _labels(y, path, task)
    values = torch.from_numpy(np.array(y, dtype=np.float32)).view(len(y), -1)
    bad = ~values.isfinite().all(1)
    if bool(bad.any()):
        raise DataError(
            f"{path} holds values that are not finite, the first in row {int(bad.nonzero()[0]):,} (counted from 0); "
            "remove those rows"
        )
    return values, ()


def _labels(y: Numbers, path: Path, task: TaskName) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers int64 (rows,). Whole floats and one-hot rows are taken for them, which a note says."""
    notes = []
    columns = np.asarray(y).reshape(len(y), -1)
    if np.issubdtype(y.dtype, np.floating):
        with np.errstate(invalid="ignore"):
            bad = ~(np.isfinite(columns) & (columns == np.round(columns))).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"{path} holds {y.dtype}, and data.task={task} takes whole numbers; write those "
                f"(row {row:,}, counted from 0, holds {columns[row].tolist()})"
            )
        notes.append(f"{path} holds {y.dtype}, which were taken as class numbers.")
    if columns.shape[1] > 1:
        is_one_hot = ((columns == 0) | (columns == 1)).all() and (columns.sum(axis=1) == 1).all()
        if not is_one_hot:
            raise DataError(f"{path} has {columns.shape[1]} columns; write one class a row, or data.task=regression")
        notes.append(f"{path} holds one-hot rows, which were taken as class numbers.")
        columns = columns.argmax(axis=1)[:, None]
    low, high = int(columns.min()), int(columns.max())  # exact, where int64 would wrap
    most = 1 if task == "binary" else MOST_CLASSES - 1
    if low < 0 or high > most:
        wanted = "0 and 1" if task == "binary" else f"whole numbers from 0 to {MOST_CLASSES - 1:,}"
        row = int(np.flatnonzero((columns[:, 0] < 0) | (columns[:, 0] > most))[0])
        raise DataError(
            f"{path} holds classes from {low} to {high}, and data.task={task} takes {wanted} "
            f"(row {row:,}, counted from 0, holds {int(columns[row, 0])})"
        )
    return torch.from_numpy(columns[:, 0].astype(np.int64)), tuple(notes)


def _class_names(targets: Tensor, path: Path, task: TaskName, named: list[str] | None) -> tuple[str, ...]:
    count = 2 if task == "binary" else int(targets.max()) + 1
    if named is not None and (len(named) < count or (task == "binary" and len(named) > 2)):
        raise DataError(f"data.class_names has {len(named)} names, and y.npy {count} classes; name each")
    return tuple(named or (str(i) for i in range(count)))


def _constants(x: Numbers, rows: Numbers, path: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation a feature or channel, over rows spread through the training part."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(np.int64)]
    parts = np.array_split(chosen, math.ceil(len(chosen) / 128))  # not all at once: 4,096 photographs are 2 GB
    shift = _columns(x, parts[0]).mean(1)  # about the mean: sums of squares around it lose no digits
    count, total, squares = 0, torch.zeros_like(shift), torch.zeros_like(shift)
    for part in parts:
        values = _columns(x, part) - shift.unsqueeze(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    centre = total / count
    if not bool(centre.isfinite().all()):
        row = next(int(row) for row in chosen if not _columns(x, np.array([row])).isfinite().all())
        raise DataError(
            f"{path} holds values that are not finite, in row {row:,} (counted from 0) for one; "
            "remove those rows, or put numbers in their place"
        )
    spread = (squares / count - centre.square()).clamp_min(0).sqrt().tolist()
    return (shift + centre).tolist(), [s if s > 1e-12 else 1.0 for s in spread]


def _columns(x: Numbers, rows: Numbers) -> Tensor:
    """float64 (features or channels, numbers) of some rows."""
    return _scaled(x[rows]).transpose(0, 1).flatten(1).double()


def _scaled(values: Numbers) -> Tensor:
    """float32, uint8 from 0 to 1."""
    read = torch.from_numpy(np.ascontiguousarray(values))
    return read.float().div_(255) if read.dtype == torch.uint8 else read.to(torch.float32, copy=True)
