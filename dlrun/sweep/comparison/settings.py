"""The keys in which runs differ, and each run's value there."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dlrun.config.schema import NOT_IDENTITY
from dlrun.runs.record import RunRecord

_CHOICES = ("data", "model", "optimizer", "scheduler")

# Keys without a column. A device may change the numbers: who overrides it wants to see it.
_NO_RESULT = {*NOT_IDENTITY, "seed"} - {"device"}
# A fold is a repetition of a setting, as a seed is.
_NO_RESULT_KEYS = ("data.root", "data.fold", "trainer.log_every_steps", "trainer.profile")
_REPEATED = ("seed", "data.fold")

# The value of a run that has no such key.
ABSENT = "–"


def get_value(run: RunRecord, key: str) -> Any:
    """The chosen option for a group, else the config's value at the dotted key; ABSENT if it has neither."""
    if key in run.choices:
        return run.choices[key]

    value: Any = run.config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]

    # A whole section is no value for a cell.
    return ABSENT if isinstance(value, dict) and key in _CHOICES else value


def find_varying_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The overridden keys in which runs differ; never the seed or the fold, nor a key that follows the seed.

    If these do not distinguish two experiments (runs of different days, or of changed defaults), the choices that
    differ are added, and if those do not either, the config keys that differ.
    """
    overridden = dict[str, None]()
    for run in runs:
        overridden |= dict.fromkeys(_find_compared_key(word) for word in run.overrides)
    overridden.pop("", None)

    # An override that all runs have is no column.
    keys = [key for key in overridden if _is_varying(runs, key)]
    keys = [key for key in keys if not _is_implied_by_option(runs, key, keys)]

    config_keys = dict[str, None]()
    for run in runs:
        config_keys |= dict.fromkeys(run.identity)

    # Runs with equal values so far should be repetitions over seeds: add what still differs among them.
    for candidates in (_CHOICES, config_keys):
        for group in group_runs(runs, keys):
            keys += [key for key in candidates if key not in keys and key not in _REPEATED and _is_varying(group, key)]
    return keys


def group_runs(runs: Iterable[RunRecord], keys: Sequence[str]) -> list[list[RunRecord]]:
    """Group runs by their values at the keys, in the order of each group's first run."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        values = [get_value(run, key) for key in keys]
        groups.setdefault(to_key(values), []).append(run)
    return list(groups.values())


def _find_compared_key(word: str) -> str:
    """The key of an override that gets a column; "" for the seed, and for keys that are no part of an experiment."""
    # "~key=value" deletes a key, so that no config has it and it never differs.
    key = word.partition("=")[0].lstrip("+")
    is_no_result = key.split(".")[0] in _NO_RESULT or key in _NO_RESULT_KEYS
    return "" if "=" not in word or is_no_result else key


def _is_implied_by_option(runs: Sequence[RunRecord], key: str, keys: Sequence[str]) -> bool:
    """Whether a key of one option only (the momentum of one of four optimizers) says no more than the option."""
    group = key.split(".")[0]
    if group == key or group not in _CHOICES or group not in keys:
        return False
    # Overridden in all runs, it was swept on purpose.
    if all(_has_override(run, key) for run in runs):
        return False
    return all(_count_values(alike, key) == 1 for alike in group_runs(runs, [group]))


def _has_override(run: RunRecord, key: str) -> bool:
    return any(_find_compared_key(word) == key for word in run.overrides)


def _count_values(runs: Sequence[RunRecord], key: str) -> int:
    return len({to_key(get_value(run, key)) for run in runs})


def _is_varying(runs: Sequence[RunRecord], key: str) -> bool:
    return not all(_is_seed(get_value(run, key), run) for run in runs) and _count_values(runs, key) > 1


def _is_seed(value: Any, run: RunRecord) -> bool:
    return bool(value == run.seed) and not isinstance(value, bool)


def to_key(value: Any) -> str:
    """A config value as text to compare and to count by: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, list):
        return f"[{','.join(map(to_key, value))}]"
    # YAML reads 1 and 1.0 as different types, and a sweep may hold both.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """By key, its last part; all of it if two keys would read alike, or if the part begins with an underscore."""
    names = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(names.values())
    for key, name in names.items():
        if count[name] > 1 or name.startswith("_"):
            names[key] = key
    return names


def format_value(value: Any) -> str:
    """A config value as one types it on the command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        # The short form only if it loses no digit.
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(format_value(item) for item in value)}]"
    return str(value)


def truncate(text: str, longest: int) -> str:
    """Cut text to `longest` letters, the last of them an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def is_finite_number(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def sort_values(values: Iterable[Any]) -> list[Any]:
    """The distinct values: numbers by size, then the others in their order."""
    distinct = list({to_key(value): value for value in values}.values())
    numbers = sorted(value for value in distinct if is_finite_number(value))
    return [*numbers, *(value for value in distinct if not is_finite_number(value))]


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether rising values span 1.5 decades and the middle one is nearer to the geometric mean of the ends."""
    if len(values) < 2 or values[0] <= 0 or values[-1] < 10**1.5 * values[0]:
        return False
    if len(values) == 2:
        return True

    low = values[0]
    middle = values[len(values) // 2]
    high = values[-1]
    return abs(middle - math.sqrt(low * high)) < abs(middle - (low + high) / 2)
