"""`make bench`: every side of every row in turn, into tests/bench/results/<date>.json, .md and .png.

python tests/bench/bench.py [WHAT ...] [--seconds 100]      WHAT: core, rows of it (resnet cnn), scale, accuracy,
processes, tables, start, memory, checkpoints, sweeps, jobs, pictures, callbacks, steps, reading; all where it is left
out. --seconds are those of a row of core, a point of scale, a table, and of processes, which say what they reached.
DLRUN_DATA_DIR names the folder with the data. What is finished is written at once, so a bench that is stopped keeps
what it has.
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
import tables
import whole_runs
from machine import describe
from rows import HERE

OWN = {
    "start": "start_up",
    "memory": "memory",
    "checkpoints": "checkpoint_cost",
    "sweeps": "sweep_overhead",
    "jobs": "small_jobs",
    "search": "search",
    "pictures": "image_reading",
    "callbacks": "callback_cost",
    "steps": "step_cost",
    "reading": "table_reading",
}  # benches that print their own figures
PARTS = ("core", "scale", "accuracy", "processes", "tables", *OWN)


class Record:
    """What was measured so far, on the disk after each addition."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{datetime.datetime.now():%Y-%m-%d_%H%M}"
        self.content: dict[str, Any] = {"machine": describe(), "asked": words, "load": os.getloadavg()[0]}
        self.text: dict[str, str] = {}

    def add(self, part: str, content: Any, text: str) -> None:
        """A part's figures and its text, in place of what it had before."""
        self.content[part], self.text[part] = content, text
        head = f"# Bench of {self.path.name}\n\n{self.content['machine']}; load before: {self.content['load']:.2f}\n"
        body = "".join(f"\n## {name}\n{text}" for name, text in self.text.items())
        self.path.with_suffix(".md").write_text(head + body)
        self.path.with_suffix(".json").write_text(json.dumps(self.content, indent=1) + "\n")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join((*PARTS, *core.WHAT))}; all if left out")
    parser.add_argument(
        "--seconds",
        type=float,
        default=100,
        help="for a row of `core`, a point of `scale`, a table, and `processes`, starts included",
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side in `accuracy`")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    wrong = [word for word in options.what if word not in (*PARTS, *core.WHAT)]
    if wrong:
        parser.error(f"nothing to measure is called {wrong[0]}: type one of {', '.join((*PARTS, *core.WHAT))}")
    data = os.environ.get("DLRUN_DATA_DIR")
    began = time.perf_counter()
    record = Record(options.out, sys.argv[1:])
    print(record.content["machine"], flush=True)
    measure(record, options, str(Path(data).resolve()) if data else "")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; {record.path.with_suffix('.md')}")


def measure(record: Record, options: argparse.Namespace, root: str) -> None:
    """Part by part."""

    def say(text: str) -> None:
        print(text, flush=True)

    def is_chosen(part: str) -> bool:
        return not options.what or part in options.what

    rows = [word for word in options.what if word in core.WHAT]
    if is_chosen("core") or rows:
        table: list[Any] = []
        for row in core.measure(root, [] if is_chosen("core") else rows, options.seconds, say):
            table.append(row)
            record.add("core", table, core.markdown(table))
            pictures.core(table, record.content["machine"], record.path.with_suffix(".png"))
    if is_chosen("tables"):
        compared: list[Any] = []
        for row in tables.measure(root, [], options.seconds, say):
            compared.append(row)
            record.add("tables", compared, tables.markdown(compared))
    if is_chosen("scale"):
        grown: list[Any] = []
        for row in scale.measure(options.seconds, say):
            grown.append(row)
            record.add("scale", grown, scale.markdown(grown))
        pictures.scale(grown, record.content["machine"], Path(f"{record.path}_scale.png"))
    if is_chosen("accuracy"):
        reached = whole_runs.accuracy(root, options.seeds, 15, say)
        record.add("accuracy", reached, whole_runs.accuracy_markdown(reached))
    if is_chosen("processes"):
        speeds = whole_runs.processes(root, options.seconds, say)
        record.add("processes", speeds, whole_runs.processes_markdown(speeds))
    for part in (part for part in OWN if is_chosen(part)):
        lines_printed = whole_runs.script(OWN[part])
        say(lines_printed)
        record.add(part, lines_printed, f"\n```text\n{lines_printed}\n```\n")


if __name__ == "__main__":
    main()
