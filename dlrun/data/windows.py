"""Series cut into windows: what a model looks back on, and what it forecasts."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.core.errors import DataError
from dlrun.data.clock import DAY as _DAY
from dlrun.data.clock import EPOCH as _EPOCH
from dlrun.data.clock import compute_phases, from_local, get_zone, name_phases, to_local
from dlrun.data.columns.cells import is_gap, parse_date
from dlrun.data.spec import DataSpec

KIND = "series"
VERSION = 1

_FRACTION = re.compile(r":\d{2}:\d{2}[.,](\d+)")
# Steps of calendars: months of 28 to 31 days, quarters, years.
_MONTHS = ((27.5, 31.5, 1), (88.5, 92.5, 3), (364.5, 366.5, 12))
# A longer step is a gap; with more of them than this share the steps are irregular.
_GAP = 1.5
_MOST_GAPS = 0.05
# Steps of a day, a week or a year, by the length of a step.
_SEASONS = ((3600.0, 24), (1800.0, 48), (900.0, 96), (600.0, 144), (_DAY, 7), (7 * _DAY, 52))


@dataclass(frozen=True)
class Steps:
    """The steps between the rows of a series.

    seconds: the usual one, or in the unit of times that are numbers; months: of a calendar's, else 0. is_date: whether
    times are dates; is_regular: whether steps are alike, but for gaps; zone: in which times of UTC are shown, "" for
    times as they are written.
    """

    seconds: float
    months: int = 0
    is_date: bool = False
    is_regular: bool = True
    has_clock: bool = False
    zone: str = ""

    def format(self, time: float) -> str:
        """A time as a table has it."""
        if not self.is_date:
            return f"{time:.10g}"
        moment = _EPOCH + timedelta(seconds=time)
        if self.zone:
            # With its offset: an hour may come twice.
            moment = moment.replace(tzinfo=UTC).astimezone(get_zone(self.zone))
        if not self.has_clock:
            return moment.date().isoformat()
        if moment.microsecond:
            return moment.isoformat(" ", "milliseconds")
        return moment.isoformat(" ", "seconds" if moment.second else "minutes")

    def list_next(self, last: float, count: int) -> list[str]:
        """The times of the steps after the last one; their numbers where steps are irregular."""
        if not self.is_regular:
            return [f"+{number}" for number in range(1, count + 1)]
        numbers = range(1, count + 1)
        if not self.months and (not self.zone or self.seconds % _DAY):
            return [self.format(last + number * self.seconds) for number in numbers]
        # Days are counted by the clock: some of them have 23 or 25 hours.
        local = float(to_local(np.array([last]), self.zone)[0])
        if self.months:
            following = [_add_months(local, number * self.months) for number in numbers]
        else:
            following = [local + number * self.seconds for number in numbers]
        if self.zone:
            following = from_local(np.array(following), self.zone, np.arange(count))[0].tolist()
        return [self.format(time) for time in following]

    @property
    def season(self) -> int:
        """Steps of a day, week or year; 1 if there is no usual one."""
        if self.is_date and self.months:
            return max(12 // self.months, 1)
        for seconds, season in _SEASONS:
            if self.is_date and math.isclose(self.seconds, seconds, rel_tol=0.01):
                return season
        return 1

    def describe(self) -> str:
        """The usual step in words."""
        if self.months:
            return {1: "a month", 3: "a quarter", 12: "a year"}[self.months]
        if not self.is_date:
            return f"{self.seconds:.10g}"
        for seconds, noun in ((_DAY, "day"), (3600.0, "hour"), (60.0, "minute"), (1.0, "second")):
            if self.seconds >= seconds:
                count = self.seconds / seconds
                return f"{count:.4g} {noun}{'' if count == 1 else 's'}"
        return f"{self.seconds:.4g} seconds"


def _add_months(time: float, months: int) -> float:
    """The same day some months later; the last of a month stays the last, and of a shorter month it is the last."""
    moment = _EPOCH + timedelta(seconds=time)
    # Tables of months often stand at their last days, which are of different numbers.
    is_last = (moment + timedelta(days=1)).month != moment.month
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    first = moment.replace(year=year, month=month + 1, day=1)
    next_month = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    length = (next_month - first).days
    day = length if is_last else min(moment.day, length)
    return (first.replace(day=day) - _EPOCH).total_seconds()


def parse_times(cells: Sequence[str], day_first: bool) -> tuple[NDArray[np.float64], list[int]]:
    """Dates as seconds since 1970, as they are written, NaN for what is none; and the rows of those that are none."""
    times = np.full(len(cells), np.nan)
    wrong = []
    for row, cell in enumerate(cells):
        # A row without a time has no place among the others, so a gap is wrong here.
        moment = None if is_gap(cell) else parse_date(cell, day_first)
        if moment is None:
            wrong.append(row)
            continue
        fraction = _FRACTION.search(cell)
        times[row] = (moment - _EPOCH).total_seconds() + (float(f"0.{fraction[1]}") if fraction else 0.0)

    return times, wrong


def find_steps(times: NDArray[np.float64], breaks: NDArray[np.bool_], is_date: bool, zone: str = "") -> Steps:
    """The usual step of rows in the order of time; breaks: where another series begins, bool (rows,)."""
    steps = np.diff(times)[~breaks[1:]]
    has_clock = is_date and bool((to_local(times, zone) % _DAY != 0).any())
    if not len(steps):
        return Steps(1.0, is_date=is_date, has_clock=has_clock, zone=zone)
    # The median, as a gap of a year must not make the usual step longer.
    usual = float(np.median(steps))
    is_usual = (steps > usual / 2) & (steps < _GAP * usual)
    is_regular = bool(np.mean(~is_usual) <= _MOST_GAPS)
    months = 0
    if is_date:
        days = steps[is_usual] / _DAY
        for least, most, count in _MONTHS:
            # Thirty days each are no months.
            if len(days) and days.min() >= least and days.max() <= most and days.min() != days.max():
                months = count
    return Steps(usual, months, is_date, is_regular, has_clock, zone)


def find_gaps(times: NDArray[np.float64], breaks: NDArray[np.bool_], steps: Steps) -> NDArray[np.bool_]:
    """Rows before which there is a gap of regular steps, bool (rows,)."""
    gaps = np.zeros(len(times), dtype=bool)
    if steps.is_regular:
        gaps[1:] = (np.diff(times) > _GAP * steps.seconds) & ~breaks[1:]
    return gaps


@dataclass(frozen=True)
class SeriesPreprocessing:
    """How the rows of a table become windows.

    features: columns that are inputs, those of the targets first; target_count: of them. mean, std: of the features in
    the training rows. season: of the trivial forecast, which repeats the last so many steps. calendar: cycles whose
    phases are inputs behind the features, see clock.py.
    """

    features: tuple[str, ...]
    target_count: int
    window: int
    horizon: int
    time: str | None
    group: str | None
    missing: str
    decimal: str
    has_names: bool
    indices: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: Steps = field(default_factory=lambda: Steps(1.0))
    day_first: bool = False
    season: int = 1
    sha256: str = ""
    rows_crc: int = 0
    calendar: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of all inputs: the features, and the phases of the calendar."""
        return (*self.features, *name_phases(self.calendar))

    def make_inputs(self, values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values (rows, features) and their times as the model takes them, (rows, inputs)."""
        phases = compute_phases(to_local(times, self.steps.zone if self.calendar else ""), self.calendar)
        return np.concatenate([self.scale(values), phases], axis=1)

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are forecast."""
        return self.features[: self.target_count]

    def scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values (..., features) as the model takes them."""
        scaled: NDArray[np.float64] = (values - np.array(self.mean)) / np.array(self.std)
        return scaled

    def to_plain(self) -> dict[str, Any]:
        """Plain data, as checkpoints and exports hold it."""
        plain: dict[str, Any] = {"kind": KIND, "version": VERSION}
        for entry in fields(self):
            value = getattr(self, entry.name)
            plain[entry.name] = list(value) if isinstance(value, tuple) else value
        plain["indices"] = dict(self.indices)
        plain["steps"] = {entry.name: getattr(self.steps, entry.name) for entry in fields(Steps)}
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "SeriesPreprocessing":
        """Invert `to_plain`; DataError for data of another version, or damaged."""
        if plain.get("kind") != KIND or plain.get("version") != VERSION:
            raise DataError(
                f"the preprocessing of series is of version {plain.get('version')}, and this dlrun reads {VERSION}; "
                "install the dlrun that trained the run"
            )

        try:
            values = {key: value for key, value in plain.items() if key not in ("kind", "version")}
            for name in ("features", "mean", "std"):
                values[name] = tuple(plain[name])
            # Older runs have none.
            values["calendar"] = tuple(plain.get("calendar", ()))
            values["steps"] = Steps(**plain["steps"])
            preprocessing = cls(**values)
            # A checkpoint may come from anyone, so what it holds is checked.
            sizes = {len(preprocessing.features), len(preprocessing.mean), len(preprocessing.std)}
            if len(sizes) > 1 or not 1 <= preprocessing.season <= preprocessing.window:
                raise ValueError("its constants do not fit its columns")
            return preprocessing
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the preprocessing of series is damaged: {error}; name another checkpoint") from error


def fill_gaps(values: NDArray[np.float64], breaks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Values (rows, features) whose NaN take the value before them in their series; those without one stay NaN."""
    rows = np.arange(len(values))[:, None]
    # The last row with a value, of this series.
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, rows), axis=0)
    # A value of the series before is no value of this one.
    series_starts = np.maximum.accumulate(np.where(breaks, np.arange(len(values)), 0))[:, None]
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= series_starts, filled, np.nan)


def find_windows(
    window: int,
    horizon: int,
    breaks: NDArray[np.bool_],
    known_inputs: NDArray[np.bool_],
    known_targets: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """First rows of the windows that lie within one series: window + horizon rows, whose values are known.

    breaks: rows before which a series begins or has a gap; known_inputs, known_targets: rows with values, (rows,).
    """
    count = len(breaks) - window - horizon + 1
    if count <= 0:
        return np.zeros(0, np.int64)

    def count_in(mask: NDArray[np.bool_], start: int, length: int) -> NDArray[np.int64]:
        """How often the mask holds in rows start to start + length of each window."""
        # By running sums: windows of any length cost the same.
        sums = np.concatenate([[0], np.cumsum(mask)])
        counts: NDArray[np.int64] = sums[start + length : start + length + count] - sums[start : start + count]
        return counts

    fits = count_in(breaks, 1, window + horizon - 1) == 0
    fits &= count_in(~known_inputs, 0, window) == 0
    fits &= count_in(~known_targets, window, horizon) == 0
    return np.flatnonzero(fits)


def gather(values: NDArray[np.float64], starts: NDArray[np.int64], length: int) -> NDArray[np.float64]:
    """Windows (N, length, features) of rows (rows, features) that begin at `starts`."""
    if not len(starts):
        return np.zeros((0, length, values.shape[1]))
    # Views cost nothing: only the windows that are asked for are copied.
    views = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    return np.ascontiguousarray(views[starts].transpose(0, 2, 1))


def forecast_naively(spec: DataSpec, x: Tensor) -> Tensor:
    """The trivial forecast (N, horizon × targets) in the unit of the data: the last season of each window repeated.

    x: (N, window, features), as the model takes them. With a season of 1 it is the last value.
    """
    plain = SeriesPreprocessing.from_plain(spec.preprocessing)
    mean = torch.tensor(plain.mean, dtype=torch.float64)[: plain.target_count]
    std = torch.tensor(plain.std, dtype=torch.float64)[: plain.target_count]
    season = x[:, -plain.season :, : plain.target_count].double().cpu() * std + mean
    # A horizon may be longer than the season.
    repeats = math.ceil(plain.horizon / plain.season)
    return season.repeat(1, repeats, 1)[:, : plain.horizon].flatten(1)


def name_naive_forecast(spec: DataSpec) -> str:
    """The trivial forecast in words."""
    season = int(spec.preprocessing["season"])
    return "last value" if season == 1 else f"value {season} steps before"


def is_series(spec: DataSpec) -> bool:
    """Whether the data are windows of series, cut by `data=series`."""
    return spec.kind == "series" and spec.preprocessing.get("kind") == KIND


def name_steps(spec: DataSpec) -> list[str]:
    """A name for each output: the target and the number of the step, from 1."""
    plain = SeriesPreprocessing.from_plain(spec.preprocessing)
    names: list[str] = []
    for step in range(1, plain.horizon + 1):
        names += [f"{target}_{step}" for target in plain.targets]
    return names
