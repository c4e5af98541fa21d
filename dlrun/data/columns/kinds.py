"""What the columns of a table are: numbers, categories, dates, or nothing to learn from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean
from dlrun.data.columns.cells import as_cells, find_gaps, is_gap, parse_column, parse_date, parse_stamp
from dlrun.data.columns.reading import TableFile

Kind = Literal["number", "category", "date", "drop"]
KINDS = ("number", "category", "date", "drop")

# Below so many rows nothing tells a name from a category.
_FEWEST_ROWS = 10

# Text with more different values than this share of its rows, or than this number, is no category.
_MOST_DISTINCT_SHARE = 0.5
_MOST_CATEGORIES = 1000
_MOST_MISTAKES_SHARE = 0.05

# PassengerId, customer_id, Unnamed: 0 (as pandas writes an index), but not "humid".
ID_NAME = re.compile(r".*[a-z]I[dD]$|.*ID$|(.*[ _-])?([Ii]d|idx|[Ii]ndex|rownames?)$|Unnamed.*|#$")
# timestamp, created_at, updatedAt, event_time, startDate, but not "update" or "lifetime".
_STAMP_NAME = re.compile(
    r"(.*[ _-])?([Tt]ime|[Dd]ate|ts|at|[Tt]imestamp|[Dd]atetime)$|.*[a-z](Time|Date|At|Timestamp)$"
)


@dataclass(frozen=True)
class ColumnKind:
    """One column and what is done with it; reason: why it is left out."""

    name: str
    index: int
    kind: Kind
    reason: str = ""


@dataclass(frozen=True)
class ColumnChoice:
    """What the config says about columns, by name or number as they are typed."""

    columns: Sequence[str | int] | None = None
    drop: Sequence[str | int] | None = None
    categorical: Sequence[str | int] | None = None
    kinds: Mapping[str, str] | None = None


def choose_kinds(
    file: TableFile, targets: Sequence[int], choice: ColumnChoice, others: Sequence[int] = ()
) -> list[ColumnKind]:
    """The kind of each column but the targets, in the order of the table.

    others: positions of columns that are no features either. RequestError for a column that is not there.
    """
    table = file.table
    typed_kinds: dict[int, Kind] = {}
    for column in choice.categorical or ():
        typed_kinds[file.table.find_column(column, "data.categorical")] = "category"
    for name, kind in (choice.kinds or {}).items():
        position = file.table.find_column(name, "data.kinds")
        if kind not in KINDS:
            hint = did_you_mean(str(kind), KINDS)
            raise RequestError(f"data.kinds.{name}={kind} is no kind; {hint}type one of {', '.join(KINDS)}")
        typed_kinds[position] = kind  # type: ignore[assignment]
    for column in choice.drop or ():
        typed_kinds[file.table.find_column(column, "data.drop")] = "drop"

    positions = None
    if choice.columns is not None:
        positions = {file.table.find_column(column, "data.columns") for column in choice.columns}
    for target in targets:
        if positions is not None and target in positions:
            raise RequestError(f"data.columns names the target, {table.names[target]}; leave it out there")
        if typed_kinds.get(target) == "drop":
            raise RequestError(f"data.drop names the target, {table.names[target]}; leave it out there")

    kinds = []
    for index, name in enumerate(table.names):
        if index in targets or index in others:
            continue
        if positions is not None and index not in positions:
            kinds.append(ColumnKind(name, index, "drop", "not in data.columns"))
        elif index in typed_kinds:
            reason = "as typed" if typed_kinds[index] == "drop" else ""
            kinds.append(ColumnKind(name, index, typed_kinds[index], reason))
        elif positions is not None:
            # Whoever names a column wants it, whatever it looks like.
            judged = judge_kind(file, index)
            kinds.append(ColumnKind(name, index, "category") if judged.kind == "drop" else judged)
        else:
            kinds.append(judge_kind(file, index))

    if all(column.kind == "drop" for column in kinds):
        reasons = ", ".join(f"{column.name} ({column.reason})" for column in kinds) or "there are no others"
        raise RequestError(
            f"{table.path}: no column is left to learn from: {reasons}; type data.columns=[...] with those to use, or "
            "data.separator=… if the columns are not cut rightly"
        )
    return kinds


def judge_kind(file: TableFile, index: int) -> ColumnKind:
    """The kind of a column by its cells."""
    name = file.table.names[index]
    cells = file.table.columns[index]
    numbers, wrong = parse_column(cells, file.decimal)
    if not len(wrong) and np.isnan(numbers).all():
        return ColumnKind(name, index, "drop", "empty")
    if not len(wrong):
        # Distinct integers alone may be a quantity; the name must say so too.
        looks_like_id = index in file.unnamed or ID_NAME.match(name) is not None
        if looks_like_id and _are_distinct_integers(numbers):
            return ColumnKind(name, index, "drop", "numbers the rows")
        # Name and size must both say so: a quantity of 1.6 billion is no date.
        if _STAMP_NAME.match(name) and holds_stamps(cells):
            return ColumnKind(name, index, "date")
        return ColumnKind(name, index, "number")

    count = len(cells) - int(find_gaps(cells).sum())
    # A few texts among numbers are mistakes, which are named with their lines.
    if len(wrong) <= max(1, _MOST_MISTAKES_SHARE * count) < count:
        return ColumnKind(name, index, "number")

    distinct = dict.fromkeys(cell.strip() for cell in as_cells(cells).encoded[0] if not is_gap(cell))
    # Which comes first, day or month, is judged later, over the whole column.
    if all(parse_date(value, True) or parse_date(value, False) for value in distinct):
        return ColumnKind(name, index, "date")
    # Names of people, for example: each category would be that of one row.
    if count >= _FEWEST_ROWS and len(distinct) == count:
        return ColumnKind(name, index, "drop", "all different")
    is_free = count >= 2 * _FEWEST_ROWS and len(distinct) > _MOST_DISTINCT_SHARE * count
    if is_free or len(distinct) > _MOST_CATEGORIES:
        return ColumnKind(name, index, "drop", f"{len(distinct):,} different texts")
    return ColumnKind(name, index, "category")


def _are_distinct_integers(values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> bool:
    return bool((values == np.round(values)).all()) and len(np.unique(values)) == len(values) > 1


def holds_stamps(cells: Sequence[str]) -> bool:
    """Whether all cells but gaps are Unix stamps, in seconds or milliseconds, and there are any."""
    distinct = [cell for cell in as_cells(cells).encoded[0] if not is_gap(cell)]
    return bool(distinct) and all(parse_stamp(cell) for cell in distinct)


def counts_rows(cells: Sequence[str]) -> bool:
    """Whether a column only counts: whole numbers, each one more than the one before."""
    values, wrong = parse_column(cells, ".")
    return not len(wrong) and len(values) >= _FEWEST_ROWS and bool((np.diff(values) == 1).all())
