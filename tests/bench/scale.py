"""How the cost grows with the work: batch, width, rows, epochs."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from harness import count_rounds, interval, measure_interleaved
from rows import Row

Found = dict[str, Any]
SIDES = ("dlrun", "hand-written", "Lightning")
MLP = Row("", "mlp", "vectors", 51_200, settings={"hidden_sizes": [128]}, features=784)
TINY = Row("", "mlp", "vectors", 0, 256, {"hidden_sizes": [6, 4], "activation": "sigmoid"}, features=8, classes=1)


def axes() -> Iterator[tuple[str, int, Row, tuple[str, ...]]]:
    """What is varied, its value, the row, and the sides."""
    for batch in (16, 64, 256, 1024, 4096):
        yield "batch", batch, replace(MLP, batch_size=batch, rows=max(12_800, 16 * batch)), SIDES
    for width in (1, 2, 4, 8, 16):
        row = replace(MLP, settings={"hidden_sizes": [128 * width]}, rows=51_200 // max(width, 1))
        yield "width", width, row, SIDES
    for rows in (1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        yield "rows", rows, replace(TINY, rows=rows, epochs=max(1, 100_000 // rows)), SIDES[:2]


def measure(seconds: float, say: Callable[[str], None]) -> Iterator[Found]:
    """Point by point, each within so many seconds; then the cost of an epoch, early and late in a long training."""
    for axis, value, row, sides in axes():
        measurement = measure_interleaved(replace(row, name=f"{axis} {value}"), sides, seconds)
        yield print_measurement(
            {"axis": axis, "value": value, "row": asdict(row), "steps": row.steps, "sides": measurement}, say
        )
    row = replace(TINY, name="epochs", rows=1_000, epochs=50)
    # 40 chunks are 2,000 epochs; of those that there was time for, each quarter is a point.
    side = measure_interleaved(row, ["dlrun"], seconds, 40)["dlrun"]
    chunks = side.get("seconds", [])
    quarter = len(chunks) // 4
    for number in range(4 if quarter else 0):
        part = chunks[number * quarter : (number + 1) * quarter]
        value = (number + 1) * quarter * row.epochs
        measurement = {"dlrun": {"seconds": part, "peak_mb": None}}
        yield print_measurement(
            {"axis": "epochs", "value": value, "row": asdict(row), "steps": row.steps, "sides": measurement}, say
        )


def print_measurement(measurement: Found, say: Callable[[str], None]) -> Found:
    """The same, said aloud."""
    cells = (f"{name} {format_measurement(measurement, name)}" for name in measurement["sides"])
    rounds = count_rounds(measurement["sides"])
    say(f"{measurement['axis']} {measurement['value']:,}: " + ", ".join(cells) + f" ({rounds})")
    return measurement


def format_measurement(measurement: Found, name: str) -> str:
    side = measurement["sides"][name]
    return f"skipped: {side['skipped']}" if side.get("skipped") else f"{microseconds(measurement, name):,.1f} µs a step"


def epoch_seconds(measurement: Found, name: str) -> list[float]:
    """Of one epoch, chunk by chunk."""
    return [s / measurement["row"]["epochs"] for s in measurement["sides"][name]["seconds"]]


def microseconds(measurement: Found, name: str) -> float:
    """A step's, median."""
    return 1e6 * statistics.median(measurement["sides"][name]["seconds"]) / int(measurement["steps"])


def linearity(table: list[Found]) -> list[str]:
    """How much each further row costs from one size to the next, beside what it costs over the whole range.

    The cost of an epoch is a constant (its end) and a slope; linear means that the slope stays: ±5 %.
    """
    points = [measurement for measurement in table if measurement["axis"] == "rows"]
    sentences = []
    for name in SIDES[:2]:
        if len(points) < 3 or any(measurement["sides"][name].get("skipped") for measurement in points):
            continue
        rows = [measurement["value"] for measurement in points]
        # As many as the slowest point reached.
        rounds = list(zip(*(epoch_seconds(measurement, name) for measurement in points), strict=False))
        slopes_beyond = [(t[-1] - t[1]) / (rows[-1] - rows[1]) for t in rounds]
        for i in range(1, len(rows) - 1):
            slopes = [(t[i + 1] - t[i]) / (rows[i + 1] - rows[i]) for t in rounds]
            middle, low, high = interval([a / b for a, b in zip(slopes, slopes_beyond, strict=True)])
            verdict = "met" if low <= 1.05 and high >= 0.95 else "MISSED"
            text = f"{name}, {rows[i]:,} to {rows[i + 1]:,} rows: a further row costs {middle:.3f} of the mean "
            sentences.append(text + f"({low:.3f} to {high:.3f}), bar 0.95 to 1.05: {verdict}")
    return sentences


def markdown(table: list[Found]) -> str:
    """A table an axis, and the bar."""
    text = ""
    for axis in dict.fromkeys(measurement["axis"] for measurement in table):
        points = [measurement for measurement in table if measurement["axis"] == axis]
        names = list(points[0]["sides"])
        headers = " | ".join(f"{name}, µs a step | ms an epoch" for name in names)
        text += f"\n{axis}:\n\n| {axis} | {headers} | reached |\n"
        text += "| --- " * (2 + 2 * len(names)) + "|\n"
        for measurement in points:
            cells = (_cells(measurement, name) for name in names)
            rounds = count_rounds(measurement["sides"])
            text += f"| {measurement['value']:,} | " + " | ".join(cells) + f" | {rounds} |\n"
    return text + "\nBar, cost linear in rows:\n\n" + "".join(f"- {line}\n" for line in linearity(table))


def _cells(measurement: Found, name: str) -> str:
    if measurement["sides"][name].get("skipped"):
        return "skipped |"
    epoch = 1e3 * statistics.median(epoch_seconds(measurement, name))
    return f"{microseconds(measurement, name):,.1f} | {epoch:,.2f}"
