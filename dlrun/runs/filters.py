"""Filters on runs: `model=resnet`, `tag=baseline`, `val/accuracy>0.97`; and the values that they compare."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from dlrun.config.compose import GROUPS
from dlrun.core.bounded import is_number
from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.runs.record import STATUSES, RunRecord

# Keys besides choices, config keys and metrics: labels of a run, and numbers of its result.
_LABELS = ("status", "name", "tag")
FACTS = ("epochs", "steps", "parameters", "train_seconds", "samples_per_second")

# The longer operators first: "<" is the beginning of "<=".
_CONDITION = re.compile(r"([^<>=!]+)(<=|>=|!=|=|<|>)(.+)", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """A condition on a run."""

    key: str
    # One of = != < <= > >=.
    operator: str
    text: str

    @property
    def patterns(self) -> list[str]:
        """The values between commas, which may have wildcards."""
        return self.text.split(",")

    def matches(self, run: RunRecord) -> bool:
        """Whether a run fulfils the condition. A run without the key fulfils none."""
        try:
            value = read_value(run, self.key)
        except KeyError:
            return False

        if self.operator not in ("=", "!="):
            return is_number(value) and _compare(value, self.operator, float(self.text))
        # A run has several tags.
        values = value if self.key == "tag" else [value]
        is_equal = any(_is_equal(item, pattern) for item in values for pattern in self.patterns)
        return is_equal == (self.operator == "=")


def parse_filter(word: str) -> Filter | None:
    """Parse a condition; None if the word is none. RequestError for a condition that cannot hold for any run."""
    match = _CONDITION.fullmatch(word)
    if match is None:
        return None

    condition = Filter(*match.groups())
    if condition.operator not in ("=", "!="):
        _refuse_text(condition, word)

    # A status is one of a few words, so that a mistake is known before any run is read.
    if condition.key == "status":
        for pattern in condition.patterns:
            if not any(fnmatchcase(status, pattern) for status in STATUSES):
                hint = did_you_mean(pattern, STATUSES, "status=")
                raise RequestError(f"status={pattern} is not a status; {hint}type one of {', '.join(STATUSES)}")
    return condition


def _refuse_text(condition: Filter, word: str) -> None:
    """RequestError if < or > is to compare text."""
    key = condition.key
    if key in (*_LABELS, *GROUPS):
        raise RequestError(f"{word} compares numbers, and {key} is text; type {key}={condition.text}")
    try:
        float(condition.text)
    except ValueError as error:
        message = f"{word} compares numbers, and {condition.text} is not a number; type {key}{condition.operator}0.9"
        raise RequestError(message) from error


def _compare(value: float, operator: str, bound: float) -> bool:
    if operator == "<":
        return value < bound
    if operator == "<=":
        return value <= bound
    return value > bound if operator == ">" else value >= bound


def _is_equal(value: Any, pattern: str) -> bool:
    # As JSON, so that lr=1e-3, true and null are typed here as in a config.
    text = value if isinstance(value, str) else json.dumps(value)
    return fnmatchcase(text, pattern) or _is_same_number(text, pattern)


def _is_same_number(a: str, b: str) -> bool:
    try:
        return float(a) == float(b)
    except ValueError:
        return False


def read_value(run: RunRecord, key: str) -> Any:
    """Read what a filter or sort=KEY compares. KeyError if the run has no such value.

    A metric is that of the last epoch, on the test split that of the best checkpoint. The tags are a list.
    """
    if key == "status":
        return run.status
    if key == "name":
        return run.name
    if key == "tag":
        return run.tags
    if key == "epochs":
        return run.epochs
    if key in FACTS:
        return run.result[key]
    # What is logged by callbacks may have any name.
    if "/" in key or key in run.metrics:
        return run.metrics[key]
    return run.choices[key] if key in GROUPS else run.flat_config[key]


def refuse_unknown_key(runs: Sequence[RunRecord], key: str) -> None:
    """RequestError for a key that no run has: a misspelt one would select nothing, as if there were no such run."""
    if not runs or key in (*_LABELS, *FACTS) or any(_has_key(run, key) for run in runs):
        return

    if "/" in key:
        metrics = dict.fromkeys(chain.from_iterable(run.metrics for run in runs))
        hint = did_you_mean(key, metrics).rstrip()
        listed = f"type one of {', '.join(metrics)}" if metrics else "none of them has metrics yet"
        raise RequestError(f"no run has a metric {key}; {hint or listed}")

    keys: Iterable[str] = dict.fromkeys((*_LABELS, *FACTS, *GROUPS, *runs[0].flat_config))
    raise RequestError(f"no run has a key {key}; {did_you_mean(key, keys)}type status=, model=, seed=, ...")


def list_unknown_tags(runs: Sequence[RunRecord], condition: Filter) -> list[str]:
    """A sentence for each tag of a condition that no run has, with the tags that are near."""
    if condition.key != "tag" or not runs:
        return []

    tags = dict.fromkeys(chain.from_iterable(run.tags for run in runs))
    sentences = []
    for pattern in condition.patterns:
        if any(_is_equal(tag, pattern) for tag in tags):
            continue
        listed = f"the tags are {join_names(tags)}" if tags else "none has tags"
        hint = did_you_mean(pattern, tags, "tag=").rstrip()
        sentences.append(f"no run has the tag {pattern}; {hint or listed}")
    return sentences


def _has_key(run: RunRecord, key: str) -> bool:
    return key in run.choices or key in run.metrics or ("/" not in key and key in run.flat_config)


def sort_runs(runs: Sequence[RunRecord], key: str) -> list[RunRecord]:
    """Sort by a value, ascending, or descending where a minus is before the key.

    Numbers come before text, and runs without the value last.
    """
    name = key.removeprefix("-")
    numbers: list[tuple[float, RunRecord]] = []
    texts: list[tuple[str, RunRecord]] = []
    others: list[RunRecord] = []
    for run in runs:
        try:
            value = read_value(run, name)
        except KeyError:
            value = None

        # NaN has no place in an order.
        if value is None or (isinstance(value, float) and math.isnan(value)):
            others.append(run)
        elif is_number(value):
            numbers.append((value, run))
        else:
            texts.append((value if isinstance(value, str) else json.dumps(value), run))

    is_descending = key.startswith("-")
    numbers.sort(key=lambda pair: pair[0], reverse=is_descending)
    texts.sort(key=lambda pair: pair[0], reverse=is_descending)
    return [run for _, run in numbers] + [run for _, run in texts] + others
