from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from dlrun.core.errors import RequestError
from dlrun.data.clock import choose_cycles, compute_phases, from_local, get_zone, name_offset, parse_offsets, to_local

DAY = 86_400.0


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "+05:30", "UTC"]
)
def test_clocks_of_a_zone_show_what_python_says_and_back(zone: str) -> None:
    # Half hours about both changes of the clock.
    start = 1_704_067_200.0 + DAY * np.array([[64], [274]])
    utc = (start + 1800 * np.arange(48 * 34)).reshape(-1)
    local = to_local(utc, zone)
    clock = get_zone(zone)
    expected = [datetime.fromtimestamp(time, clock).replace(tzinfo=ZoneInfo("UTC")).timestamp() for time in utc[::97]]
    assert local[::97].tolist() == expected
    again, skipped = from_local(local, zone, np.zeros(len(local), np.int64))
    assert np.array_equal(again, utc)
    assert skipped == []


def test_hours_that_clocks_skip_are_told_and_series_count_their_own_second_hours() -> None:
    night = datetime(2024, 3, 31, tzinfo=ZoneInfo("UTC")).timestamp()
    times = night + 3600 * np.arange(4)
    assert from_local(times, "Europe/Berlin", np.zeros(4, np.int64))[1] == [2]
    twice = np.full(4, datetime(2024, 10, 27, 2, tzinfo=ZoneInfo("UTC")).timestamp())
    utc, _ = from_local(twice, "Europe/Berlin", np.array([0, 1, 0, 1]))
    assert (utc - twice).tolist() == [-7200, -7200, -3600, -3600]


def test_offsets_are_read_as_they_are_written() -> None:
    cells = [
        "2024-01-01 10:00Z",
        "2024-01-01T10:00:00.5+0530",
        "1.1.2024 10:00-03:00",
        "2024-01-01 10:00",
        "2024-01-01",
    ]
    assert parse_offsets(cells) == pytest.approx([0, 19_800, -10_800, np.nan, np.nan], nan_ok=True)
    assert [name_offset(seconds) for seconds in (0, 19_800, -10_800)] == ["UTC", "+05:30", "-03:00"]
    with pytest.raises(RequestError, match=r"data\.time_zone=berlin is no time zone; did you mean 'Europe/Berlin'\?"):
        get_zone("berlin")


def test_cycles_are_those_that_training_shows_twice() -> None:
    hours = np.arange(0, 10 * DAY, 3600)
    assert choose_cycles("auto", hours, 3600, is_date=True) == ("hour",)
    assert choose_cycles("auto", np.arange(0, 800 * DAY, DAY), DAY, is_date=True) == ("weekday", "month")
    assert choose_cycles("auto", hours, 3600, is_date=False) == ()
    assert choose_cycles(["month", "hour"], hours, 3600, is_date=True) == ("hour", "month")
    with pytest.raises(RequestError, match=r"has 'hours'; did you mean hour\? type auto, or some of hour, weekday"):
        choose_cycles(["hours"], hours, 3600, is_date=True)
    with pytest.raises(RequestError, match=r"data\.calendar is for times that are dates"):
        choose_cycles("hour", hours, 3600, is_date=False)


def test_phases_are_points_on_circles() -> None:
    times = np.arange(0, 800 * DAY, 6 * 3600)
    hour, weekday, year = np.split(compute_phases(times, ("hour", "weekday", "month")), 3, axis=1)
    assert hour[:4] == pytest.approx(np.array([[0, 1], [1, 0], [0, -1], [-1, 0]]), abs=1e-9)
    # Four days after the first of 1970, a Thursday, it is Monday.
    assert weekday[16] == pytest.approx([0, 1], abs=1e-9)
    assert np.unique(weekday.round(9), axis=0).shape == (7, 2)
    angles = np.unwrap(np.arctan2(year[:, 0], year[:, 1]))
    assert all(later > earlier for earlier, later in pairwise(angles))
    assert angles[-1] == pytest.approx(2 * np.pi * times[-1] / (365.2425 * DAY))
