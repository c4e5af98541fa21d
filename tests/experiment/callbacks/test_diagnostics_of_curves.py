"""Learning trouble is said with what to try, and a run that went well is left alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.experiment.callbacks.diagnostics import (
    diagnose_epoch,
    diagnose_run,
    find_divergence,
    find_unfinished_fall,
    is_flat,
)

VALUES = DataSpec("vector", (1,), "regression", 1)
YES_NO = DataSpec("vector", (2,), "binary", 1, class_names=("no", "yes"))
TAGS = DataSpec("tokens", (5,), "tagging", 4)


def rows(train: list[float], val: list[float] | None = None) -> list[dict[str, float]]:
    rows_so_far: list[dict[str, float]] = [{"epoch": i, "step": 8 * i, "train/loss": x} for i, x in enumerate(train, 1)]
    for row, loss in zip(rows_so_far, val or [], strict=False):
        row["val/loss"] = loss
    return rows_so_far


def diagnose(
    train: list[float],
    val: list[float] | None = None,
    predicted: Tensor | None = None,
    targets: Tensor | None = None,
    spec: DataSpec = VALUES,
    lr: float = 0.5,
    metrics: dict[str, float] | None = None,
    baseline: dict[str, float] | None = None,
) -> list[str]:
    notes = diagnose_run(rows(train, val), "test", predicted, targets, spec, lr, metrics or {}, baseline or {})
    return list(notes.values())


@pytest.mark.parametrize(
    "train",
    [
        [1.0, 2.5],
        [1.0, 0.9, 3.0, 30.0, 3e9],
        [1.0, 50.0, 20.0, 21.0, 22.0, 23.0],  # fell, and grows again
        [1.0, 2.0, float("inf")],
    ],
)
def test_a_growing_loss_is_diverging(train: list[float]) -> None:
    (sentence,) = diagnose(train)
    assert sentence.startswith(f"diverging: the training loss grew from 1 to {train[-1]:.4g} in {len(train)} epochs")
    assert sentence.endswith("optimizer.lr=0.5 is too large; try a tenth of it, optimizer.lr=0.05")


@pytest.mark.parametrize("lr", [None, 0.0])
def test_without_a_learning_rate_none_is_advised(lr: float | None) -> None:
    (sentence,) = find_divergence(rows([1.0, 3.0, 5.0, 9.0]), lr, {}).values()
    assert sentence.endswith("in 4 epochs, so its steps are too large; try smaller ones, or optimizer=adam")


@pytest.mark.parametrize(
    "train",
    [
        [1.0],
        [1.0, 1.9],  # within the noise
        [1.0, 50.0, 20.0, 10.0, 5.0],  # a bad start that is mended
        [1.0, 0.5, 3.0, 2.9, 3.1],  # one bad epoch is no trend
        [1e-13, 2e-13, 4e-13, 8e-13],  # rounding
        [float("nan"), float("nan")],
        [],
    ],
)
def test_a_loss_that_ends_well_or_wanders_is_not(train: list[float]) -> None:
    assert diagnose(train) == []


def test_what_is_rounding_depends_on_the_size_of_the_targets() -> None:
    small = [1e-9, 2e-9, 4e-9]
    assert diagnose(small, baseline={"train/loss": 1.0}) == []
    assert len(diagnose(small, baseline={"train/loss": 1e-6})) == 1


@pytest.mark.parametrize(
    ("train", "stuck"),
    [
        ([0.6931] * 10, True),
        ([0.6931 * (1 + 1e-8 * i) for i in range(10)], True),
        ([-3.0] * 10, True),
        ([0.6931] * 9, False),  # too soon to tell
        ([0.6931 * (1 - 1e-6 * i) for i in range(10)], False),  # slow is not stuck
        ([0.9, *[0.6931] * 30], False),  # it moved, and has arrived
        ([0.0] * 20, False),
        ([1e-9] * 20, False),
    ],
)
def test_a_loss_that_never_moved_is_stuck(train: list[float], stuck: bool) -> None:
    notes = diagnose(train)
    assert len(notes) == stuck
    assert all(s.startswith(f"stuck: the training loss stayed at {train[-1]:.4g} for all {len(train)}") for s in notes)


def make_outputs(answers: list[int], wanted: list[int], majority: float | None = None, spec: DataSpec = YES_NO) -> Any:
    baseline = {} if majority is None else {"test/accuracy": majority}
    share = sum(a == b for a, b in zip(answers, wanted, strict=True)) / len(wanted)
    metrics = {"test/accuracy": share}
    return diagnose([1.0], None, torch.tensor(answers), torch.tensor(wanted), spec, metrics=metrics, baseline=baseline)


def test_one_class_for_every_row_is_said_beside_the_majority() -> None:
    wanted = [0] * 100 + [1] * 52
    (like_it,) = make_outputs([0] * 152, wanted, 100 / 152)
    assert like_it.startswith(
        "predicts 'no' for all 152 test rows: 65.8 % are right, what the majority class gives; try"
    )
    (below,) = make_outputs([1] * 152, wanted, 100 / 152)
    assert "predicts 'yes' for all 152 test rows: 34.2 % are right, and the majority class gives 65.8 %; try" in below
    (unknown,) = make_outputs([0] * 152, wanted)
    assert "65.8 % are right; try" in unknown
    (nameless,) = make_outputs([2, 2], [0, 2], 0.5, DataSpec("vector", (2,), "multiclass", 3))
    assert nameless.startswith("predicts class 2 for all 2 test rows")


def test_one_class_is_no_trouble_where_it_is_right_or_not_the_only_one() -> None:
    assert make_outputs([0, 0, 0], [0, 0, 0], 1.0) == []
    assert make_outputs([0, 0, 1], [0, 0, 1], 2 / 3) == []


def test_padding_is_no_tag() -> None:
    targets = torch.tensor([[0, 1, 2], [3, -100, -100]])
    notes = diagnose([1.0], None, torch.tensor([[1, 1, 1], [1, 0, 0]]), targets, TAGS)
    assert notes[0].startswith("predicts class 1 for all 4 test positions: 25.0 % are right")
    assert diagnose([1.0], None, torch.tensor([[1, 1, 1], [0, 1, 1]]), targets, TAGS) == []


FALLING = [1.0 / i for i in range(1, 13)]
BEST_AT_7 = [1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.55, 0.58, 0.6, 0.62, 0.65]


def test_a_rising_validation_loss_is_overfitting() -> None:
    (sentence,) = diagnose(FALLING, BEST_AT_7, baseline={"val/loss": 2.3})
    assert sentence == (
        "overfitting since epoch 7: the validation loss rose from 0.5 to 0.65 while the training loss kept falling; "
        "the best weights are kept; try trainer.early_stopping.patience=3, more data, a smaller model, or dropout"
    )


STEEP = [2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]


@pytest.mark.parametrize(
    ("val", "trivial", "since"),
    [
        ([2.0, 1.1, 0.7, 0.6, 0.6, 0.59, 0.59, 0.6], 2.3, 4),
        ([2.0, 1.1, 0.7, 0.6, 0.56, 0.53, 0.5, 0.47], 2.3, None),  # validation still learns
        ([2.0, 1.1, 0.7, 0.15, 0.14, 0.14, 0.14, 0.14], 2.3, None),  # 4 % apart: both are good
        ([2.0, 1.1, 0.7, 0.6, 0.6, 0.59, 0.59, 0.6], 23.0, None),  # 0.6 is next to nothing there
        ([2.0, 1.1, 0.7, 0.6, 0.6, 0.59, 0.59, 0.6], None, None),  # nobody knows what is much
        ([2.0, 1.1, 0.7, 0.7, 0.6, 0.59, 0.59, 0.6], 2.3, None),  # three epochs are too few to tell
    ],
)
def test_a_validation_loss_that_stays_far_above_is_overfitting(
    val: list[float], trivial: float | None, since: int | None
) -> None:
    notes = diagnose(STEEP, val, baseline={} if trivial is None else {"val/loss": trivial})
    assert len(notes) == (since is not None)
    assert all(s.startswith(f"overfitting since epoch {since}: the validation loss stays at 0.6 while") for s in notes)


def test_training_that_stands_still_too_is_not_overfitting() -> None:
    assert diagnose([2.0, *[0.05] * 7], [2.0, *[0.6] * 7], baseline={"val/loss": 2.3}) == []


def test_in_the_middle_two_rising_epochs_are_no_trend() -> None:
    assert diagnose_epoch(rows([1.0, 3.0]), 0.1, {}) == {}
    assert diagnose_epoch(rows([1.0, 3.0, 5.0, 9.0]), 0.1, {}).keys() == {"diverging"}
    assert diagnose_epoch(rows([1.0] * 10), 0.1, {}).keys() == {"stuck"}
    assert diagnose_epoch(rows(FALLING, BEST_AT_7), 0.1, {"val/loss": 2.3}).keys() == {"overfitting"}


def test_what_was_said_is_not_said_again() -> None:
    same = torch.zeros(3, dtype=torch.long), torch.tensor([0, 0, 1])
    baseline = {"test/accuracy": 2 / 3}
    run = (rows([1.0, 3.0]), "test", *same, YES_NO, 0.5, {}, baseline)
    assert diagnose_run(*run).keys() == {"diverging", "one class"}
    assert diagnose_run(*run, reported={"diverging"}).keys() == {"one class"}
    mixed = (rows([1.0]), "test", torch.tensor([0, 1, 0]), same[1], YES_NO, 0.5, {}, baseline)
    assert diagnose_run(*mixed).keys() == {"trivial"}
    assert diagnose_run(*mixed, reported={"vanishing"}) == {}  # why it is no better has been said


def test_flat_is_a_loss_that_hardly_moves_and_is_no_better_than_the_trivial_answer() -> None:
    trivial = {"train/loss": 2.3}
    assert is_flat(rows([2.31, 2.3, 2.302]), trivial)
    assert is_flat(rows([9.0, 9.01]), trivial)
    assert not is_flat(rows([2.31, 2.25]), trivial)
    assert not is_flat(rows([2.5, 2.31]), trivial)
    assert not is_flat(rows([0.1, 0.1]), trivial)  # it has arrived
    assert is_flat(rows([5.0, 5.01]), {})


NEAR = [0.4 + x / 2 for x in FALLING]  # falls too, and is never far below validation


@pytest.mark.parametrize(
    ("train", "val", "trivial"),
    [
        (NEAR, None, 2.3),
        (NEAR, BEST_AT_7[:10], 2.3),  # patience=3 has ended it already
        (NEAR, [*BEST_AT_7[:10], 0.51, 0.7], 2.3),  # noise
        (NEAR, [0.5 + 0.1 * (x - 0.5) for x in BEST_AT_7], 0.1),  # 3 % worse
        (NEAR, BEST_AT_7, 100.0),  # 0.5 and 0.65 are the same to somebody whose targets spread over 100
        ([*NEAR[:7], *[0.9] * 5], BEST_AT_7, 2.3),  # the training loss rose too: something else
        (NEAR[:3], [1.0, 2.0, 3.0], 2.3),
    ],
)
def test_no_overfitting_without_a_lasting_and_visible_rise(
    train: list[float], val: list[float] | None, trivial: float
) -> None:
    assert diagnose(train[: len(val)] if val else train, val, baseline={"val/loss": trivial}) == []


TARGETS = torch.tensor([[1.0], [2.0], [4.0]])


@pytest.mark.parametrize(
    ("r2", "targets", "expected"),
    [(-0.5, TARGETS, 1), (0.0, TARGETS, 1), (0.01, TARGETS, 0), (0.0, torch.ones(3, 1), 0), (0.0, torch.ones(1, 1), 0)],
)
def test_a_regression_no_better_than_the_mean(r2: float, targets: Tensor, expected: int) -> None:
    notes = diagnose([1.0], None, None, targets, metrics={"test/r2": r2}, baseline={"test/r2": -0.01})
    assert len(notes) == expected
    assert all(f"test/r2 is {r2:.4f}, and the mean gives -0.0100; try more trainer.epochs" in s for s in notes)


@pytest.mark.parametrize(
    ("guess", "expected"), [(TARGETS + 0.1, 0), (TARGETS.flip(0), 1), (TARGETS.mean().expand(3, 1), 1)]
)
def test_what_the_best_weights_predict_counts_more_than_what_was_recorded(guess: Tensor, expected: int) -> None:
    recorded = {"test/r2": -6.0 if expected == 0 else 0.9}  # while it learnt, before the last step
    notes = diagnose([1.0], None, guess, TARGETS, metrics=recorded, baseline={"test/r2": 0.0})
    assert len(notes) == expected
    assert all(s.startswith("no better than the trivial answer: test/r2 is ") for s in notes)


def test_a_classifier_no_better_than_the_majority() -> None:
    (sentence,) = make_outputs([0, 1, 1, 0], [0, 0, 0, 1], 0.75)
    assert "test/accuracy is 0.2500, and the majority class gives 0.7500" in sentence
    assert make_outputs([0, 1, 0, 1], [0, 0, 0, 1], 0.7) == []
    assert make_outputs([0, 1], [0, 1]) == []  # a dataset that does not tell its targets has no baseline


def test_one_trouble_is_not_said_twice() -> None:
    metrics, baseline = {"test/accuracy": 0.5}, {"test/accuracy": 0.5}
    one = torch.tensor([0, 0])
    (first,) = diagnose([1.0], None, one, torch.tensor([0, 1]), YES_NO, metrics=metrics, baseline=baseline)
    assert first.startswith("predicts")
    (second,) = diagnose([1.0, 3.0], None, None, TARGETS, metrics={"test/r2": -9.0}, baseline={"test/r2": 0.0})
    assert second.startswith("diverging")


def test_a_validation_loss_that_falls_to_the_last_epoch_is_said_with_what_to_type() -> None:
    falling = [1.0 - 0.03 * i for i in range(20)]
    (sentence,) = find_unfinished_fall(rows(falling, falling), {"val/loss": 1.0}).values()
    assert sentence == (
        "the validation loss was still falling at the end, from 0.58 in epoch 15 to 0.43 in epoch 20; go on by dlrun "
        "resume, or try a new run, with trainer.epochs=40"
    )


WAVE = [0.5 + 0.1 * (-1) ** i for i in range(20)]


@pytest.mark.parametrize(
    "val",
    [
        [1 / i for i in range(1, 21)],  # it falls by 0.02, which nobody sees
        [1.0 - 0.003 * i for i in range(20)],
        [loss - 0.005 * i for i, loss in enumerate(WAVE)],  # noise
        [*[0.2] * 10, *[1.0 - 0.05 * i for i in range(10)]],  # back from a peak
        [1.0, 0.8, 0.6, 0.4],  # too short to judge
        [*[1.0 - 0.03 * i for i in range(19)], float("nan")],
    ],
)
def test_other_ends_are_left_alone(val: list[float]) -> None:
    assert find_unfinished_fall(rows(val, val), {"val/loss": 1.0}) == {}


def test_without_a_validation_part_or_a_trivial_answer_a_fall_is_not_judged() -> None:
    falling = [1.0 - 0.03 * i for i in range(20)]
    assert find_unfinished_fall(rows(falling), {"val/loss": 1.0}) == {}
    assert find_unfinished_fall(rows(falling, falling), {}) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "is_said"), [("1e-5", True), ("1e-3", False)])
def test_digits_say_so_with_a_rate_that_is_too_small(dlrun: Any, lr: str, is_said: bool) -> None:
    outcome = dlrun(f"optimizer.lr={lr}", "figures=false", "tracking.graph=false", "logger=none")
    assert outcome.code == 0, outcome.err
    assert ("still falling at the end" in " ".join(outcome.out.split())) == is_said
