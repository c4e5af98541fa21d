"""What makes a column, and what does not."""

from typing import Any

import pytest

from dlrun.sweep.comparison import settings
from dlrun.sweep.comparison.settings import ABSENT, find_varying_keys, get_value, group_runs


def test_keys_that_differ_are_columns_and_the_seed_never_is(runs: Any) -> None:
    records = [
        runs("data=digits", "optimizer=sgd", "optimizer.lr=0.1", seed=0),
        runs("data=digits", "optimizer=adam", "optimizer.lr=0.1", seed=1),
        runs("data=digits", "optimizer=adam", "optimizer.lr=0.5", seed=2),
    ]
    assert find_varying_keys(records) == ["optimizer", "optimizer.lr"]
    assert [get_value(run, "optimizer") for run in records] == ["sgd", "adam", "adam"]


def test_a_run_without_the_override_has_the_default_or_nothing(runs: Any) -> None:
    records = [
        runs("optimizer.lr=0.1"),
        runs("+model.x=3", "~trainer.y=1", config={"trainer": {"y": 2}}),
        runs("lesson=a", "paths.outputs=z"),
    ]
    assert find_varying_keys(records) == ["optimizer.lr", "model.x", "lesson"]
    assert [get_value(run, "optimizer.lr") for run in records] == [0.1, 0.001, 0.001]
    assert [get_value(run, "model.x") for run in records] == [ABSENT, 3, ABSENT]
    assert [get_value(run, "lesson") for run in records] == [ABSENT, ABSENT, "a"]


def test_what_is_no_part_of_the_experiment_is_no_column(runs: Any) -> None:
    records = [runs("paths.outputs=a", "figures=false"), runs("paths.outputs=b", "tracking.graph=true", seed=1)]
    assert find_varying_keys(records) == []
    assert find_varying_keys([runs("device=cpu"), runs("device.precision=bf16")]) == ["device", "device.precision"]


def test_what_follows_the_seed_is_no_column(runs: Any) -> None:
    records = [runs(f"data.seed={seed}", seed=seed) for seed in range(3)]
    assert find_varying_keys(records) == []
    assert find_varying_keys([*records, runs("data.seed=9", seed=3)]) == ["data.seed"]


def test_runs_that_differ_without_a_word_get_the_choices_and_then_the_keys(runs: Any) -> None:
    a, b = runs(), runs()
    object.__setattr__(b, "choices", b.choices | {"model": "cnn"})
    assert find_varying_keys([a, b]) == ["model"]
    changed = [runs(seed=0), runs(seed=1, config={"optimizer": {"lr": 0.5}})]  # a default that was changed meanwhile
    assert find_varying_keys(changed) == ["optimizer.lr"]
    assert find_varying_keys([runs("optimizer.lr=0.1"), *changed]) == ["optimizer.lr"]


def test_equal_values_are_one_however_they_are_written(runs: Any) -> None:
    same = [runs("optimizer.lr=1"), runs("optimizer.lr=1.0", seed=1)]
    assert find_varying_keys(same) == []
    assert len(group_runs([*same, runs("optimizer.lr=true")], ["optimizer.lr"])) == 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.1, "0.1"), (1e-05, "1e-05"), (1.0, "1"), (0.123456789, "0.123456789"), (None, "null"), (True, "true"),
        ([64, 32], "[64,32]"), ("adam", "adam"), (10, "10"),
    ],
)  # fmt: skip
def test_values_are_shown_as_one_would_type_them(value: Any, shown: str) -> None:
    assert settings.format_value(value) == shown


def test_names_are_short_where_they_stay_apart() -> None:
    keys = ["optimizer", "optimizer.lr", "scheduler.gamma", "model.gamma", "model._target_"]
    assert list(settings.shorten_keys(keys).values()) == [
        "optimizer", "lr", "scheduler.gamma", "model.gamma", "model._target_"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([0.001, 0.01, 0.1], True), ([1, 100], True), ([1, 2, 3], False), ([0.1, 0.2, 4], True),
        ([1, 50, 100], False), ([0, 1, 100], False), ([5], False),
    ],
)  # fmt: skip
def test_what_a_logarithmic_axis_shows_better(values: list[float], log: bool) -> None:
    assert settings.is_logarithmic(values) == log


def test_a_setting_of_one_option_only_is_no_column_of_its_own(runs: Any) -> None:
    race = [
        runs("optimizer=sgd"),
        runs("optimizer=momentum", "optimizer.momentum=0.8"),
        runs("optimizer=adam", "optimizer.lr=0.1"),
    ]
    assert find_varying_keys(race) == ["optimizer"]
    assert find_varying_keys([*race, runs("optimizer=momentum", "optimizer.momentum=0.9")]) == [
        "optimizer",
        "optimizer.momentum",
    ]
    paired = [runs("optimizer=sgd", "optimizer.lr=0.1"), runs("optimizer=adam", "optimizer.lr=0.01")]
    assert find_varying_keys(paired) == ["optimizer", "optimizer.lr"]  # named for each: somebody wants to see it
