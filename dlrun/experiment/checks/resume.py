"""`dlrun check resume`: a run that is killed and resumed, against the same run left alone, on the user's own choice."""

import math
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlrun.config import schema
from dlrun.config.request import Request
from dlrun.core.errors import RequestError, RunError
from dlrun.core.own_code import own_modules
from dlrun.engine.device import device_session
from dlrun.engine.object_state import find_difference
from dlrun.experiment.checks.gradients import parse_one_run
from dlrun.experiment.hidden_state.comparison import NOT_SAVED
from dlrun.experiment.setup import prepare
from dlrun.runs import checkpoint
from dlrun.runs.events import scalars
from dlrun.runs.record import FINGERPRINTS, METRICS, RESULT, read_result
from dlrun.runs.reports.console import Console, table

KILLS = 3
_MOST_EPOCHS, _MOST_STEPS, _FEW_STEPS = 3, 60, 30  # more than _MOST_EPOCHS only to come to _FEW_STEPS
_LEAST_STEPS = 4  # a kill in each quarter but the last
_SAVES = 10  # in the middle of epochs, over the whole training
_LONGEST_WAIT = 0.02  # seconds from a save to a kill that is not meant to hit one
_ROUNDS = 3  # a training of milliseconds may end before it is killed: then it is begun again
_TIMED = ("train_seconds", "samples_per_second")
_STEP = re.compile(r"(\.?)step_(\d+)\.pt")


@dataclass(frozen=True)
class Plan:
    """The training that is made twice."""

    words: list[str]  # of its command line, but for the folder
    trust: list[str]  # what `dlrun resume` needs besides
    steps: int


def check_resume(words: list[str], seed: int | None = None) -> int:
    """Train what a command line chooses twice, once killed and resumed; returns 0 if all is equal, else 1.

    Each is a process of its own, shortened to a few epochs, in a temporary folder. seed: of the moments of the kills.
    Prints one table. RequestError for several runs, or too short a one; RunError when the training itself fails.
    """
    asked = parse_one_run(words, "resume")
    if asked is None:
        return 0
    plan, console = plan_training(words, asked), Console()
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    draw, killed, inside = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="dlrun-check-resume-") as place:
        whole, same = Path(place) / "whole", dict[str, bool]()
        wait_for_end(start_process(plan, whole), whole)
        unsaved = [note for note in read_result(whole / RESULT)["warnings"] if NOT_SAVED in note]
        for i in range(_ROUNDS):
            folder = Path(place) / f"killed_{i}"
            kills = train_with_kills(plan, folder, draw)
            killed, inside = killed + len(kills), inside + sum(kills)
            same = {k: equal and same.get(k, True) for k, equal in compare_folders(whole, folder).items()}
            if killed >= KILLS:
                break
    kills_line = f"{killed} kills, {inside} of them inside a save; seed of the moments: {seed}"
    code = print_verdict(console, same, plan, kills_line, killed)
    for note in unsaved:
        console.say(f"note: {note}")
    return code


def plan_training(words: list[str], asked: Request) -> Plan:
    """The user's choice, shortened, saving often, and without what takes time and is not compared."""
    settings = schema.read(asked.config, asked.choices)
    trainer = settings.rest.trainer
    with device_session(settings.rest.device, settings.rest.seed) as process:
        batches = len(prepare(settings, process, asked.trusted_modules).training.train)
    per_epoch = math.ceil(batches / trainer.accumulate_steps)
    epochs = min(trainer.limit_epochs(per_epoch), max(_MOST_EPOCHS, math.ceil(_FEW_STEPS / per_epoch)))
    short = [f"trainer.epochs={epochs}", "figures=false", "tracking.graph=false", "expect=[]", "strict=false"]
    if epochs * per_epoch > _MOST_STEPS:
        per_epoch = _MOST_STEPS // epochs
        short.append(f"data.limit_batches={per_epoch * trainer.accumulate_steps}")
    steps = min(epochs * per_epoch, trainer.max_steps or epochs * per_epoch)
    if steps < _LEAST_STEPS:
        raise RequestError(
            f"a training of {steps} step{'s' if steps > 1 else ''} is too short to be killed in between; "
            f"type trainer.epochs={math.ceil(_LEAST_STEPS / per_epoch)} or more"
        )
    own = own_modules(settings.plain)
    trust = [f"trusted_modules=[{','.join(own)}]"] if own else []
    short += [f"checkpoint.every_steps={max(steps // _SAVES, 1)}", "checkpoint.every_epochs=1"]
    return Plan([*words, *short], trust, steps)


def start_process(plan: Plan, folder: Path) -> subprocess.Popen[bytes]:
    """A process that trains in `folder`, or goes on there; what it complains of goes into a file beside it."""
    words = [*plan.words, f"hydra.run.dir={folder}"] if not folder.exists() else ["resume", str(folder), *plan.trust]
    with _complaints(folder).open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "dlrun", *words], stdout=subprocess.DEVNULL, stderr=file)


def _complaints(folder: Path) -> Path:
    return folder.with_suffix(".stderr")


def wait_for_end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end of a training; RunError with its last words when it failed."""
    try:
        code = process.wait()
    except BaseException:  # it is raised again
        process.kill()
        raise
    if code:
        said = _complaints(folder).read_text().strip().splitlines() or ["no message"]
        raise RunError(f"a training that was to be compared ended with exit code {code}: {said[-1]}")


def train_with_kills(plan: Plan, folder: Path, draw: random.Random) -> list[bool]:
    """Train in `folder` to the end, killed once in each quarter but the last; says of each kill if it hit a save."""
    kills: list[bool] = []
    for quarter in range(KILLS):
        step = draw.randint(plan.steps * quarter // (KILLS + 1) + 1, plan.steps * (quarter + 1) // (KILLS + 1))
        process = start_process(plan, folder)
        wait = draw.uniform(0, _LONGEST_WAIT) if quarter % 2 else None
        if not kill(process, folder / "checkpoints", step, wait):
            wait_for_end(process, folder)
            return kills
        kills.append(any((folder / "checkpoints").glob(".*.tmp")))
    wait_for_end(start_process(plan, folder), folder)
    return kills


def kill(process: subprocess.Popen[bytes], checkpoints: Path, step: int, wait: float | None) -> bool:
    """Kill a process while it saves `step` or a later one, or `wait` seconds after; False when it ended before.

    The first save is let through: without any checkpoint there would be nothing to resume.
    """
    try:
        while process.poll() is None:
            found = [_STEP.match(path.name) for path in checkpoints.iterdir()] if checkpoints.exists() else []
            files = [(m[1] == ".", int(m[2])) for m in found if m]
            whole = any(not half for half, _ in files)
            if whole and any(number >= step and (half or wait is not None) for half, number in files):
                time.sleep(wait or 0.0)
                process.kill()
                return process.wait() < 0
            time.sleep(0.0002)
        return False
    except BaseException:  # it is raised again
        process.kill()
        raise


def compare_folders(whole: Path, found: Path) -> dict[str, bool]:
    """Whether each part of what two runs left behind is equal."""
    results = [read_result(run / RESULT) for run in (whole, found)]
    one, two = ({k: v for k, v in result.items() if k not in _TIMED} for result in results)
    return {
        "weights (sha256)": one["weights_sha256"] == two["weights_sha256"],
        f"{METRICS} (bytes)": (whole / METRICS).read_bytes() == (found / METRICS).read_bytes(),
        f"{FINGERPRINTS} (bytes)": (whole / FINGERPRINTS).read_bytes() == (found / FINGERPRINTS).read_bytes(),
        "TensorBoard scalars (without time/)": scalars(whole) == scalars(found),
        "best checkpoint (weights)": find_difference(_best(whole), _best(found)) is None,
        f"{RESULT} (without timings)": one == two,
    }


def _best(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "best.pt"
    return dict(checkpoint.load(path)["model"]) if path.exists() else {}


def print_verdict(console: Console, same: dict[str, bool], plan: Plan, kills: str, killed: int) -> int:
    """The table and the verdict; returns the exit code."""
    console.say(f"one training of {plan.steps} steps left alone, and one killed and resumed: {kills}")
    console.say(table(("compared", "verdict"), [(k, "equal" if v else "DIFFERENT") for k, v in same.items()], left=2))
    if not all(same.values()):
        hint = " (on CUDA type device.deterministic=true)" if torch.cuda.is_available() else ""
        console.say(f"a resumed run is not the same run{hint}")
        return 1
    if killed < KILLS:
        console.say(
            f"all is equal, but the training ended too soon to be killed {KILLS} times; type more trainer.epochs"
        )
        return 1
    console.say("the same run, to the last bit")
    return 0
