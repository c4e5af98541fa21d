"""`dlrun check resume`: compare a run that is killed and resumed with the same run left alone."""

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

from dlrun.config.request import Request
from dlrun.config.settings import read_settings
from dlrun.core.errors import RequestError, RunError
from dlrun.core.own_code import find_own_modules
from dlrun.engine.device import device_session
from dlrun.engine.object_state import find_difference
from dlrun.experiment.checks.one_run import parse_one_run
from dlrun.experiment.hidden_state.comparison import NOT_SAVED
from dlrun.experiment.setup import prepare
from dlrun.runs import checkpoint
from dlrun.runs.record import FINGERPRINTS, METRICS, RESULT, read_result
from dlrun.runs.reports.console import Console, build_table
from dlrun.runs.tensorboard import read_scalars

KILLS = 3

# More than _MOST_EPOCHS only to reach _FEW_STEPS.
_MOST_EPOCHS = 3
_MOST_STEPS = 60
_FEW_STEPS = 30

# A kill in each quarter but the last.
_LEAST_STEPS = 4

# Saves in the middle of epochs, over the whole training.
_SAVES = 10

# Seconds from a save to a kill that is not meant to hit one.
_LONGEST_WAIT = 0.02

# A training of milliseconds may end before it is killed: then another one is started.
_ROUNDS = 3

# Keys of result.json that differ between equal runs.
_TIMED = ("train_seconds", "samples_per_second")

# A checkpoint, or with a dot in front the temporary file of one that is being written.
_STEP_FILE = re.compile(r"(\.?)step_(\d+)\.pt")


@dataclass(frozen=True)
class Plan:
    """The training that both runs make."""

    # Words of its command line, without the folder.
    words: list[str]

    # Arguments that `dlrun resume` needs besides.
    trust: list[str]

    steps: int


def check_resume(words: list[str], seed: int | None = None) -> int:
    """Train what a command line chooses twice, once killed and resumed; returns 0 if all is equal, else 1.

    Each is a process of its own, shortened to a few epochs, in a temporary folder. seed: of the moments of the kills.
    Prints one table. Raises RequestError for several runs, or too short a one; RunError when the training itself
    fails.
    """
    request = parse_one_run(words, "resume")
    if request is None:
        return 0

    plan = plan_training(words, request)
    console = Console()
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    # All kills so far, and those that hit a save.
    killed = 0
    inside = 0
    verdicts: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="dlrun-check-resume-") as place:
        reference = Path(place) / "uninterrupted"
        wait_for_end(start_process(plan, reference), reference)
        unsaved = [note for note in read_result(reference / RESULT)["warnings"] if NOT_SAVED in note]

        for i in range(_ROUNDS):
            folder = Path(place) / f"killed_{i}"
            kills = _train_with_kills(plan, folder, draw)
            killed += len(kills)
            inside += sum(kills)
            for name, is_equal in compare_folders(reference, folder).items():
                verdicts[name] = is_equal and verdicts.get(name, True)
            if killed >= KILLS:
                break

    kills_line = f"{killed} kills, {inside} of them inside a save; seed of the moments: {seed}"
    code = print_verdict(console, verdicts, plan, kills_line, killed)
    for note in unsaved:
        console.say(f"note: {note}")
    return code


def plan_training(words: list[str], request: Request) -> Plan:
    """Shorten the user's choice: it saves often, and leaves out what takes time and is not compared."""
    settings = read_settings(request.config, request.choices)
    trainer = settings.trainer
    with device_session(settings.device, settings.seed) as runtime:
        batches = len(prepare(settings, runtime, request.trusted_modules).state.train)

    steps_per_epoch = math.ceil(batches / trainer.accumulate_steps)
    most_epochs = max(_MOST_EPOCHS, math.ceil(_FEW_STEPS / steps_per_epoch))
    epochs = min(trainer.limit_epochs(steps_per_epoch), most_epochs)

    # A few epochs, of a few steps each.
    short = [f"trainer.epochs={epochs}", "figures=false", "tracking.graph=false", "expect=[]", "strict=false"]
    if epochs * steps_per_epoch > _MOST_STEPS:
        steps_per_epoch = _MOST_STEPS // epochs
        short.append(f"data.limit_batches={steps_per_epoch * trainer.accumulate_steps}")

    steps = min(epochs * steps_per_epoch, trainer.max_steps or epochs * steps_per_epoch)
    if steps < _LEAST_STEPS:
        raise RequestError(
            f"a training of {steps} step{'s' if steps > 1 else ''} is too short to be killed in between; "
            f"type trainer.epochs={math.ceil(_LEAST_STEPS / steps_per_epoch)} or more"
        )

    # `dlrun resume` trusts no module of the user's that its command line does not name.
    own_modules = find_own_modules(settings.plain)
    trust = [f"trusted_modules=[{','.join(own_modules)}]"] if own_modules else []
    short += [f"checkpoint.every_steps={max(steps // _SAVES, 1)}", "checkpoint.every_epochs=1"]
    return Plan([*words, *short], trust, steps)


def start_process(plan: Plan, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that trains in `folder`, or resumes there; its stderr goes into a file beside the folder."""
    words = [*plan.words, f"hydra.run.dir={folder}"]
    if folder.exists():
        words = ["resume", str(folder), *plan.trust]
    with _get_stderr_file(folder).open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "dlrun", *words], stdout=subprocess.DEVNULL, stderr=file)


def _get_stderr_file(folder: Path) -> Path:
    return folder.with_suffix(".stderr")


def wait_for_end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end of a training; RunError with its last words when it failed."""
    try:
        code = process.wait()
    except BaseException:  # it is raised again
        process.kill()
        raise
    if code:
        lines = _get_stderr_file(folder).read_text().strip().splitlines() or ["no message"]
        raise RunError(f"a training that was to be compared ended with exit code {code}: {lines[-1]}")


def _train_with_kills(plan: Plan, folder: Path, draw: random.Random) -> list[bool]:
    """Train in `folder` to the end, killed once in each quarter but the last.

    Returns for each kill whether it hit a save.
    """
    kills: list[bool] = []
    for quarter in range(KILLS):
        first_step = plan.steps * quarter // (KILLS + 1) + 1
        last_step = plan.steps * (quarter + 1) // (KILLS + 1)
        step = draw.randint(first_step, last_step)

        process = start_process(plan, folder)
        # In the second quarter the kill comes between two saves, in the others inside one.
        wait = draw.uniform(0, _LONGEST_WAIT) if quarter % 2 else None
        if not kill(process, folder / "checkpoints", step, wait):
            wait_for_end(process, folder)
            return kills
        # A save that was hit leaves its temporary file.
        kills.append(any((folder / "checkpoints").glob(".*.tmp")))

    wait_for_end(start_process(plan, folder), folder)
    return kills


def kill(process: subprocess.Popen[bytes], checkpoints: Path, step: int, wait: float | None) -> bool:
    """Kill a process while it saves `step` or a later one, or `wait` seconds after; False when it ended before.

    The first save is let through: without any checkpoint there would be nothing to resume.
    """
    try:
        while process.poll() is None:
            if _is_time_to_kill(checkpoints, step, after_save=wait is not None):
                time.sleep(wait or 0.0)
                process.kill()
                return process.wait() < 0
            time.sleep(0.0002)
        return False
    except BaseException:  # it is raised again
        process.kill()
        raise


def _is_time_to_kill(checkpoints: Path, step: int, after_save: bool) -> bool:
    """Whether there is a checkpoint to resume, and a save of `step` or later is under way (`after_save`: or done)."""
    paths = checkpoints.iterdir() if checkpoints.exists() else []
    has_checkpoint = False
    is_reached = False
    for path in paths:
        match = _STEP_FILE.match(path.name)
        if match is None:
            continue
        is_partial = match[1] == "."
        has_checkpoint = has_checkpoint or not is_partial
        if int(match[2]) >= step and (is_partial or after_save):
            is_reached = True
    return has_checkpoint and is_reached


def compare_folders(reference: Path, killed: Path) -> dict[str, bool]:
    """Compare what two runs left behind: for each part by name whether it is equal."""
    results = []
    for folder in (reference, killed):
        result = read_result(folder / RESULT)
        results.append({key: value for key, value in result.items() if key not in _TIMED})
    one, two = results

    verdicts = {"weights (sha256)": one["weights_sha256"] == two["weights_sha256"]}
    for name in (METRICS, FINGERPRINTS):
        verdicts[f"{name} (bytes)"] = (reference / name).read_bytes() == (killed / name).read_bytes()
    verdicts["TensorBoard scalars (without time/)"] = read_scalars(reference) == read_scalars(killed)
    verdicts["best checkpoint (weights)"] = find_difference(_load_best(reference), _load_best(killed)) is None
    verdicts[f"{RESULT} (without timings)"] = one == two
    return verdicts


def _load_best(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "best.pt"
    return dict(checkpoint.load(path)["model"]) if path.exists() else {}


def print_verdict(console: Console, verdicts: dict[str, bool], plan: Plan, kills: str, killed: int) -> int:
    """Print the table and the verdict; returns the exit code."""
    console.say(f"one training of {plan.steps} steps left alone, and one killed and resumed: {kills}")
    rows = []
    for name, is_equal in verdicts.items():
        rows.append((name, "equal" if is_equal else "DIFFERENT"))
    console.say(build_table(("compared", "verdict"), rows, left=2))

    if not all(verdicts.values()):
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
