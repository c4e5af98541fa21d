"""Sides as processes that train a chunk when told: one at a time, in another order each round."""

import importlib.util
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rows import HERE, Row
from side import SIDES

ROUNDS = 9  # that a row's time should be enough for: the bars ask for 7 or more
SURE = 6  # rounds from which on an interval holds the true median with 95 %
_MOST_ROUNDS = 25
_START_SHARE = 0.6  # of a row's time, in which every side must be warm
_PROBE_SHARE = 0.5  # of the time that is left then, in which the length of a chunk is chosen
_PROBED = 5  # steps by which the length of a chunk is chosen, and its least
Measured = dict[str, Any]  # of a side: seconds (of each chunk) and peak_mb, or skipped: the reason


class Failed(Exception):
    """A side's process ended, with what it said last."""


class Late(Exception):
    """A side has not answered in time."""


class Side:
    """One side's process, in an empty folder; its words go to a file there."""

    def __init__(self, name: str, row: Row, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in (str(HERE), *get_library_path()) if p)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*interpreter(), str(HERE / "side.py"), name, json.dumps(asdict(row))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=environment,
            )

    def answer(self, until: float | None = None) -> Measured:
        """What it says next; Late where it has not by the time `until` of time.perf_counter."""
        assert self.process.stdout is not None
        if until is not None:
            seconds = max(until - time.perf_counter(), 0)
            readable, _, _ = select.select([self.process.stdout], [], [], seconds)
            if not readable:
                raise Late
        line = self.process.stdout.readline()
        if not line:
            log_lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise Failed(log_lines[-1] if log_lines else "it ended without a word")
        values: Measured = json.loads(line)
        return values

    def tell(self, word: str, until: float | None = None) -> Measured:
        """Say a word, and what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.answer(until)

    def close(self) -> None:
        """End it, however it stands."""
        self.process.kill()
        self.process.communicate()


def interpreter() -> list[str]:
    """The words that start Python; with DLRUN_TEST_CUDA=pretended, on the stand-in for a GPU."""
    if os.environ.get("DLRUN_TEST_CUDA") == "pretended":
        return [sys.executable, str(HERE.parent / "pretended_cuda.py")]
    return [sys.executable]


def get_library_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def find_obstacle(name: str, row: Row) -> str | None:
    """Why a side cannot be measured here."""
    package = SIDES[name][2]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (pip install '.[bench]')"
    if row.data != "vectors" and not row.root:
        return f"DLRUN_DATA_DIR is not set: {row.data} is looked for there"
    return None


def measure_interleaved(
    row: Row, names: Sequence[str], seconds: float, most_rounds: int = _MOST_ROUNDS
) -> dict[str, Measured]:
    """Seconds of each side's whole chunks, side by side in each round, within so many seconds, starts included.

    A side that cannot run, or that no whole round was left for, says why.
    """
    end = time.perf_counter() + seconds
    with warm_sides(row, names, time.perf_counter() + _START_SHARE * seconds) as (sides, results):
        warm = list(sides)
        longest = 0.0
        for number in range(most_rounds):
            began = time.perf_counter()
            if not sides or began + longest > end:
                break
            try:
                make_round(number, sides, results, "go", end)
            except Late:
                break
            longest = max(longest, time.perf_counter() - began)

        rounds = min((len(results[name]["seconds"]) for name in warm), default=0)
        for name in warm:
            results[name]["seconds"] = results[name]["seconds"][:rounds]

    for name in warm:
        if not rounds:
            results[name] = {"skipped": f"too slow: no round in {seconds:.0f} s, give it more --seconds"}
    return results


def count_rounds(results: dict[str, Measured]) -> str:
    """How many rounds were reached, in words."""
    rounds = max((len(side["seconds"]) for side in results.values() if "seconds" in side), default=0)
    return f"{rounds} round{'s' if rounds != 1 else ''}"


def measure_within(row: Row, names: Sequence[str], seconds: float) -> tuple[dict[str, Measured], int]:
    """The same within so many seconds of wall time, starts included; and the steps of a chunk.

    A chunk is a part of the row's where ROUNDS of those would take too long: the end of an epoch is then in few of the
    rounds, and not in their median. A side that is not ready in its share of the time is skipped, and a round that is
    cut off counts for none. Where no round is whole, the steps by which the chunk was to be chosen are the only one.
    """
    end = time.perf_counter() + seconds
    with warm_sides(row, names, time.perf_counter() + _START_SHARE * seconds) as (sides, results):
        now = time.perf_counter()
        probes = probe(sides, results, now + _PROBE_SHARE * (end - now))
        step_seconds = sum(probes.values()) / _PROBED  # of all sides
        left = end - time.perf_counter()
        fitting = int(left / ROUNDS / step_seconds) if sides else 0
        steps = min(row.steps, max(fitting, _PROBED))
        longest = 0.0
        for number in range(_MOST_ROUNDS):
            began = time.perf_counter()
            if not sides or began + longest > end:
                break
            try:
                make_round(number, sides, results, f"go {steps}", end)
            except Late:
                break
            longest = max(longest, time.perf_counter() - began)

        whole_rounds = min((len(results[name]["seconds"]) for name in probes), default=0)
        for name, taken in probes.items():
            results[name]["seconds"] = results[name]["seconds"][:whole_rounds] or [taken]
    return results, steps if whole_rounds else _PROBED


def probe(sides: dict[str, Side], results: dict[str, Measured], end: float) -> dict[str, float]:
    """Seconds that a few steps of each side take; one that needs more than its share of the time is given up."""
    probes: dict[str, float] = {}
    waiting = list(sides)
    for number, name in enumerate(waiting):
        now = time.perf_counter()
        share = (end - now) / (len(waiting) - number)
        try:
            probes[name] = sides[name].tell(f"go {_PROBED}", now + share)["seconds"]
        except Late:
            sides.pop(name).close()
            results[name] = {
                "skipped": f"too slow: {_PROBED} steps take more than {share:.0f} s, give it more --seconds"
            }
    return probes


@contextmanager
def warm_sides(
    row: Row, names: Sequence[str], until: float | None = None
) -> Iterator[tuple[dict[str, Side], dict[str, Measured]]]:
    """The sides that can run, warm; at the end each says how much memory it took.

    Together they start as many as there are cores, in their order, so that on a slow machine some are warm in time.
    until: the time of time.perf_counter at which those that are not warm are given up.
    """
    results: dict[str, Measured] = {name: {"skipped": find_obstacle(name, row)} for name in names}
    waiting = [name for name in names if not results[name]["skipped"]]
    cores = os.cpu_count() or 1
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, ExitStack() as held:
        started: dict[str, Side] = {}
        sides: dict[str, Side] = {}
        for number, name in enumerate(waiting):
            for other in waiting[len(started) : number + cores]:
                started[other] = Side(other, row, Path(place) / str(len(started)))
                held.callback(started[other].close)
            try:
                started[name].answer(until)
            except Failed as failed:
                results[name] = {"skipped": f"failed: {failed}"}
            except Late:
                for late in waiting[number:]:
                    waited = time.perf_counter() - began
                    results[late] = {"skipped": f"too slow: not warm after {waited:.0f} s, give it more --seconds"}
                    if late in started:
                        started[late].close()
                break
            else:
                sides[name] = started[name]
                results[name] = {"seconds": [], "cpu_seconds": []}
        yield sides, results
        for name, side in sides.items():
            results[name] |= side.tell("end")


def make_round(
    number: int, sides: dict[str, Side], results: dict[str, Measured], word: str, until: float | None = None
) -> None:
    """One chunk of each side, in an order of this round's own; a side that is late is stopped."""
    for name in random.Random(number).sample(list(sides), len(sides)):
        try:
            taken = sides[name].tell(word, until)
        except Late:
            sides.pop(name).close()
            results[name]["peak_mb"] = None
            raise
        results[name]["seconds"].append(taken["seconds"])
        results[name]["cpu_seconds"].append(taken["cpu_seconds"])


def ratios(over: Measured, under: Measured) -> list[float]:
    """Seconds of one side over those of another, round by round."""
    return [a / b for a, b in zip(over["seconds"], under["seconds"], strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the ends of an interval that holds the true one with at least 95 %, whatever the distribution.

    The interval of the sign test: order statistics k and n + 1 - k, with the largest k for which a fair coin shows
    fewer than k heads in n throws in at most 2.5 % of cases. Below 6 values no interval is that sure: lowest, highest.
    """
    ordered, n = sorted(values), len(values)
    k, below = 1, 0.5**n  # chance of fewer than k heads
    while (more := below + _choose(n, k) * 0.5**n) <= 0.025:
        k, below = k + 1, more
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


def _choose(n: int, k: int) -> int:
    count = 1
    for i in range(k):
        count = count * (n - i) // (i + 1)
    return count
