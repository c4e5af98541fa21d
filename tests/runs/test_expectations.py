"""Expectations: what can be said, what is right, what is wrong, and what cannot be understood."""

import math

import pytest

from dlrun.core.errors import RequestError
from dlrun.runs.expectations import RunValues, check, parse

RUNS = [
    RunValues("optimizer=sgd seed=0", {"w": 2.0, "test/accuracy": 0.70, "answer(hello)": "ohlol", "sha": "a"}),
    RunValues("optimizer=sgd seed=1", {"w": 2.5, "test/accuracy": 0.80, "answer(hello)": "ohlol", "sha": "a"}),
    RunValues("optimizer=adam seed=0", {"w": 3.0, "test/accuracy": 0.90, "answer(hello)": "ollol", "sha": "a"}),
]


@pytest.mark.parametrize(
    ("line", "runs", "ok", "measured"),
    [
        ("w = 2.0", RUNS[:1], True, "2"),
        ("w = 2.1", RUNS[:1], False, "2"),
        ("w = 2.1 ± 0.2", RUNS[:1], True, "2"),
        ("w = 2.1 +- 0.05", RUNS[:1], False, "2"),
        ("w = 1.9999444396553 ± 1e-3", [RunValues("", {"w": 1.99994443965528})], True, "1.99994443965528"),
        ("test/accuracy >= 0.7", RUNS, True, "3 of 3: 0.7 to 0.9"),
        ("test/accuracy > 0.7", RUNS, False, "2 of 3: 0.7 to 0.9"),
        ("test/accuracy < 0.9", RUNS[:2], True, "2 of 2: 0.7 to 0.8"),
        ("test/accuracy <= 0.69", RUNS[:1], False, "0.7"),
        ("test/accuracy in 0.7..0.9", RUNS, True, "3 of 3: 0.7 to 0.9"),
        ("test/accuracy in 0.71..0.9", RUNS[:1], False, "0.7"),
        ("at least 2: test/accuracy > 0.7", RUNS, True, "2 of 3: 0.7 to 0.9"),
        ("at least 3: test/accuracy > 0.7", RUNS, False, "2 of 3: 0.7 to 0.9"),
        ("at least 2: answer(hello) = ohlol", RUNS, True, "2 of 3: ohlol, ohlol, ollol"),
        ("answer(hello) = ohlol", RUNS, False, "2 of 3: ohlol, ohlol, ollol"),
        ("mean test/accuracy = 0.8 ± 0.001", RUNS, True, "0.8 ± 0.1 (n = 3)"),
        ("mean test/accuracy >= 0.81", RUNS, False, "0.8 ± 0.1 (n = 3)"),
        ("rising w", RUNS, True, "2, 2.5, 3"),
        ("falling w", RUNS, False, "2, 2.5, 3"),
        ("falling w", RUNS[:1], False, "2"),
        ("same w ± 0.5", RUNS[:2], True, "largest difference 0.5"),
        ("same w ± 0.5", RUNS, False, "largest difference 1"),
        ("same sha", RUNS, True, "largest difference 0"),
        ("same answer(hello)", RUNS, False, "largest difference inf"),
        ("optimizer=adam: w = 3.0", RUNS, True, "3"),
        ("optimizer=sgd: w <= 2.5", RUNS, True, "2 of 2: 2 to 2.5"),
        ("optimizer=lbfgs: w = 3.0", RUNS, False, "no run has optimizer=lbfgs"),
    ],
)
def test_a_line_against_runs(line: str, runs: list[RunValues], ok: bool, measured: str) -> None:
    (checked,) = check([line], runs)
    assert (checked.ok, checked.measured, checked.expected) == (ok, measured, line)


def test_same_looks_at_every_epoch() -> None:
    apart = [RunValues("", {"l": 1.0}, curves={"l": [3.0, x, 1.0]}) for x in (2.0, 2.25)]
    assert check(["same l ± 0.2", "same l ± 0.3"], apart) == [
        check(["same l ± 0.2"], apart)[0],
        check(["same l ± 0.3"], apart)[0],
    ]
    assert [line.ok for line in check(["same l ± 0.2", "same l ± 0.3"], apart)] == [False, True]
    longer = [RunValues("", {"l": 1.0}, curves={"l": [1.0] * n}) for n in (2, 3)]
    assert not check(["same l ± 9"], longer)[0].ok


def test_what_a_run_said() -> None:
    run = RunValues("", {"w": 1.0}, warnings=["diverging: the loss grew", "another"])
    message, silent = check(["warnings say Diverging", "warnings say saddle"], [run])
    assert (message.ok, message.measured) == (True, "diverging: the loss grew")
    assert (silent.ok, silent.measured) == (False, "no such warning")


def test_a_run_that_failed_makes_its_lines_not_ok_and_says_why() -> None:
    runs = [RUNS[0], RunValues("seed=7", error="there is no MNIST here")]
    (checked,) = check(["w = 2.0"], runs)
    assert (checked.ok, checked.measured) == (False, "there is no MNIST here")


def test_a_name_that_was_not_measured_is_told_with_those_that_were() -> None:
    (checked,) = check(["v = 1"], RUNS[:1])
    assert not checked.ok
    assert checked.measured == "there is no v; there are answer(hello), sha, test/accuracy, w"


def test_not_a_number_is_never_what_was_expected() -> None:
    lines = ["w = 1", "w < 1", "w > 1", "w in 0..9", "mean w < 9"]
    assert not any(line.ok for line in check(lines, [RunValues("", {"w": math.nan})]))


@pytest.mark.parametrize("text", ["", "w", "w 3", "at least: w = 3", "w in 3"])
def test_a_line_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not understood; type something like"):
        parse(text)
