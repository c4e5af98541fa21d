"""The values that a search chooses from: intervals, ranges and choices, as Hydra's override grammar spells them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dlrun.config.sweep_points import list_words, refuse_endless
from dlrun.core.errors import RequestError

# What a search proposes: a number, or the position of a word among those of a choice.
Value = int | float

# Sampled numbers are rounded to so small a part of their interval, so that they can be typed again.
_RESOLUTION = 1e-4
# An interval over so many times its lower end is better searched by its logarithm.
_WIDE = 100


@dataclass(frozen=True)
class Parameter:
    """One key that a search varies: a number between two ends, or one of several words."""

    # As typed, perhaps with a plus in front.
    key: str
    # Of a choice or a range, all words `key=value`.
    words: tuple[str, ...] = ()
    # Ends of an interval or a range, both included.
    low: Value = 0
    high: Value = 0
    # Distance of the values of a range; None for an interval.
    step: Value | None = None
    is_log: bool = False

    @property
    def name(self) -> str:
        """The key without signs."""
        return self.key.lstrip("+~")

    @property
    def is_choice(self) -> bool:
        """Whether the values have no order."""
        return bool(self.words) and self.step is None

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are whole."""
        return isinstance(self.low, int) and isinstance(self.high, int) and isinstance(self.step, int | None)

    def format_word(self, value: Value) -> str:
        """The word `key=value` for a value; a number from an interval is rounded to what a user would type."""
        if self.is_choice:
            return self.words[int(value)]
        if self.step is not None:
            # The words are spelled as Hydra spells them, free of rounding.
            return self.words[min(round((value - self.low) / self.step), len(self.words) - 1)]
        if self.is_integer:
            return f"{self.key}={int(value)}"

        if self.is_log:
            rounded = float(f"{value:.4g}")
        else:
            rounded = round(value, math.ceil(-math.log10(_RESOLUTION * (self.high - self.low))))
        return f"{self.key}={min(max(rounded, float(self.low)), float(self.high))!r}"

    def list_ends(self) -> list[Value]:
        """The values to check before a search begins: all of a choice, the ends of an interval or a range."""
        if self.is_choice:
            return list(range(len(self.words)))
        return [self.low, self.high]

    def describe_trap(self) -> str | None:
        """Why the interval is hardly what the user means, or None."""
        is_interval = not self.words and not self.is_log and not self.is_integer
        if not is_interval or self.low <= 0 or self.high < _WIDE * self.low:
            return None
        share = (self.high - self.high / 10) / (self.high - self.low)
        return (
            f"{100 * share:.0f} % of interval({self.low:g},{self.high:g}) lie above {self.high / 10:g}; "
            f"'{self.key}=tag(log,interval({self.low:g},{self.high:g}))' tries all magnitudes alike"
        )


@dataclass(frozen=True)
class SearchSpace:
    """The overrides of a command line: words that all trials share, and parameters, in the order of the words."""

    # By key.
    parts: Mapping[str, str | Parameter]

    @property
    def parameters(self) -> list[Parameter]:
        """What the search varies."""
        return [part for part in self.parts.values() if isinstance(part, Parameter)]

    def make_point(self, values: Mapping[str, Value]) -> list[str]:
        """The words that tell a point from others; values: by name of the parameter."""
        return [parameter.format_word(values[parameter.name]) for parameter in self.parameters]

    def make_words(self, point: Sequence[str]) -> list[str]:
        """All overrides of a point."""
        words = iter(point)
        return [part if isinstance(part, str) else next(words) for part in self.parts.values()]

    def list_corners(self) -> list[list[str]]:
        """All overrides of the few points to check first, in which every word and every end occurs."""
        ends = {parameter.name: parameter.list_ends() for parameter in self.parameters}
        lowest = {name: values[0] for name, values in ends.items()}
        highest = {name: values[-1] for name, values in ends.items()}
        points = [lowest, highest]
        for name, values in ends.items():
            points += [lowest | {name: value} for value in values[1:-1]]
        unique = dict.fromkeys(tuple(self.make_words(self.make_point(point))) for point in points)
        return [list(words) for words in unique]


def read_space(overrides: Sequence[Override]) -> SearchSpace:
    """The search that the overrides of a command line describe; RequestError for one that cannot be searched."""
    parts: dict[str, str | Parameter] = {}
    for override in overrides:
        key = override.get_key_element()
        parts[key] = _read_parameter(override) if override.is_sweep_override() else str(override.input_line)

    space = SearchSpace(parts)
    if not space.parameters:
        raise RequestError("sweep.search finds nothing to vary; type '<key>=interval(<from>,<to>)' or <key>=a,b")
    return space


def _read_parameter(override: Override) -> Parameter:
    key = override.get_key_element()
    word = override.input_line
    if key == "seed":
        raise RequestError(f"{word} would be searched as if seeds could be good; type sweep.seeds=<runs a trial>")

    value = override.value()
    tags = value.tags if isinstance(value, ChoiceSweep | RangeSweep | IntervalSweep) else set[str]()
    is_log = "log" in tags
    unknown = sorted(tags - {"log"})
    if unknown:
        raise RequestError(f"{word} has the tag {unknown[0]}, which says nothing; tag(log, ...) is the one that does")

    if isinstance(value, IntervalSweep):
        return _read_interval(override, value, is_log)
    if is_log:
        raise RequestError(f"{word}: only an interval has a log; type '{key}=tag(log,int(interval(<from>,<to>)))'")

    if isinstance(value, RangeSweep):
        refuse_endless(override)
    if isinstance(value, ChoiceSweep | RangeSweep):
        # Another order in every process would make another search.
        value.shuffle = False
    words = tuple(list_words(override))
    if not isinstance(value, RangeSweep) or len(words) == 1:
        return Parameter(key, words)

    # The stop of a range is no value of it.
    start = value.start or 0
    last = start + (len(words) - 1) * value.step
    if value.step < 0:
        return Parameter(key, words[::-1], last, start, -value.step)
    return Parameter(key, words, start, last, value.step)


def _read_interval(override: Override, value: IntervalSweep, is_log: bool) -> Parameter:
    key = override.get_key_element()
    word = override.input_line
    low, high = value.start, value.end
    if key.startswith("sweep."):
        raise RequestError(f"{word} names several values, and applies to the whole sweep; type one of them")
    assert low is not None
    assert high is not None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RequestError(f"{word} has no end; type {key}=interval(<from>,<to>) with numbers")
    if low >= high:
        raise RequestError(f"{word} is empty; type {key}=interval(<from>,<to>), the smaller number first")
    if is_log and low <= 0:
        raise RequestError(f"{word}: a logarithm needs numbers above 0; type another lower end")
    return Parameter(key, (), low, high, None, is_log)
