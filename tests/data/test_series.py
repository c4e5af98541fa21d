import csv
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from dlrun.core.errors import DataError, RequestError
from dlrun.data import series as module
from dlrun.data.series import WindowDataset, hash_files, series
from dlrun.data.spec import Split
from dlrun.data.windows import SeriesPreprocessing, Steps, forecast_naively, name_naive_forecast, name_steps

START = datetime(2024, 1, 1)
HOUR = timedelta(hours=1)


def write(path: Path, columns: dict[str, Sequence[Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def hours(count: int, step: timedelta = HOUR) -> list[str]:
    return [(START + number * step).isoformat(" ") for number in range(count)]


def power(tmp_path: Path, count: int = 100, **changes: Sequence[Any]) -> tuple[str, np.ndarray]:
    """A table of two columns of numbers, and these as (rows, 2), the target first."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 2)).round(3)
    columns: dict[str, Sequence[Any]] = {"date": hours(count), "temp": values[:, 1], "load": values[:, 0]}
    return write(tmp_path / "power.csv", columns | changes), values


def arrays(part: Any) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(part, Split)
    return part.inputs[0].numpy(), part.targets.numpy()


@pytest.mark.parametrize(("window", "horizon"), [(8, 3), (1, 1), (20, 7)])
def test_windows_are_those_of_numpy(tmp_path: Path, window: int, horizon: int) -> None:
    path, values = power(tmp_path)
    splits = series(path, "load", window=window, horizon=horizon, test_fraction=0, normalize=False)
    x, y = arrays(splits.train)
    all_windows = sliding_window_view(values, window + horizon, axis=0).transpose(0, 2, 1)
    assert np.array_equal(x, all_windows[:, :window])
    assert np.array_equal(y, all_windows[:, window:, 0])
    assert splits.spec.kind == "series"
    assert splits.spec.input_shape == (window, 2)
    assert splits.spec.output_size == horizon
    assert splits.spec.feature_names == ("load", "temp")


def test_parts_follow_in_time_and_no_target_is_seen_in_training(tmp_path: Path) -> None:
    # Every value tells its row.
    path = write(tmp_path / "t.csv", {"date": hours(100), "load": range(100)})
    splits = series(path, "load", window=10, horizon=4, test_fraction=0.2, val_fraction=0.25, normalize=False)
    used_rows = set()
    for rows in arrays(splits.train):
        used_rows |= set(rows.flatten().tolist())
    assert max(used_rows) == 59
    targets = {name: arrays(getattr(splits, name))[1] for name in ("val", "test")}
    assert (targets["val"].min(), targets["val"].max()) == (60, 79)
    assert (targets["test"].min(), targets["test"].max()) == (80, 99)
    # Three windows across each border have targets on both sides.
    assert sum(len(part.targets) for part in (splits.train, splits.val, splits.test)) == 87 - 6  # type: ignore[union-attr]
    note = next(note for note in splits.notes if "the test part begins" in note)
    assert "the validation part begins at 2024-01-03 12:00" in note
    assert "6 windows with targets on both sides are left out" in note


def test_scales_are_those_of_the_training_rows(tmp_path: Path) -> None:
    path, values = power(tmp_path)
    splits = series(path, "load", window=8, horizon=2, test_fraction=0.2, val_fraction=0.25)
    spec = splits.spec
    assert spec.mean == pytest.approx(tuple(values[:60].mean(0)))
    assert spec.std == pytest.approx(tuple(values[:60].std(0)))
    assert spec.target_mean == pytest.approx((values[:60, 0].mean(),) * 2)
    x, y = arrays(splits.test)
    assert x[0] * spec.std + np.array(spec.mean) == pytest.approx(values[72:80])
    # Targets stay in their own unit.
    assert y[0] == pytest.approx(values[80:82, 0])
    constant = write(tmp_path / "c.csv", {"load": range(50), "zero": [7] * 50})
    assert series(constant, "load", window=4).spec.std[1] == 1.0


def test_several_series_do_not_run_into_each_other(tmp_path: Path) -> None:
    columns = {
        "date": [*hours(40), *hours(30)],
        "load": [*range(40), *range(100, 130)],
        "site": ["a"] * 40 + ["b"] * 30,
    }
    order = np.random.default_rng(0).permutation(70)
    path = write(tmp_path / "t.csv", {name: [cells[i] for i in order] for name, cells in columns.items()})
    splits = series(path, "load", group="site", window=6, horizon=2, normalize=False, test_fraction=0.25)
    for part in (splits.train, splits.test):
        x, y = arrays(part)
        assert (np.diff(np.concatenate([x[:, :, 0], y], axis=1), axis=1) == 1).all()
    # One moment parts all of them: the thirtieth hour.
    assert {value % 100 for value in arrays(splits.train)[1].flatten().tolist()} == set(range(6, 30))
    assert {value % 100 for value in arrays(splits.test)[1].flatten().tolist()} == set(range(30, 40))
    columns_of_origin = splits.train.origin.to_columns()  # type: ignore[union-attr]
    assert set(columns_of_origin["series"]) == {"a", "b"}
    assert any("rows were put in the order of 'date'" in note for note in splits.notes)
    with pytest.raises(DataError, match=r"both have the time 2024-01-01 00:00.*type data\.group=<column>"):
        series(path, "load", window=6)


def test_rows_are_named_by_what_they_forecast(tmp_path: Path) -> None:
    path, _ = power(tmp_path)
    origin = series(path, "load", window=8, horizon=2, test_fraction=0).train.origin  # type: ignore[union-attr]
    columns = origin.to_columns()
    assert columns["time"][:2] == ["2024-01-01 08:00", "2024-01-01 09:00"]
    assert columns["line"][:2] == [10, 11]


def test_windows_across_gaps_in_time_are_left_out(tmp_path: Path) -> None:
    times = hours(100)
    path = write(tmp_path / "t.csv", {"date": times[:40] + times[45:], "load": [*range(40), *range(45, 100)]})
    splits = series(path, "load", window=6, horizon=2, test_fraction=0, normalize=False)
    x, y = arrays(splits.train)
    assert (np.diff(np.concatenate([x[:, :, 0], y], axis=1), axis=1) == 1).all()
    assert len(x) == (40 - 7) + (55 - 7)
    assert any("1 gap in time, where rows are 1 hour apart, the first before" in note for note in splits.notes)
    assert any("line 42" in note for note in splits.notes)


def test_irregular_steps_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [(START + timedelta(minutes=int(m))).isoformat(" ") for m in np.cumsum(rng.integers(1, 90, 60))]
    splits = series(write(tmp_path / "t.csv", {"date": times, "load": range(60)}), window=6, test_fraction=0)
    assert any("steps of 'date' are irregular, from " in note for note in splits.notes)
    assert len(arrays(splits.train)[0]) == 54


def test_gaps_of_inputs_take_the_value_before_and_those_of_targets_are_no_targets(tmp_path: Path) -> None:
    load: list[Any] = list(range(40))
    temp: list[Any] = list(range(100, 140))
    load[20] = ""
    temp[0] = temp[10] = "NA"
    path = write(tmp_path / "t.csv", {"date": hours(40), "temp": temp, "load": load})
    splits = series(path, "load", window=3, horizon=2, test_fraction=0, normalize=False)
    x, y = arrays(splits.train)
    starts = splits.train.origin._get_rows().numpy() - 3  # type: ignore[union-attr]
    assert 20 not in y
    assert starts.tolist() == [start for start in range(1, 36) if 20 not in (start + 3, start + 4)]
    at = {start: number for number, start in enumerate(starts.tolist())}
    assert x[at[9], 1].tolist() == [10, 109]
    assert x[at[20], :, 0].tolist() == [19, 21, 22]
    assert any("3 empty cells of inputs take the value before" in note for note in splits.notes)
    with pytest.raises(DataError, match=r"line 2: column 'temp' is empty; line 12: .*data\.missing=previous"):
        series(path, "load", window=3, missing="error")


def test_gaps_take_no_value_of_another_series(tmp_path: Path) -> None:
    columns = {"date": [*hours(20), *hours(20)], "site": ["a"] * 20 + ["b"] * 20, "load": range(40)}
    temp: list[Any] = list(range(100, 140))
    temp[20] = temp[21] = ""
    path = write(tmp_path / "t.csv", columns | {"temp": temp})
    splits = series(path, "load", group="site", window=3, test_fraction=0, normalize=False)
    x, _ = arrays(splits.train)
    # What the second begins with is known from its third row on.
    assert x[x[:, 0, 0] >= 20, 0, 0].min() == 22
    assert any("windows that begin before there is one are left out" in note for note in splits.notes)


def test_trivial_forecasts_repeat_the_last_value_or_a_season(tmp_path: Path) -> None:
    daily = np.sin(np.arange(240) * 2 * np.pi / 24) * 10 + 50
    path = write(tmp_path / "t.csv", {"date": hours(240), "load": daily})
    splits = series(path, window=30, horizon=50, test_fraction=0.3)
    assert name_naive_forecast(splits.spec) == "value 24 steps before"
    assert isinstance(splits.test, Split)
    torch.testing.assert_close(forecast_naively(splits.spec, splits.test.inputs[0]), splits.test.targets)
    # What only wanders has no day.
    walk = np.cumsum(np.random.default_rng(0).normal(size=240))
    splits = series(write(tmp_path / "t.csv", {"date": hours(240), "load": walk}), window=30, horizon=2)
    assert name_naive_forecast(splits.spec) == "last value"
    assert isinstance(splits.train, Split)
    x = splits.train.inputs[0][:, -1, 0] * splits.spec.std[0] + splits.spec.mean[0]
    torch.testing.assert_close(forecast_naively(splits.spec, splits.train.inputs[0]), x[:, None].expand(-1, 2))
    assert name_naive_forecast(series(path, window=30, season=12).spec) == "value 12 steps before"


def test_several_targets_are_forecast_step_by_step(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", {"a": range(50), "b": range(100, 150), "c": range(200, 250)})
    splits = series(path, ["c", "a"], features=[], window=4, horizon=2, test_fraction=0, normalize=False)
    x, y = arrays(splits.train)
    assert x[0].tolist() == [[200, 0], [201, 1], [202, 2], [203, 3]]
    assert y[0].tolist() == [204, 4, 205, 5]
    assert name_steps(splits.spec) == ["c_1", "a_1", "c_2", "a_2"]


def test_windows_that_are_gathered_as_needed_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = power(tmp_path)
    settings: dict[str, Any] = {"window": 8, "horizon": 3, "stride": 2, "val_fraction": 0.2}
    held = series(path, "load", **settings)
    monkeypatch.setattr(module, "_MOST_BYTES", 0)
    lazy = series(path, "load", **settings)
    assert lazy.spec == held.spec
    for name in ("train", "val", "test"):
        x, y = arrays(getattr(held, name))
        part = getattr(lazy, name)
        assert isinstance(part, WindowDataset)
        assert len(part) == len(x)
        batch = part.__getitems__([1, 0])
        assert np.array_equal(batch[0].numpy(), x[[1, 0]])
        assert np.array_equal(batch[1].numpy(), y[[1, 0]])
        assert np.array_equal(part.targets.numpy(), y)
        assert np.array_equal(part[1][0].numpy(), x[1])


def test_other_tables_are_read_as_in_training(tmp_path: Path) -> None:
    path, _ = power(tmp_path)
    splits = series(path, "load", window=8, horizon=2)
    saved = splits.spec.preprocessing
    assert SeriesPreprocessing.from_plain(saved).to_plain() == saved
    assert hash_files({"path": path}) == saved["sha256"]
    other = write(tmp_path / "o.csv", {"load": range(20), "x": range(20), "date": hours(20), "temp": range(20)})
    again = series(other, -1, test_fraction=0, preprocessing=dict(saved))
    assert (again.spec.mean, again.spec.std) == (splits.spec.mean, splits.spec.std)
    x, _ = arrays(again.train)
    assert x[0, :, 0] * splits.spec.std[0] + splits.spec.mean[0] == pytest.approx(range(8))
    wrong = write(tmp_path / "w.csv", {"load": range(20), "date": hours(20), "tmp": range(20)})
    with pytest.raises(DataError, match="there is no column temp; did you mean tmp"):
        series(wrong, preprocessing=dict(saved))
    with pytest.raises(DataError, match="version 7"):
        SeriesPreprocessing.from_plain({**saved, "version": 7})
    with pytest.raises(DataError, match="damaged"):
        SeriesPreprocessing.from_plain({**saved, "mean": [0.0]})


@pytest.mark.parametrize(
    ("steps", "last", "expected"),
    [
        (
            Steps(3600.0, is_date=True, has_clock=True),
            datetime(2024, 2, 28, 23),
            ["2024-02-29 00:00", "2024-02-29 01:00"],
        ),
        (Steps(86_400.0, is_date=True), datetime(2024, 12, 31), ["2025-01-01", "2025-01-02"]),
        (Steps(30 * 86_400.0, 1, is_date=True), datetime(2024, 1, 31), ["2024-02-29", "2024-03-31"]),
        (Steps(30 * 86_400.0, 1, is_date=True), datetime(2023, 11, 15), ["2023-12-15", "2024-01-15"]),
        (Steps(91 * 86_400.0, 3, is_date=True), datetime(2023, 12, 1), ["2024-03-01", "2024-06-01"]),
        (Steps(86_400.0, is_date=True, is_regular=False), datetime(2024, 1, 5), ["+1", "+2"]),
    ],
)
def test_times_go_on_as_the_calendar_does(steps: Steps, last: datetime, expected: list[str]) -> None:
    assert steps.list_next((last - datetime(1970, 1, 1)).total_seconds(), 2) == expected


def test_months_numbers_and_fractions_of_seconds_are_steps(tmp_path: Path) -> None:
    months = [f"{1950 + n // 12}-{n % 12 + 1:02}-01" for n in range(60)]
    splits = series(write(tmp_path / "t.csv", {"month": months, "y": range(60)}), window=24, test_fraction=0)
    steps = SeriesPreprocessing.from_plain(splits.spec.preprocessing).steps
    assert (steps.months, steps.is_regular, steps.season) == (1, True, 12)
    splits = series(write(tmp_path / "t.csv", {"t": np.arange(60) * 0.5, "y": range(60)}), time="t", window=4)
    assert SeriesPreprocessing.from_plain(splits.spec.preprocessing).steps.list_next(29.5, 1) == ["30"]
    times = [f"2024-01-01 00:00:0{n // 10}.{n % 10}" for n in range(60)]
    splits = series(write(tmp_path / "t.csv", {"t": times, "y": range(60)}), window=4)
    assert SeriesPreprocessing.from_plain(splits.spec.preprocessing).steps.seconds == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"window": 200}, r"data\.window=200 and data\.horizon=1 take 201 rows .* the longest series has 100"),
        ({"window": 0}, r"data\.window=0 must be at least 1"),
        ({"target": "laod"}, r"data\.target=laod is no column .*load"),
        ({"time": "dat"}, r"data\.time=dat is no column .*date"),
        ({"time": "load"}, r"data\.time and data\.target both name column 'load'"),
        ({"features": ["date"]}, r"data\.features names column 'date', which is the time or group"),
        ({"missing": "drop"}, r"data\.missing=drop is no choice; .*type previous or error"),
        ({"season": 99}, r"data\.season=99 must be at most data\.window=48"),
        ({"target": ["load", "load"]}, r"data\.target names column 'load' twice"),
        ({"test_fraction": 0.6}, r"no window of 48 \+ 1 rows is left to train on"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    path, _ = power(tmp_path)
    with pytest.raises(RequestError, match=message):
        series(path, **({"target": "load"} | words))


def test_cells_that_are_no_numbers_or_times_are_named_with_their_lines(tmp_path: Path) -> None:
    load: list[Any] = list(range(100))
    load[3] = "many"
    path, _ = power(tmp_path, load=load)
    with pytest.raises(DataError, match=r"power\.csv, line 5: column 'load' holds 'many', which is no finite number"):
        series(path, "load", window=4)
    times = hours(100)
    times[7] = "yesterday"
    path, _ = power(tmp_path, date=times)
    with pytest.raises(DataError, match=r"line 9: column 'date' holds 'yesterday', which is no time"):
        series(path, "load", time="date", window=4)


def test_times_with_zones_are_put_in_the_order_of_utc(tmp_path: Path) -> None:
    """An autumn night of Berlin: written with offsets, and by the clock alone."""
    shown = ["2024-10-27 01:00", "2024-10-27 02:00", "2024-10-27 02:00", "2024-10-27 03:00", "2024-10-27 04:00"]
    offsets = ["+02:00", "+02:00", "+01:00", "+01:00", "+01:00"]
    times = [time + offset for time, offset in zip(shown, offsets, strict=True)]
    load = list(range(5))
    path = write(tmp_path / "t.csv", {"date": times[::-1], "load": load[::-1]})
    splits = series(path, "load", window=2, test_fraction=0, normalize=False)
    x, y = arrays(splits.train)
    assert np.concatenate([x[:, :, 0], y], axis=1).tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert splits.train.origin.to_columns()["time"][0] == "2024-10-27 01:00+00:00"  # type: ignore[union-attr]
    assert any("'date' has the time zones +01:00, +02:00: rows were put in the order of UTC" in n for n in splits.notes)

    berlin = series(path, "load", time_zone="Europe/Berlin", window=2, test_fraction=0, calendar=["hour"])
    assert berlin.train.origin.to_columns()["time"] == [time[:22] for time in times[2:]]  # type: ignore[union-attr]
    assert berlin.spec.feature_names == ("load", "hour_sin", "hour_cos")
    assert berlin.spec.mean[1:] == (0, 0)
    # By the clock of Berlin it is one, two and two.
    angles = 2 * np.pi * np.array([1, 2]) / 24
    assert arrays(berlin.train)[0][0, :, 1:] == pytest.approx(np.stack([np.sin(angles), np.cos(angles)], 1))
    assert arrays(berlin.train)[0][1, 0, 1] == arrays(berlin.train)[0][1, 1, 1]

    plain = write(tmp_path / "p.csv", {"date": shown, "load": load})
    with pytest.raises(DataError, match=r"lines 3 and 4: both have the time .* type data\.time_zone=<such as Europe"):
        series(plain, "load", window=2)
    by_clock = series(plain, "load", time_zone="Europe/Berlin", window=2, test_fraction=0, calendar="hour")
    assert torch.equal(by_clock.train.inputs[0], berlin.train.inputs[0])  # type: ignore[union-attr]
    mixed = write(tmp_path / "m.csv", {"date": [*times[:4], shown[4]], "load": load})
    with pytest.raises(DataError, match=r"line 6: column 'date' holds '2024-10-27 04:00' without a time zone, which"):
        series(mixed, "load", window=2)


def test_days_of_a_zone_go_on_by_the_clock() -> None:
    midnight = datetime(2024, 3, 29, 23).timestamp() - datetime(1970, 1, 1).timestamp()
    days = Steps(86_400.0, is_date=True, has_clock=True, zone="Europe/Berlin")
    assert days.list_next(midnight, 3) == ["2024-03-31 00:00+01:00", "2024-04-01 00:00+02:00", "2024-04-02 00:00+02:00"]


@pytest.mark.parametrize("fold", [0, 2])
def test_folds_are_those_of_scikit_learn(tmp_path: Path, fold: int) -> None:
    from sklearn.model_selection import TimeSeriesSplit

    path = write(tmp_path / "t.csv", {"date": hours(100), "load": range(100)})
    splits = series(path, "load", window=4, horizon=2, folds=3, fold=fold, val_fraction=0.2, normalize=False)
    train, test = list(TimeSeriesSplit(3).split(np.arange(100)))[fold]
    held_out = round(len(train) * 0.2)
    used_values = {value for rows in arrays(splits.train) for value in rows.flatten().tolist()}
    assert used_values == set(train[:-held_out].tolist())
    assert set(arrays(splits.val)[1].flatten().tolist()) == set(train[-held_out:].tolist())
    assert set(arrays(splits.test)[1].flatten().tolist()) == set(test.tolist())
    assert splits.unheeded["test_fraction"] == "data.folds draws the test part"
    ends = "ends at 2024-01-03 01:00, in time" in " ".join(splits.notes)
    assert ends is (fold == 0)
    with pytest.raises(RequestError, match=r"data\.folds=100 is too many for 100 moments"):
        series(path, "load", window=4, folds=100)


def test_files_of_parts_go_on_with_the_series_or_stand_alone(tmp_path: Path) -> None:
    def cut(name: str, first: int, last: int) -> str:
        return write(tmp_path / name, {"date": hours(100)[first:last], "load": range(first, last)})

    words: dict[str, Any] = {"target": "load", "window": 5, "horizon": 2, "normalize": False}
    splits = series(cut("a.csv", 0, 60), val_path=cut("b.csv", 60, 80), test_path=cut("c.csv", 80, 83), **words)
    assert set(arrays(splits.train)[1].flatten().tolist()) == set(range(5, 60))
    # The first windows look back into the file before.
    assert arrays(splits.val)[1].flatten().tolist() == [v for first in range(60, 79) for v in (first, first + 1)]
    assert arrays(splits.test)[0][0, :, 0].tolist() == [75, 76, 77, 78, 79]
    origin = splits.test.origin.to_columns()  # type: ignore[union-attr]
    assert origin["source"] == [str(tmp_path / "c.csv")] * 2
    assert origin["line"] == [2, 3]
    saved = splits.spec.preprocessing
    paths = {"path": tmp_path / "a.csv", "val_path": tmp_path / "b.csv", "test_path": tmp_path / "c.csv"}
    assert saved["sha256"] == hash_files(paths)

    # What is validated on is no input of training, also where it came before.
    earlier = series(cut("a.csv", 40, 100), val_path=cut("b.csv", 0, 40), **words)
    assert arrays(earlier.train)[0].min() == 40

    overlapping = series(cut("a.csv", 0, 60), test_path=cut("b.csv", 50, 70), **words)
    assert arrays(overlapping.test)[0][0, :, 0].tolist() == [50, 51, 52, 53, 54]
    assert any("the times of the files overlap" in note for note in overlapping.notes)
    with pytest.raises(DataError, match=r"data\.test_path=.*b\.csv has no window of data\.window=5"):
        series(cut("a.csv", 0, 60), test_path=cut("b.csv", 55, 58), **words)


def test_tables_that_come_with_dlrun_are_named_by_it() -> None:
    splits = series("dlrun:air_passengers.csv", "passengers", window=24, horizon=12, test_fraction=0.25)
    # The airline model's series G of Box and Jenkins: 144 months, 432 thousand passengers in the last.
    assert isinstance(splits.test, Split)
    assert splits.test.targets[-1, -1] == 432
    assert splits.spec.preprocessing["steps"]["months"] == 1
    assert hash_files({"path": "dlrun:air_passengers.csv"}) == splits.spec.preprocessing["sha256"]
    with pytest.raises(
        RequestError, match=r"dlrun:air\.csv is no table of dlrun's; .*there are air_passengers\.csv, rev"
    ):
        series("dlrun:air.csv")
