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
MOST_INTEGER_CLASSES = 20  # an integer target with more distinct values is taken for a quantity
DIABETES_SHA256 = "398214d0f6b7f4a722f598d8e424f28bc078abbd16ebdeea0f8e264492325aa4"


@dataclass(frozen=True)
class Target:
    """values: float64 (N, 1) for regression, else int64 (N,) indices into class_names."""

    task: TableTask
    values: Numbers | RowIndices
    class_names: tuple[str, ...] = ()


def diabetes(root: str, test_fraction: float = 0.2, normalize: bool = False, seed: int = 0) -> Splits:
    """The course's 759 patients: 8 features scaled to about [-1, 1], diabetes yes (1) or no (0).

    Source: github.com/hunkim/PyTorchZeroToAll, data/diabetes.csv.gz, looked for in the folder `root`.
    Raises DataError when the file is damaged, or missing and not to be downloaded.
    """
    path = fetch_course_table("diabetes", root, "diabetes", DIABETES_SHA256)
    table = read_table(path, header=False)
    if len(table.names) != 9:
        raise DataError(
            f"{path} has {len(table.names)} columns, not the 9 of the diabetes table: delete it and run again"
        )
    return _splits(table, 8, _classes(table, 8, "binary"), test_fraction, normalize, seed)


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
    """A table of the user's: a row a sample, numbers but for the target, which may be text.

    task=None: classes if the target is text or holds at most 20 distinct integers, else regression.
    Inputs float64 (N, features); normalize: (x - mean) / std with the constants of the training rows, std 1
    for a constant column. Raises DataError or RequestError, naming file, line and column.
    """
    table = read_table(Path(path).expanduser(), header, delimiter)
    column = table.find_column(target)
    if len(table.names) == 1:
        raise DataError(
            f"{path} has one column only, so nothing to learn from: is it separated by something else than "
            f"'{delimiter}', as in data.delimiter=';'?"
        )
    found = _target(table, column, task)
    notes = () if task else (_inferred(table.names[column], found),)
    return _splits(table, column, found, test_fraction, normalize, seed, notes)


def _nothing_to_learn(table: Table, column: int, target: Target) -> str:
    """Why the table cannot be trained on; empty if it can."""
    if len(table.lines) < 2:
        return f"{table.path} has one row only, at least two are needed: one to train on and one to test"
    if len(target.class_names) == 1:
        return (
            f"{table.path}: the target, column '{table.names[column]}', is '{target.class_names[0]}' in every row, "
            "so there is only one class and nothing to learn"
        )
    return ""


def _inferred(name: str, target: Target) -> str:
    classes = f" with {len(target.class_names)} classes" if target.class_names else ""
    return f"column '{name}' is the target and was taken for {target.task}{classes}; data.task=… says otherwise."


def _target(table: Table, column: int, task: TableTask | None) -> Target:
    if task not in (None, "regression", "binary", "multiclass"):
        raise RequestError(f"data.task={task} is not known: type regression, binary or multiclass")
    task = task or _guess(table, column)
    if task == "regression":
        return Target("regression", table.read_numbers(column)[:, None])
    return _classes(table, column, task)


def _guess(table: Table, column: int) -> TableTask:
    cells = table.columns[column]
    if parse_numbers(cells) is None:
        readable = [i for i, cell in enumerate(cells) if parse_numbers([cell]) is None]
        if len(readable) < len(cells):  # "NA" among numbers is a gap, not a class
            error = table.cell_error(column, readable[0])
            raise DataError(f"{error} (or type data.task=multiclass if these are names of classes)")
        distinct = len({cell.strip() for cell in cells})
    else:
        values = table.read_numbers(column)
        if (values != np.round(values)).any():
            return "regression"
        distinct = len(set(_class_of_cells(table, column).values()))
        if distinct > MOST_INTEGER_CLASSES:
            return "regression"
    return "binary" if distinct <= 2 else "multiclass"


def _classes(table: Table, column: int, task: TableTask) -> Target:
    """The target as classes: numbers in ascending order, text in alphabetical order."""
    named = _class_of_cells(table, column)
    names = sorted(set(named.values()))
    if parse_numbers(names) is not None:
        names.sort(key=_exact_number)
    if task == "binary" and len(names) > 2:
        where = f"{table.path}: the target, column '{table.names[column]}',"
        raise DataError(f"{where} has {len(names)} distinct values: type data.task=multiclass, or regression")
    codes = {name: code for code, name in enumerate(names)}
    values = np.array([codes[named[cell]] for cell in table.columns[column]], dtype=np.int64)
    return Target(task, values, tuple(names))


def _class_of_cells(table: Table, column: int) -> dict[str, str]:
    """The name of the class of every distinct cell."""
    cells = table.columns[column]
    distinct = dict.fromkeys(cells)
    if parse_numbers(list(distinct)) is not None:
        table.read_numbers(column)  # refuses cells that are infinite or nan
        return {cell: _class_name(cell.strip()) for cell in distinct}
    empty = next((cell for cell in distinct if not cell.strip()), None)
    if empty is not None:
        raise table.cell_error(column, cells.index(empty))
    return {cell: cell.strip() for cell in distinct}


def _class_name(number: str) -> str:
    """A class that is written as a number: 1.0 and 1 are one class; 007 and 7 are two, so are numbers of 20 digits."""
    digits = number.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        has_leading_zeros = len(digits) > 1 and digits.startswith("0")
        return number if has_leading_zeros else str(int(number))
    value = float(number)
    if abs(value) >= 2**53:  # neighbours are one number as a float
        return number
    return str(int(value)) if value.is_integer() else str(value)


def _exact_number(name: str) -> int | float:
    """The value of a class name that is a number; Python compares integers and floats exactly."""
    digits = name.removeprefix("-")
    return int(name) if digits.isascii() and digits.isdigit() else float(name)


def _splits(
    table: Table,
    column: int,
    target: Target,
    test_fraction: float,
    normalize: bool,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Splits:
    features = [i for i in range(len(table.names)) if i != column]
    inputs = np.stack([table.read_numbers(i) for i in features], axis=1)  # (N, features)
    nothing_to_learn = _nothing_to_learn(table, column, target)
    if nothing_to_learn:
        rows = partition(len(inputs), 0.0, seed)
    elif target.class_names:
        labels = target.values.astype(np.int64)
        rows = partition_by_class(labels, target.class_names, test_fraction, seed, str(table.path))
    else:
        rows = partition(len(inputs), test_fraction, seed)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if normalize:
        mean, std = _constants(inputs[rows[0]])
        inputs = (inputs - np.array(mean)) / np.array(std)
    origin = Origin.from_lines(str(table.path), table.lines)
    parts = []
    for part in rows:
        x, y = torch.from_numpy(inputs[part]), torch.from_numpy(target.values[part])
        parts.append(Split((x,), y, origin.take(torch.from_numpy(part))))
    train, test = parts
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


def _constants(train: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each column; std 1 where a column is constant."""
    constant = (train == train[0]).all(axis=0)  # its computed std may be 1e-17 rather than 0
    std = np.where(constant, 1.0, train.std(axis=0))
    return tuple(train.mean(axis=0).tolist()), tuple(std.tolist())
