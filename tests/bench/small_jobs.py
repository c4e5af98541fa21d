"""Jobs that train for milliseconds: a sweep against the commit before, its memory, and the first step of its first job.

python tests/bench/small_jobs.py [--points 300] [--rounds 1] [--before 9013911] [words ...]

The commit before is checked out into the temporary folder with `git worktree`, and both sweep on the same machine in
turn. Processor seconds count, as they do not depend on what else runs there; wall seconds stand beside them.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import describe, row

ROOT = Path(__file__).resolve().parents[2]
# The last one without a thread for checkpoints, stacks, and what jobs share.
BEFORE = "9013911"
WORDS = ("data=blobs", "optimizer=sgd", "trainer.epochs=2")
EARLY = 10  # jobs after which the memory is that of a sweep under way

# Ends the process as its first step begins, with the processor seconds until then.
FIRST_STEP = """
import importlib.abc, os, resource, sys
from dlrun.cli import main

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dlrun.experiment.run":
            sys.meta_path.remove(self)
            from dlrun.engine import trainer
            trainer.Trainer.train_epoch = stop

def stop(*_):
    used = resource.getrusage(resource.RUSAGE_SELF)
    os.write(2, f"first step after {used.ru_utime + used.ru_stime} s\\n".encode())
    os._exit(0)

sys.meta_path.insert(0, Finder())
sys.argv = ["dlrun", *sys.argv[1:]]
main.main()
"""


@dataclass
class Sweep:
    """What a sweep took: seconds, and MB after a few jobs and at its end."""

    wall: float
    cpu: float
    early_mb: float
    last_mb: float


@contextlib.contextmanager
def check_out(commit: str) -> Iterator[Path | None]:
    """A work tree of a commit; None where git has no such commit."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "-q", "--detach", str(folder), commit], capture_output=True).returncode:
            yield None
            return
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], capture_output=True)


def environment(tree: Path) -> dict[str, str]:
    """That of a process which imports dlrun from `tree`."""
    return os.environ | {"PYTHONPATH": str(tree)}


def resident_mb(process: int) -> float:
    """MB that a process holds; 0 once it has ended."""
    with contextlib.suppress(OSError):
        match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
        return int(match[1]) / 1024 if match else 0.0
    return 0.0


def sweep(tree: Path, points: int, words: list[str]) -> Sweep:
    """Sweep over so many learning rates, one job at a time, in a process of its own."""
    rates = ",".join(f"{0.001 * (number + 1):.3f}" for number in range(points))
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "dlrun", "-m", *WORDS, f"optimizer.lr={rates}", "sweep.jobs=1"]
        command += [f"sweep.max_jobs={points}", f"sweep.dir={place}/sweep", *words]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        early = last = 0.0
        with subprocess.Popen(command, cwd=place, env=environment(tree), stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                done = len(list(Path(place, "sweep").glob("*/result.json")))
                held = resident_mb(process.pid)
                # The comparison at the end draws pictures, which is no part of the jobs.
                if 0 < done <= EARLY:
                    early = held
                elif done and not Path(place, "sweep", "comparison.csv").exists() and done < points:
                    last = held
                time.sleep(0.05)
        wall = time.perf_counter() - began
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        results = [json.loads(path.read_text()) for path in Path(place, "sweep").glob("*/result.json")]
    if process.returncode or len(results) != points:
        raise SystemExit(f"the sweep in {tree} ended with {process.returncode} after {len(results)} of {points} runs")
    cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return Sweep(wall, cpu, early, last)


def first_step(tree: Path, *words: str) -> float:
    """Processor seconds from a command's start to its first step."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-c", FIRST_STEP, *words, "data=blobs"]
        done = subprocess.run(command, cwd=place, env=environment(tree), capture_output=True, text=True)
    match = re.search(r"first step after ([\d.]+) s", done.stderr)
    if match is None:
        raise SystemExit(f"{' '.join(words)} made no step:\n{done.stderr[-2000:]}")
    return float(match[1])


def main() -> None:
    """Print ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("words", nargs="*", help="further words of the sweep")
    requested = parser.parse_args()
    print(f"{requested.points} points of two epochs on blobs, {requested.rounds} rounds; {describe()}", flush=True)

    now: list[Sweep] = []
    before: list[Sweep] = []
    with check_out(requested.before) as tree:
        for _ in range(requested.rounds):
            now.append(sweep(ROOT, requested.points, requested.words))
            if tree is not None:
                before.append(sweep(tree, requested.points, []))
    print(row("a job, processor ms", [1e3 * one.cpu / requested.points for one in now]))
    print(row("a job, wall ms", [1e3 * one.wall / requested.points for one in now]))
    if before:
        print(row(f"a job at {requested.before}, processor ms", [1e3 * one.cpu / requested.points for one in before]))
        cpu = [old.cpu / new.cpu for old, new in zip(before, now, strict=True)]
        wall = [old.wall / new.wall for old, new in zip(before, now, strict=True)]
        print(row("times as fast, processor (bar: 20)", cpu, 2))
        print(row("times as fast, wall (bar: 20)", wall, 2))
    else:
        print(f"  against {requested.before}: skipped, git has no such commit here")

    grown = [one.last_mb / one.early_mb for one in now if one.early_mb and one.last_mb]
    if grown:
        print(row(f"memory over that after {EARLY} (bar: 1.1)", grown, 3))
    pairs = []
    for _ in range(max(3, requested.rounds)):
        alone = first_step(ROOT, "optimizer.lr=0.1")
        pairs.append(first_step(ROOT, "-m", "optimizer.lr=0.1,0.2") - alone)
    print(row("first step after a run's, s (bar: 0.5)", pairs, 2))


if __name__ == "__main__":
    main()
