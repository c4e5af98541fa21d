"""`data=series`: tables of values over time, cut into windows to forecast from."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError, RequestError, join_names
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.clock import choose_cycles, from_local, get_zone, name_offset, parse_offsets
from dlrun.data.columns.cells import choose_day_first, is_gap, parse_column
from dlrun.data.columns.kinds import judge_kind
from dlrun.data.columns.named import read_named
from dlrun.data.columns.parts import check_split
from dlrun.data.columns.reading import TableFile, TextFormat, hash_file, unescape_separator
from dlrun.data.datasets import check_fraction
from dlrun.data.origin import Origin
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.tables import (
    Trouble,
    combine_hashes,
    find_unheeded,
    join_files,
    make_origin,
    raise_troubles,
    read_parts_beside,
    refuse_double_parts,
)
from dlrun.data.windows import (
    SeriesPreprocessing,
    Steps,
    fill_gaps,
    find_gaps,
    find_steps,
    find_windows,
    forecast_naively,
    gather,
    name_naive_forecast,
    parse_times,
)

# Windows that take more are gathered as they are needed.
_MOST_BYTES = 2**28
_PARTS = ("train", "val", "test")
# Rows behind the fold that is tested on.
_NO_PART = 3


@dataclass(frozen=True)
class Timeline:
    """The rows of a table by series and time.

    rows: numbers of the rows in the table, in this order; breaks: where a series begins; groups: names of the series,
    and `group`, the number of that of each row; values float64 (rows, features), NaN for gaps; file_number: of each
    row, where several files were joined.
    """

    file: TableFile
    rows: NDArray[np.int64]
    times: NDArray[np.float64]
    group: NDArray[np.int64]
    groups: tuple[str, ...]
    breaks: NDArray[np.bool_]
    values: NDArray[np.float64]
    steps: Steps
    file_number: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def describe_place(self, row: int) -> str:
        """File and line of a row, as it stands here."""
        number = int(self.rows[row])
        return f"{self.file.find_source(number)}, line {self.file.table.lines[number]}"


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of a table: the features begin with the targets."""

    features: list[str]
    target_count: int
    time: str | None
    group: str | None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class WindowDataset(Dataset[Any]):
    """Windows of one part, gathered as they are needed: input (window, features), target (horizon × targets,)."""

    draws_random_numbers = False

    def __init__(
        self, inputs: Tensor, outcomes: Tensor, starts: Tensor, window: int, horizon: int, origin: Origin
    ) -> None:
        """inputs (rows, features), outcomes (rows, targets): of all rows; starts int64 (N,): first rows of windows."""
        self.inputs = inputs
        self.outcomes = outcomes
        self.starts = starts
        self.window = window
        self.horizon = horizon
        self.origin = origin
        # As float32.
        self.bytes_a_row = 4 * (window * inputs.shape[1] + horizon * outcomes.shape[1])

    @property
    def targets(self) -> Tensor:
        """All targets (N, horizon × targets)."""
        return self._gather(self.outcomes, self.starts + self.window, self.horizon).flatten(1)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        x, y = self.__getitems__([row])
        return x[0], y[0]

    def __getitems__(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of several windows."""
        starts = self.starts[torch.as_tensor(rows)]
        x = self._gather(self.inputs, starts, self.window)
        return x, self._gather(self.outcomes, starts + self.window, self.horizon).flatten(1)

    def _gather(self, values: Tensor, starts: Tensor, length: int) -> Tensor:
        return values[starts.unsqueeze(1) + torch.arange(length)]


def series(
    path: str,
    target: str | int | list[str | int] = -1,
    time: str | int | None = None,
    time_zone: str | None = None,
    features: list[str | int] | None = None,
    group: str | int | None = None,
    window: int = 48,
    horizon: int = 1,
    calendar: str | list[str] | None = None,
    stride: int = 1,
    season: int | None = None,
    missing: str = "previous",
    header: bool | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    folds: int | None = None,
    fold: int = 0,
    val_path: str | None = None,
    test_path: str | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.0,
    normalize: bool = True,
    preprocessing: dict[str, Any] | None = None,
) -> Splits:
    """Windows of a table of values over time: inputs float64 (N, window, features), targets (N, horizon × targets).

    The inputs of a window are `window` rows, the targets the `horizon` rows behind it, step after step. The parts
    follow each other in time: the last rows are tested on, those before them validated on, and no window has targets
    in two parts, so that none trains on what is validated or tested. Features, the targets first, are scaled by mean
    and std of the training rows. time_zone: of times without an offset; those with one are put in the order of UTC.
    calendar: cycles of which sine and cosine are inputs too, see `choose_cycles`. folds: the test part is the fold with
    the number `fold` of scikit-learn's TimeSeriesSplit, and what is behind it is left out. val_path, test_path: files
    that are parts of their own; they go on with the series of `path`, unless their times overlap. season: steps that
    the trivial forecast repeats; None: a day, week or year, or the last value, whichever errs less in training.
    missing: "previous" fills gaps of inputs with the value before, "error" refuses them; a window whose targets have a
    gap is left out. preprocessing: of a trained model, applied in place of a new one. Raises DataError or RequestError,
    naming file, line and column.
    """
    for key, value in (("window", window), ("horizon", horizon), ("stride", stride), ("season", season)):
        if value is not None and value < 1:
            raise RequestError(f"data.{key}={value} must be at least 1")

    if season is not None and season > window:
        raise RequestError(f"data.season={season} must be at most data.window={window}, from which it is taken")
    if missing not in ("previous", "error"):
        hint = did_you_mean(missing, ("previous", "error"))
        raise RequestError(f"data.missing={missing} is no choice; {hint}type previous or error")
    check_fraction(test_fraction)
    check_split("random", None, folds, fold)
    refuse_double_parts(test_path, folds)
    if time_zone is not None:
        get_zone(time_zone)

    saved = None if preprocessing is None else SeriesPreprocessing.from_plain(preprocessing)
    text_format = TextFormat(unescape_separator(separator), header, encoding, decimal)
    file, columns = read_columns(Path(path).expanduser(), text_format, target, time, features, group, saved)
    files = [file, *read_parts_beside(file, text_format, val_path, test_path)]
    file = join_files(files)
    timeline = read_timeline(file, columns, missing, saved, time_zone)
    if saved is not None:
        window = saved.window
        horizon = saved.horizon

    # Only inputs are filled: a target that was made up would be trained on, and tested on.
    filled = fill_gaps(timeline.values, timeline.breaks)
    gaps = find_gaps(timeline.times, timeline.breaks, timeline.steps)
    outcomes = timeline.values[:, : columns.target_count]
    known_targets = _find_known(outcomes)
    known_inputs = _find_known(filled)
    starts = find_windows(window, horizon, timeline.breaks | gaps, known_inputs, known_targets)
    if not len(starts):
        longest = int(np.diff(np.append(np.flatnonzero(timeline.breaks), len(timeline.rows))).max())
        raise DataError(
            f"{path}: data.window={window} and data.horizon={horizon} take {window + horizon} rows without a gap, and "
            f"the longest series has {longest:,}; type smaller ones"
        )

    starts = _apply_stride(starts, timeline, stride)
    given = [name for name, other in (("val", val_path), ("test", test_path)) if other is not None]
    part_of_row = _assign_parts(timeline, given, test_fraction, val_fraction, folds, fold)
    parts, boundary_notes = _split(timeline, starts, window, horizon, part_of_row, given)

    if saved is None:
        # No row that is validated or tested on has a say in the scale.
        is_trained = part_of_row == 0
        cycles = choose_cycles(calendar, timeline.times[is_trained], timeline.steps.seconds, timeline.steps.is_date)
        mean, std = _fit_scale(filled[is_trained & known_inputs], normalize)
        saved = SeriesPreprocessing(
            features=tuple(columns.features),
            target_count=columns.target_count,
            window=window,
            horizon=horizon,
            time=columns.time,
            group=columns.group,
            missing=missing,
            decimal=file.decimal,
            has_names=file.table.has_header,
            indices={name: file.table.names.index(name) for name in _list_used(columns)},
            mean=mean,
            std=std,
            steps=timeline.steps,
            day_first=_judge_day_first(file, columns.time),
            calendar=cycles,
        )

    crc = zlib.crc32(parts["train"].astype("<i8").tobytes())
    fitted = replace(saved, sha256=file.sha256, rows_crc=crc)

    inputs = fitted.make_inputs(filled, timeline.times)
    origin = _make_origin(timeline, files)
    spec = _make_spec(fitted, normalize)
    part_by_name: dict[str, Any] = {}
    for name in _PARTS:
        part_by_name[name] = _make_part(inputs, outcomes, parts[name], fitted, origin)
    train = part_by_name["train"]
    if train is None:
        raise RequestError(
            f"{path}: no window of {window} + {horizon} rows is left to train on; type a smaller data.window, "
            "data.test_fraction or data.val_fraction"
        )

    if preprocessing is None:
        # The season comes last, as it is chosen by the errors of forecasts on windows.
        fitted = replace(fitted, season=_choose_season(fitted, season, spec, train))
        spec = replace(spec, preprocessing=fitted.to_plain())

    notes = [*file.notes, *columns.notes, *timeline.notes]
    notes += _describe_gaps(timeline, filled, known_targets, gaps, columns.target_count)
    notes += boundary_notes
    if preprocessing is None and calendar is not None:
        cycles = fitted.calendar
        advice = "" if cycles else ": no cycle passes twice in training, or there are no dates"
        notes.append(f"data.calendar adds {join_names(cycles) if cycles else 'nothing'}{advice}.")
    if preprocessing is None:
        notes.append(f"the trivial forecast is the {name_naive_forecast(spec)}; data.season=… chooses another one.")
    unheeded = find_unheeded(test_path, val_path, folds)
    return Splits(train, part_by_name["val"], part_by_name["test"], spec, tuple(notes), unheeded=unheeded)


def hash_files(arguments: Mapping[str, Any]) -> str:
    """The sha256 by which the tables are known again; "" where one of them cannot be read."""
    paths = [Path(str(arguments[key])).expanduser() for key in ("path", "val_path", "test_path") if arguments.get(key)]
    return combine_hashes([hash_file(path) for path in paths])


# Columns


def read_columns(
    path: Path,
    text_format: TextFormat,
    target: str | int | list[str | int],
    time: str | int | None,
    features: list[str | int] | None,
    group: str | int | None,
    saved: SeriesPreprocessing | None,
) -> tuple[TableFile, _Columns]:
    """The table, and which of its columns are what; those of a trained model, if it is given."""
    target_names = _list_columns(target)
    if saved is not None:
        return _match_columns(path, text_format, saved)

    # Names that are typed tell whether the first line is a header.
    names = [column for column in (*target_names, time, group, *(features or ())) if isinstance(column, str)]
    file = read_named(path, text_format, names)
    table = file.table
    targets = _find_all(file, target_names, "data.target")
    if not targets:
        raise RequestError("data.target=[] names no column; type data.target=<column>")
    notes = []
    time_position = None if time is None else table.find_column(time, "data.time")
    if time is None:
        time_position = _judge_time_column(file, targets)
        if time_position is None:
            notes.append("no column holds dates: rows were taken in their order; data.time=… names a column.")
        else:
            notes.append(f"column '{table.names[time_position]}' is the time; data.time=… says otherwise.")

    group_position = None if group is None else table.find_column(group, "data.group")

    others = [position for position in (time_position, group_position) if position is not None]
    for key, position in (("time", time_position), ("group", group_position)):
        if position in targets:
            raise RequestError(f"data.{key} and data.target both name column '{table.names[position or 0]}'")

    left_out: list[str] = []
    if features is None:
        inputs = []
        for position in range(len(table.names)):
            if position in targets or position in others:
                continue
            judged = judge_kind(file, position)
            if judged.kind == "number":
                inputs.append(position)
            else:
                left_out.append(f"{judged.name} ({judged.reason or judged.kind})")
    else:
        inputs = [position for position in _find_all(file, features, "data.features") if position not in targets]
        for position in inputs:
            if position in others:
                raise RequestError(f"data.features names column '{table.names[position]}', which is the time or group")

    if left_out:
        reason = "it is no number" if len(left_out) == 1 else "they are no numbers"
        notes.append(f"left out, as {reason}: {join_names(left_out)}.")

    feature_names = [table.names[position] for position in (*targets, *inputs)]
    time_name = None if time_position is None else table.names[time_position]
    group_name = None if group_position is None else table.names[group_position]
    return file, _Columns(feature_names, len(targets), time_name, group_name, tuple(left_out), tuple(notes))


def _match_columns(path: Path, text_format: TextFormat, saved: SeriesPreprocessing) -> tuple[TableFile, _Columns]:
    """Another table with the columns of a trained model: by name, or where they stood in training."""
    text_format = replace(text_format, decimal=text_format.decimal or saved.decimal)
    columns = _Columns(list(saved.features), saved.target_count, saved.time, saved.group)
    used_columns = _list_used(columns)
    file = read_named(path, text_format, used_columns if saved.has_names else ())
    table = file.table
    if saved.has_names and table.has_header:
        missing = [name for name in used_columns if name not in table.names]
        # One series of a table of several is the usual thing to forecast.
        if missing == [saved.group]:
            note = f"there is no column {saved.group}: the rows were taken for one series."
            return file, replace(columns, group=None, notes=(note,))
        if missing:
            hint = did_you_mean(missing[0], table.names)
            raise DataError(f"{path}: there is no column {join_names(missing)}; {hint}it has {join_names(table.names)}")
        return file, columns

    if max(saved.indices.values()) >= len(table.names):
        raise DataError(
            f"{path} has {format_count(len(table.names), 'column')}, and the model takes {join_names(used_columns)}"
        )
    names = list(table.names)
    for name, position in saved.indices.items():
        names[position] = name
    return replace(file, table=replace(table, names=tuple(names))), columns


def _list_used(columns: _Columns) -> list[str]:
    return [*columns.features, *(name for name in (columns.time, columns.group) if name is not None)]


def _list_columns(columns: str | int | Sequence[str | int]) -> list[str | int]:
    return [columns] if isinstance(columns, str | int) else list(columns)


def _find_all(file: TableFile, columns: Sequence[str | int], key: str) -> list[int]:
    positions = [file.table.find_column(column, key) for column in columns]
    for position in positions:
        if positions.count(position) > 1:
            raise RequestError(f"{key} names column '{file.table.names[position]}' twice; leave out one of them")
    return positions


def _judge_time_column(file: TableFile, targets: Sequence[int]) -> int | None:
    """The first column of dates."""
    for position in range(len(file.table.names)):
        if position not in targets and judge_kind(file, position).kind == "date":
            return position
    return None


# Rows


def read_timeline(
    file: TableFile,
    columns: _Columns,
    missing: str,
    saved: SeriesPreprocessing | None,
    time_zone: str | None = None,
) -> Timeline:
    """The rows of a table by series and time; DataError for cells that are no numbers or times, and for equal times."""
    table = file.table
    decimal = file.decimal if saved is None else saved.decimal
    values = _read_all_numbers(file, columns.features, decimal, missing)
    groups: tuple[str, ...] = ("",)
    group = np.zeros(len(table.lines), np.int64)
    if columns.group is not None:
        cells = [cell.strip() for cell in table.columns[table.names.index(columns.group)]]
        names, codes = np.unique(cells, return_inverse=True)
        groups = tuple(map(str, names))
        group = codes.astype(np.int64)

    clock = _read_times(file, columns.time, group, saved, time_zone)
    times = clock.times
    notes = list(clock.notes)
    counts = [count for _, count in file.sources] or [len(times)]
    file_number = np.repeat(np.arange(len(counts)), counts)
    series_number = group
    if len(counts) > 1:
        series_number, note = _part_series(times, group, file_number, has_time=columns.time is not None)
        notes.append(note)
    # Rows of one series stand together, and so a window is a slice.
    order = np.lexsort((times, series_number))
    within = np.diff(times)[np.diff(series_number) == 0]
    if columns.time is not None and (within < 0).any():
        notes.append(f"rows were put in the order of '{columns.time}'.")
    times = times[order]
    # No window goes from one series into the next.
    breaks = np.append(True, np.diff(series_number[order]) != 0)
    steps = find_steps(times, breaks, clock.is_date, clock.zone)
    timeline = Timeline(
        file, order, times, group[order], groups, breaks, values[order], steps, file_number[order], tuple(notes)
    )
    _refuse_equal_times(timeline, columns)
    if not steps.is_regular:
        inside = np.diff(times)[~breaks[1:]]
        shortest, longest = (replace(steps, seconds=float(value)).describe() for value in (inside.min(), inside.max()))
        note = (
            f"steps of '{columns.time}' are irregular, from {shortest} to {longest}: windows count rows, however far "
            "apart they are."
        )
        timeline = replace(timeline, notes=(*timeline.notes, note))

    return timeline


def _read_all_numbers(file: TableFile, names: Sequence[str], decimal: str, missing: str) -> NDArray[np.float64]:
    """Columns as numbers (rows, columns), NaN for gaps."""
    columns = []
    wrong_cells = []
    empty_cells = []
    for name in names:
        position = file.table.names.index(name)
        cells = file.table.columns[position]
        values, wrong = parse_column(cells, decimal)
        for row in wrong:
            problem = f"holds '{cells[row].strip()[:40]}', which is no finite number"
            wrong_cells.append(Trouble(row, position, problem))
        gaps = np.flatnonzero(np.isnan(values)).tolist()
        empty_cells += [Trouble(row, position, "is empty") for row in gaps]
        columns.append(values)

    raise_troubles(file, wrong_cells, "correct the lines, or leave the column out of data.features")
    if missing == "error":
        raise_troubles(file, empty_cells, "data.missing=previous takes the value before")
    for name, values in zip(names, columns, strict=True):
        if np.isnan(values).all():
            raise DataError(f"{file.table.path}: column '{name}' is empty; leave it out")
    return np.stack(columns, axis=1)


def _judge_day_first(file: TableFile, time: str | None) -> bool:
    return time is not None and bool(choose_day_first(file.table.columns[file.table.names.index(time)]))


@dataclass(frozen=True)
class _Clock:
    """The time of each row (rows,), in seconds of UTC if there is a zone; whether these are dates."""

    times: NDArray[np.float64]
    is_date: bool = False
    zone: str = ""
    notes: tuple[str, ...] = ()


def _read_times(
    file: TableFile,
    time: str | None,
    group: NDArray[np.int64],
    saved: SeriesPreprocessing | None,
    time_zone: str | None,
) -> _Clock:
    if time is None:
        if time_zone is not None:
            raise RequestError(f"data.time_zone={time_zone} is for a column of dates; type data.time=<its name>")
        return _Clock(np.arange(len(file.table.lines), dtype=np.float64))
    position = file.table.names.index(time)
    cells = file.table.columns[position]
    numbers, texts = parse_column(cells, file.decimal)
    # By the majority: a few mistakes in a column of numbers do not make it one of dates.
    is_number = len(texts) < len(cells) / 2 and not np.isnan(numbers).all()
    if is_number:
        wrong = [*texts.tolist(), *np.flatnonzero([is_gap(cell) for cell in cells]).tolist()]
    else:
        day_first = _judge_day_first(file, time) if saved is None else saved.day_first
        numbers, wrong = parse_times(cells, day_first)

    troubles = [Trouble(row, position, f"holds '{cells[row].strip()[:40]}', which is no time") for row in sorted(wrong)]
    raise_troubles(file, troubles, "correct the lines or remove them")
    if is_number:
        return _Clock(numbers)
    # A run whose times were taken as they are written takes others in the same way.
    if saved is not None and not saved.steps.zone:
        return _Clock(numbers, True)
    return _apply_zone(file, position, numbers, group, time_zone if saved is None else saved.steps.zone)


def _apply_zone(
    file: TableFile, position: int, times: NDArray[np.float64], group: NDArray[np.int64], zone: str | None
) -> _Clock:
    """Times as they are written, as those of UTC where they have a zone; position: of their column."""
    cells = file.table.columns[position]
    name = file.table.names[position]
    offsets = parse_offsets(cells)
    without = np.isnan(offsets)
    if zone is None and without.all():
        return _Clock(times, True)
    if zone is None and without.any():
        troubles = [
            Trouble(row, position, f"holds '{cells[row].strip()[:40]}' without a time zone, which others have")
            for row in np.flatnonzero(without).tolist()
        ]
        raise_troubles(file, troubles, "write it everywhere, or type data.time_zone=… for times without")

    times = times - np.nan_to_num(offsets)
    if zone is not None and without.any():
        times[without], skipped = from_local(times[without], zone, group[without])
        troubles = []
        for number in skipped:
            row = int(np.flatnonzero(without)[number])
            troubles.append(Trouble(row, position, f"holds '{cells[row].strip()[:40]}', which clocks of {zone} skip"))
        raise_troubles(file, troubles, "correct the lines, or type another data.time_zone")
    if zone is not None:
        return _Clock(times, True, zone)

    distinct = np.unique(offsets).tolist()
    if len(distinct) == 1:
        return _Clock(times, True, name_offset(distinct[0]))
    names = join_names([name_offset(offset) for offset in distinct])
    note = (
        f"'{name}' has the time zones {names}: rows were put in the order of UTC, in which times are shown; "
        "data.time_zone=<name> shows them there."
    )
    return _Clock(times, True, "UTC", (note,))


def _part_series(
    times: NDArray[np.float64], group: NDArray[np.int64], file_number: NDArray[np.int64], has_time: bool
) -> tuple[NDArray[np.int64], str]:
    """The series that each row belongs to: its group, or where times of files overlap that in its file; and a note."""
    files = int(file_number.max()) + 1
    apart = group * files + file_number
    if not has_time:
        return (
            apart,
            "files have no column of times: each is a series of its own, and no window goes from one to another.",
        )
    for name in np.unique(group):
        spans = []
        for number in range(files):
            own = times[(group == name) & (file_number == number)]
            if len(own):
                spans.append((own.min(), own.max()))
        spans.sort()
        if any(later[0] <= earlier[1] for earlier, later in pairwise(spans)):
            return (
                apart,
                "the times of the files overlap: each is a series of its own, and no window goes on in another.",
            )
    return group, "the files follow each other in time: windows may look back into the one before."


def _refuse_equal_times(timeline: Timeline, columns: _Columns) -> None:
    equal = np.flatnonzero((np.diff(timeline.times) == 0) & ~timeline.breaks[1:])
    if not len(equal):
        return
    first = int(equal[0])
    lines = timeline.file.table.lines
    # The table may be in any order, and is named by its lines.
    pair = sorted(lines[timeline.rows[row]] for row in (first, first + 1))
    path = timeline.file.find_source(int(timeline.rows[first]))
    advice = "remove one of them"
    if columns.group is None:
        advice = "type data.group=<column> if the table holds several series, or remove one of them"
    # Once a year, at night, an hour comes twice.
    hours = timeline.times[equal] % 86_400 // 3600
    if timeline.steps.has_clock and not timeline.steps.zone and (hours <= 3).all():
        advice = f"type data.time_zone=<such as Europe/Berlin> if clocks were put back then, or {advice}"
    raise DataError(
        f"{path}, lines {pair[0]} and {pair[1]}: both have the time {timeline.steps.format(timeline.times[first])}"
        + (f" and {len(equal) - 1:,} more rows have that of another; " if len(equal) > 1 else "; ")
        + advice
    )


# Parts


def _find_known(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows (rows,) without a gap."""
    return np.logical_not(np.isnan(values).any(axis=1))


def _apply_stride(starts: NDArray[np.int64], timeline: Timeline, stride: int) -> NDArray[np.int64]:
    """Every so many-th window, counted from the beginning of its series."""
    # The first row of each row's series.
    series_starts = np.maximum.accumulate(np.where(timeline.breaks, np.arange(len(timeline.rows)), 0))
    chosen: NDArray[np.int64] = starts[(starts - series_starts[starts]) % stride == 0]
    return chosen


def _assign_parts(
    timeline: Timeline,
    given: Sequence[str],
    test_fraction: float,
    val_fraction: float,
    folds: int | None,
    fold: int,
) -> NDArray[np.int64]:
    """The part of each row (rows,), by its number in _PARTS; given: parts that are files of their own."""
    # Of the moments and not of the rows: several series are cut at the same one.
    moments = np.unique(timeline.times[timeline.file_number == 0])
    end = len(moments)
    before_test = end if "test" in given else end - round(end * test_fraction)
    if folds is not None:
        before_test, end = _find_fold(end, folds, fold, str(timeline.file.table.path))
    before_val = before_test
    if "val" not in given:
        before_val -= round(before_test * val_fraction)

    position = np.searchsorted(moments, timeline.times)
    parts = np.full(len(position), _NO_PART)
    # From the last part to the first, as each ends where the next begins.
    for part, bound in ((2, end), (1, before_test), (0, before_val)):
        parts[position < bound] = part
    for number, name in enumerate(given, 1):
        parts[timeline.file_number == number] = _PARTS.index(name)
    return parts


def _find_fold(count: int, folds: int, fold: int, path: str) -> tuple[int, int]:
    """Where the test part of a fold begins and ends, of so many moments; all before it are trained on."""
    from sklearn.model_selection import TimeSeriesSplit

    try:
        pairs = list(TimeSeriesSplit(folds).split(np.arange(count)))
    except ValueError as error:
        raise RequestError(
            f"{path}: data.folds={folds} is too many for {count:,} moments; type a smaller number"
        ) from error
    test = pairs[fold][1]
    return int(test[0]), int(test[-1]) + 1


def _split(
    timeline: Timeline,
    starts: NDArray[np.int64],
    window: int,
    horizon: int,
    part_of_row: NDArray[np.int64],
    given: Sequence[str],
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """First rows of the windows of each part: those whose targets all lie in it."""
    views = np.lib.stride_tricks.sliding_window_view
    parts = {}
    for number, name in enumerate(_PARTS):
        # Counted in running sums, so that long windows cost no more than short ones.
        counts = np.concatenate([[0], np.cumsum(part_of_row == number)])
        is_own = counts[starts + window + horizon] - counts[starts + window] == horizon
        if name == "train":
            # The inputs of others may lie in the part before: at that time they are known.
            is_own &= counts[starts + window] - counts[starts] == window
        parts[name] = starts[is_own]
    notes = []
    ends = views(part_of_row[window:], horizon)[starts][:, [0, -1]]
    is_between = (ends[:, 0] != ends[:, 1]) & (ends < _NO_PART).all(axis=1)
    left_out_count = int(is_between.sum())
    texts = []
    for number, title in ((1, "validation"), (2, "test")):
        rows = np.flatnonzero(part_of_row == number)
        if len(rows) and _PARTS[number] not in given:
            texts.append(f"the {title} part begins at {timeline.steps.format(timeline.times[rows].min())}")
    if (part_of_row == _NO_PART).any():
        end = timeline.times[part_of_row == 2].max()
        texts.append(f"ends at {timeline.steps.format(end)}")
    if texts:
        left_out = ""
        if left_out_count:
            verb = "is" if left_out_count == 1 else "are"
            left_out = f"; {format_count(left_out_count, 'window')} with targets on both sides {verb} left out"
        notes.append(f"{' and '.join(texts)}, in time{left_out}.")

    # An empty part has no metrics, which its user should know.
    for number, name in enumerate(_PARTS):
        if name == "train" or len(parts[name]) or not (part_of_row == number).any():
            continue
        if name in given:
            path = timeline.file.sources[1 + given.index(name)][0]
            raise DataError(
                f"data.{name}_path={path} has no window of data.window={window} and data.horizon={horizon} rows; type "
                "smaller ones, or name a longer file"
            )
        notes.append(f"the {name} part is too short for data.horizon={horizon}, and left out.")
    return parts, notes


def _fit_scale(values: NDArray[np.float64], normalize: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each column; 0 and 1 unless `normalize`, std 1 where a column is constant."""
    count = values.shape[1]
    if not normalize or not len(values):
        return (0.0,) * count, (1.0,) * count
    # The computed std of a constant column may be 1e-17 rather than 0.
    is_constant = (values == values[0]).all(axis=0)
    std = np.where(is_constant, 1.0, values.std(axis=0))
    return tuple(values.mean(axis=0).tolist()), tuple(std.tolist())


def _make_part(
    inputs: NDArray[np.float64],
    outcomes: NDArray[np.float64],
    starts: NDArray[np.int64],
    fitted: SeriesPreprocessing,
    origin: Origin,
) -> Split | WindowDataset | None:
    if not len(starts):
        return None
    # A window is named by the first row that it forecasts.
    own_origin = origin.take(torch.from_numpy(starts + fitted.window))
    # Windows overlap, so that all of them take `window` times the memory of the rows.
    size = 8 * len(starts) * (fitted.window * inputs.shape[1] + fitted.horizon * outcomes.shape[1])
    if size > _MOST_BYTES:
        rows = (torch.from_numpy(inputs), torch.from_numpy(outcomes), torch.from_numpy(starts))
        return WindowDataset(*rows, fitted.window, fitted.horizon, own_origin)

    x = torch.from_numpy(gather(inputs, starts, fitted.window))
    y = torch.from_numpy(gather(outcomes, starts + fitted.window, fitted.horizon)).flatten(1)
    return Split((x,), y, own_origin)


def _make_origin(timeline: Timeline, files: Sequence[TableFile]) -> Origin:
    """Where the rows of the timeline come from, with their time and series."""
    origin = make_origin(files).take(torch.from_numpy(timeline.rows))
    columns = {"time": np.array([timeline.steps.format(time) for time in timeline.times.tolist()])}
    if timeline.groups != ("",):
        columns["series"] = np.array(timeline.groups)[timeline.group]
    return replace(origin, columns=columns)


def _make_spec(fitted: SeriesPreprocessing, normalize: bool) -> DataSpec:
    # The features begin with the targets.
    targets = slice(fitted.target_count)
    phases = 2 * len(fitted.calendar)
    return DataSpec(
        "series",
        (fitted.window, len(fitted.input_names)),
        "regression",
        fitted.horizon * fitted.target_count,
        feature_names=fitted.input_names,
        mean=(*fitted.mean, *[0.0] * phases) if normalize else (),
        std=(*fitted.std, *[1.0] * phases) if normalize else (),
        # The targets of each step, one step after the other.
        target_mean=fitted.mean[targets] * fitted.horizon if normalize else (),
        target_std=fitted.std[targets] * fitted.horizon if normalize else (),
        preprocessing=fitted.to_plain(),
    )


def _choose_season(
    fitted: SeriesPreprocessing, season: int | None, spec: DataSpec, train: Split | WindowDataset
) -> int:
    """The typed season; else that of a day, week or year if it errs less than the last value in training."""
    usual = fitted.steps.season
    if season is not None or usual == 1 or usual > fitted.window:
        return season or 1
    # A thousand windows over the whole time tell which forecast errs less.
    rows = torch.linspace(0, len(train) - 1, min(len(train), 1000)).long()
    if isinstance(train, Split):
        x, y = train.inputs[0][rows], train.targets[rows]
    else:
        x, y = train.__getitems__(rows.tolist())

    errors = {}
    for candidate in (1, usual):
        with_season = replace(spec, preprocessing=replace(fitted, season=candidate).to_plain())
        errors[candidate] = float((forecast_naively(with_season, x) - y).abs().mean())
    return min(errors, key=lambda candidate: errors[candidate])


def _describe_gaps(
    timeline: Timeline,
    filled: NDArray[np.float64],
    known_targets: NDArray[np.bool_],
    gaps: NDArray[np.bool_],
    target_count: int,
) -> Iterator[str]:
    if gaps.any():
        first = int(np.flatnonzero(gaps)[0])
        place = timeline.describe_place(first)
        count = int(gaps.sum())
        yield (
            f"{count:,} {'gap' if count == 1 else 'gaps'} in time, where rows are {timeline.steps.describe()} apart, "
            f"the first before {place}: windows across are left out."
        )

    empty = np.isnan(timeline.values)
    if empty[:, target_count:].any() or empty[:, :target_count].any():
        count = int(empty.sum())
        targets = int((~known_targets).sum())
        note = f"{count:,} empty cells of inputs take the value before them"
        if count == 1:
            note = "1 empty cell of the inputs takes the value before it"
        if np.isnan(filled).any():
            note += ", and windows that begin before there is one are left out"
        if targets:
            which = "the empty target" if targets == 1 else f"one of {targets:,} empty targets"
            note += f"; windows with {which} are left out"
        yield f"{note}."
