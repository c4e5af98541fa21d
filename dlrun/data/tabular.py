"""Tables: the course's diabetes data and any table of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError
from dlrun.core.format import format_count
from dlrun.data.datasets import RowIndices, partition, partition_by_class
from dlrun.data.files.download import fetch_course_table
from dlrun.data.files.table import Numbers, Table, parse_numbers, read_table
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Output, OutputTask, Split, Splits

TableTask = Literal["regression", "binary", "multiclass", "multilabel", "multitask"]

# An integer target with more distinct values is taken for a quantity.
MOST_INTEGER_CLASSES = 20
DIABETES_SHA256 = "398214d0f6b7f4a722f598d8e424f28bc078abbd16ebdeea0f8e264492325aa4"


@dataclass(frozen=True)
class Target:
    """The target columns.

    values: float64 (N, columns) for regression, and 0 or 1 for multilabel, whose labels class_names names; else int64
    (N,), indices into class_names.
    """

    task: TableTask
    values: Numbers | RowIndices
    class_names: tuple[str, ...] = ()
    # Of a multitask, whose columns of values are float64.
    outputs: tuple[Output, ...] = ()


def diabetes(root: str, test_fraction: float = 0.2, normalize: bool = False, seed: int = 0) -> Splits:
    """The course's 759 patients: 8 features scaled to about [-1, 1], diabetes yes (1) or no (0).

    Source: github.com/hunkim/PyTorchZeroToAll, data/diabetes.csv.gz, looked for in the folder `root`.
    Raises DataError for a damaged file, or a missing one that cannot be downloaded.
    """
    path = fetch_course_table("diabetes", root, "diabetes", DIABETES_SHA256)
    table = read_table(path, header=False)
    if len(table.names) != 9:
        raise DataError(
            f"{path} has {format_count(len(table.names), 'column')}, not the 9 of the diabetes table: "
            "delete it and run again"
        )
    return _build_splits(table, [8], read_classes(table, 8, "binary"), test_fraction, normalize, seed)


def csv(
    path: str,
    target: str | int | list[str | int] = -1,
    task: TableTask | None = None,
    header: bool | None = None,
    delimiter: str = ",",
    test_fraction: float = 0.2,
    normalize: bool = True,
    seed: int = 0,
) -> Splits:
    """A table of the user's: one row per sample, numbers in all columns but the target, which may be text.

    task=None: classes if the target is text or holds at most 20 distinct integers, else regression. Of several target
    columns: multilabel if all of them hold 0 and 1 alone, regression if all are quantities, else multitask, an output
    for each column; of none, [], targets have no column.
    Inputs float64 (N, features); normalize: (x - mean) / std with the constants of the training rows, std 1
    for a constant column. Raises DataError or RequestError, naming file, line and column.
    """
    table = read_table(Path(path).expanduser(), header, delimiter)
    columns = _find_targets(table, target)
    # A single column is usually a table with another delimiter.
    if len(table.names) == 1:
        raise DataError(
            f"{path} has one column only, so nothing to learn from: is it separated by something else than "
            f"'{delimiter}', as in data.delimiter=';'?"
        )

    if len(columns) == len(table.names):
        raise RequestError(f"data.target names all columns of {path}, so that no input is left; leave some out")

    values = _read_target(table, columns, task)
    notes = () if task or not columns else (describe_guess([table.names[column] for column in columns], values),)
    return _build_splits(table, columns, values, test_fraction, normalize, seed, notes)


def _find_targets(table: Table, target: str | int | Sequence[str | int]) -> list[int]:
    """Positions of the target columns; RequestError for one that is named twice."""
    if isinstance(target, str | int):
        return [table.find_column(target)]

    columns = [table.find_column(column) for column in target]
    for column in columns:
        if columns.count(column) > 1:
            raise RequestError(f"data.target names column '{table.names[column]}' twice; leave out one of them")
    return columns


def explain_nothing_to_learn(table: Table, columns: Sequence[int], target: Target) -> str:
    """The reason why the table cannot be trained on; empty if it can."""
    if len(table.lines) < 2:
        return (
            f"{table.path} has one row only, at least two are needed: one to train on and one to test; add rows, or "
            "type data.path=<another file>"
        )
    if target.task == "multilabel" and (target.values == target.values[0]).all():
        return f"{table.path}: all rows have the same labels, so there is nothing to learn"
    if target.task != "multilabel" and len(target.class_names) == 1:
        return (
            f"{table.path}: the target, column '{table.names[columns[0]]}', is '{target.class_names[0]}' in every row, "
            "so there is only one class and nothing to learn; type data.target=<another column>"
        )
    return ""


def describe_guess(names: Sequence[str], target: Target) -> str:
    """A note on the task that the target was taken for."""
    if len(names) > 1:
        columns = " and ".join(f"'{name}'" for name in names)
        kinds: str = target.task
        if target.outputs:
            kinds = ", ".join(f"{output.task} ({output.name})" for output in target.outputs)
        return f"columns {columns} are the targets and were taken for {kinds}; data.task=… says otherwise."
    name = names[0]
    classes = f" with {len(target.class_names)} classes" if target.class_names else ""
    return f"column '{name}' is the target and was taken for {target.task}{classes}; data.task=… says otherwise."


def _read_target(table: Table, columns: Sequence[int], task: TableTask | None) -> Target:
    if task not in (None, *get_args(TableTask)):
        raise RequestError(
            f"data.task={task} is not known: type regression, binary, multiclass, multilabel or multitask"
        )

    if not columns:
        # All columns are inputs, for an autoencoder.
        return Target("regression", np.zeros((len(table.lines), 0)))
    if task == "multilabel":
        return _read_labels(table, columns)
    if len(columns) > 1:
        return _read_several(table, columns, task)

    column = columns[0]
    task = task or _guess_task(table, column)
    if task == "regression":
        return Target("regression", table.read_numbers(column)[:, None])
    return read_classes(table, column, task)


def _read_several(table: Table, columns: Sequence[int], task: TableTask | None) -> Target:
    """Several target columns: labels where all hold 0 and 1, else values."""
    if task in ("binary", "multiclass"):
        raise RequestError(f"data.task={task} takes one target column, and data.target names {len(columns)}")
    if task is None and all(_holds_labels(table, column) for column in columns):
        return _read_labels(table, columns)
    if task == "regression" or (task is None and all(_guess_task(table, column) == "regression" for column in columns)):
        return Target("regression", np.stack([table.read_numbers(column) for column in columns], axis=1))

    # An output for each column.
    return join_targets(table, columns, [_read_target(table, [column], None) for column in columns])


def join_targets(table: Table, columns: Sequence[int], targets: Sequence[Target]) -> Target:
    """Several targets side by side, an output each; DataError for one that has a single class."""
    outputs = []
    values = []
    for column, target in zip(columns, targets, strict=True):
        name = table.names[column]
        if target.task != "regression" and len(target.class_names) < 2:
            raise DataError(f"{table.path}: the target, column '{name}', is the same in every row; leave it out")
        outputs.append(Output(name, cast(OutputTask, target.task), count_outputs(target), target.class_names))
        values.append(target.values.reshape(len(table.lines), 1).astype(np.float64))
    return Target("multitask", np.concatenate(values, axis=1), outputs=tuple(outputs))


def _holds_labels(table: Table, column: int) -> bool:
    values = parse_numbers(table.columns[column])
    return values is not None and bool(np.isin(values, (0, 1)).all())


def _read_labels(table: Table, columns: Sequence[int]) -> Target:
    """0 and 1 in each column, whose name is the label's."""
    labels = []
    for column in columns:
        values = table.read_numbers(column)
        is_bad = ~np.isin(values, (0, 1))
        if is_bad.any():
            row = int(np.flatnonzero(is_bad)[0])
            raise DataError(
                f"{table.path}, line {table.lines[row]}: label '{table.names[column]}' is "
                f"{table.columns[column][row]}, and multilabel takes 0 and 1; correct the line or remove it"
            )
        labels.append(values)
    return Target("multilabel", np.stack(labels, axis=1), tuple(table.names[column] for column in columns))


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


def read_classes(table: Table, column: int, task: TableTask) -> Target:
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
    columns: Sequence[int],
    target: Target,
    test_fraction: float,
    normalize: bool,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Splits:
    # All columns but the targets are inputs.
    features = [i for i in range(len(table.names)) if i not in columns]
    inputs = np.stack([table.read_numbers(i) for i in features], axis=1)  # (N, features)

    # Rows that cannot be trained on are kept together: they can still be evaluated.
    nothing_to_learn = explain_nothing_to_learn(table, columns, target)
    if nothing_to_learn:
        train_rows, test_rows = partition(len(inputs), 0.0, seed)
    elif target.task in ("binary", "multiclass"):
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
        count_outputs(target),
        class_names=target.class_names,
        feature_names=tuple(table.names[i] for i in features),
        mean=mean,
        std=std,
        outputs=target.outputs,
    )
    return Splits(train, None, test if len(test) else None, spec, notes, nothing_to_learn=nothing_to_learn)


def count_outputs(target: Target) -> int:
    """Number of outputs of a model for such a target."""
    if target.outputs:
        return sum(output.size for output in target.outputs)
    if target.task == "binary":
        return 1
    return len(target.class_names) if target.task == "multiclass" else target.values.shape[1]


def _compute_constants(train: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each column; std 1 where a column is constant."""
    # The computed std of a constant column may be 1e-17 rather than 0.
    is_constant = (train == train[0]).all(axis=0)
    std = np.where(is_constant, 1.0, train.std(axis=0))
    return tuple(train.mean(axis=0).tolist()), tuple(std.tolist())
