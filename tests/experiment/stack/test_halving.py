"""Which runs leave a stack: worked out by hand."""

import math

import pytest

from dlrun.experiment.stack.halving import Halving, is_rung

# Two seeds of each of nine trials.
TRIALS = {f"{trial}{seed}": trial for trial in range(9) for seed in "ab"}


def make_rows(values: dict[int, tuple[float, float]]) -> dict[str, dict[str, float]]:
    rows = {}
    for key, trial in TRIALS.items():
        if trial in values:
            rows[key] = {"epoch": 4, "train/loss": 0.0, "val/loss": values[trial]["ab".index(key[1])]}
    return rows


def test_runs_leave_after_powers_of_four() -> None:
    assert [epoch for epoch in range(100) if is_rung(epoch)] == [1, 4, 16, 64]


@pytest.mark.parametrize("metric", ["", "val/loss"])
@pytest.mark.parametrize(("mode", "staying"), [("min", {0, 4}), ("max", {7, 8})])
def test_a_quarter_stays_by_the_mean_of_the_seeds(metric: str, mode: str, staying: set[int]) -> None:
    # Trial 3 has the best run of all, and another that is bad; trials 4 and 5 are equal.
    values = {0: (1.0, 1.5), 1: (3.0, 3.0), 2: (4.0, 4.0), 3: (0.1, 6.0), 4: (2.0, 1.8), 5: (1.8, 2.0), 6: (5.0, 5.0)}
    values |= {7: (8.0, 8.0), 8: (7.0, 7.0)}
    leaving = Halving(metric, mode, TRIALS).choose_worse(4, make_rows(values))
    assert {TRIALS[key] for key in leaving} == set(range(9)) - staying
    # Both seeds of each.
    assert len(set(leaving)) == len(leaving) == 14
    assert not Halving(metric, mode, TRIALS).choose_worse(5, make_rows(values))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_none_is_the_worst_and_one_trial_stays(mode: str) -> None:
    rows = make_rows({1: (math.nan, 0.0), 2: (math.inf, 0.0), 3: (50.0, -50.0)})
    leaving = Halving("val/loss", mode, TRIALS).choose_worse(4, rows)
    assert sorted(leaving) == ["1a", "1b", "2a", "2b"]
    assert Halving("val/loss", mode, TRIALS).choose_worse(4, make_rows({1: (math.nan, 1.0)})) == []
    assert Halving("val/loss", mode, TRIALS).choose_worse(4, {}) == []
