"""The user's own rows in .npy files, which may be larger than the memory: they are mapped, and read by the batch."""

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

from dlrun.core.errors import DataError, explain_unreadable
from dlrun.core.suggest import build_missing_path_error
from dlrun.data.datasets import Rows, partition
from dlrun.data.origin import Origin
from dlrun.data.spec import MOST_CLASSES, DataSpec, Kind, Splits, TaskName

Numbers = NDArray[Any]

# Training rows that mean and deviation are computed from.
_SAMPLED_ROWS = 4096


class Mapped(Dataset[Any]):
    """Rows of a mapped array, read on demand: float32 inputs, normalized, and targets, held in memory.

    A batch is one read (`__getitems__`, which torch's DataLoader calls).
    bytes_a_row: size of an input as float32. path: the file that x is mapped from.
    """

    draws_random_numbers = False

    def __init__(self, x: Numbers, targets: Tensor, mean: Sequence[float], std: Sequence[float], path: Path) -> None:
        self.x = x
        self.targets = targets
        self.origin = Origin.from_position(str(path), len(x))

        # One constant per feature (B, F) or channel (B, C, H, W).
        shape = (-1, *[1] * (x.ndim - 2))
        self.mean = torch.tensor(list(mean)).view(shape)
        self.std = torch.tensor(list(std)).view(shape)
        self.bytes_a_row = 4 * int(np.prod(x.shape[1:]))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.__getitems__([row])
        return inputs[0], targets[0]

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Inputs (B, ...) and targets (B, ...) of the given rows."""
        inputs = _to_float32(self.x[rows]).sub_(self.mean).div_(self.std)
        return inputs, self.targets[rows]


def arrays(
    path: str,
    task: Literal["regression", "binary", "multiclass", "multilabel", "autoencoder"] | None = None,
    class_names: list[str] | None = None,
    test_fraction: float = 0.2,
    normalize: bool = True,
    seed: int = 0,
) -> Splits:
    """x.npy and y.npy in the folder `path`, with val_x.npy, val_y.npy and test_x.npy, test_y.npy if present.

    x: (N, features), or images (N, H, W) or (N, channels, H, W), of uint8 (0 to 255, scaled to 0 to 1) or floats.
    y: whole numbers for classes counted from 0, floats (N,) or (N, columns) for regression, 0 and 1 (N, labels) for
    multilabel, whose labels are named by class_names; for autoencoder there need be no y. normalize: by mean and
    deviation of a feature or channel over at most 4,096 training rows. Only y is loaded into memory.
    Raises DataError for files that are missing, damaged, or hold something else.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise DataError(f"data.path={folder} is a file; type the folder that x.npy and y.npy lie in")
        raise build_missing_path_error(folder, "data.path")

    x_path = folder / "x.npy"
    y_path = folder / "y.npy"
    x = _open_array(x_path)
    y = _open_targets(y_path, len(x), task == "autoencoder")
    kind = _find_kind(x, x_path)
    task_name: TaskName = "regression" if task == "autoencoder" else _find_task(y, y_path, task)
    targets, notes = _read_targets(x, y, y_path, task_name)
    x = _add_channel(x)

    if task_name == "regression":
        classes: tuple[str, ...] = ()
    elif task_name == "multilabel":
        classes = _name_labels(targets.shape[1], class_names)
    else:
        classes = _name_classes(targets, task_name, class_names)
    has_test = any((folder / f"test_{name}.npy").exists() for name in "xy")
    nothing_to_learn = ""
    if task_name == "multilabel" and bool((targets == targets[0]).all()):
        nothing_to_learn = f"{y_path} holds the same labels in every row, so there is nothing to tell apart"
    elif classes and bool((targets == targets[0]).all()):
        nothing_to_learn = f"{y_path} holds class {int(targets[0])} in every row, so there is nothing to tell apart"

    train_rows, test_rows = partition(len(x), 0.0 if has_test else test_fraction, seed)
    if normalize:
        mean, std = _compute_constants(x, train_rows, x_path)
    else:
        mean = [0.0] * x.shape[1]
        std = [1.0] * x.shape[1]

    # Training and test rows share one mapping.
    everything = Mapped(x, targets, mean, std, x_path)
    val = _read_further_part(folder, "val", everything, task_name, len(classes))
    test = _read_further_part(folder, "test", everything, task_name, len(classes))

    output_size = len(classes)
    if task_name == "regression":
        output_size = targets.shape[1]
    elif task_name == "binary":
        output_size = 1
    spec = DataSpec(kind, tuple(x.shape[1:]), task_name, output_size, classes, mean=tuple(mean), std=tuple(std))
    if task == "autoencoder":
        spec = replace(spec, output_size=spec.input_size, reconstructs=True)

    unheeded = {}
    if has_test:
        unheeded["test_fraction"] = f"test_x.npy in {folder} is the test part"
    if task_name == "regression" and class_names is not None:
        unheeded["class_names"] = "they are for classes, and this is regression; type data.task=multiclass"

    splits = Splits(everything, val, test, spec, notes, nothing_to_learn=nothing_to_learn, unheeded=unheeded)
    # Without a drawn test part the mapped array is the training part as it is.
    if not len(test_rows):
        return splits
    return replace(
        splits,
        train=Rows(everything, torch.from_numpy(train_rows)),
        test=Rows(everything, torch.from_numpy(test_rows)),
    )


def _add_channel(x: Numbers) -> Numbers:
    # Images (N, H, W) become (N, 1, H, W).
    return x[:, None] if x.ndim == 3 else x


def _read_further_part(folder: Path, name: str, train: Mapped, task: TaskName, classes: int) -> Mapped | None:
    """The val or test part, which must have the format of the training part; None if it has no files."""
    x_path = folder / f"{name}_x.npy"
    y_path = folder / f"{name}_y.npy"
    if not x_path.exists() and not y_path.exists():
        return None

    x = _open_array(x_path)
    y = _open_targets(y_path, len(x), not train.targets.shape[1:].numel())
    x = _add_channel(x)
    if x.shape[1:] != train.x.shape[1:] or x.dtype != train.x.dtype:
        raise DataError(
            f"{x_path} has rows of {x.shape[1:]} {x.dtype}, and x.npy of {train.x.shape[1:]} "
            f"{train.x.dtype}; write both alike"
        )

    targets, _ = _read_targets(x, y, y_path, task)
    if task in ("regression", "multilabel") and targets.shape[1:] != train.targets.shape[1:]:
        raise DataError(f"{y_path} has {targets.shape[1]} columns, and y.npy {train.targets.shape[1]}; write as many")
    if task in ("binary", "multiclass") and int(targets.max()) >= classes:
        raise DataError(
            f"{y_path} holds class {int(targets.max())}, which y.npy does not have; name all in data.class_names"
        )

    # Normalized with the constants of the training part.
    part = Mapped(x, targets, [0.0], [1.0], x_path)
    part.mean = train.mean
    part.std = train.std
    return part


def _open_targets(path: Path, rows: int, are_left_aside: bool) -> Numbers:
    """The array of targets; one without columns for an autoencoder, which needs none."""
    return np.zeros((rows, 0), np.float32) if are_left_aside else _open_array(path)


def _open_array(path: Path) -> Numbers:
    """Map a .npy file into memory, copy-on-write, as torch insists on writable arrays."""
    if not path.exists():
        raise DataError(f"{path} does not exist; write it with numpy.save, a row a sample")

    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        damage = DataError(f"{path} is not a whole .npy file of numbers ({error}); write it with numpy.save")
        raise explain_unreadable(path, error) or damage from error

    if len(getattr(array, "shape", ())) == 0 or len(array) == 0:
        raise DataError(f"{path} holds no rows; write an array with a row a sample")
    if not array.dtype.isnative:
        raise DataError(f"{path} holds {array.dtype} in another machine's byte order; write it with numpy.save here")
    return cast(Numbers, array)


def _find_kind(x: Numbers, path: Path) -> Kind:
    if x.dtype != np.uint8 and not (np.issubdtype(x.dtype, np.floating) and x.dtype.itemsize <= 8):
        raise DataError(f"{path} holds {x.dtype}; write uint8 (0 to 255) or float32")
    if x.ndim == 2:
        return "vector"
    if x.ndim in (3, 4):
        return "image"
    raise DataError(f"{path} has shape {x.shape}; write (rows, features), or images (rows, channels, height, width)")


def _find_task(y: Numbers, path: Path, task: TaskName | None) -> TaskName:
    is_integer = np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_
    if not is_integer and not np.issubdtype(y.dtype, np.floating):
        raise DataError(f"{path} holds {y.dtype}; write whole numbers for classes, floats for regression")

    if task:
        return task
    # Integers may be classes or counts; classes are the usual case.
    if y.dtype == np.bool_:
        return "binary"
    return "multiclass" if is_integer else "regression"


def _read_targets(x: Numbers, y: Numbers, path: Path, task: TaskName) -> tuple[Tensor, tuple[str, ...]]:
    """y in the format of DataSpec, one target per row, in memory; with notes on conversions."""
    if len(x) != len(y):
        raise DataError(
            f"{path} has {len(y):,} rows, and {path.name.replace('y.npy', 'x.npy')} {len(x):,}; write as many"
        )
    if y.ndim > 2:
        raise DataError(
            f"{path} has shape {y.shape}; write (rows,), or (rows, columns) for regression and multilabel: an answer "
            "for every pixel, segmentation, is nothing that dlrun trains"
        )
    if task == "multilabel":
        return _read_label_columns(y, path), ()
    if task != "regression":
        return _read_labels(y, path, task)

    if not y.size:
        return torch.zeros(y.shape), ()
    # A copy in memory: targets are needed as a whole, for statistics and baselines.
    values = torch.from_numpy(np.array(y, dtype=np.float32)).view(len(y), -1)
    is_bad = ~values.isfinite().all(1)
    if bool(is_bad.any()):
        raise DataError(
            f"{path} holds values that are not finite, the first in row {int(is_bad.nonzero()[0]):,} (counted from 0); "
            "remove those rows"
        )
    return values, ()


def _read_label_columns(y: Numbers, path: Path) -> Tensor:
    """0 and 1 as float32 (rows, labels)."""
    columns = np.asarray(y).reshape(len(y), -1)
    is_bad = (columns != 0) & (columns != 1)
    if is_bad.any():
        row, column = (int(number) for number in np.argwhere(is_bad)[0])
        raise DataError(
            f"{path} holds {columns[row, column]} in row {row:,}, column {column} (both counted from 0), and "
            "multilabel takes 0 and 1; correct it"
        )
    return torch.from_numpy(columns.astype(np.float32))


def _read_labels(y: Numbers, path: Path, task: TaskName) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers int64 (rows,); whole floats and one-hot rows are converted, with a note."""
    notes = []
    # (rows,) and (rows, 1) become one column.
    columns = np.asarray(y).reshape(len(y), -1)

    if np.issubdtype(y.dtype, np.floating):
        # Infinite values make numpy warn, and are reported below.
        with np.errstate(invalid="ignore"):
            is_bad = ~(np.isfinite(columns) & (columns == np.round(columns))).all(axis=1)
        if is_bad.any():
            row = int(np.flatnonzero(is_bad)[0])
            raise DataError(
                f"{path} holds {y.dtype}, and data.task={task} takes whole numbers; write those "
                f"(row {row:,}, counted from 0, holds {columns[row].tolist()})"
            )
        notes.append(f"{path} holds {y.dtype}, which were taken as class numbers.")

    if columns.shape[1] > 1:
        is_one_hot = ((columns == 0) | (columns == 1)).all() and (columns.sum(axis=1) == 1).all()
        if not is_one_hot:
            raise DataError(
                f"{path} has {columns.shape[1]} columns; write one class a row, or type data.task=regression, or "
                "task=multilabel"
            )
        notes.append(f"{path} holds one-hot rows, which were taken as class numbers.")
        columns = columns.argmax(axis=1)[:, None]

    # Python's integers are exact, where int64 would wrap.
    lowest = int(columns.min())
    highest = int(columns.max())
    limit = 1 if task == "binary" else MOST_CLASSES - 1
    if lowest < 0 or highest > limit:
        allowed = "0 and 1" if task == "binary" else f"whole numbers from 0 to {MOST_CLASSES - 1:,}"
        row = int(np.flatnonzero((columns[:, 0] < 0) | (columns[:, 0] > limit))[0])
        raise DataError(
            f"{path} holds classes from {lowest} to {highest}, and data.task={task} takes {allowed} "
            f"(row {row:,}, counted from 0, holds {int(columns[row, 0])})"
        )
    return torch.from_numpy(columns[:, 0].astype(np.int64)), tuple(notes)


def _name_classes(targets: Tensor, task: TaskName, class_names: list[str] | None) -> tuple[str, ...]:
    count = 2 if task == "binary" else int(targets.max()) + 1
    if class_names is not None and (len(class_names) < count or (task == "binary" and len(class_names) > 2)):
        raise DataError(f"data.class_names has {len(class_names)} names, and y.npy {count} classes; name each")
    return tuple(class_names or (str(i) for i in range(count)))


def _name_labels(count: int, class_names: list[str] | None) -> tuple[str, ...]:
    if class_names is not None and len(class_names) != count:
        raise DataError(
            f"data.class_names has {len(class_names)} names, and y.npy {count} columns of labels; name each"
        )
    return tuple(class_names or (str(number) for number in range(count)))


def _compute_constants(x: Numbers, rows: Numbers, path: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of each feature or channel, over rows spread through the training part."""
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED_ROWS)).astype(np.int64)]

    # Not all at once: 4,096 photographs take 2 GB.
    blocks = np.array_split(sample, math.ceil(len(sample) / 128))

    # Values relative to a rough mean: their sums of squares lose no digits.
    shift = _read_columns(x, blocks[0]).mean(1)
    count = 0
    total = torch.zeros_like(shift)
    squares = torch.zeros_like(shift)
    for block in blocks:
        values = _read_columns(x, block) - shift.unsqueeze(1)
        count += values.shape[1]
        total += values.sum(1)
        squares += values.square().sum(1)

    centre = total / count
    if not bool(centre.isfinite().all()):
        row = next(int(row) for row in sample if not _read_columns(x, np.array([row])).isfinite().all())
        raise DataError(
            f"{path} holds values that are not finite, in row {row:,} (counted from 0) for one; "
            "remove those rows, or put numbers in their place"
        )
    deviation = (squares / count - centre.square()).clamp_min(0).sqrt().tolist()
    return (shift + centre).tolist(), [value if value > 1e-12 else 1.0 for value in deviation]


def _read_columns(x: Numbers, rows: Numbers) -> Tensor:
    """float64 (features or channels, numbers) of some rows."""
    return _to_float32(x[rows]).transpose(0, 1).flatten(1).double()


def _to_float32(values: Numbers) -> Tensor:
    """Convert to float32, uint8 scaled to [0, 1]; always a copy, which may be written to."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(255)
    return tensor.to(torch.float32, copy=True)
