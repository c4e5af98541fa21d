"""What varies among runs: the keys that make columns, and each run's value there."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dlrun.config.schema import NOT_IDENTITY
from dlrun.runs.record import RunRecord

_CHOICES = ("data", "model", "optimizer", "scheduler")
_NO_RESULT = {*NOT_IDENTITY, "seed"} - {"device"}  # a device may change the numbers: who names one wants to see it
ABSENT = "–"  # a run that has no such key


def get_value(run: RunRecord, key: str) -> Any:
    """The option for a group, else what the config holds at the dotted key; ABSENT where there is neither."""
    if key in run.choices:
        return run.choices[key]
    found: Any = run.config
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return ABSENT
        found = found[part]
    return ABSENT if isinstance(found, dict) and key in _CHOICES else found


def find_varying_keys(runs: Sequence[RunRecord]) -> list[str]:
    """The keys in which the runs differ, as far as somebody asked for it; never the seed, or what follows it.

    Where these do not tell two experiments apart (runs of different days, or of changed defaults), the choices that
    differ are added, and where they do not either, the keys of the config that differ.
    """
    named = dict.fromkeys(key for run in runs for word in run.overrides if (key := _key(word)))
    keys = [key for key in named if _differs(runs, key)]
    keys = [key for key in keys if not _comes_with_its_option(runs, key, keys)]
    for more in (_CHOICES, dict.fromkeys(key for run in runs for key in run.identity)):
        for group in group_runs(runs, keys):
            keys += [key for key in more if key not in keys and key != "seed" and _differs(group, key)]
    return keys


def group_runs(runs: Iterable[RunRecord], keys: Sequence[str]) -> list[list[RunRecord]]:
    """The runs that have the same values at the keys, in the order of their first."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(to_key([get_value(run, key) for key in keys]), []).append(run)
    return list(groups.values())


def _key(word: str) -> str:
    """The key that an override names; "" for the seed, and for what is no part of an experiment."""
    key = word.partition("=")[0].lstrip("+")
    top = key.split(".")[0]
    no_result = top in _NO_RESULT or key in ("data.root", "trainer.log_every_steps", "trainer.profile")
    return "" if "=" not in word or no_result else key  # ~key=value names what no config has: it never differs


def _comes_with_its_option(runs: Sequence[RunRecord], key: str, keys: Sequence[str]) -> bool:
    """Whether a setting of one option only (the momentum of one of four optimizers) says no more than the option."""
    group = key.split(".")[0]
    if group == key or group not in _CHOICES or group not in keys:
        return False
    if all(any(_key(word) == key for word in run.overrides) for run in runs):
        return False
    return all(len({to_key(get_value(run, key)) for run in alike}) == 1 for alike in group_runs(runs, [group]))


def _differs(runs: Sequence[RunRecord], key: str) -> bool:
    values = [get_value(run, key) for run in runs]
    follows = all(value == run.seed and not isinstance(value, bool) for value, run in zip(values, runs, strict=True))
    return not follows and len({to_key(value) for value in values}) > 1


def to_key(value: Any) -> str:
    """A value of a config as something to compare and to count by: 1 and 1.0 are one, 1 and true are two."""
    if isinstance(value, list):
        return f"[{','.join(map(to_key, value))}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or all of it where two would read alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: name if count[name] == 1 and not name.startswith("_") else key for key, name in last.items()}


def format_value(value: Any) -> str:
    """A value as one would type it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(format_value(item) for item in value)}]"
    return str(value)


def truncate(value: str, longest: int) -> str:
    """Not longer than that, for a place where there is no room."""
    return value if len(value) <= longest else f"{value[: longest - 1]}…"


def is_number(value: Any) -> bool:
    """What has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def sort_values(values: Iterable[Any]) -> list[Any]:
    """The distinct values: numbers by size, then the others as they come."""
    distinct = list({to_key(value): value for value in values}.values())
    return [*sorted(v for v in distinct if is_number(v)), *(v for v in distinct if not is_number(v))]


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether distinct rising values span 1.5 decades or more, with the middle one nearer to where ratios put it."""
    if len(values) < 2 or values[0] <= 0 or values[-1] < 10**1.5 * values[0]:
        return False
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    return len(values) == 2 or abs(middle - math.sqrt(low * high)) < abs(middle - (low + high) / 2)
