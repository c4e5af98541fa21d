"""Kills sweeps hard at random moments, resumes them, and compares them with the same sweep undisturbed.

Half of the kills hit the sweep's own process only, half of them all of its processes at once. A sweep is forked from
this process, which has imported torch (an import costs seconds), and calls dlrun's command line; so are the servers of
its jobs. The first --commands ones of each engine are started as `python -m dlrun`.

python tests/torture/sweep_torture.py [--rounds 10] [--commands 1] [--seed 0] [--epochs 80]
"""

import argparse
import csv
import multiprocessing.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comparison import differences
from torture import get_exit_code, prepare  # sets OMP_NUM_THREADS before it imports torch

import dlrun.cli.main

sys.path.append(str(Path(__file__).parents[1]))
from warm import fork_interpreter

WORDS = ("-m", "data=blobs", "data.val_fraction=0.2", "model=mlp", "model.dropout=0.3", "optimizer=sgd,adam")
WORDS += ("seed=0,1,2", "checkpoint.every_steps=2", "scheduler=cosine", "device.num_threads=1")
WORDS += ("figures=false", "tracking.graph=false", "sweep.dir=s")
PATIENCE = 60.0  # seconds in which all processes of a killed sweep are to be gone


@dataclass
class Counts:
    """What happened."""

    kills: int = 0
    in_group: int = 0  # of them, of all processes at once
    before_ledger: int = 0
    inside: int = 0  # some jobs were begun and not all were done
    orphans: int = 0
    differences: int = 0


def launch(words: list[str], place: Path, real: bool) -> int:
    """Start dlrun in `place` in a session of its own; returns the process's id. What it says is added to output.txt."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(place)
        output_file = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output_file, 1), os.dup2(output_file, 2)
        if real:
            os.execv(sys.executable, [sys.executable, "-m", "dlrun", *words])
        sys.argv = ["dlrun", *words]
        multiprocessing.util.spawnv_passfds = fork_interpreter
        sys.modules["__main__"] = types.ModuleType("__main__")  # the jobs' processes would import this script
        code = dlrun.cli.main.main()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def members(session: int) -> Iterator[int]:
    """The living processes of a session, whatever groups they are in."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            yield int(path.name)


def finished(pid: int) -> int:
    """Wait for its end; returns the exit code."""
    while (code := get_exit_code(pid)) is None:
        time.sleep(0.01)
    return code


def kill_at(pid: int, moment: float, group: bool) -> bool:
    """SIGKILL after so many seconds; False when it was done before."""
    until = time.perf_counter() + moment
    while time.perf_counter() < until:
        if get_exit_code(pid) is not None:
            return False
        time.sleep(0.002)
    for each in list(members(pid)) if group else [pid]:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(pid, 0)
    return True


def survivors(session: int) -> int:
    """How many processes of a killed sweep are still there after PATIENCE; they are ended then."""
    until = time.perf_counter() + PATIENCE
    while (left := list(members(session))) and time.perf_counter() < until:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return len(left)


def one_round(
    place: Path, words: list[str], jobs: int, seconds: float, chance: random.Random, counts: Counts, real: bool
) -> list[str]:
    """Kill a sweep once, or now and then twice, and resume it to its end; return what differs from whole/s."""
    place.mkdir()
    command = [*words, f"sweep.jobs={jobs}"]
    ledger = place / "s" / "sweep.jsonl"
    for _ in range(chance.choice([1, 1, 2])):
        group = counts.kills % 2 == 1
        pid = launch(command, place, real)
        if not kill_at(pid, chance.uniform(0, seconds), group):
            break
        counts.kills, counts.in_group = counts.kills + 1, counts.in_group + group
        counts.orphans += survivors(pid)
        begun, done = (len(list((place / "s").glob(f"*/{name}"))) for name in ("metrics.jsonl", "result.json"))
        counts.inside += begun > 0 and done < 6
        counts.before_ledger += not ledger.exists()
        command = ["resume", "s", f"sweep.jobs={jobs}"] if ledger.exists() else command
        real = False
    if code := finished(launch(command, place, real)):
        return [f"it ended with {code}"]
    return list_differences(place.parent / f"whole_{jobs}" / "s", place / "s")


def list_differences(reference: Path, other: Path) -> list[str]:
    """What differs between two sweep folders but for timings."""
    names = sorted(path.parent.name for path in reference.glob("*/result.json"))
    if names != sorted(path.parent.name for path in other.glob("*/result.json")):
        return ["the jobs"]
    results = [f"{name}: {what}" for name in names for what in differences(reference / name, other / name)]
    results += ["comparison.csv"] if table(reference) != table(other) else []
    return results + [f"{path.name} was left" for path in other.rglob("*.tmp")]


def table(sweep: Path) -> list[dict[str, str]]:
    """comparison.csv without the times."""
    with (sweep / "comparison.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(file)]


def main() -> int:
    """Torture both engines and print the counts; 1 when something is not equal, or a process was left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10, help="sweeps an engine")
    parser.add_argument("--commands", type=int, default=1, help="of them, as `python -m dlrun`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=80, help="of each run")
    options = parser.parse_args()
    words = [*WORDS, f"trainer.epochs={options.epochs}"]
    root, chance = Path(tempfile.mkdtemp(prefix="sweep_torture_")), random.Random(options.seed)
    prepare()
    differing = 0
    for jobs in (1, 2):
        counts, began = Counts(), time.perf_counter()
        reference = root / f"whole_{jobs}"
        reference.mkdir()
        if finished(launch([*words, f"sweep.jobs={jobs}"], reference, real=False)):
            print((reference / "output.txt").read_text())
            return 1
        seconds = time.perf_counter() - began
        for number in range(options.rounds):
            place = root / f"jobs_{jobs}_round_{number}"
            most = seconds * (1.5 if number < options.commands else 0.9)
            outcome = one_round(place, words, jobs, most, chance, counts, real=number < options.commands)
            counts.differences += bool(outcome)
            for line in outcome[:6]:
                print(f"  {place}: {line}", flush=True)
        print(f"sweep.jobs={jobs}: {options.rounds} sweeps, {counts}", flush=True)
        differing += counts.differences + counts.orphans
    if not differing:
        shutil.rmtree(root)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
