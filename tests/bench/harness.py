"""Sides as processes that train a chunk when told: one at a time, in another order each round."""

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rows import HERE, Row
from side import SIDES

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
    found: dict[str, Measured] = {name: {"skipped": why_not(name, row)} for name in names}
    with tempfile.TemporaryDirectory() as place, ExitStack() as held:
        sides: dict[str, Side] = {}
        for number, name in enumerate(names):
            if found[name]["skipped"]:
                continue
            side = Side(name, row, Path(place) / str(number))
            held.callback(side.close)
            try:
                side.answer()  # warm
                sides[name], found[name] = side, {"seconds": []}
            except Failed as failed:
                found[name] = {"skipped": f"failed: {failed}"}
        for number in range(rounds):
            for name in random.Random(number).sample(list(sides), len(sides)):
                found[name]["seconds"].append(sides[name].tell("go")["seconds"])
        for name, side in sides.items():
            found[name] |= side.tell("end")
    return found


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
