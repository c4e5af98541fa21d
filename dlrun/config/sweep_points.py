"""The points of a sweep: combinations of the values that words name, and the lines of `sweep.points`."""

import itertools
import math
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dlrun.core.errors import RequestError


def combine(parsed: Sequence[Override]) -> list[list[str]]:
    """The words of every point; the last word that names several values varies fastest.

    Of a key that is named twice the later word counts. RequestError for a value that is named twice.
    """
    choices: dict[str, list[str]] = {}
    for override in parsed:
        choices[override.get_key_element()] = _values(override)
    return [list(words) for words in itertools.product(*choices.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if key.startswith("sweep."):
        raise RequestError(f"{override.input_line} names several values, and is of the whole sweep; type one of them")
    if isinstance(override.value(), IntervalSweep):
        raise RequestError(f"{override.input_line} names no single values; type {key}=range(<from>,<to>,<step>)")
    found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    twice = next((word for i, word in enumerate(found) if word in found[:i]), None)
    if twice:
        raise RequestError(f"{override.input_line} names {twice} twice; leave one out")
    if not found:
        raise RequestError(f"{override.input_line} names no value at all; type one or more, as in {key}=a,b")
    return found


def refuse_many(parsed: Sequence[Override], most: int, before: int = 0) -> None:
    """RequestError for more points than `sweep.max_jobs`, which are counted without being made.

    before: points that were named already.
    """
    count = before + math.prod(_count(override) for override in parsed)
    if count > most:
        raise RequestError(f"the sweep has {count:,} points and sweep.max_jobs={most}; type sweep.max_jobs={count}")


def _count(override: Override) -> int:
    value = override.value()
    if not isinstance(value, RangeSweep):
        return len(value.list) if isinstance(value, ChoiceSweep) else 1
    start, stop, step = (float(x) for x in (value.start or 0, value.stop or 0, value.step))
    if not step or not math.isfinite(start + stop + step):
        key = override.get_key_element()
        raise RequestError(
            f"{override.input_line} never ends; type {key}=range(<from>,<to>,<step>), as in range(0,5,1)"
        )
    return max(1, math.ceil((stop - start) / step))  # of an empty one `_values` tells, once the others are few


def expand_points(lines: Sequence[str], given: Sequence[str], loader: ConfigLoader, most: int) -> list[list[str]]:
    """The overrides of each run besides those `given` on the command line, which win where they name the same key.

    loader: knows the options that `optimizer=glob(*)` stands for; most: sweep.max_jobs. No run is named twice.
    """
    parser = OverridesParser.create(config_loader=loader)
    found: list[list[str]] = []
    for line in lines:
        words = [word for word in _split(line) if not _named(word, given)]
        parsed = parser.parse_overrides(words)
        refuse_many(parsed, most, len(found))
        of_all = next((str(o.input_line) for o in parsed if o.get_key_element().startswith("sweep.")), None)
        if of_all:
            raise RequestError(f"{of_all} is of the whole sweep, not of a point; type it outside of sweep.points")
        found += combine(parsed)
    return list(map(list, dict.fromkeys(map(tuple, found))))


def _split(line: str) -> list[str]:
    """Words of a line; what stands in brackets or quotes stays together."""
    words, depth, quote = [""], 0, ""
    for character in line.strip():
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        depth += (character in "([{") - (character in ")]}")
        if character == " " and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def _named(word: str, given: Sequence[str]) -> bool:
    """Whether the command line says something about this key, or chose the group that it belongs to."""
    key = word.partition("=")[0].lstrip("+~")
    theirs = [other.partition("=")[0].lstrip("+~") for other in given]
    return any(key == other or key.startswith(f"{other}.") for other in theirs)
