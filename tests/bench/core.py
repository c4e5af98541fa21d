"""The core table: every side of every row, and what the bars say of them."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness import SURE, Measured, interval, measure_within, ratios
from rows import Row, list_core_rows
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
    "large-epochs": "784-1024-784-10 (1.6 million), batch 64, 50 steps an epoch, SGD",
}


def measure(root: str, chosen: Sequence[str], seconds: float, say: Callable[[str], None]) -> Iterator[Found]:
    """Row by row, each within so many seconds; chosen: names of rows, all where it is empty."""
    for row in list_core_rows(root):
        if not chosen or row.name in chosen:
            say(f"{row.name}: {WHAT[row.name]}")
            names = [name for name in SIDES if name != "dlrun bf16" or row.name == "resnet"]
            sides, steps = measure_within(row, names, seconds)
            measurement = {"row": asdict(row) | {"root": ""}, "steps": steps, "sides": sides}
            for line in lines(measurement):
                say(line)
            yield measurement


def describe_steps(measurement: Found) -> str:
    """How much was measured in a row's time."""
    rounds = max((len(side["seconds"]) for side in measurement["sides"].values() if "seconds" in side), default=0)
    row = Row(**measurement["row"])
    chunk = (
        f"{measurement['steps']:,} of a chunk's {row.steps:,} steps"
        if measurement["steps"] < row.steps
        else "whole epochs"
    )
    sure = "" if rounds >= SURE else f"; fewer than {SURE}: the interval is the range, give it more --seconds"
    return f"{rounds} round{'s' if rounds != 1 else ''} of {chunk}{sure}"


def lines(measurement: Found) -> Iterator[str]:
    """A row in words, for the terminal."""
    yield f"  {describe_steps(measurement)}"
    for name, side in measurement["sides"].items():
        if side.get("skipped"):
            yield f"  {name:<14} skipped: {side['skipped']}"
        else:
            faster = "" if name == "dlrun" else f"   dlrun {times(measurement, name)}"
            yield f"  {name:<14} {microseconds(measurement, name):>9,.0f} µs a step{faster}"


def microseconds(measurement: Found, side: str) -> float:
    """A step's, median over the rounds."""
    return 1e6 * statistics.median(measurement["sides"][side]["seconds"]) / int(measurement["steps"])


def times(measurement: Found, side: str) -> str:
    """How many times as fast as another side dlrun is, with its interval."""
    if measurement["sides"]["dlrun"].get("skipped"):
        return "-"
    middle, low, high = interval(ratios(measurement["sides"][side], measurement["sides"]["dlrun"]))
    return f"{middle:.2f} × ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Bar:
    """dlrun at least so many times as fast as a side, or at most so many microseconds a step over it."""

    row: str
    side: str
    at_least: float | None = None
    at_most_us: float | None = None

    def judge(self, measurement: Found) -> str:
        """One sentence; met when the interval reaches the bar."""
        mine, other = measurement["sides"]["dlrun"], measurement["sides"][self.side]
        if mine.get("skipped") or other.get("skipped"):
            return f"{self.row} against {self.side}: skipped, {mine.get('skipped') or other.get('skipped')}"
        if self.at_least is not None:
            middle, low, high = interval(ratios(other, mine))
            met, unit, bar = high >= self.at_least, " ×", f"at least {self.at_least:g}"
            text = f"{self.row} against {self.side}: {middle:.2f}{unit} ({low:.2f} to {high:.2f}), bar {bar}"
        else:
            assert self.at_most_us is not None
            middle, low, high = interval(compute_added_microseconds(measurement, self.side))
            met, bar = low <= self.at_most_us, f"at most {self.at_most_us:g}"
            text = f"{self.row} over {self.side}: {middle:.0f} µs a step ({low:.0f} to {high:.0f}), bar {bar}"
        inside = middle >= self.at_least if self.at_least is not None else middle <= (self.at_most_us or 0)
        return f"{text}: {'met' if inside else 'median short, interval met' if met else 'MISSED'}"


def compute_added_microseconds(measurement: Found, side: str) -> list[float]:
    """Microseconds a step that dlrun takes over another side, round by round."""
    pairs = zip(measurement["sides"]["dlrun"]["seconds"], measurement["sides"][side]["seconds"], strict=True)
    return [1e6 * (mine - other) / measurement["steps"] for mine, other in pairs]


BARS = [
    Bar("resnet", "course script", at_least=1.9),
    *(Bar(row, "hand-written", at_least=0.97) for row in ("resnet", "inception", "cnn", "mlp", "gru")),
    *(Bar(row, "pure compute", at_most_us=100) for row in ("overhead", "overhead-adam")),
    # A checkpoint is due every 50 steps.
    Bar("large-epochs", "pure compute", at_most_us=1000),
    *(Bar(row, "Lightning", at_least=1.5) for row in ("resnet", "cnn", "mlp")),
    *(Bar(row, "Lightning", at_least=4) for row in SMALL),
]


def markdown(table: Sequence[Found]) -> str:
    """What was measured, as three tables and the bars."""
    names = [name for name in SIDES if any(name in measurement["sides"] for measurement in table)]
    measured = {measurement["row"]["name"]: measurement for measurement in table}
    parts = [
        ("Microseconds a step, median", lambda measurement, name: f"{microseconds(measurement, name):,.0f}"),
        ("dlrun is so many times as fast (95 % interval of the median)", times),
        ("Most memory resident, MB", lambda measurement, name: _mb(measurement["sides"][name])),
    ]
    text = ""
    for title, cell in parts:
        text += f"\n{title}:\n\n| row | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|\n"
        for measurement in table:
            cells = (_cell(measurement, name, cell) for name in names)
            text += (
                f"| {measurement['row']['name']}: {WHAT[measurement['row']['name']]} | " + " | ".join(cells) + " |\n"
            )
    judged = [bar.judge(measured[bar.row]) for bar in BARS if bar.side in measured.get(bar.row, {}).get("sides", ())]
    skipped = {s["skipped"] for measurement in table for s in measurement["sides"].values() if s.get("skipped")}
    text += "\nReached:\n\n" + "".join(
        f"- {measurement['row']['name']}: {describe_steps(measurement)}\n" for measurement in table
    )
    text += "\nBars:\n\n" + "".join(f"- {line}\n" for line in judged)
    return text + "".join(f"\nSkipped: {reason}.\n" for reason in sorted(skipped))


def _cell(measurement: Found, name: str, cell: Callable[[Found, str], str]) -> str:
    side = measurement["sides"].get(name)
    return "" if side is None else "skipped" if side.get("skipped") else cell(measurement, name)


def _mb(side: Measured) -> str:
    return "?" if side["peak_mb"] is None else f"{side['peak_mb']:,.0f}"
