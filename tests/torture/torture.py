"""Kills runs and resumes them until they are done, and compares them with the same runs left alone.

A run is a process of its own that gets SIGKILL at moments uniform over the time that is left of it, or in the first
save after such a moment. Most are forked from this process, which has imported torch (an import costs seconds), and
call dlrun's command line; --commands of them are started as `python -m dlrun`.

python tests/torture/torture.py [--runs 100] [--commands 10] [--seed 0] [--jobs 2]
"""

import argparse
import gc
import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a pool of threads would not survive a fork
os.environ.pop("DLRUN_DATA_DIR", None)  # the names are made up here

import sklearn.datasets
import torch._inductor  # noqa: F401  (torch imports it at the first optimizer; here it is paid once)
from cases import draw, write_names
from comparison import differences

import dlrun.cli.main
import dlrun.experiment.run
from dlrun.config import compose

LEAST_KILLS = 3  # of a run that counts
LEAST_INSIDE = 0.2  # of all kills


@dataclass
class Outcome:
    """What happened to one run."""

    number: int
    words: list[str]
    kills: int = 0
    inside_save: int = 0
    before_first_save: int = 0
    resumes: int = 0
    differences: list[str] = field(default_factory=list)


@dataclass
class Alone:
    """The run that nobody killed."""

    folder: Path
    seconds: float  # wall time
    first_save: float  # seconds until its first checkpoint
    steps: int


def prepare() -> None:
    """Pay once what every forked process would pay again; no tensor is touched, so that no thread is started."""
    sklearn.datasets.load_digits()
    compose.compose_config([])
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every purge
    gc.collect()
    gc.freeze()


def launch(words: list[str], place: Path, real: bool) -> int:
    """Start dlrun in `place`; returns the process's id. What it says goes to output.txt there."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(place)
        output_file = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output_file, 1), os.dup2(output_file, 2)
        if real:
            os.execv(sys.executable, [sys.executable, "-m", "dlrun", *words])
        sys.argv = ["dlrun", *words]
        code = dlrun.cli.main.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def get_exit_code(pid: int) -> int | None:
    """The exit code of a process that has ended by itself."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def list_names(checkpoints: Path) -> set[str]:
    """The names in a folder that may not be there yet."""
    try:
        return set(os.listdir(checkpoints))  # noqa: PTH208  (several thousand times a second)
    except FileNotFoundError:
        return set()


def run_alone(words: list[str], place: Path, real: bool) -> Alone | str:
    """Run it to its end and time it; a string says how it failed."""
    started, first = time.perf_counter(), 0.0
    pid = launch([*words, "hydra.run.dir=whole"], place, real)
    while (code := get_exit_code(pid)) is None:
        if not first and list_names(place / "whole" / "checkpoints"):
            first = time.perf_counter() - started
        time.sleep(0.002)
    if code:
        return f"the run alone ended with {code}: {read_output(place)}"
    steps = json.loads((place / "whole" / "result.json").read_text())["steps"]
    return Alone(place / "whole", time.perf_counter() - started, first, steps)


def kill_or_get_code(pid: int, moment: float, checkpoints: Path, sign: str | None) -> int | None:
    """Kill the process after `moment` seconds; or, at the first new file after that whose name ends with `sign`.

    `.tmp`: a save has begun; `.pt`: it is whole under its name, but last.pt is not it yet. Returns None, or the exit
    code of a process that was done before.
    """
    until = time.perf_counter() + moment
    known: set[str] | None = None
    while (code := get_exit_code(pid)) is None:
        if time.perf_counter() < until:
            time.sleep(0.001)
            continue
        names = list_names(checkpoints) if sign else set()
        known = names if known is None else known
        if sign is None or any(name.endswith(sign) for name in names - known):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.0001)
    return code


def traces(checkpoints: Path) -> tuple[set[str], set[int]]:
    """What an unfinished save leaves: temporary files, and a newest checkpoint that last.pt does not name yet."""
    temporary = {name for name in list_names(checkpoints) if name.endswith(".tmp")}
    newest, last = max(checkpoints.glob("step_*.pt"), default=None), checkpoints / "last.pt"
    unlinked = newest is not None and not (last.exists() and newest.samefile(last))
    return temporary, {newest.stat().st_ino} if newest is not None and unlinked else set()


def time_left(reference: Alone, checkpoints: Path) -> float:
    """Seconds that a process started now should take at least: start-up, and the steps after the newest checkpoint."""
    newest = max(checkpoints.glob("step_*.pt"), default=None)
    share = 1.0 if newest is None else 1 - int(newest.stem.removeprefix("step_")) / reference.steps
    return 0.9 * (reference.first_save + share * (reference.seconds - reference.first_save))


def _free(place: Path) -> Iterator[str]:
    """Names of folders that are not there when asked for."""
    for i in itertools.count():
        if not (place / f"victim_{i}").exists():
            yield f"victim_{i}"


def torture(
    words: list[str], reference: Alone, place: Path, chance: random.Random, real: bool, outcome: Outcome
) -> Path:
    """Kill and resume one run until it is done; returns its folder. Fills in `outcome`."""
    wanted, names = outcome.kills + chance.choice([3, 3, 4, 5]), _free(place)
    name = next(names)
    command = [*words, f"hydra.run.dir={name}"]
    while True:
        checkpoints = place / name / "checkpoints"
        before = traces(checkpoints)
        pid = launch(command, place, real)
        moment = chance.uniform(0, time_left(reference, checkpoints)) if outcome.kills < wanted else 1e9
        sign = chance.choice([None, None, ".tmp", ".pt"])  # half of them anywhere, half of them in a save
        code = kill_or_get_code(pid, moment, checkpoints, sign)
        if code is not None:
            if code:
                outcome.differences.append(f"{' '.join(command)} ended with {code}: {read_output(place)}")
            return place / name
        outcome.kills += 1
        after = traces(checkpoints)
        outcome.inside_save += bool(after[0] - before[0] or after[1] - before[1])
        if any(checkpoints.glob("step_*.pt")):
            outcome.resumes, command = outcome.resumes + 1, ["resume", name]
        else:  # nothing to resume from; and dlrun does not start a run where another has begun
            name = next(names)
            outcome.before_first_save, command = outcome.before_first_save + 1, [*words, f"hydra.run.dir={name}"]


def one_run(number: int, seed: int, real: bool, root: Path) -> Outcome:
    """Alone, then killed at least LEAST_KILLS times, then compared; a run done too early is tortured once more."""
    words = draw(number, seed, longer=real)
    outcome = Outcome(number, words)
    place = root / f"run_{number}"
    place.mkdir()
    (place / "data").symlink_to(root / "data")
    reference = run_alone(words, place, real)
    if isinstance(reference, str):
        outcome.differences.append(reference)
        return outcome
    chance = random.Random(f"kills {seed} {number}")
    for _ in range(8):
        folder = torture(words, reference, place, chance, real, outcome)
        outcome.differences = outcome.differences or differences(reference.folder, folder)
        if outcome.differences or outcome.kills >= LEAST_KILLS:
            break
    if not outcome.differences:
        shutil.rmtree(place)
        if outcome.kills < LEAST_KILLS:
            outcome.differences.append(f"only {outcome.kills} kills: the run is done too soon")
    return outcome


def read_output(place: Path) -> str:
    return " | ".join((place / "output.txt").read_text().strip().splitlines()[-3:])


def main() -> int:
    """Torture so many runs, two at a time, and print the counts; 1 when anything is not equal."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--commands", type=int, default=10, help="of them, as `python -m dlrun`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    root, started, outcomes = Path(tempfile.mkdtemp(prefix="torture_")), time.perf_counter(), []
    write_names(root / "data")
    prepare()
    sys.stdout.flush()
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        numbers = range(options.runs)
        pending = [pool.submit(one_run, n, options.seed, n < options.commands, root) for n in numbers]
        for done in as_completed(pending):
            outcomes.append(done.result())
            if outcomes[-1].differences or len(outcomes) % 10 == 0:
                report(outcomes[-1], len(outcomes), options.runs, root)
    return summary(outcomes, options.commands, time.perf_counter() - started, root)


def report(outcome: Outcome, done: int, runs: int, root: Path) -> None:
    """A line on how far it is, and on a run that is not the same."""
    print(f"{done:>4} of {runs} runs", flush=True)
    if outcome.differences:
        print(f"     run {outcome.number} differs ({root}/run_{outcome.number}): dlrun {' '.join(outcome.words)}")
        for line in outcome.differences[:6]:
            print(f"       {line}", flush=True)


def summary(outcomes: list[Outcome], commands: int, seconds: float, root: Path) -> int:
    """Print the counts; returns the exit code."""
    kills, inside = sum(o.kills for o in outcomes), sum(o.inside_save for o in outcomes)
    early, resumes = sum(o.before_first_save for o in outcomes), sum(o.resumes for o in outcomes)
    differing = sum(bool(o.differences) for o in outcomes)
    share = inside / kills if kills else 0.0
    print(f"{len(outcomes)} runs ({min(commands, len(outcomes))} as python -m dlrun) in {seconds:.0f} s")
    print(f"{kills} kills, {min(o.kills for o in outcomes)} or more a run; {inside} inside a save ({share:.0%})")
    print(f"{early} before the first checkpoint, started again; {resumes} resumes; {differing} differences")
    if share < LEAST_INSIDE:
        print(f"too few kills were inside a save: the bar is {LEAST_INSIDE:.0%}")
    if not differing:
        shutil.rmtree(root)
    return int(differing > 0 or share < LEAST_INSIDE)


if __name__ == "__main__":
    sys.exit(main())
