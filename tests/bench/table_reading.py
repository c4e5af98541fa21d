"""A large table, from the file to a matrix: dlrun beside pandas to the same end, and read_csv alone.

python tests/bench/table_reading.py [--rows 200000] [--seconds 60]

20 columns of inputs: 14 numbers, 3 of them with gaps, 5 texts of 18 categories and a date. The same end: gaps filled by
the training rows' median, with a flag for each; categories as codes, or as a column each; dates as parts; numbers and
target scaled by the training rows; cut into the three parts. CPU seconds in one process after all imports, in turn.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from harness import interval
from machine import describe

Parts = list[tuple[Any, Any]]
_LEAST_ROUNDS = 3
_MOST_ROUNDS = 25


def write(path: Path, rows: int) -> None:
    """The table as a CSV file."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"amount{i}": rng.normal(size=rows).round(5) for i in range(8)}
    for i in range(6):
        values = rng.integers(0, 500, rows).astype(float)
        values[rng.random(rows) < 0.05 * (i < 3)] = np.nan
        columns[f"count{i}"] = values if i < 3 else values.astype(int)
    for i in range(5):
        columns[f"text{i}"] = rng.choice([f"category {i} {k}" for k in range(18)], rows)
    columns["when"] = pandas.to_datetime("2015-01-01") + pandas.to_timedelta(rng.integers(0, 3000, rows), unit="D")
    columns["y"] = rng.normal(size=rows).round(4)
    pandas.DataFrame(columns).to_csv(path, index=False)


def read_with_dlrun(path: Path, category_codes: bool) -> Parts:
    """As a run with model=tabular (codes) or another model (a column for each category) reads it."""
    from dlrun.data.tables import table

    splits = table(str(path), "y", val_fraction=0.1, category_codes=category_codes)
    parts = (splits.train, splits.val, splits.test)
    return [(part.inputs[0], part.targets) for part in parts if part is not None]


def prepare_with_pandas(path: Path, category_codes: bool) -> Parts:
    """What a hand would write for the same features, as leanly as pandas has it."""
    import torch

    frame = pandas.read_csv(path)
    target = frame.pop("y")
    train, val, test = _draw(len(frame))

    columns = []
    for name in frame:
        column = frame[name]
        if name == "when":
            date = pandas.to_datetime(column)
            columns += [_scale(getattr(date.dt, part), train) for part in ("year", "month", "day", "day_of_week")]
        elif column.dtype.kind in "if":
            is_missing = column.isna()
            if is_missing.any():
                columns.append(_scale(column.fillna(column.iloc[train].median()), train))
                columns.append(is_missing.astype("float32"))
            else:
                columns.append(_scale(column, train))
        elif category_codes:
            columns.append((column.astype("category").cat.codes + 1).astype("float32"))
        else:
            columns.append(pandas.get_dummies(column, dtype="float32"))

    x = pandas.concat(columns, axis=1).to_numpy("float32")
    y = target.to_numpy("float32")
    return [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in (train, val, test)]


def _scale(column: Any, train: Any) -> Any:
    part = column.iloc[train]
    return ((column - part.mean()) / part.std(ddof=0)).astype("float32")


def _draw(rows: int) -> tuple[Any, Any, Any]:
    """The rows of the parts as data.seed=0 draws them."""
    from dlrun.data.datasets import partition

    rest, test = partition(rows, 0.2, 0)
    train, val = partition(len(rest), 0.1, 0)
    return rest[train], rest[val], test


def check_same(one: Parts, other: Parts) -> None:
    """The same features in the same order, or the comparison is none."""
    for (x, y), (other_x, other_y) in zip(one, other, strict=True):
        np.testing.assert_allclose(x.numpy(), other_x.numpy(), atol=1e-4)
        np.testing.assert_allclose(y.numpy().ravel(), other_y.numpy(), atol=1e-4)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    end = time.perf_counter() + arguments.seconds

    print(f"{describe()}, pandas {pandas.__version__}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "table.csv"
        write(path, arguments.rows)
        sides: dict[str, Callable[[], Any]] = {
            "pandas.read_csv alone": lambda: pandas.read_csv(path),
            "pandas, codes": lambda: prepare_with_pandas(path, True),
            "dlrun, codes": lambda: read_with_dlrun(path, True),
            "pandas, a column each": lambda: prepare_with_pandas(path, False),
            "dlrun, a column each": lambda: read_with_dlrun(path, False),
        }
        # These warm up the imports and the file cache too.
        check_same(sides["dlrun, codes"](), sides["pandas, codes"]())
        check_same(sides["dlrun, a column each"](), sides["pandas, a column each"]())

        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name in random.Random(number).sample(list(sides), len(sides)):
                began = time.process_time()
                sides[name]()
                seconds[name].append(time.process_time() - began)

    rounds = len(seconds["dlrun, codes"])
    print(f"{arguments.rows:,} rows, {path.name}: CPU seconds, median of {rounds} rounds in turn (lowest to highest)")
    for name, values in seconds.items():
        print(f"  {name:<24} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    for kind in ("codes", "a column each"):
        middle, low, high = _compare(seconds[f"dlrun, {kind}"], seconds[f"pandas, {kind}"])
        verdict = "met" if middle <= 1.5 else "median short, interval met" if low <= 1.5 else "MISSED"
        print(f"dlrun, {kind}: {middle:.2f} × pandas ({low:.2f} to {high:.2f}), bar at most 1.5: {verdict}")
    middle, low, high = _compare(seconds["dlrun, codes"], seconds["pandas.read_csv alone"])
    print(f"dlrun, codes: {middle:.2f} × pandas.read_csv alone ({low:.2f} to {high:.2f})")


def _compare(over: list[float], under: list[float]) -> tuple[float, float, float]:
    return interval([a / b for a, b in zip(over, under, strict=True)])


if __name__ == "__main__":
    main()
