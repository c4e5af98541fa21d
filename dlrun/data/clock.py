"""Times of tables: their zones, and where they stand in the day, the week and the year."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean

EPOCH = datetime(1970, 1, 1)
DAY = 86_400.0
# Length of the cycles that a calendar has, in seconds.
CYCLES = {"hour": DAY, "weekday": 7 * DAY, "month": 365.2425 * DAY}

_OFFSET = re.compile(r":\d{2}(?:[.,]\d+)?(?:Z|([+-])(\d{2}):?(\d{2}))$")
_OFFSET_NAME = re.compile(r"([+-])(\d{2}):(\d{2})")
# All offsets of today's zones change at full quarters of an hour.
_QUARTER = 900


def get_zone(name: str) -> tzinfo:
    """The time zone "UTC", "+01:00" or "Europe/Berlin"; RequestError for a name that is none."""
    import zoneinfo

    if name == "UTC":
        return UTC
    match = _OFFSET_NAME.fullmatch(name)
    if match is not None:
        minutes = 60 * int(match[2]) + int(match[3])
        return timezone(timedelta(minutes=-minutes if match[1] == "-" else minutes))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        zones = sorted(zoneinfo.available_timezones())
        # "Berlin" is meant as Europe/Berlin.
        ending = [zone for zone in zones if zone.lower().endswith(f"/{name.lower()}")]
        hint = f"did you mean '{ending[0]}'? " if ending else did_you_mean(name, zones)
        raise RequestError(
            f"data.time_zone={name} is no time zone; {hint}type one such as Europe/Berlin, UTC or +01:00"
        ) from error


def parse_offsets(cells: Sequence[str]) -> NDArray[np.float64]:
    """The offset from UTC that each time is written with, in seconds; NaN where there is none."""
    offsets = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        match = _OFFSET.search(cell.strip())
        if match is None:
            continue
        seconds = 0 if match[1] is None else 3600 * int(match[2]) + 60 * int(match[3])
        offsets[row] = -seconds if match[1] == "-" else seconds
    return offsets


def name_offset(seconds: float) -> str:
    """An offset from UTC as times are written with it."""
    if seconds == 0:
        return "UTC"
    hours, minutes = divmod(round(abs(seconds)) // 60, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02}:{minutes:02}"


def to_local(times: NDArray[np.float64], zone: str) -> NDArray[np.float64]:
    """What clocks of a zone show at times of UTC, both in seconds since 1970; without a zone as they are."""
    if not zone:
        return times
    clock = get_zone(zone)
    # One look-up for each quarter of an hour, however many rows lie in it.
    quarters, positions = np.unique(np.floor(times / _QUARTER), return_inverse=True)
    offsets = [_find_offset(datetime.fromtimestamp(quarter * _QUARTER, UTC), clock) for quarter in quarters]
    local: NDArray[np.float64] = times + np.array(offsets)[positions.reshape(-1)]
    return local


def _find_offset(moment: datetime, clock: tzinfo) -> float:
    offset = moment.astimezone(clock).utcoffset()
    assert offset is not None
    return offset.total_seconds()


def from_local(
    times: NDArray[np.float64], zone: str, series: NDArray[np.int64]
) -> tuple[NDArray[np.float64], list[int]]:
    """Times of UTC at which clocks of a zone show these, and the rows of times that they never show.

    An hour comes twice where clocks are put back: the second row of a series (rows,) with the same time is the later.
    """
    clock = get_zone(zone)
    quarters, positions = np.unique(np.floor(times / _QUARTER), return_inverse=True)
    positions = positions.reshape(-1)
    first = np.array([_localize(quarter * _QUARTER, clock, 0) for quarter in quarters])
    second = np.array([_localize(quarter * _QUARTER, clock, 1) for quarter in quarters])
    # Of a skipped hour the first offset is the smaller one, of one that comes twice the larger.
    skipped = np.flatnonzero((first < second)[positions]).tolist()
    offsets = first[positions]

    earlier_times: set[tuple[int, float]] = set()
    for row in np.flatnonzero((first > second)[positions]).tolist():
        key = (int(series[row]), float(times[row]))
        if key in earlier_times:
            offsets[row] = second[positions[row]]
        earlier_times.add(key)
    return times - offsets, skipped


def _localize(seconds: float, clock: tzinfo, fold: int) -> float:
    """The offset from UTC of a clock that shows this time."""
    moment = (EPOCH + timedelta(seconds=seconds)).replace(tzinfo=clock, fold=fold)
    offset = moment.utcoffset()
    assert offset is not None
    return offset.total_seconds()


def choose_cycles(
    calendar: str | Sequence[str] | None, times: NDArray[np.float64], step: float, is_date: bool
) -> tuple[str, ...]:
    """The cycles whose phases are inputs; times: of the training rows, step: the usual one, in seconds.

    "auto" takes those that pass at least twice in training and have more than two steps. RequestError for others.
    """
    if calendar is None:
        return ()
    if calendar == "auto":
        if not is_date or not len(times):
            return ()
        span = float(times.max() - times.min())
        return tuple(name for name, length in CYCLES.items() if span >= 2 * length and length > 2 * step)

    names = [calendar] if isinstance(calendar, str) else list(calendar)
    for name in names:
        if name not in CYCLES:
            hint = did_you_mean(str(name), [*CYCLES, "auto"])
            raise RequestError(f"data.calendar has '{name}'; {hint}type auto, or some of hour, weekday and month")
    if not is_date:
        raise RequestError("data.calendar is for times that are dates; name a column of them by data.time, or leave it")
    return tuple(name for name in CYCLES if name in names)


def name_phases(cycles: Sequence[str]) -> list[str]:
    """A name for each input that `compute_phases` gives."""
    return [f"{cycle}_{function}" for cycle in cycles for function in ("sin", "cos")]


def compute_phases(times: NDArray[np.float64], cycles: Sequence[str]) -> NDArray[np.float64]:
    """Sine and cosine of where times stand in each cycle, (rows, 2 × cycles).

    times: in seconds since 1970, as clocks show them. The week begins on Monday; "month" is the time of the year.
    """
    days = np.floor(times / DAY)
    columns = []
    for cycle in cycles:
        if cycle == "hour":
            phase = times / DAY - days
        elif cycle == "weekday":
            # 1970-01-01 was a Thursday.
            phase = (days + 3) % 7 / 7
        else:
            years = np.floor(times / CYCLES["month"])
            phase = times / CYCLES["month"] - years
        columns += [np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(times), 0))
