"""Settings, grouped over seeds and ranked by what they monitored."""

import math
import os
from typing import Any

import numpy as np
import pytest

from dlrun.core.errors import RequestError
from dlrun.sweep.comparison.ranking import compare


def test_settings_are_means_over_seeds_best_first(runs: Any) -> None:
    values = {"sgd": [0.5, 0.7, 0.6], "adam": [0.2, 0.4, 0.9], "rmsprop": [0.3, 0.3, 0.3]}
    records = [runs(f"optimizer={o}", value=v, seed=i) for o, numbers in values.items() for i, v in enumerate(numbers)]
    (ranking,) = compare(records).rankings
    assert (ranking.metric, ranking.mode, ranking.keys) == ("val/loss", "min", ["optimizer"])
    assert [setting.values["optimizer"] for setting in ranking.settings] == ["rmsprop", "adam", "sgd"]
    adam = ranking.settings[1]
    assert (adam.score.n, adam.score.mean, adam.score.std) == (
        3, pytest.approx(np.mean(values["adam"])), pytest.approx(np.std(values["adam"], ddof=1))
    )  # fmt: skip
    assert adam.by_seed == {0: 0.2, 1: 0.4, 2: 0.9}
    assert (adam.label, adam.best_epochs, adam.seconds) == ("optimizer=adam", [3, 3, 3], 1.5)
    assert (ranking.test_metrics, adam.average_metric("test/loss"), ranking.get_baseline("test/loss")) == (
        ["test/loss"],
        0.75,
        2.5,
    )


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [
        ("val/loss", None, "low"),
        ("val/mae", None, "low"),
        ("val/accuracy", None, "high"),
        ("val/macro_f1", None, "high"),
        ("val/top5_accuracy", None, "high"),
        ("val/r2", None, "high"),
        ("train/exact_match", None, "high"),
        ("val/loss", "max", "high"),
        ("val/accuracy", "min", "low"),
    ],
)
def test_the_direction_is_the_metrics_or_the_configs(metric: str, mode: str | None, best: str, runs: Any) -> None:
    config = {"checkpoint": {"mode": mode}}
    records = [
        runs(f"model={name}", value=v, metric=metric, config=config) for name, v in (("low", 0.1), ("high", 0.9))
    ]
    assert compare(records).rankings[0].settings[0].values["model"] == best


def test_the_test_split_never_ranks(runs: Any) -> None:
    good_test = {"val/loss": 0.9, "test/loss": 0.0}
    records = [runs("model=a", value=0.9, metrics=good_test), runs("model=b", value=0.1)]
    assert compare(records).rankings[0].settings[0].values["model"] == "b"
    with pytest.raises(RequestError, match=r"must not choose; run it again with checkpoint.monitor=val/loss"):
        compare([*records, runs("model=c", metric="test/loss")])


def test_what_did_not_end_well_counts_as_lost_in_its_setting(runs: Any) -> None:
    records = [
        runs("model=a", seed=0, value=0.4),
        runs("model=a", seed=1, value=None, status="failed", metrics={}, error="boom"),
        runs("model=a", seed=2, value=None),
        runs("model=a", seed=3, value=0.0, status="interrupted"),
        runs("model=b", seed=0, value=math.inf),
        runs("model=c", seed=0, value=0.5),
    ]
    (ranking,) = compare(records).rankings
    assert [s.values["model"] for s in ranking.settings] == ["a", "c", "b"]  # nothing that counts: last
    assert [(s.score.n, len(s.unusable)) for s in ranking.settings] == [(1, 3), (1, 0), (0, 1)]
    assert ranking.settings[0].score.mean == 0.4
    assert len(ranking.usable_settings) == 2


def test_an_experiment_made_twice_counts_once(runs: Any) -> None:
    first, newest, failed = (runs.write(runs("model=a", value=v)) for v in (0.4, 0.3, None))
    for age, run in enumerate((first, newest, failed)):
        os.utime(run.folder / "result.json", (age, age))
    ranking_of_all = compare([newest, failed, first])
    assert [run.best_value for run in ranking_of_all.runs] == [0.3]
    assert ranking_of_all.notes == ["2 runs repeat another (same config_hash); the newest counts"]
    same = {"config_hash": "h"}
    apart = [runs("device=cpu", **same), runs("device=cuda", **same), runs("lesson=x", **same)]
    assert len(compare(apart).runs) == 3


def test_what_has_no_order_has_tables_of_its_own(runs: Any) -> None:
    other = {"data": {"_target_": "d.names"}}
    tagged = {"baseline": {"val/exact_match": 0.1}, "metrics": {"val/loss": 0.3, "val/exact_match": 0.5}}
    records = [
        *(runs("model=a", seed=seed) for seed in range(4)),
        *(runs("data=names", config=other, seed=seed) for seed in range(3)),
        *(runs("model=b", metric="val/accuracy", seed=seed) for seed in range(2)),
        runs("model=c", **tagged),
        runs("model=d", value=None, status="failed", metrics={}, baseline={}),  # before its task was known
    ]
    tables = compare(records)
    assert [(r.metric, r.data, len(r.runs)) for r in tables.rankings] == [
        ("val/loss", "digits", 5), ("val/loss", "names", 3), ("val/accuracy", "digits", 2), ("val/loss", "digits", 1)
    ]  # fmt: skip
    assert tables.notes[0].startswith("4 tables: ")


def test_changed_code_is_warned_of(runs: Any) -> None:
    assert compare([runs(seed=0), runs(seed=1)]).notes == []
    (note,) = compare([runs(seed=0), runs(seed=1, code_hash="d")]).notes
    assert "d.digits was changed between the runs" in note
    apart = runs(seed=1, code_hash="d", config={"model": {"_target_": "m.CNN"}})
    assert compare([runs(seed=0), apart]).notes == []
