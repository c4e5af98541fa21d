"""`make bench`: every side of every row in turn, into tests/bench/results/<date>.json, .md and .png.

python tests/bench/bench.py [WHAT ...] [--seconds 100]      WHAT: core, rows of it (resnet cnn), scale, accuracy,
processes, start, memory, checkpoints, sweeps; all where it is left out. DLRUN_DATA_DIR names the folder with the data.
What is finished is written at once, so a bench that is stopped keeps what it has.
"""

import argparse
import datetime
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import core
import pictures
import scale
import whole_runs
from machine import described
from rows import HERE

OWN = {
    "start": "start_up",
    "memory": "memory",
    "checkpoints": "checkpoint_cost",
    "sweeps": "sweep_overhead",
}  # benches that print their own figures
PARTS = ("core", "scale", "accuracy", "processes", *OWN)


class Record:
    """What was measured so far, on the disk after each addition."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{datetime.datetime.now():%Y-%m-%d_%H%M}"
        self.found: dict[str, Any] = {"machine": described(), "asked": words, "load": os.getloadavg()[0]}
        self.text: dict[str, str] = {}

    def add(self, part: str, found: Any, text: str) -> None:
        """A part's figures and its text, in place of what it had before."""
        self.found[part], self.text[part] = found, text
        head = f"# Bench of {self.path.name}\n\n{self.found['machine']}; load before: {self.found['load']:.2f}\n"
        body = "".join(f"\n## {name}\n{text}" for name, text in self.text.items())
        self.path.with_suffix(".md").write_text(head + body)
        self.path.with_suffix(".json").write_text(json.dumps(self.found, indent=1) + "\n")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join((*PARTS, *core.WHAT))}; all if left out")
    parser.add_argument("--seconds", type=float, default=100, help="for a row of `core`, starts included")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds in `scale` and `processes`")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side in `accuracy`")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    asked = parser.parse_args()
    wrong = [word for word in asked.what if word not in (*PARTS, *core.WHAT)]
    if wrong:
        parser.error(f"nothing to measure is called {wrong[0]}: type one of {', '.join((*PARTS, *core.WHAT))}")
    data = os.environ.get("DLRUN_DATA_DIR")
    began = time.perf_counter()
    record = Record(asked.out, sys.argv[1:])
    print(record.found["machine"], flush=True)
    measure(record, asked, str(Path(data).resolve()) if data else "")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {record.path.with_suffix('.md')}")


def measure(record: Record, asked: argparse.Namespace, root: str) -> None:
    """Part by part."""

    def say(text: str) -> None:
        print(text, flush=True)

    def wanted(part: str) -> bool:
        return not asked.what or part in asked.what

    rows = [word for word in asked.what if word in core.WHAT]
    if wanted("core") or rows:
        table: list[Any] = []
        for found in core.measure(root, [] if wanted("core") else rows, asked.seconds, say):
            table.append(found)
            record.add("core", table, core.markdown(table))
            pictures.core(table, record.found["machine"], record.path.with_suffix(".png"))
    if wanted("scale"):
        grown: list[Any] = []
        for found in scale.measure(asked.rounds, say):
            grown.append(found)
            record.add("scale", grown, scale.markdown(grown))
        pictures.scale(grown, record.found["machine"], Path(f"{record.path}_scale.png"))
    if wanted("accuracy"):
        reached = whole_runs.accuracy(root, asked.seeds, 15, say)
        record.add("accuracy", reached, whole_runs.accuracy_markdown(reached))
    if wanted("processes"):
        speeds = whole_runs.processes(root, asked.rounds, say)
        record.add("processes", speeds, whole_runs.processes_markdown(speeds))
    for part in (part for part in OWN if wanted(part)):
        said = whole_runs.script(OWN[part])
        say(said)
        record.add(part, said, f"\n```text\n{said}\n```\n")


if __name__ == "__main__":
    main()
