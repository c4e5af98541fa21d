"""`data=table`: any table of the user's, as it comes."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dlrun.core.errors import DataError, MisfitError, RequestError
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.columns.cells import (
    Cells,
    Parsed,
    as_cells,
    choose_day_first,
    find_gaps,
    is_gap,
    parse_column,
    uses_marks,
)
from dlrun.data.columns.kinds import ColumnChoice, ColumnKind, choose_kinds, counts_rows, holds_stamps
from dlrun.data.columns.matching import Match, match_by_name, match_by_position
from dlrun.data.columns.parts import RowParts, SplitPlan, check_split, describe_small_classes, draw_parts
from dlrun.data.columns.preprocessing import (
    NOUNS,
    CategoryColumn,
    Column,
    NumberColumn,
    Preprocessing,
    Scale,
    fit_column,
    split_dates,
)
from dlrun.data.columns.reading import (
    MOST_TROUBLES,
    TableFile,
    TextFormat,
    hash_file,
    read_file,
    unescape_separator,
)
from dlrun.data.datasets import RowIndices
from dlrun.data.files.table import Table
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.tabular import (
    MOST_INTEGER_CLASSES,
    TableTask,
    Target,
    count_outputs,
    describe_guess,
    explain_nothing_to_learn,
    join_targets,
    read_classes,
)

# Rows of the summary of columns; a wide table has more.
_MOST_SUMMARY_ROWS = 20
# Of name, values and use, which fit a terminal of 80 characters side by side.
_SUMMARY_WIDTHS = (16, 22, 24)


@dataclass(frozen=True)
class Drawing:
    """How the parts of a table are drawn: the arguments of `table` with these names."""

    test_fraction: float = 0.2
    val_fraction: float = 0.0
    seed: int = 0
    split: str = "random"
    split_column: str | int | None = None
    folds: int | None = None
    fold: int = 0

    def check(self, test_path: str | None = None) -> None:
        """Raise RequestError for settings that do not go together."""
        check_split(self.split, self.split_column, self.folds, self.fold)
        refuse_double_parts(test_path, self.folds)


@dataclass(frozen=True)
class TableOptions:
    """How a table becomes inputs and targets: the arguments of `table` with these names.

    class_order: names of classes in the order of their numbers, as a set of the datasets library has it; (): sorted.
    """

    target: str | int | list[str | int] = -1
    task: TableTask | None = None
    choice: ColumnChoice = ColumnChoice()
    missing: str = "impute"
    normalize: bool = True
    category_codes: bool = False
    drawing: Drawing = Drawing()
    class_order: Sequence[str] = ()

    def check(self) -> None:
        """Raise RequestError for settings that are no choice."""
        if self.missing not in ("impute", "error"):
            hint = did_you_mean(self.missing, ("impute", "error"))
            raise RequestError(f"data.missing={self.missing} is no choice; {hint}type impute or error")
        check_task(self.task)


@dataclass(frozen=True)
class Trouble:
    """A cell that cannot be used."""

    row: int
    column: int
    what: str


def table(
    path: str,
    target: str | int | list[str | int] = -1,
    task: TableTask | None = None,
    header: bool | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    columns: list[Any] | None = None,
    drop: list[Any] | None = None,
    categorical: list[Any] | None = None,
    kinds: dict[str, Any] | None = None,
    missing: str = "impute",
    split: str = "random",
    split_column: str | int | None = None,
    folds: int | None = None,
    fold: int = 0,
    val_path: str | None = None,
    test_path: str | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    normalize: bool = True,
    seed: int = 0,
    preprocessing: dict[str, Any] | None = None,
    delimiter: str | None = None,
    category_codes: bool = False,
) -> Splits:
    """A table of the user's: a row per sample, the target in a column, text, dates and gaps in the others.

    task=None: classes if the target is text or holds at most 20 distinct integers, else regression. Of several target
    columns: multilabel if all of them hold 0 and 1 alone, regression if all are quantities, else multitask, an output
    for each column; of none, [], targets have no column.
    Inputs float64 (N, features), see columns/preprocessing.py; fitted to the training rows alone, so the validation
    part is drawn here too. normalize: scale numbers, and the target of a regression, by mean and std of those rows.
    preprocessing: of a trained model, applied in place of a new one. delimiter: the older name of separator.
    category_codes: a column of categories is one feature, see DataSpec.code_counts, for models that embed them.
    Raises DataError or RequestError, naming file, line and column, up to ten at once.
    """
    drawing = Drawing(test_fraction, val_fraction, seed, split, split_column, folds, fold)
    choice = ColumnChoice(columns, drop, categorical, kinds)
    options = TableOptions(target, task, choice, missing, normalize, category_codes, drawing)
    options.check()
    drawing.check(test_path)

    saved = None if preprocessing is None else Preprocessing.from_plain(preprocessing)
    if saved is not None:
        # A small table tells less than the one of training.
        decimal = decimal or saved.decimal
        saved = saved.set_decimal(decimal)

    text_format = TextFormat(unescape_separator(separator or delimiter), header, encoding, decimal)

    # Files of other parts are joined to the main one, so that targets and kinds of columns are judged over all rows.
    main = read_file(Path(path).expanduser(), text_format)
    files = [main, *read_parts_beside(main, text_format, val_path, test_path)]
    splits = split_table(files, options, val_path is not None, test_path is not None, saved)
    return replace(splits, unheeded=find_unheeded(test_path, val_path, folds))


def split_table(
    files: Sequence[TableFile], options: TableOptions, has_val: bool, has_test: bool, saved: Preprocessing | None
) -> Splits:
    """Splits of a table that was read: the main file, then that of the validation and that of the test part.

    has_val, has_test: whether there are such files. saved: the preprocessing of a trained model.
    """
    main = files[0]
    joined = join_files(files)
    drawing = options.drawing
    positions = _find_targets(joined, options.target, saved)
    values, target_notes = read_targets(joined, positions, options.task, options.class_order)

    split_position = find_split_column(joined, drawing.split_column, positions)
    # A table that nothing can be learned from is not split: all its rows can still be evaluated.
    nothing_to_learn = explain_unlearnable(main.table, positions, values)
    drawn = Drawing(test_fraction=0.0, split=drawing.split) if nothing_to_learn else drawing
    parts = draw_table_parts(files, joined, split_position, values, drawn, has_val, has_test)

    if saved is None:
        # The group, such as a patient, is no input: the model is tested on groups that it has not met.
        others = [split_position] if drawing.split == "group" and split_position is not None else []
        chosen = choose_kinds(joined, positions, options.choice, others)
        fitted, encoded, column_notes = _fit(joined, positions, chosen, parts.train, options)
        summary = _summarize(joined, chosen, fitted)
    else:
        fitted, encoded, column_notes = _apply(joined, saved, options.missing)
        summary = ()

    # By the file and these numbers a trained model tells whether rows it evaluates were trained on.
    crc = zlib.crc32(parts.train.astype("<i8").tobytes())
    fitted = replace(fitted, sha256=joined.sha256, rows_crc=crc)
    spec = _make_spec(fitted, values, parts.train, options.normalize)
    notes = [*joined.notes, *target_notes, *column_notes, *parts.notes]
    # A class without test rows makes a metric look better, or worse, than it is.
    if values.task in ("binary", "multiclass") and len(parts.test):
        notes.append(describe_small_classes(values.values[parts.test].astype(np.int64), values.class_names))
    return _make_splits(files, encoded, values, parts, spec, notes, nothing_to_learn, summary)


def explain_unlearnable(main: Table, positions: Sequence[int], values: Target) -> str:
    """Why nothing can be learned from the rows of the main file; "" if something can."""
    is_name = values.task == "multiclass" and len(values.class_names) == len(main.lines) > 2
    reason = explain_nothing_to_learn(main, positions, values)
    if reason or not is_name:
        return reason
    return (
        f"{main.path}: the target, column '{main.names[positions[0]]}', is another class in each row, so there is "
        "nothing to learn; type data.target=<another column>, or data.task=regression for a quantity"
    )


def draw_table_parts(
    files: Sequence[TableFile],
    joined: TableFile,
    split_position: int | None,
    values: Target,
    drawing: Drawing,
    has_val: bool,
    has_test: bool,
) -> RowParts:
    """The rows of each part: those of files that are parts, and what is drawn from the main file."""
    rows = len(files[0].table.lines)
    plan = make_plan(joined, drawing.split, split_position, drawing.seed, values, rows)
    test_fraction = 0.0 if has_test else drawing.test_fraction
    val_fraction = 0.0 if has_val else drawing.val_fraction
    parts = draw_parts(rows, plan, test_fraction, val_fraction, drawing.folds, drawing.fold)
    return add_given_parts(parts, files, has_val, has_test)


def hash_files(arguments: Mapping[str, Any]) -> str:
    """The sha256 by which the files of a table are known again; "" where one of them cannot be read."""
    paths = [arguments.get(key) for key in ("path", "val_path", "test_path")]
    return combine_hashes([hash_file(Path(str(path)).expanduser()) for path in paths if path is not None])


def combine_hashes(hashes: Sequence[str]) -> str:
    return "" if "" in hashes else "-".join(hashes)


def check_task(task: str | None) -> None:
    """RequestError for a task that tables do not have."""
    if task not in (None, *get_args(TableTask)):
        raise RequestError(
            f"data.task={task} is not known: type regression, binary, multiclass, multilabel or multitask"
        )


def find_split_column(joined: TableFile, split_column: str | int | None, targets: Sequence[int]) -> int | None:
    """The position of the column that draws the parts; RequestError if it is a target."""
    if split_column is None:
        return None

    position = joined.table.find_column(split_column, "data.split_column")
    if position in targets:
        raise RequestError(f"data.split_column={split_column} is the target; name another column, or split=random")
    return position


def refuse_double_parts(test_path: str | None, folds: int | None) -> None:
    if test_path is not None and folds is not None:
        raise RequestError(
            "data.folds draws the test part from data.path, and data.test_path names another; leave out one of them"
        )


# Files


def read_parts_beside(
    main: TableFile, text_format: TextFormat, val_path: str | None, test_path: str | None
) -> list[TableFile]:
    """The files of `data.val_path` and `data.test_path`, where they are named."""
    files = []
    for key, path in (("val_path", val_path), ("test_path", test_path)):
        if path is not None:
            files.append(_read_beside(main, Path(path).expanduser(), text_format, f"data.{key}"))
    return files


def _read_beside(main: TableFile, path: Path, text_format: TextFormat, key: str) -> TableFile:
    """Another part in a file of its own, with its columns in the order of the main file."""
    # What was judged of the main file holds for its other parts.
    decimal = text_format.decimal or main.decimal
    other_file = read_file(path, replace(text_format, header=main.table.has_header, decimal=decimal), key)
    if not main.table.has_header:
        if len(other_file.table.names) != len(main.table.names):
            raise DataError(
                f"{path} has {format_count(len(other_file.table.names), 'column')}, and {main.table.path} "
                f"{len(main.table.names)}; name another file by {key}"
            )
        return other_file

    absent = [name for name in main.table.names if name not in other_file.table.names]
    if absent:
        hint = did_you_mean(absent[0], other_file.table.names)
        raise DataError(
            f"{path} has no column '{absent[0]}', which {main.table.path} has; {hint}name another file by {key}"
        )

    # By name: another program may have written the columns in another order.
    order = [other_file.table.names.index(name) for name in main.table.names]
    columns = [other_file.table.columns[number] for number in order]
    return replace(other_file, table=replace(other_file.table, names=main.table.names, columns=columns))


def join_files(files: Sequence[TableFile]) -> TableFile:
    """All rows in one table, those of the main file first."""
    main = files[0]
    if len(files) == 1:
        return main
    columns = []
    for number in range(len(main.table.names)):
        columns.append(Cells(tuple(chain.from_iterable(file.table.columns[number] for file in files))))
    lines = list(chain.from_iterable(file.table.lines for file in files))
    notes = tuple(chain.from_iterable(file.notes for file in files))
    sha256 = combine_hashes([file.sha256 for file in files])
    sources = tuple((file.table.path, len(file.table.lines)) for file in files)
    joined = replace(main.table, columns=columns, lines=lines)
    return replace(main, table=joined, notes=notes, sha256=sha256, sources=sources)


def add_given_parts(parts: RowParts, files: Sequence[TableFile], has_val: bool, has_test: bool) -> RowParts:
    """The parts with the rows of the files that are parts themselves."""
    start = len(files[0].table.lines)
    others = iter(files[1:])
    for name, has_part in (("val", has_val), ("test", has_test)):
        if has_part:
            count = len(next(others).table.lines)
            rows = np.arange(start, start + count)
            parts = replace(parts, val=rows) if name == "val" else replace(parts, test=rows)
            start += count

    return parts


# Target


def _find_targets(file: TableFile, target: str | int | Sequence[str | int], saved: Preprocessing | None) -> list[int]:
    """Positions of the target columns; RequestError for one that is not there, or named twice."""
    path = file.table.path
    if len(file.table.names) == 1:
        raise DataError(
            f"{path} has one column only, so nothing to learn from: is it separated by something else than "
            f"'{file.separator}', as in data.separator=';'?"
        )

    # One column may be typed without brackets.
    columns: Sequence[str | int] = [target] if isinstance(target, str | int) else target
    # A target typed as a number has its name in the training table.
    has_names = saved is not None and saved.has_names and file.table.has_header
    if has_names and saved is not None and all(isinstance(column, int) for column in columns):
        columns = saved.targets
    positions = [file.table.find_column(column, "data.target") for column in columns]
    for position in positions:
        if positions.count(position) > 1:
            raise RequestError(f"data.target names column '{file.table.names[position]}' twice; leave out one of them")

    if len(positions) == len(file.table.names):
        raise RequestError(f"data.target names all columns of {path}, so that no input is left; leave some out")
    return positions


def read_targets(
    file: TableFile, columns: Sequence[int], task: TableTask | None, class_order: Sequence[str] = ()
) -> tuple[Target, list[str]]:
    """The targets with notes on how they were read; DataError for cells that they cannot have.

    class_order: names of classes, of which those that are there get their numbers in this order.
    """
    if not columns:
        # All columns are inputs, for an autoencoder.
        return Target("regression", np.zeros((len(file.table.lines), 0))), []
    if task in ("binary", "multiclass") and len(columns) > 1:
        raise RequestError(f"data.task={task} takes one target column, and data.target names {len(columns)}")
    if len(columns) == 1 and task != "multilabel":
        values, notes = _read_target(file, columns[0], task)
        values = _order_classes(values, class_order)
    else:
        values, notes = _read_several(file, columns, task)

    if task is None:
        notes = [describe_guess([file.table.names[column] for column in columns], values), *notes]
    return values, notes


def _order_classes(target: Target, order: Sequence[str]) -> Target:
    """The same classes, numbered in the order of these names if all are among them."""
    if not target.class_names or not set(target.class_names) <= set(order):
        return target
    names = tuple(name for name in order if name in target.class_names)
    numbers = np.array([names.index(name) for name in target.class_names])
    return replace(target, values=numbers[target.values.astype(np.int64)], class_names=names)


def _read_several(file: TableFile, columns: Sequence[int], task: TableTask | None) -> tuple[Target, list[str]]:
    """Several target columns: labels where all hold 0 and 1, values where all are quantities, else an output each."""
    table = file.table
    if task in (None, "multitask"):
        targets = [_read_target(file, column, None)[0] for column in columns]
        holds_labels = all(set(target.class_names) <= {"0", "1"} and target.class_names for target in targets)
        is_mixed = not holds_labels and any(target.task != "regression" for target in targets)
        # Labels of 0 and 1 are one task with an output each; other columns need a loss each.
        if task == "multitask" or is_mixed:
            return join_targets(table, columns, targets), []

    values = np.stack([_read_quantity(file, column, None) for column in columns], axis=1)
    is_label = np.isin(values, (0, 1))
    if task == "regression" or (task is None and not is_label.all()):
        return Target("regression", values), []

    troubles = []
    for row, number in np.argwhere(~is_label).tolist():
        column = columns[number]
        cell = table.columns[column][row]
        troubles.append(Trouble(row, column, f"holds {cell}, and multilabel takes 0 and 1"))

    raise_troubles(file, troubles, "correct the lines or remove them")
    return Target("multilabel", values, tuple(table.names[column] for column in columns)), []


def _read_target(file: TableFile, column: int, task: TableTask | None) -> tuple[Target, list[str]]:
    """One target column, with notes."""
    cells = file.table.columns[column]
    if task in ("binary", "multiclass"):
        raise_troubles(file, [Trouble(row, column, "is empty") for row, cell in enumerate(cells) if not cell.strip()])
        return read_classes(file.table, column, task), []

    numbers, wrong = parse_column(cells, file.decimal)
    gaps = find_gaps(cells)
    is_text = len(wrong) == len(cells) - int(gaps.sum())
    if task is None and is_text:
        _raise_gaps(file, column)
        values = read_classes(file.table, column, "multiclass")
        return _name_task(values), []

    numbers = _read_quantity(file, column, task)
    # Few different integers are codes of classes more often than they are quantities.
    has_few = (numbers == np.round(numbers)).all() and len(np.unique(numbers)) <= MOST_INTEGER_CLASSES
    if task is None and has_few:
        return _name_task(read_classes(file.table, column, "multiclass")), []
    notes = []
    if uses_marks(cells):
        name = file.table.names[column]
        notes.append(
            f"signs and marks of thousands were left out of '{name}': {cells[0].strip()} is {numbers[0]:.10g}."
        )

    return Target("regression", numbers[:, None]), notes


def _name_task(values: Target) -> Target:
    return replace(values, task="binary" if len(values.class_names) <= 2 else "multiclass")


def _read_quantity(file: TableFile, column: int, task: TableTask | None) -> NDArray[np.float64]:
    """A target column as numbers (rows,)."""
    cells = file.table.columns[column]
    _raise_gaps(file, column)
    numbers, wrong = parse_column(cells, file.decimal)
    advice = "correct the lines or remove them"
    if task is None:
        advice += ", or type data.task=multiclass if these are names of classes"
    raise_troubles(file, [Trouble(row, column, _describe_cell(cells[row])) for row in wrong], advice)
    return numbers


def _raise_gaps(file: TableFile, column: int) -> None:
    cells = file.table.columns[column]
    gaps = [Trouble(row, column, _describe_cell(cells[row])) for row in _find_gap_rows(cells)]
    raise_troubles(file, gaps, "the target must be there: correct the lines or remove them")


def _describe_cell(cell: str) -> str:
    return f"holds '{cell.strip()[:40]}', which is not a finite number" if cell.strip() else "is empty"


def make_plan(file: TableFile, split: str, column: int | None, seed: int, target: Target, rows: int) -> SplitPlan:
    has_classes = target.task in ("binary", "multiclass")
    labels = target.values[:rows].astype(np.int64) if has_classes else None
    source = str(file.table.path)
    if column is None:
        return SplitPlan(split, seed, labels, source=source)

    cells = file.table.columns[column][:rows]
    gaps = [Trouble(row, column, "is empty") for row, cell in enumerate(cells) if is_gap(cell)]
    raise_troubles(file, gaps, "data.split_column needs a value in each row")
    if split == "group":
        _, groups = np.unique([cell.strip() for cell in cells], return_inverse=True)
        return SplitPlan(split, seed, labels, groups=groups.astype(np.int64), source=source)

    order, wrong = parse_column(cells, file.decimal)
    if len(wrong):
        order, wrong = parse_times(cells)
    what = [Trouble(row, column, f"holds '{cells[row][:40]}', which is no number and no date") for row in wrong]
    raise_troubles(file, what, "data.split=time needs times that can be ordered")
    return SplitPlan(split, seed, labels, order=order, source=source)


def parse_times(cells: Sequence[str]) -> Parsed:
    """Dates as numbers that grow with time."""
    parts, wrong = split_dates(cells, bool(choose_day_first(cells)))
    # Months of 31 days leave gaps, which an order does not mind.
    order = parts["year"] * 372.0 + parts["month"] * 31.0 + parts["day"] + parts["hour"] / 24.0
    return order, wrong


# Columns


# The preprocessing, the features (rows, features) of each of its columns, and notes.
_Encoded = tuple[Preprocessing, list[NDArray[Any]], list[str]]


def _fit(
    file: TableFile,
    targets: Sequence[int],
    chosen: Sequence[ColumnKind],
    train_rows: RowIndices,
    options: TableOptions,
) -> _Encoded:
    """Fit the preprocessing to the training rows, and encode all rows."""
    table = file.table
    troubles: list[Trouble] = []
    notes: list[str] = []
    fitted: list[Column] = []
    blocks = []
    for column in chosen:
        if column.kind == "drop":
            continue
        cells = table.columns[column.index]
        day_first = False
        if column.kind == "date":
            judged = choose_day_first(cells)
            day_first = bool(judged)
            if judged is None:
                notes.append(
                    f"dates of '{column.name}' were read as month/day/year; write them as 2024-12-31 if not so."
                )
            if holds_stamps(cells):
                notes.append(
                    f"'{column.name}' was read as Unix time, in UTC; data.kinds={{{column.name}: number}} takes its "
                    "numbers as they are."
                )

        if options.missing == "error":
            gaps = [Trouble(row, column.index, "is empty") for row in _find_gap_rows(cells)]
            raise_troubles(file, gaps, "data.missing=impute fills gaps")

        result, wrong = fit_column(
            column.name,
            column.index,
            column.kind,
            cells,
            train_rows,
            file.decimal,
            day_first,
            options.normalize,
            options.category_codes,
        )
        troubles += _list_wrong_cells(column.index, column.kind, cells, wrong)
        fitted.append(result)
        blocks.append(result.encode(cells)[0])
        if column.kind == "number" and counts_rows(cells):
            notes.append(f"column '{column.name}' counts the rows; data.drop=[{column.name}] leaves it out.")

    if troubles:
        name = table.names[troubles[0].column]
        advice = f"correct the lines or remove them, or type data.kinds={{{name}: category}} if these are names"
        raise_troubles(file, troubles, advice)

    left_out = [column for column in chosen if column.kind == "drop"]
    notes += _describe_left_out(left_out)
    used = {column.index for column in chosen} | set(targets)
    # The column of groups is no input and yet known: a table that has it gets no note of an unknown column.
    groups = [name for index, name in enumerate(table.names) if index not in used]
    preprocessing = Preprocessing(
        columns=tuple(fitted),
        targets=tuple(table.names[target] for target in targets),
        target_indices=tuple(targets),
        column_count=len(table.names),
        has_names=table.has_header,
        decimal=file.decimal,
        left_out=(*(column.name for column in left_out), *groups),
        text_format={"separator": file.separator, "encoding": file.encoding},
    )
    return preprocessing, blocks, notes


def _list_wrong_cells(column: int, kind: str, cells: Sequence[str], rows: RowIndices) -> list[Trouble]:
    noun = NOUNS.get(kind, kind)
    return [Trouble(row, column, f"holds '{cells[row].strip()[:40]}', which is no {noun}") for row in rows]


def _describe_left_out(columns: Sequence[ColumnKind]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for column in columns:
        if column.reason not in ("as typed", "not in data.columns"):
            reasons.setdefault(column.reason, []).append(column.name)
    if not reasons:
        return []
    texts = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    return [f"left out: {'; '.join(texts)}; data.kinds={{<column>: category}} takes a column in."]


def _apply(file: TableFile, saved: Preprocessing, missing: str) -> _Encoded:
    """Encode all rows by the preprocessing of a trained model."""
    table = file.table
    match = _match(file, saved)
    notes = list(match.notes)
    troubles: list[Trouble] = []
    blocks = []
    for column in saved.columns:
        position = match.positions[column.name]
        # A column that is not there is one of gaps, which are filled as in training.
        cells = ("",) * len(table.lines) if position is None else table.columns[position]
        if missing == "error" and position is not None:
            gaps = [Trouble(row, position, "is empty") for row in _find_gap_rows(cells)]
            raise_troubles(file, gaps, "data.missing=impute fills gaps")

        block, wrong = column.encode(cells)
        blocks.append(block)
        if position is not None:
            troubles += _list_wrong_cells(position, column.kind, cells, wrong)
        if isinstance(column, CategoryColumn) and position is not None:
            # A new category is encoded as zeros; nothing else would tell the user.
            unseen = column.find_unseen(cells)
            if unseen:
                examples = ", ".join(unseen[:5]) + (", …" if len(unseen) > 5 else "")
                notes.append(
                    f"'{column.name}' holds what training did not have, and counts as none of its "
                    f"categories: {examples}."
                )

    raise_troubles(file, troubles, "correct the lines")
    return saved, blocks, notes


def _match(file: TableFile, saved: Preprocessing) -> Match:
    try:
        if saved.has_names and file.table.has_header:
            return match_by_name(saved, file.table.names)
        return match_by_position(saved, len(file.table.names), file.table.has_header)
    except DataError as error:
        raise MisfitError(f"{file.table.path}: {error}; name a table with the columns of training") from error


def _find_gap_rows(cells: Sequence[str]) -> list[int]:
    rows: list[int] = np.flatnonzero(find_gaps(cells)).tolist()
    return rows


def raise_troubles(file: TableFile, troubles: Sequence[Trouble], advice: str = "correct the lines") -> None:
    """DataError for cells that cannot be used, up to ten of them, in the order of the file."""
    if not troubles:
        return
    table = file.table
    texts = []
    last_path = None
    for trouble in sorted(troubles, key=lambda trouble: (trouble.row, trouble.column))[:MOST_TROUBLES]:
        path = file.find_source(trouble.row)
        # A file is named once for all its lines.
        where = f"line {table.lines[trouble.row]}"
        where = where if path == last_path else f"{path}, {where}"
        last_path = path
        texts.append(f"{where}: column '{table.names[trouble.column]}' {trouble.what}")

    more = len(troubles) - MOST_TROUBLES
    if more > 0:
        texts.append(f"and {format_count(more, 'more cell')}")
    raise DataError(f"{'; '.join(texts)}; {advice}")


# Splits


def fit_target_scale(
    target: Target, train_rows: RowIndices, normalize: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a regression's targets in the training rows; empty for other tasks, or unless `normalize`."""
    if target.task != "regression" or not normalize:
        return (), ()
    # Losses of several columns add up, so none may count more for its unit alone.
    scales = [Scale.fit(column.astype(np.float64), normalize) for column in target.values[train_rows].T]
    return tuple(scale.mean for scale in scales), tuple(scale.std for scale in scales)


def _make_spec(fitted: Preprocessing, target: Target, train_rows: RowIndices, normalize: bool) -> DataSpec:
    features = fitted.features
    target_mean, target_std = fit_target_scale(target, train_rows, normalize)
    return DataSpec(
        "vector",
        (len(features),),
        target.task,
        count_outputs(target),
        class_names=target.class_names,
        feature_names=tuple(name for name, _, _ in features),
        mean=tuple(mean for _, mean, _ in features) if normalize else (),
        std=tuple(std for _, _, std in features) if normalize else (),
        target_mean=target_mean,
        target_std=target_std,
        preprocessing=fitted.to_plain(),
        code_counts=fitted.code_counts,
        outputs=target.outputs,
    )


def find_unheeded(test_path: str | None, val_path: str | None, folds: int | None) -> dict[str, str]:
    reasons = {}
    if test_path is not None:
        reasons["test_fraction"] = "data.test_path names the test part"
    elif folds is not None:
        reasons["test_fraction"] = "data.folds draws the test part"
    if val_path is not None:
        reasons["val_fraction"] = "data.val_path names the validation part"
    return reasons


def make_origin(files: Sequence[TableFile]) -> Origin:
    """Where the rows of files come from, those of the first file first."""
    origins = []
    for file in files:
        source = str(file.table.path)
        count = len(file.table.lines)
        is_text = file.has_lines
        origins.append(Origin.from_lines(source, file.table.lines) if is_text else Origin.from_position(source, count))
    return origins[0] if len(origins) == 1 else Origin.join(origins)


def _make_splits(
    files: Sequence[TableFile],
    inputs: Sequence[NDArray[Any]],
    target: Target,
    parts: RowParts,
    spec: DataSpec,
    notes: Sequence[str],
    nothing_to_learn: str,
    summary: tuple[tuple[str, ...], ...],
) -> Splits:
    origin = make_origin(files)

    def select(rows: RowIndices) -> Split | None:
        if not len(rows):
            return None
        index = torch.from_numpy(rows)
        # Column by column into place: a copy of all of them would be written and read once more.
        x = np.empty((len(rows), spec.input_size))
        start = 0
        for columns in inputs:
            x[:, start : start + columns.shape[1]] = columns.take(rows, axis=0)
            start += columns.shape[1]
        return Split((torch.from_numpy(x),), torch.from_numpy(target.values[rows]), origin.take(index))

    train = select(parts.train)
    assert train is not None
    return Splits(
        train,
        select(parts.val),
        select(parts.test),
        spec,
        tuple(note for note in notes if note),
        nothing_to_learn=nothing_to_learn,
        columns=summary,
    )


def _summarize(file: TableFile, chosen: Sequence[ColumnKind], fitted: Preprocessing) -> tuple[tuple[str, ...], ...]:
    """Rows of the table of columns: name, kind, gaps, range or categories, and what is done with it."""
    by_name = {column.name: column for column in fitted.columns}
    # What is used comes first, as a wide table is cut.
    ordered = sorted(chosen, key=lambda column: column.kind == "drop")
    rows = []
    for column in ordered[:_MOST_SUMMARY_ROWS]:
        cells = file.table.columns[column.index]
        gaps = int(find_gaps(cells).sum())
        result = by_name.get(column.name)
        values = "" if result is None else _describe_values(file, column.index, column.kind)
        # Why a column is out matters more than its values do.
        use = f"out: {column.reason}" if result is None else _describe_use(result)
        texts = (column.name, values, use)
        name, values, use = map(_shorten, texts, _SUMMARY_WIDTHS)
        kind = "" if result is None else column.kind
        rows.append((name, kind, str(gaps or ""), values, use))

    if len(ordered) > _MOST_SUMMARY_ROWS:
        rows.append((f"… {len(ordered) - _MOST_SUMMARY_ROWS} more", "", "", "", ""))
    return tuple(rows)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _describe_values(file: TableFile, index: int, kind: str) -> str:
    cells = file.table.columns[index]
    if kind == "number":
        values, _ = parse_column(cells, file.decimal)
        return f"{np.nanmin(values):.4g} … {np.nanmax(values):.4g}" if not np.isnan(values).all() else ""

    names = [cell.strip() for cell in as_cells(cells).encoded[0] if not is_gap(cell)]
    if kind == "date":
        return names[0] if names else ""
    examples = ", ".join(sorted(names)[:3])
    return f"{len(names)}: {examples}{', …' if len(names) > 3 else ''}" if names else ""


def _describe_use(column: Column) -> str:
    if isinstance(column, CategoryColumn):
        return f"{'codes' if column.has_codes else 'one-hot'}, {len(column.categories)}"
    filled = "; gaps median+flag" if column.has_indicator else ""
    if isinstance(column, NumberColumn):
        return f"{'scaled' if (column.scale.mean, column.scale.std) != (0.0, 1.0) else 'as it is'}{filled}"
    return f"{len(column.parts)} parts{filled}"
