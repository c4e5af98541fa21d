"""Sides as processes that train a chunk when told: one at a time, in another order each round."""

import importlib.util
import json
import os
import random
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
_LEAST_ROUNDS = 3  # however slow it is
_MOST_ROUNDS = 25
_PROBED = 5  # steps by which the length of a chunk is chosen, and its least
Measured = dict[str, Any]  # of a side: seconds (of each chunk) and peak_mb, or skipped: the reason


class Failed(Exception):
    """A side's process ended, with what it said last."""


class Side:
    """One side's process, in an empty folder; its words go to a file there."""

    def __init__(self, name: str, row: Row, folder: Path) -> None:
        folder.mkdir()
        self.log = folder / "log"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in (str(HERE), *_given_path()) if p)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "side.py"), name, json.dumps(asdict(row))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=environment,
            )

    def answer(self) -> Measured:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise Failed(said[-1] if said else "it ended without a word")
        found: Measured = json.loads(line)
        return found

    def tell(self, word: str) -> Measured:
        """Say a word, and what it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it, however it stands."""
        self.process.kill()
        self.process.communicate()


def _given_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(os.pathsep)


def why_not(name: str, row: Row) -> str | None:
    """Why a side cannot be measured here."""
    package = SIDES[name][2]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (pip install '.[bench]')"
    if row.data != "vectors" and not row.root:
        return f"DLRUN_DATA_DIR is not set: {row.data} is looked for there"
    return None


def interleaved(row: Row, names: Sequence[str], rounds: int) -> dict[str, Measured]:
    """Seconds of each side's chunks, side by side in each of the rounds; one that cannot run says why."""
    with warm_sides(row, names) as (sides, found):
        for number in range(rounds):
            make_round(number, sides, found, "go")
    return found


def within(row: Row, names: Sequence[str], seconds: float) -> tuple[dict[str, Measured], int]:
    """The same within so many seconds of wall time, starts included; and the steps of a chunk.

    A chunk is a part of the row's where ROUNDS of those would take too long: the end of an epoch is then in few of the
    rounds, and not in their median.
    """
    end = time.perf_counter() + seconds
    with warm_sides(row, names) as (sides, found):
        a_step = sum(side.tell(f"go {_PROBED}")["seconds"] for side in sides.values()) / _PROBED  # of all sides
        left = end - time.perf_counter()
        fitting = int(left / ROUNDS / a_step) if sides else 0
        steps = min(row.steps, max(fitting, _PROBED))
        longest = 0.0
        for number in range(_MOST_ROUNDS):
            began = time.perf_counter()
            if number >= _LEAST_ROUNDS and began + longest > end:
                break
            make_round(number, sides, found, f"go {steps}")
            longest = max(longest, time.perf_counter() - began)
    return found, steps


@contextmanager
def warm_sides(row: Row, names: Sequence[str]) -> Iterator[tuple[dict[str, Side], dict[str, Measured]]]:
    """The sides that can run, started together and warm; at the end each says how much memory it took."""
    found: dict[str, Measured] = {name: {"skipped": why_not(name, row)} for name in names}
    with tempfile.TemporaryDirectory() as place, ExitStack() as held:
        started: dict[str, Side] = {}
        for number, name in enumerate(names):
            if not found[name]["skipped"]:
                started[name] = Side(name, row, Path(place) / str(number))
                held.callback(started[name].close)
        sides: dict[str, Side] = {}
        for name, side in started.items():
            try:
                side.answer()
            except Failed as failed:
                found[name] = {"skipped": f"failed: {failed}"}
            else:
                sides[name] = side
                found[name] = {"seconds": []}
        yield sides, found
        for name, side in sides.items():
            found[name] |= side.tell("end")


def make_round(number: int, sides: dict[str, Side], found: dict[str, Measured], word: str) -> None:
    """One chunk of each side, in an order of this round's own."""
    for name in random.Random(number).sample(list(sides), len(sides)):
        found[name]["seconds"].append(sides[name].tell(word)["seconds"])


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
    found = 1
    for i in range(k):
        found = found * (n - i) // (i + 1)
    return found
