"""The core table: every side of every row, and what the bars say of them."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness import SURE, Measured, interval, ratios, within
from rows import Row, in_core
from side import SIDES

Found = dict[str, Any]  # row and sides
SMALL = ("tiny", "tiny-64", "tiny-epochs")  # nets of less than 10,000 parameters
WHAT = {
    "resnet": "residual net, MNIST, batch 64, SGD",
    "inception": "Inception blocks, MNIST, batch 64, SGD",
    "cnn": "two convolutions, MNIST, batch 64, SGD",
    "mlp": "784-512-256-128-64-10, MNIST, batch 64, SGD",
    "gru": "bidirectional GRU 2 × 100, names, batch 256, Adam",
    "overhead": "784-128-10, batch 64, SGD",
    "overhead-adam": "784-128-10, batch 64, Adam",
    "tiny": "8-6-4-1, batch 32, 1,000 steps an epoch, SGD",
    "tiny-64": "64-64-10, batch 32, 1,000 steps an epoch, SGD",
    "tiny-epochs": "8-6-4-1, batch 32, 24 steps an epoch, SGD",
}


def measure(root: str, chosen: Sequence[str], seconds: float, say: Callable[[str], None]) -> Iterator[Found]:
    """Row by row, each within so many seconds; chosen: names of rows, all where it is empty."""
    for row in in_core(root):
        if not chosen or row.name in chosen:
            say(f"{row.name}: {WHAT[row.name]}")
            names = [name for name in SIDES if name != "dlrun bf16" or row.name == "resnet"]
            sides, steps = within(row, names, seconds)
            found = {"row": asdict(row) | {"root": ""}, "steps": steps, "sides": sides}
            for line in lines(found):
                say(line)
            yield found


def reached(found: Found) -> str:
    """How much was measured in a row's time."""
    rounds = max((len(side["seconds"]) for side in found["sides"].values() if "seconds" in side), default=0)
    row = Row(**found["row"])
    chunk = f"{found['steps']:,} of a chunk's {row.steps:,} steps" if found["steps"] < row.steps else "whole epochs"
    sure = "" if rounds >= SURE else f"; fewer than {SURE}: the interval is the range, give it more --seconds"
    return f"{rounds} round{'s' if rounds != 1 else ''} of {chunk}{sure}"


def lines(found: Found) -> Iterator[str]:
    """A row in words, for the terminal."""
    yield f"  {reached(found)}"
    for name, side in found["sides"].items():
        if side.get("skipped"):
            yield f"  {name:<14} skipped: {side['skipped']}"
        else:
            faster = "" if name == "dlrun" else f"   dlrun {times(found, name)}"
            yield f"  {name:<14} {microseconds(found, name):>9,.0f} µs a step{faster}"


def microseconds(found: Found, side: str) -> float:
    """A step's, median over the rounds."""
    return 1e6 * statistics.median(found["sides"][side]["seconds"]) / int(found["steps"])


def times(found: Found, side: str) -> str:
    """How many times as fast as another side dlrun is, with its interval."""
    if found["sides"]["dlrun"].get("skipped"):
        return "-"
    middle, low, high = interval(ratios(found["sides"][side], found["sides"]["dlrun"]))
    return f"{middle:.2f} × ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Bar:
    """dlrun at least so many times as fast as a side, or at most so many microseconds a step over it."""

    row: str
    side: str
    at_least: float | None = None
    at_most_us: float | None = None

    def judged(self, found: Found) -> str:
        """One sentence; met when the interval reaches the bar."""
        mine, other = found["sides"]["dlrun"], found["sides"][self.side]
        if mine.get("skipped") or other.get("skipped"):
            return f"{self.row} against {self.side}: skipped, {mine.get('skipped') or other.get('skipped')}"
        if self.at_least is not None:
            middle, low, high = interval(ratios(other, mine))
            met, unit, bar = high >= self.at_least, " ×", f"at least {self.at_least:g}"
            text = f"{self.row} against {self.side}: {middle:.2f}{unit} ({low:.2f} to {high:.2f}), bar {bar}"
        else:
            assert self.at_most_us is not None
            middle, low, high = interval(added(found, self.side))
            met, bar = low <= self.at_most_us, f"at most {self.at_most_us:g}"
            text = f"{self.row} over {self.side}: {middle:.0f} µs a step ({low:.0f} to {high:.0f}), bar {bar}"
        inside = middle >= self.at_least if self.at_least is not None else middle <= (self.at_most_us or 0)
        return f"{text}: {'met' if inside else 'median short, interval met' if met else 'MISSED'}"


def added(found: Found, side: str) -> list[float]:
    """Microseconds a step that dlrun takes over another side, round by round."""
    pairs = zip(found["sides"]["dlrun"]["seconds"], found["sides"][side]["seconds"], strict=True)
    return [1e6 * (mine - other) / found["steps"] for mine, other in pairs]


BARS = [
    Bar("resnet", "course script", at_least=1.9),
    *(Bar(row, "hand-written", at_least=0.97) for row in ("resnet", "inception", "cnn", "mlp", "gru")),
    *(Bar(row, "pure compute", at_most_us=100) for row in ("overhead", "overhead-adam")),
    *(Bar(row, "Lightning", at_least=1.5) for row in ("resnet", "cnn", "mlp")),
    *(Bar(row, "Lightning", at_least=4) for row in SMALL),
]


def markdown(table: Sequence[Found]) -> str:
    """What was measured, as three tables and the bars."""
    names = [name for name in SIDES if any(name in found["sides"] for found in table)]
    measured = {found["row"]["name"]: found for found in table}
    parts = [
        ("Microseconds a step, median", lambda found, name: f"{microseconds(found, name):,.0f}"),
        ("dlrun is so many times as fast (95 % interval of the median)", times),
        ("Most memory resident, MB", lambda found, name: _mb(found["sides"][name])),
    ]
    text = ""
    for title, cell in parts:
        text += f"\n{title}:\n\n| row | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|\n"
        for found in table:
            cells = (_cell(found, name, cell) for name in names)
            text += f"| {found['row']['name']}: {WHAT[found['row']['name']]} | " + " | ".join(cells) + " |\n"
    judged = [bar.judged(measured[bar.row]) for bar in BARS if bar.side in measured.get(bar.row, {}).get("sides", ())]
    skipped = {s["skipped"] for found in table for s in found["sides"].values() if s.get("skipped")}
    text += "\nReached:\n\n" + "".join(f"- {found['row']['name']}: {reached(found)}\n" for found in table)
    text += "\nBars:\n\n" + "".join(f"- {line}\n" for line in judged)
    return text + "".join(f"\nSkipped: {reason}.\n" for reason in sorted(skipped))


def _cell(found: Found, name: str, cell: Callable[[Found, str], str]) -> str:
    side = found["sides"].get(name)
    return "" if side is None else "skipped" if side.get("skipped") else cell(found, name)


def _mb(side: Measured) -> str:
    return "?" if side["peak_mb"] is None else f"{side['peak_mb']:,.0f}"
