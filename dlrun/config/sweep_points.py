"""The points of a sweep: combinations of the values that words name, and the lines of `sweep.points`."""

import itertools
import math
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dlrun.config.overrides import get_key
from dlrun.core.errors import RequestError


def combine(overrides: Sequence[Override]) -> list[list[str]]:
    """Combine the values of all words into points; the last word that names several values varies fastest.

    If a key is named twice, the later word counts. RequestError for a word that names one value twice.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        values[override.get_key_element()] = list_words(override)
    return [list(words) for words in itertools.product(*values.values())]


def list_words(override: Override) -> list[str]:
    """The words, key=value, that one override stands for."""
    if not override.is_sweep_override():
        return [str(override.input_line)]

    key = override.get_key_element()
    if key.startswith("sweep."):
        raise RequestError(
            f"{override.input_line} names several values, and applies to the whole sweep; type one of them"
        )
    if isinstance(override.value(), IntervalSweep):
        raise RequestError(
            f"{override.input_line} names no single values; type {key}=range(<from>,<to>,<step>), or add "
            "sweep.search=tpe, which chooses values in between"
        )

    words: list[str] = []
    duplicate = ""
    for value in override.sweep_string_iterator():
        word = f"{key}={value}"
        if word in words and not duplicate:
            duplicate = word
        words.append(word)
    if duplicate:
        raise RequestError(f"{override.input_line} names {duplicate} twice; leave one out")
    if not words:
        raise RequestError(f"{override.input_line} names no value at all; type one or more, as in {key}=a,b")
    return words


def refuse_many(overrides: Sequence[Override], most: int, before: int = 0) -> None:
    """RequestError for more than `most` points (sweep.max_jobs), which are counted without being made.

    before: number of points so far.
    """
    count = before + math.prod(_count_values(override) for override in overrides)
    if count > most:
        raise RequestError(f"the sweep has {count:,} points and sweep.max_jobs={most}; type sweep.max_jobs={count}")


def _count_values(override: Override) -> int:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if not isinstance(value, RangeSweep):
        return 1

    start, stop, step = refuse_endless(override)
    # An empty range is refused by `list_words`, once the points are few.
    return max(1, math.ceil((stop - start) / step))


def refuse_endless(override: Override) -> tuple[float, float, float]:
    """RequestError for a range without an end; returns start, stop and step of any other."""
    value = override.value()
    assert isinstance(value, RangeSweep)
    start = float(value.start or 0)
    stop = float(value.stop or 0)
    step = float(value.step)
    if not step or not math.isfinite(start + stop + step):
        key = override.get_key_element()
        raise RequestError(
            f"{override.input_line} never ends; type {key}=range(<from>,<to>,<step>), as in range(0,5,1)"
        )
    return start, stop, step


def expand_points(
    lines: Sequence[str], own_overrides: Sequence[str], loader: ConfigLoader, most: int
) -> list[list[str]]:
    """Expand the lines of sweep.points into the overrides of each run; no run is named twice.

    own_overrides: those of the command line, which win where they name the same key; loader: knows the options that
    `optimizer=glob(*)` stands for; most: sweep.max_jobs.
    """
    parser = OverridesParser.create(config_loader=loader)
    points: list[list[str]] = []
    for line in lines:
        words = [word for word in _split(line) if not _is_overridden(word, own_overrides)]
        overrides = parser.parse_overrides(words)
        refuse_many(overrides, most, len(points))

        for override in overrides:
            if override.get_key_element().startswith("sweep."):
                word = override.input_line
                raise RequestError(
                    f"{word} applies to the whole sweep, not to a point; type it outside of sweep.points"
                )
        points += combine(overrides)

    # Two lines may name the same run.
    unique = dict.fromkeys(tuple(point) for point in points)
    return [list(point) for point in unique]


def _split(line: str) -> list[str]:
    """Split a line into words at spaces outside of brackets and quotes."""
    words = [""]
    depth = 0
    quote = ""
    for character in line.strip():
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        depth += (character in "([{") - (character in ")]}")
        if character == " " and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word]


def _is_overridden(word: str, own_overrides: Sequence[str]) -> bool:
    """Whether the command line sets this key itself, or chose the group that it belongs to."""
    key = get_key(word)
    own_keys = [get_key(other) for other in own_overrides]
    return any(key == other or key.startswith(f"{other}.") for other in own_keys)
