"""Which columns of another table are those that a model was trained on."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from dlrun.core.errors import DataError, join_names
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.columns.preprocessing import Preprocessing


@dataclass(frozen=True)
class Match:
    """Positions in the other table.

    positions: of each input column, by name, None for one that is not there; targets: of the targets, or empty;
    count: of its columns; notes: what was done, a sentence each.
    """

    positions: dict[str, int | None]
    targets: tuple[int, ...]
    count: int
    has_header: bool
    notes: tuple[str, ...] = ()


def match_by_name(preprocessing: Preprocessing, names: Sequence[str]) -> Match:
    """Match by the names of a header line; a column that is not there counts as gaps.

    DataError if none of them is there.
    """
    positions = {column.name: _find(names, column.name) for column in preprocessing.columns}
    missing = [name for name, position in positions.items() if position is None]
    # One column in common may be a table with gaps; none is another table.
    if len(missing) == len(positions):
        hint = did_you_mean(missing[0], names)
        raise DataError(f"there is no column {join_names(missing)}; {hint}the first line holds {join_names(names)}")

    notes = []
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        notes.append(f"{join_names(missing)} {verb} missing, and filled as gaps of the training table were.")
    known = {*positions, *preprocessing.left_out, *preprocessing.targets}
    extra = [name for name in names if name not in known]
    if extra:
        verb, pronoun = ("is", "it") if len(extra) == 1 else ("are", "them")
        notes.append(f"{join_names(extra)} {verb} left out: the model does not know {pronoun}.")
    present = [position for position in positions.values() if position is not None]
    if present != sorted(present):
        notes.append("the columns stand in another order than in training, and were taken by name.")
    # All of the targets, or none of them.
    target_positions = [_find(names, target) for target in preprocessing.targets]
    targets = [position for position in target_positions if position is not None]
    has_targets = len(targets) == len(preprocessing.targets)
    return Match(positions, tuple(targets) if has_targets else (), len(names), True, tuple(notes))


def match_by_position(preprocessing: Preprocessing, count: int, has_header: bool) -> Match:
    """Match `count` columns without names: the table as in training, the same without its target, or the inputs alone.

    DataError for another number of columns.
    """
    columns = preprocessing.columns
    targets = preprocessing.target_indices
    if count == preprocessing.column_count:
        positions: dict[str, int | None] = {column.name: column.index for column in columns}
        return Match(positions, targets, count, has_header)
    # The target is what a table to predict lacks.
    if count == preprocessing.column_count - len(targets):
        sorted_targets = sorted(targets)
        # A column stands further left by the targets that stood before it.
        positions = {column.name: column.index - bisect_left(sorted_targets, column.index) for column in columns}
        return Match(positions, (), count, has_header)
    if count == len(columns):
        return Match({column.name: number for number, column in enumerate(columns)}, (), count, has_header)
    raise DataError(f"{format_count(count, 'column')}, where the model takes {describe_columns(preprocessing)}")


def describe_columns(preprocessing: Preprocessing) -> str:
    """The columns that a model takes, for messages."""
    names = join_names([column.name for column in preprocessing.columns])
    return f"{len(preprocessing.columns)} ({names}), by name if the first line has names"


def has_known_names(preprocessing: Preprocessing, cells: Sequence[str]) -> bool:
    """Whether the first line of a table holds names of the training table."""
    if not preprocessing.has_names:
        return False
    names = {cell.strip() for cell in cells}
    return any(column.name in names for column in preprocessing.columns)


def _find(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None
