"""The user's own rows in .npy files, which may be larger than the memory: they are mapped, and read by the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError, ErrorList, join_names
from dlrun.core.format import format_count
from dlrun.data.datasets import Rows, partition
from dlrun.data.files.numpy_files import ArrayFiles, Numbers, open_files
from dlrun.data.origin import Origin
from dlrun.data.spec import MOST_CLASSES, DataSpec, Kind, Splits, TaskName

Layout = Literal["channels_first", "channels_last"]

# Training rows are x and y, those of the other parts have the part's name before.
_PARTS = ("train", "val", "test")
_MOST_MISTAKES = 10

# Floats with more distinct values are taken for quantities, as in tables.
_MOST_FLOAT_CLASSES = 20

# A size of images up to this one is their channels.
_MOST_CHANNELS = 4

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
    layout: Layout | None = "channels_first",
    infer_classes: bool = False,
) -> Splits:
    """x.npy and y.npy in the folder `path`, with val_x.npy, val_y.npy and test_x.npy, test_y.npy if present.

    path: or an .npz file with arrays of these names, or usual ones such as x_train and y_train.
    x: (N, features), or images (N, H, W) or (N, channels, H, W), of uint8 (0 to 255, scaled to 0 to 1) or others.
    layout: channels_last for images (N, H, W, channels); None: judged by the sizes, see `_judge_layout`.
    infer_classes: take text, whole floats of few values and one-hot rows for classes, two classes for a binary task,
    and number classes anew that do not count from 0; older runs do not.
    y: whole numbers for classes counted from 0, floats (N,) or (N, columns) for regression, 0 and 1 (N, labels) for
    multilabel, whose labels are named by class_names; for autoencoder there need be no y. normalize: by mean and
    deviation of a feature or channel over at most 4,096 training rows. Only y is loaded into memory.
    Raises DataError for files that are missing, damaged, or hold something else.
    """
    files = open_files(Path(path).expanduser())
    return split_arrays(files, path, task, class_names, test_fraction, normalize, seed, layout, infer_classes)


def split_arrays(
    files: ArrayFiles,
    path: str,
    task: TaskName | Literal["autoencoder"] | None,
    class_names: list[str] | None,
    test_fraction: float,
    normalize: bool,
    seed: int,
    layout: Layout | None = None,
    infer_classes: bool = True,
) -> Splits:
    """Splits of the arrays x and y, and of those of other parts; path: what they lie in, for sentences."""
    mistakes = ErrorList(_MOST_MISTAKES)
    opened = {name: mistakes.collect(_open_pair, files, name, task == "autoencoder") for name in _PARTS}
    mistakes.raise_if_any()

    pair = opened["train"]
    assert pair is not None
    x, y = pair
    x_path = files.locate("x")
    y_path = files.locate("y")
    text_classes: list[str] = []
    if infer_classes and y.dtype.kind == "U":
        text_classes = np.unique(y).tolist()
        class_names = _order_text_classes(text_classes, class_names, y_path)
        text_classes = class_names
        y = _number_text(y, text_classes, y_path)
    kind = _find_kind(x, x_path)
    task_name: TaskName = "regression"
    notes: tuple[str, ...] = ()
    if task != "autoencoder":
        task_name, notes = _find_task(y, y_path, task, infer_classes)
    targets, more_notes = _read_targets(x, y, x_path, y_path, task_name, any_number=infer_classes)
    notes += more_notes
    x, layout, more_notes = _arrange_channels(x, x_path, layout)
    notes += more_notes

    numbers: list[int] = []
    if infer_classes and task_name in ("binary", "multiclass"):
        if class_names is None and y.ndim == 2 and y.shape[1] > 1:
            # A column of one-hot rows is a class, also without a row of it.
            class_names = [str(number) for number in range(y.shape[1])]
        numbers, more_notes = _find_class_numbers(targets, y_path, task_name, class_names)
        targets = _renumber(targets, numbers, y_path)
        notes += more_notes
    if task_name == "regression":
        classes: tuple[str, ...] = ()
    elif task_name == "multilabel":
        classes = _name_labels(targets.shape[1], class_names, y_path)
    elif numbers:
        classes = tuple(class_names or map(str, numbers))
    else:
        classes = _name_classes(targets, task_name, class_names, y_path)
    has_test = opened["test"] is not None
    nothing_to_learn = ""
    if task_name == "multilabel" and bool((targets == targets[0]).all()):
        nothing_to_learn = f"{y_path} holds the same labels in every row, so there is nothing to tell apart"
    elif classes and bool((targets == targets[0]).all()):
        name = numbers[0] if numbers else int(targets[0])
        nothing_to_learn = f"{y_path} holds class {name} in every row, so there is nothing to tell apart"

    train_rows, test_rows = partition(len(x), 0.0 if has_test else test_fraction, seed)
    if normalize:
        mean, std = _compute_constants(x, train_rows, x_path)
    else:
        mean = [0.0] * x.shape[1]
        std = [1.0] * x.shape[1]

    # Training and test rows share one mapping.
    everything = Mapped(x, targets, mean, std, x_path)
    expected = _Expected(everything, task_name, len(classes), numbers, text_classes, layout, files)
    val = mistakes.collect(_read_further_part, "val", opened["val"], expected)
    test = mistakes.collect(_read_further_part, "test", opened["test"], expected)
    mistakes.raise_if_any()

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
        unheeded["test_fraction"] = f"{files.locate('test_x').name} in {path} is the test part"
    if x.ndim != 4 or kind != "image":
        unheeded["layout"] = "it is for images"
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


def _open_pair(files: ArrayFiles, part: str, needs_no_targets: bool) -> tuple[Numbers, Numbers] | None:
    """Inputs and targets of a part; None if it has neither, and is not the training part.

    needs_no_targets: of an autoencoder; they are then an array without columns.
    """
    prefix = "" if part == "train" else f"{part}_"
    if part != "train" and not files.has(f"{prefix}x") and not files.has(f"{prefix}y"):
        return None

    mistakes = ErrorList()
    x = mistakes.collect(files.open, f"{prefix}x")
    y = None
    if not needs_no_targets:
        y = mistakes.collect(files.open, f"{prefix}y")
    mistakes.raise_if_any()
    assert x is not None
    return x, np.zeros((len(x), 0), np.float32) if y is None else y


def _arrange_channels(x: Numbers, path: Path, layout: Layout | None) -> tuple[Numbers, Layout, tuple[str, ...]]:
    """Images as (N, C, H, W), a view; with the layout that they had, and a note if it was guessed."""
    if x.ndim == 3:
        # Images (N, H, W) become (N, 1, H, W).
        return x[:, None], layout or "channels_first", ()
    if x.ndim != 4:
        return x, layout or "channels_first", ()

    notes: tuple[str, ...] = ()
    if layout is None:
        layout = _judge_layout(*x.shape[1:])
        if layout == "channels_last":
            notes = (
                f"{path} of shape {x.shape} was taken for images (rows, height, width, channels); "
                "data.layout=channels_first says otherwise.",
            )
    if layout == "channels_last":
        x = x.transpose(0, 3, 1, 2)
    return x, layout, notes


def _judge_layout(first: int, middle: int, last: int) -> Layout:
    """Where the channels are: at the end whose size is a usual number of channels, else beside the two equal sides."""
    if first <= _MOST_CHANNELS:
        return "channels_first"
    if last <= _MOST_CHANNELS or (first == middle != last):
        return "channels_last"
    # Spectral images have more channels than four, and still fewer than pixels a side.
    return "channels_last" if last < min(first, middle) else "channels_first"


@dataclass(frozen=True)
class _Expected:
    """What a further part must agree with: the training part, and how it was read.

    numbers: of the classes in y, where they were numbered anew. text_classes: their names, if y is text.
    """

    train: Mapped
    task: TaskName
    classes: int
    numbers: list[int]
    text_classes: list[str]
    layout: Layout
    files: ArrayFiles


def _read_further_part(name: str, opened: tuple[Numbers, Numbers] | None, expected: _Expected) -> Mapped | None:
    """The val or test part, which must have the format of the training part; None if it has no files."""
    if opened is None:
        return None

    x, y = opened
    train = expected.train
    x_path = expected.files.locate(f"{name}_x")
    y_path = expected.files.locate(f"{name}_y")
    if expected.text_classes:
        y = _number_text(y, expected.text_classes, y_path)
    x, _, _ = _arrange_channels(x, x_path, expected.layout)
    first = expected.files.locate("x").name
    if x.shape[1:] != train.x.shape[1:] or x.dtype != train.x.dtype:
        raise DataError(
            f"{x_path} has rows of {x.shape[1:]} {x.dtype}, and {first} of {train.x.shape[1:]} "
            f"{train.x.dtype}; write both alike"
        )

    first = expected.files.locate("y").name
    targets, _ = _read_targets(x, y, x_path, y_path, expected.task, any_number=bool(expected.numbers))
    if expected.task in ("regression", "multilabel") and targets.shape[1:] != train.targets.shape[1:]:
        raise DataError(f"{y_path} has {targets.shape[1]} columns, and {first} {train.targets.shape[1]}; write as many")
    if expected.numbers:
        targets = _renumber(targets, expected.numbers, y_path)
    elif expected.task in ("binary", "multiclass") and int(targets.max()) >= expected.classes:
        raise DataError(
            f"{y_path} holds class {int(targets.max())}, which {first} does not have; name all in data.class_names"
        )

    # Normalized with the constants of the training part.
    part = Mapped(x, targets, [0.0], [1.0], x_path)
    part.mean = train.mean
    part.std = train.std
    return part


def _order_text_classes(classes: list[str], class_names: list[str] | None, path: Path) -> list[str]:
    """The classes of text in the order of data.class_names, which may name more; alphabetically without it."""
    if class_names is None:
        return classes
    missing = [name for name in classes if name not in class_names]
    if missing:
        raise DataError(f"{path} holds the class {missing[0]!r}, which data.class_names lacks; name each")
    return class_names


def _number_text(y: Numbers, classes: list[str], path: Path) -> Numbers:
    """Class numbers int64 (N,) of text (N,) or (N, 1); DataError for a class that is not there."""
    if y.dtype.kind != "U":
        raise DataError(f"{path} holds {y.dtype}, and the training part has text; write both alike")
    if y.size != len(y):
        raise DataError(f"{path} has shape {y.shape} and holds text; write one class a row")
    codes = {name: code for code, name in enumerate(classes)}
    numbers = np.array([codes.get(name, -1) for name in y.reshape(-1).tolist()], np.int64)
    if (numbers < 0).any():
        row = int(np.flatnonzero(numbers < 0)[0])
        raise DataError(
            f"{path} holds class {y.reshape(-1)[row]!s} in row {row:,} (counted from 0), which the training part does "
            "not have; remove those rows, or add some to it"
        )
    return numbers


def _find_kind(x: Numbers, path: Path) -> Kind:
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
        raise DataError(f"{path} holds {x.dtype}; write numbers, such as uint8 (0 to 255) or float32")
    if x.ndim == 2:
        return "vector"
    if x.ndim in (3, 4):
        return "image"
    raise DataError(f"{path} has shape {x.shape}; write (rows, features), or images (rows, channels, height, width)")


def _find_task(y: Numbers, path: Path, task: TaskName | None, infers: bool) -> tuple[TaskName, tuple[str, ...]]:
    """The task that y is for, with a note where it is a guess."""
    is_integer = np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_
    if not is_integer and not np.issubdtype(y.dtype, np.floating):
        raise DataError(f"{path} holds {y.dtype}; write whole numbers for classes, floats for regression")

    if task:
        return task, ()
    if y.dtype == np.bool_ and y.ndim == 1:
        return "binary", ()
    if not infers:
        # Integers may be classes or counts; classes are the usual case.
        return "multiclass" if is_integer else "regression", ()

    columns = np.asarray(y).reshape(len(y), -1)
    is_one_hot = _is_one_hot(columns)
    if not is_integer and not is_one_hot and not _holds_few_whole_numbers(columns):
        return "regression", ()
    if columns.shape[1] > 1 and not is_one_hot:
        # What these columns are is asked for by whoever reads them.
        return "multiclass", ()

    count = columns.shape[1] if is_one_hot else len(np.unique(columns))
    # As in tables.
    guess: TaskName = "binary" if count <= 2 else "multiclass"
    if is_integer and not is_one_hot and guess == "multiclass":
        return guess, ()
    return guess, (f"{path} was taken for {guess} with {count} classes; data.task=… says otherwise.",)


def _is_one_hot(columns: Numbers) -> bool:
    """Whether each row (N, columns) has a single 1 among zeros, with at least two columns."""
    if columns.shape[1] < 2:
        return False
    return bool(((columns == 0) | (columns == 1)).all() and (columns.sum(axis=1) == 1).all())


def _holds_few_whole_numbers(columns: Numbers) -> bool:
    """Whether floats are classes rather than quantities: one column of at most 20 whole numbers."""
    if columns.shape[1] != 1 or not np.isfinite(columns).all():
        return False
    return bool((columns == np.round(columns)).all()) and len(np.unique(columns)) <= _MOST_FLOAT_CLASSES


def _find_class_numbers(
    targets: Tensor, path: Path, task: TaskName, class_names: list[str] | None
) -> tuple[list[int], tuple[str, ...]]:
    """The numbers of the classes if they are to be numbered anew, else none; with a note."""
    numbers = sorted(set(targets.tolist()))
    highest = max(numbers)
    # Named classes are counted from 0 if there is a name for each number.
    if min(numbers) >= 0 and highest < (len(numbers) if class_names is None else len(class_names)):
        return [], ()
    # One class of two.
    if task == "binary" and class_names is None and set(numbers) <= {0, 1}:
        return [], ()
    if task == "binary" and len(numbers) > 2:
        raise DataError(
            f"{path} holds {len(numbers):,} classes, and data.task=binary takes two; type data.task=multiclass"
        )
    if len(numbers) > MOST_CLASSES:
        raise DataError(
            f"{path} holds {len(numbers):,} classes from {numbers[0]} to {highest}, and dlrun takes at most "
            f"{MOST_CLASSES:,}; type data.task=regression if they are quantities"
        )
    if class_names is not None and len(class_names) != len(numbers):
        raise DataError(
            f"data.class_names has {format_count(len(class_names), 'name')}, and {path.name} "
            f"{format_count(len(numbers), 'class')}; name each"
        )

    listed = join_names([str(number) for number in numbers], most=6)
    names = "which are their names" if class_names is None else "with data.class_names in this order"
    return numbers, (f"{path} holds the classes {listed}, {names}; they became 0 to {len(numbers) - 1}.",)


def _renumber(targets: Tensor, numbers: list[int], path: Path) -> Tensor:
    """The position of each target among the numbers; DataError for one that is not there."""
    if not numbers:
        return targets
    known = torch.tensor(numbers)
    position = torch.searchsorted(known, targets).clamp_max(len(numbers) - 1)
    is_unknown = known[position] != targets
    if bool(is_unknown.any()):
        row = int(is_unknown.nonzero()[0])
        raise DataError(
            f"{path} holds class {int(targets[row])} in row {row:,} (counted from 0), which the training part does not "
            "have; remove those rows, or add some to it"
        )
    return position


def _read_targets(
    x: Numbers, y: Numbers, x_path: Path, path: Path, task: TaskName, any_number: bool = False
) -> tuple[Tensor, tuple[str, ...]]:
    """y in the format of DataSpec, one target per row, in memory; with notes on conversions.

    any_number: class numbers need not count from 0.
    """
    if len(x) != len(y):
        raise DataError(f"{path} has {format_count(len(y), 'row')}, and {x_path.name} {len(x):,}; write as many")
    if y.ndim > 2:
        raise DataError(
            f"{path} has shape {y.shape}; write (rows,), or (rows, columns) for regression and multilabel: an answer "
            "for every pixel, segmentation, is nothing that dlrun trains"
        )
    if task == "multilabel":
        return _read_label_columns(y, path), ()
    if task != "regression":
        return _read_labels(y, path, task, any_number)

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


def _read_labels(y: Numbers, path: Path, task: TaskName, any_number: bool) -> tuple[Tensor, tuple[str, ...]]:
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
    if any_number:
        limit = 2**63 - 1
    if (lowest < 0 and not any_number) or highest > limit:
        allowed = "0 and 1" if task == "binary" else f"whole numbers from 0 to {MOST_CLASSES - 1:,}"
        row = int(np.flatnonzero((columns[:, 0] < 0) | (columns[:, 0] > limit))[0])
        raise DataError(
            f"{path} holds classes from {lowest} to {highest}, and data.task={task} takes {allowed} "
            f"(row {row:,}, counted from 0, holds {int(columns[row, 0])})"
        )
    return torch.from_numpy(columns[:, 0].astype(np.int64)), tuple(notes)


def _name_classes(targets: Tensor, task: TaskName, class_names: list[str] | None, path: Path) -> tuple[str, ...]:
    count = 2 if task == "binary" else int(targets.max()) + 1
    if class_names is not None and (len(class_names) < count or (task == "binary" and len(class_names) > 2)):
        raise DataError(
            f"data.class_names has {format_count(len(class_names), 'name')}, and {path.name} {count} classes; name each"
        )
    return tuple(class_names or (str(i) for i in range(count)))


def _name_labels(count: int, class_names: list[str] | None, path: Path) -> tuple[str, ...]:
    if class_names is not None and len(class_names) != count:
        raise DataError(
            f"data.class_names has {format_count(len(class_names), 'name')}, and {path.name} {count} columns of "
            "labels; name each"
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
    if values.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(values)).float().div_(255)
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
