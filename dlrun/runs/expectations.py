"""`expect`: checks on the outcome of a run, or of all runs of a sweep, one readable line each.

weight = 2.0 ± 1e-6              a value, in every run
final/mse <= 1e-12               also < > >=
answer(4) in 0.84..0.91          both ends included
answer(hello) = ohlol            a text
warnings say one class           a warning of the run holds these words
mean test/accuracy >= 0.74       over the runs
at least 9: train/mse < 0.01     of the runs
same train/loss ± 1e-6           in all runs, epoch by epoch where it is recorded so
falling final/loss               from run to run, in their order; also rising
optimizer=sgd: steps = 384       in the runs with that override
"""

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dlrun.core.errors import RequestError

Value = float | str


@dataclass(frozen=True)
class RunValues:
    """The values of one run that expectations are checked against."""

    # The run's overrides, separated by blanks.
    label: str
    values: dict[str, Value] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    # Values by epoch.
    curves: dict[str, list[float]] = field(default_factory=dict)
    # Why there are no values, if there are none.
    error: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """One line of the table of expectations."""

    expected: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Expectation:
    """One parsed line."""

    text: str
    # Override that a run must have; "" for all runs.
    override: str
    # each | mean | same | falling | rising | at least
    mode: str
    name: str
    # Number of runs for `at least`.
    needed: int = 0
    # Tolerance for `same`.
    tolerance: float = 0.0
    test: Callable[[Value], bool] = lambda value: True

    @property
    def digits(self) -> int:
        """Significant digits to print: one more than the line has, as 2 beside 1.9999444396553 would show nothing."""
        numbers = re.findall(r"\d+\.\d+", self.text)
        return max([5, *(len(number.replace(".", "").lstrip("0")) + 1 for number in numbers)])


# A name may have blanks in its parentheses alone, as in answer(a word).
_NAME = r"[^\s():]+(?:\([^)]*\))?"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SCOPE = re.compile(r"^(?:at least (\d+)|([\w.]+=[^:]+)): (.+)$")
_ORDER = re.compile(rf"^(same|falling|rising) ({_NAME})(?: (?:±|\+-) ({_NUMBER}))?$")
_WARNING = re.compile(r"^warnings say (.+)$")
_RANGE = re.compile(rf"^({_NAME}) in ({_NUMBER})\.\.({_NUMBER})$")
_EQUAL = re.compile(rf"^({_NAME}) = ({_NUMBER})(?: (?:±|\+-) ({_NUMBER}))?$")
_BOUND = re.compile(rf"^({_NAME}) (<=|>=|<|>) ({_NUMBER})$")
_TEXT = re.compile(rf"^({_NAME}) = (.+)$")
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def collect_values(label: str, result: dict[str, Any], rows: list[dict[str, float]]) -> RunValues:
    """Collect the values of a run from its result.json and the rows of its metrics.jsonl."""
    measured = result["metrics"] | result.get("measured", {})
    values = {key: value for key, value in measured.items() if value is not None}
    values |= {key: result[key] for key in ("status", "epochs", "steps", "parameters", "weights_sha256")}
    # Under names of their own: the trivial answer is measured by the same metrics as the run.
    values |= {f"baseline/{key}": value for key, value in result["baseline"].items()}
    best_epoch = result["best"].get("epoch")
    if best_epoch is not None:
        values["best_epoch"] = best_epoch

    curves: dict[str, list[float]] = {}
    if rows:
        for key in rows[0]:
            curves[key] = [row[key] for row in rows if key in row]
    return RunValues(label, values, result["warnings"], curves, result["error"])


def parse(text: str) -> Expectation:
    """Parse one line; RequestError if it is no expectation."""
    override = ""
    mode = "each"
    needed = 0
    rule = text
    scope = _SCOPE.match(text)
    if scope:
        needed = int(scope[1] or 0)
        override = scope[2] or ""
        rule = scope[3]
        mode = "at least" if needed else "each"

    order = _ORDER.match(rule)
    if order:
        return Expectation(text, override, order[1], order[2], tolerance=float(order[3] or 0))

    if rule.startswith("mean "):
        mode = "mean"
        rule = rule.removeprefix("mean ")
    warning = _WARNING.match(rule)
    if warning:
        return Expectation(text, override, mode, "warnings", needed, test=_make_text_test(warning[1]))
    name, test = _parse_comparison(rule, text)
    return Expectation(text, override, mode, name, needed, test=test)


def _parse_comparison(rule: str, text: str) -> tuple[str, Callable[[Value], bool]]:
    match = _RANGE.match(rule)
    if match:
        low = float(match[2])
        high = float(match[3])
        return match[1], lambda value: not isinstance(value, str) and low <= value <= high

    # Before `_TEXT`, which would match these lines too.
    match = _EQUAL.match(rule)
    if match:
        expected_value = float(match[2])
        tolerance = float(match[3] or 0)
        return match[1], lambda value: not isinstance(value, str) and abs(value - expected_value) <= tolerance

    match = _BOUND.match(rule)
    if match:
        compare = _SIGNS[match[2]]
        bound = float(match[3])
        return match[1], lambda value: not isinstance(value, str) and compare(value, bound)

    match = _TEXT.match(rule)
    if match:
        wanted_text = match[2]
        return match[1], lambda value: value == wanted_text
    raise RequestError(f"expect: '{text}' is not understood; type something like 'test/accuracy >= 0.9'")


def _make_text_test(words: str) -> Callable[[Value], bool]:
    return lambda text: words.lower() in str(text).lower()


def check(lines: Sequence[str], runs: Sequence[RunValues]) -> list[CheckResult]:
    """Check every line against the runs; a line fails if one of its runs has no result."""
    return [_check_rule(parse(line), runs) for line in lines]


def _check_rule(rule: Expectation, runs: Sequence[RunValues]) -> CheckResult:
    matching_runs = [run for run in runs if not rule.override or rule.override in run.label.split(" ")]
    if not matching_runs:
        return CheckResult(rule.text, f"no run has {rule.override}", False)
    for run in matching_runs:
        if run.error:
            # The first clause of the message is enough for a cell.
            return CheckResult(rule.text, re.split(r" \(|; |: ", run.error)[0], False)

    values: list[Value]
    if rule.name == "warnings":
        values = ["; ".join(run.warnings) for run in matching_runs]
    else:
        values = [run.values[rule.name] for run in matching_runs if rule.name in run.values]
    if len(values) < len(matching_runs):
        names = ", ".join(sorted(matching_runs[0].values))
        return CheckResult(rule.text, f"there is no {rule.name}; there are {names}", False)
    return _check_values(rule, values, matching_runs)


def _check_values(rule: Expectation, values: list[Value], runs: Sequence[RunValues]) -> CheckResult:
    numbers = [value for value in values if not isinstance(value, str)]
    if rule.mode == "mean":
        spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
        mean = statistics.fmean(numbers)
        measured = f"{_format_value(mean, rule.digits)}{spread} (n = {len(numbers)})"
        return CheckResult(rule.text, measured, rule.test(mean))

    if rule.mode == "same":
        difference = _measure_difference(rule.name, values, runs)
        return CheckResult(rule.text, f"largest difference {difference:.2g}", difference <= rule.tolerance)

    if rule.mode in ("falling", "rising"):
        if rule.mode == "falling":
            is_ordered = all(b < a for a, b in pairwise(numbers))
        else:
            is_ordered = all(b > a for a, b in pairwise(numbers))
        measured = ", ".join(_format_value(value, rule.digits) for value in numbers)
        # A single run is in any order, which would prove nothing.
        return CheckResult(rule.text, measured, is_ordered and len(numbers) > 1)

    success_count = sum(rule.test(value) for value in values)
    needed = rule.needed or len(values)
    measured = _find_warning(rule, values) if rule.name == "warnings" else _format_range(values, rule.digits)
    if len(values) > 1:
        measured = f"{success_count} of {len(values)}: {measured}"
    return CheckResult(rule.text, measured, success_count >= needed)


def _find_warning(rule: Expectation, warnings: Sequence[Value]) -> str:
    """Return the one warning that passes the test, of all warnings of the runs."""
    for text in warnings:
        for sentence in str(text).split("; "):
            if rule.test(sentence):
                return sentence
    return "no such warning"


def _measure_difference(name: str, values: Sequence[Value], runs: Sequence[RunValues]) -> float:
    """Return the largest difference over all runs and epochs; infinite for different texts or lengths."""
    if any(isinstance(value, str) for value in values):
        return 0.0 if len(set(values)) == 1 else math.inf

    # The final value belongs to the curve: runs may agree in every epoch and differ in what they report.
    rows = [[*run.curves.get(name, ()), float(value)] for run, value in zip(runs, values, strict=True)]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        return math.inf
    return float(max(max(column) - min(column) for column in zip(*rows, strict=True)))


def _format_range(values: Sequence[Value], digits: int) -> str:
    if any(isinstance(value, str) for value in values):
        visible_values = values if len(set(values)) > 1 else values[:1]
        return ", ".join(_format_value(value, digits) for value in visible_values)

    distinct = sorted(set(values))
    if len(distinct) == 1:
        return _format_value(distinct[0], digits)
    return f"{_format_value(distinct[0], digits)} to {_format_value(distinct[-1], digits)}"


def _format_value(value: Value, digits: int) -> str:
    if isinstance(value, str):
        # A hash is told apart by its start.
        return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", value) else value
    return f"{value:.{digits}g}"
