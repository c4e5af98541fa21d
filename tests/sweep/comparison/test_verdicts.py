"""The sentences: which is best, by what evidence, and what to try."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from dlrun.sweep.comparison.ranking import compare
from dlrun.sweep.comparison.verdicts import list_verdicts, summarize

NOISE = (0.00, 0.05, -0.03, 0.02, -0.04)


def describe(records: list[Any]) -> list[str]:
    return list_verdicts(compare(records).rankings[0])


def make_settings(runs: Any, levels: dict[str, float], seeds: int = 5, **more: Any) -> list[Any]:
    """Settings at these levels, with the same noise of a seed, and a little of their own."""
    return [
        runs(word, value=level + NOISE[seed] + own, seed=seed, **more)
        for i, (word, level) in enumerate(levels.items())
        for seed, own in enumerate(np.random.default_rng(i).normal(0, 0.001, seeds).tolist())
    ]


def test_the_best_is_named_first(runs: Any) -> None:
    lines = describe(make_settings(runs, {"model=a": 0.5, "model=b": 0.8}))
    assert lines == [
        "best: model=a, val/loss 0.500 ± 0.037 (n = 5)",
        "better than the other setting (paired over 5 seeds, 95 % t interval of the difference without 0)",
    ]
    assert summarize(compare(make_settings(runs, {"model=a": 0.5}))).startswith(
        "best: the only setting, val/loss 0.500"
    )


def test_what_cannot_be_told_apart_is_named_in_one_line(runs: Any) -> None:
    levels = {f"model=m{i:02}": 0.5 + 1e-5 * i for i in range(24)} | {"model=far": 0.9}
    best, *others = compare(make_settings(runs, levels)).rankings[0].settings
    tests = [stats.ttest_rel(list(best.by_seed.values()), list(other.by_seed.values())) for other in others]
    alike = sum(test.pvalue > 0.05 for test in tests)
    line = describe(make_settings(runs, levels))[1]
    assert line.startswith("cannot be told apart from the best (paired over 5 seeds, 95 % t interval")
    assert line.count("model=m") == 8
    assert alike > 8
    assert line.endswith(f" and {alike - 8} more")
    assert "far" not in line


@pytest.mark.parametrize(("seeds", "with_"), [(1, "1 seed a setting"), (2, "2 seeds a setting")])
def test_few_seeds_tell_nothing_apart(seeds: int, with_: str, runs: Any) -> None:
    lines = describe(make_settings(runs, {"model=a": 0.1, "model=b": 0.9}, seeds=seeds))
    assert lines[1] == f"with {with_} nothing can be told apart: add 'seed=range(5)'"


def test_only_common_seeds_are_compared(runs: Any) -> None:
    records = [runs("model=a", value=0.1, seed=s) for s in range(5)] + [
        runs("model=b", value=0.9, seed=s) for s in (3, 4, 5)
    ]
    assert describe(records)[1] == "with 2 common seeds nothing can be told apart: add 'seed=range(5)'"
    records += [runs("model=c", value=0.9 + 0.1 * s, seed=s) for s in range(3)]
    assert "paired over 3 seeds" in describe(records)[1]
    assert describe(records)[2] == "fewer than 3 seeds in common with the best, so not judged: model=b"


def test_a_best_that_learned_nothing_is_said(runs: Any) -> None:
    assert "trivial baseline (val/loss 2.000)" in describe([runs(value=2.0)])[1]
    assert len(describe([runs(value=1.9)])) == 1
    assert len(describe([runs(value=2.1, metric="val/accuracy")])) == 1
    assert "nothing was learned" in describe([runs(value=1.9, metric="val/accuracy")])[1]


@pytest.mark.parametrize(
    ("key", "values", "best", "hint"),
    [
        ("optimizer.lr", (0.001, 0.01, 0.1), 0.1, "best is at the largest optimizer.lr tried: try optimizer.lr=1 too"),
        ("optimizer.lr", (0.001, 0.01, 0.1), 0.001, "at the smallest optimizer.lr tried: try optimizer.lr=0.0001 too"),
        ("optimizer.lr", (0.001, 0.01, 0.1), 0.01, ""),
        ("optimizer.lr", (0.01, 0.1), 0.1, ""),
        ("model.dropout", (0.0, 0.2, 0.4), 0.0, ""),
        ("model.dropout", (0.1, 0.2, 0.3), 0.1, "try model.dropout=0.05 too"),
        ("model.dropout", (0.5, 0.7, 0.9), 0.9, ""),
        ("trainer.epochs", (10, 20, 30), 30, "try trainer.epochs=40 too"),
        ("model.hidden", (4, 32, 256), 256, "try model.hidden=2048 too"),
        ("model.hidden", (1, 8, 64), 1, ""),
        ("model.x", (-1, 0, 1), -1, "try model.x=-2 too"),
    ],
)  # fmt: skip
def test_a_best_at_the_edge_says_what_to_try(key: str, values: Any, best: float, hint: str, runs: Any) -> None:
    lines = describe([runs(f"{key}={v}", value=0.1 if v == best else 0.5) for v in values])
    advice = [line for line in lines if "tried" in line]
    assert bool(advice) == bool(hint)
    assert not hint or advice[0].endswith(hint)


def test_a_failed_setting_was_tried_too(runs: Any) -> None:
    records = [runs(f"optimizer.lr={lr}", value=value) for lr, value in ((0.1, 0.1), (0.01, 0.5), (0.001, 0.9))]
    records.append(runs("optimizer.lr=1", value=None, status="failed", metrics={}))
    lines = describe(records)
    assert not [line for line in lines if "tried" in line]
    assert lines[-1] == "1 of 4 runs do not count: 1 failed"
    best = runs("optimizer.lr=0.1", value=None, seed=1)
    assert describe([*records, best])[-1] == "the best is the mean of 1 run; 1 of its seeds did not count"


def test_what_it_was_ranked_by_is_said_where_it_is_not_the_validation_part(runs: Any) -> None:
    assert describe([runs(metric="train/loss")])[1].startswith(
        "ranked by the training loss: there is no validation part"
    )
    both = {"train/loss": 0.1, "val/loss": 0.2}
    assert "which checkpoint.monitor names" in describe([runs(metric="train/loss", metrics=both)])[1]
    different = [runs(f"task.loss={loss}") for loss in ("mse", "l1")]
    assert describe(different)[1].startswith("the settings minimize different losses")


def test_nothing_finite_is_said(runs: Any) -> None:
    assert describe([runs(value=None)]) == ["no run has a finite val/loss: nothing can be compared"]
