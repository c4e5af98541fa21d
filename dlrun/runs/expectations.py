"""`expect`: what a run, or several together, should come to, each in one line that people can read.

weight = 2.0 ± 1e-6              a value, in every run
final/mse <= 1e-12               also < > >=
answer(4) in 0.84..0.91          both ends included
answer(hello) = ohlol            a text
warnings say one class           a sentence that the run said
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
class Outcome:
    """What one run came to."""

    label: str  # its overrides
    values: dict[str, Value] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    curves: dict[str, list[float]] = field(default_factory=dict)  # values by epoch
    error: str | None = None  # why there are no values


@dataclass(frozen=True)
class Checked:
    """One line of the table."""

    expected: str
    measured: str
    ok: bool


@dataclass(frozen=True)
class Expectation:
    """One parsed line."""

    text: str
    which: str  # override that a run must have; "" for all
    over: str  # each | mean | same | falling | rising | at least
    name: str
    needed: int = 0  # runs, for `at least`
    within: float = 0.0  # for `same`
    test: Callable[[Value], bool] = lambda value: True

    @property
    def digits(self) -> int:
        """One more than the expected number is written with: beside 1.9999444396553, a 2 says nothing."""
        numbers = re.findall(r"\d+\.\d+", self.text)
        return max([5, *(len(number.replace(".", "").lstrip("0")) + 1 for number in numbers)])


_NAME = r"[^\s():]+(?:\([^)]*\))?"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SCOPE = re.compile(r"^(?:at least (\d+)|([\w.]+=[^:]+)): (.+)$")
_ORDER = re.compile(rf"^(same|falling|rising) ({_NAME})(?: (?:±|\+-) ({_NUMBER}))?$")
_SAID = re.compile(r"^warnings say (.+)$")
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


def outcome_of(label: str, result: dict[str, Any], rows: list[dict[str, float]]) -> Outcome:
    """What a run came to, as its result.json and the rows of its metrics.jsonl tell."""
    values = {k: v for k, v in (result["metrics"] | result.get("measured", {})).items() if v is not None}
    values |= {k: result[k] for k in ("status", "epochs", "steps", "parameters", "weights_sha256")}
    values |= {f"baseline/{k}": v for k, v in result["baseline"].items()}
    best_epoch = result["best"].get("epoch")
    values |= {"best_epoch": best_epoch} if best_epoch is not None else {}
    curves = {key: [row[key] for row in rows if key in row] for key in rows[0]} if rows else {}
    return Outcome(label, values, result["warnings"], curves, result["error"])


def parse(text: str) -> Expectation:
    """One line; RequestError when it says nothing that can be checked."""
    which, over, needed, rule = "", "each", 0, text
    if scope := _SCOPE.match(text):
        needed, which, rule = int(scope[1] or 0), scope[2] or "", scope[3]
        over = "at least" if needed else "each"
    if order := _ORDER.match(rule):
        return Expectation(text, which, order[1], order[2], within=float(order[3] or 0))
    if rule.startswith("mean "):
        over, rule = "mean", rule.removeprefix("mean ")
    if said := _SAID.match(rule):
        return Expectation(text, which, over, "warnings", needed, test=_says(said[1]))
    name, test = _comparison(rule, text)
    return Expectation(text, which, over, name, needed, test=test)


def _comparison(rule: str, text: str) -> tuple[str, Callable[[Value], bool]]:
    if match := _RANGE.match(rule):
        low, high = float(match[2]), float(match[3])
        return match[1], lambda value: not isinstance(value, str) and low <= value <= high
    if match := _EQUAL.match(rule):
        wanted, within = float(match[2]), float(match[3] or 0)
        return match[1], lambda value: not isinstance(value, str) and abs(value - wanted) <= within
    if match := _BOUND.match(rule):
        holds, bound = _SIGNS[match[2]], float(match[3])
        return match[1], lambda value: not isinstance(value, str) and holds(value, bound)
    if match := _TEXT.match(rule):
        wanted_text = match[2]
        return match[1], lambda value: value == wanted_text
    raise RequestError(f"expect: '{text}' is not understood; type something like 'test/accuracy >= 0.9'")


def _says(words: str) -> Callable[[Value], bool]:
    return lambda said: words.lower() in str(said).lower()


def check(lines: Sequence[str], runs: Sequence[Outcome]) -> list[Checked]:
    """Every line against the runs; a run that has not ended makes a line not ok."""
    return [_checked(parse(line), runs) for line in lines]


def _checked(rule: Expectation, runs: Sequence[Outcome]) -> Checked:
    meant = [run for run in runs if not rule.which or rule.which in run.label.split(" ")]
    broken = next((run.error for run in meant if run.error), None)
    if broken or not meant:
        why = re.split(r" \(|; |: ", broken)[0] if broken else f"no run has {rule.which}"
        return Checked(rule.text, why, False)
    if rule.name == "warnings":
        found: list[Value] = ["; ".join(run.warnings) for run in meant]
    else:
        found = [run.values[rule.name] for run in meant if rule.name in run.values]
    if len(found) < len(meant):
        known = ", ".join(sorted(meant[0].values))
        return Checked(rule.text, f"there is no {rule.name}; there are {known}", False)
    return _judged(rule, found, meant)


def _judged(rule: Expectation, found: list[Value], runs: Sequence[Outcome]) -> Checked:
    numbers = [value for value in found if not isinstance(value, str)]
    if rule.over == "mean":
        spread = f" ± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
        mean = statistics.fmean(numbers)
        return Checked(rule.text, f"{_shown(mean, rule.digits)}{spread} (n = {len(numbers)})", rule.test(mean))
    if rule.over == "same":
        difference = _difference(rule.name, found, runs)
        return Checked(rule.text, f"largest difference {difference:.2g}", difference <= rule.within)
    if rule.over in ("falling", "rising"):
        pairs = pairwise(numbers)
        ok = all(b < a if rule.over == "falling" else b > a for a, b in pairs)
        return Checked(rule.text, ", ".join(_shown(value, rule.digits) for value in numbers), ok and len(numbers) > 1)
    right = sum(rule.test(value) for value in found)
    needed = rule.needed or len(found)
    measured = _said(rule, found) if rule.name == "warnings" else _range(found, rule.digits)
    if len(found) > 1:
        measured = f"{right} of {len(found)}: {measured}"
    return Checked(rule.text, measured, right >= needed)


def _said(rule: Expectation, found: Sequence[Value]) -> str:
    """Only the sentence that was looked for, of all that a run said."""
    sentences = [part for said in found for part in str(said).split("; ")]
    return next((s for s in sentences if rule.test(s)), "no such warning")


def _difference(name: str, found: Sequence[Value], runs: Sequence[Outcome]) -> float:
    """The largest over all runs and epochs; infinite between different texts or lengths."""
    if any(isinstance(value, str) for value in found):
        return 0.0 if len(set(found)) == 1 else math.inf
    rows = [[*run.curves.get(name, ()), float(value)] for run, value in zip(runs, found, strict=True)]
    if len({len(row) for row in rows}) > 1:
        return math.inf
    return float(max(max(column) - min(column) for column in zip(*rows, strict=True)))


def _range(found: Sequence[Value], digits: int) -> str:
    if any(isinstance(value, str) for value in found):
        return ", ".join(_shown(value, digits) for value in (found if len(set(found)) > 1 else found[:1]))
    distinct = sorted(set(found))
    if len(distinct) == 1:
        return _shown(distinct[0], digits)
    return f"{_shown(distinct[0], digits)} to {_shown(distinct[-1], digits)}"


def _shown(value: Value, digits: int) -> str:
    if isinstance(value, str):
        return value[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", value) else value
    return f"{value:.{digits}g}"
