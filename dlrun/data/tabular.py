"""Tables: the course's diabetes data and any table of the user's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError
from dlrun.data.datasets import RowIndices, partition, partition_by_class
from dlrun.data.files.download import fetch_course_table
from dlrun.data.files.table import Numbers, Table, parse_numbers, read_table
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits

TableTask = Literal["regression", "binary", "multiclass"]

# An integer target with more distinct values is taken for a quantity.
MOST_INTEGER_CLASSES = 20
DIABETES_SHA256 = "398214d0f6b7f4a722f598d8e424f28bc078abbd16ebdeea0f8e264492325aa4"


@dataclass(frozen=True)
class Target:
    """The target column; values: float64 (N, 1) for regression, else int64 (N,) indices into class_names."""

    task: TableTask
    values: Numbers | RowIndices
    class_names: tuple[str, ...] = ()


def diabetes(root: str, test_fraction: float = 0.2, normalize: bool = False, seed: int = 0) -> Splits:
    """The course's 759 patients: 8 features scaled to about [-1, 1], diabetes yes (1) or no (0).

    Source: github.com/hunkim/PyTorchZeroToAll, data/diabetes.csv.gz, looked for in the folder `root`.
    Raises DataError for a damaged file, or a missing one that cannot be downloaded.
    """
    path = fetch_course_table("diabetes", root, "diabetes", DIABETES_SHA256)
    table = read_table(path, header=False)
    if len(table.names) != 9:
        raise DataError(
            f"{path} has {len(table.names)} columns, not the 9 of the diabetes table: delete it and run again"
        )
    return _build_splits(table, 8, _read_classes(table, 8, "binary"), test_fraction, normalize, seed)


def csv(
    path: str,
    target: str | int = -1,
    task: TableTask | None = None,
    header: bool | None = None,
    delimiter: str = ",",
    test_fraction: float = 0.2,
    normalize: bool = True,
    seed: int = 0,
) -> Splits:
    """A table of the user's: one row per sample, numbers in all columns but the target, which may be text.

    task=None: classes if the target is text or holds at most 20 distinct integers, else regression.
    Inputs float64 (N, features); normalize: (x - mean) / std with the constants of the training rows, std 1
    for a constant column. Raises DataError or RequestError, naming file, line and column.
    """
    table = read_table(Path(path).expanduser(), header, delimiter)
    column = table.find_column(target)
    # A single column is usually a table with another delimiter.
    if len(table.names) == 1:
        raise DataError(
            f"{path} has one column only, so nothing to learn from: is it separated by something else than "
            f"'{delimiter}', as in data.delimiter=';'?"
        )

    values = _read_target(table, column, task)
    notes = () if task else (_describe_guess(table.names[column], values),)
    return _build_splits(table, column, values, test_fraction, normalize, seed, notes)


def _explain_nothing_to_learn(table: Table, column: int, target: Target) -> str:
    """The reason why the table cannot be trained on; empty if it can."""
    if len(table.lines) < 2:
        return f"{table.path} has one row only, at least two are needed: one to train on and one to test"
    if len(target.class_names) == 1:
        return (
            f"{table.path}: the target, column '{table.names[column]}', is '{target.class_names[0]}' in every row, "
            "so there is only one class and nothing to learn"
        )
    return ""


def _describe_guess(name: str, target: Target) -> str:
    classes = f" with {len(target.class_names)} classes" if target.class_names else ""
    return f"column '{name}' is the target and was taken for {target.task}{classes}; data.task=… says otherwise."


def _read_target(table: Table, column: int, task: TableTask | None) -> Target:
    if task not in (None, "regression", "binary", "multiclass"):
        raise RequestError(f"data.task={task} is not known: type regression, binary or multiclass")

    task = task or _guess_task(table, column)
    if task == "regression":
        return Target("regression", table.read_numbers(column)[:, None])
    return _read_classes(table, column, task)


def _guess_task(table: Table, column: int) -> TableTask:
    cells = table.columns[column]
    if parse_numbers(cells) is None:
        texts = [i for i, cell in enumerate(cells) if parse_numbers([cell]) is None]
        if len(texts) < len(cells):
            # "NA" among numbers is a gap, not a class.
            error = table.build_cell_error(column, texts[0])
            raise DataError(f"{error} (or type data.task=multiclass if these are names of classes)")
        distinct = len({cell.strip() for cell in cells})
    else:
        # A fraction among the values makes them a quantity.
        values = table.read_numbers(column)
        if (values != np.round(values)).any():
            return "regression"
        distinct = len(set(_name_classes(table, column).values()))
        if distinct > MOST_INTEGER_CLASSES:
            return "regression"
    return "binary" if distinct <= 2 else "multiclass"


def _read_classes(table: Table, column: int, task: TableTask) -> Target:
    """The target as classes: numbers in ascending order, text in alphabetical order."""
    # Cells that mean the same number are one class.
    name_of_cell = _name_classes(table, column)
    names = sorted(set(name_of_cell.values()))
    if parse_numbers(names) is not None:
        names.sort(key=_to_exact_number)
    if task == "binary" and len(names) > 2:
        where = f"{table.path}: the target, column '{table.names[column]}',"
        raise DataError(f"{where} has {len(names)} distinct values: type data.task=multiclass, or regression")

    codes = {name: code for code, name in enumerate(names)}
    values = np.array([codes[name_of_cell[cell]] for cell in table.columns[column]], dtype=np.int64)
    return Target(task, values, tuple(names))


def _name_classes(table: Table, column: int) -> dict[str, str]:
    """The class name of every distinct cell."""
    cells = table.columns[column]
    distinct = dict.fromkeys(cells)
    if parse_numbers(list(distinct)) is not None:
        # Refuses cells that are infinite or nan.
        table.read_numbers(column)
        return {cell: _normalize_number(cell.strip()) for cell in distinct}

    for cell in distinct:
        if not cell.strip():
            raise table.build_cell_error(column, cells.index(cell))
    return {cell: cell.strip() for cell in distinct}


def _normalize_number(number: str) -> str:
    """The name of a class written as a number.

    1.0 and 1 are one class; 007 and 7 are two, and so are integers of 20 digits, which floats cannot tell apart.
    """
    digits = number.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        has_leading_zeros = len(digits) > 1 and digits.startswith("0")
        return number if has_leading_zeros else str(int(number))

    value = float(number)
    if abs(value) >= 2**53:
        # From here on neighbouring integers are the same float.
        return number
    return str(int(value)) if value.is_integer() else str(value)


def _to_exact_number(name: str) -> int | float:
    # Python compares integers and floats exactly.
    digits = name.removeprefix("-")
    return int(name) if digits.isascii() and digits.isdigit() else float(name)


def _build_splits(
    table: Table,
    column: int,
    target: Target,
    test_fraction: float,
    normalize: bool,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Splits:
    # All columns but the target are inputs.
    features = [i for i in range(len(table.names)) if i != column]
    inputs = np.stack([table.read_numbers(i) for i in features], axis=1)  # (N, features)

    # Rows that cannot be trained on are kept together: they can still be evaluated.
    nothing_to_learn = _explain_nothing_to_learn(table, column, target)
    if nothing_to_learn:
        train_rows, test_rows = partition(len(inputs), 0.0, seed)
    elif target.class_names:
        labels = target.values.astype(np.int64)
        train_rows, test_rows = partition_by_class(labels, target.class_names, test_fraction, seed, str(table.path))
    else:
        train_rows, test_rows = partition(len(inputs), test_fraction, seed)

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if normalize:
        # Constants of the training rows alone: test rows must not leak into them.
        mean, std = _compute_constants(inputs[train_rows])
        inputs = (inputs - np.array(mean)) / np.array(std)

    origin = Origin.from_lines(str(table.path), table.lines)

    def select(rows: RowIndices) -> Split:
        x = torch.from_numpy(inputs[rows])
        y = torch.from_numpy(target.values[rows])
        return Split((x,), y, origin.take(torch.from_numpy(rows)))

    train = select(train_rows)
    test = select(test_rows)
    spec = DataSpec(
        "vector",
        (len(features),),
        target.task,
        len(target.class_names) if target.task == "multiclass" else 1,
        class_names=target.class_names,
        feature_names=tuple(table.names[i] for i in features),
        mean=mean,
        std=std,
    )
    return Splits(train, None, test if len(test) else None, spec, notes, nothing_to_learn=nothing_to_learn)


def _compute_constants(train: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each column; std 1 where a column is constant."""
    # The computed std of a constant column may be 1e-17 rather than 0.
    is_constant = (train == train[0]).all(axis=0)
    std = np.where(is_constant, 1.0, train.std(axis=0))
    return tuple(train.mean(axis=0).tolist()), tuple(std.tolist())
