"""What a sweep is going to do: every job checked, and said before the first one trains."""

import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from dlrun.config import schema
from dlrun.core.errors import RequestError, UnavailableError
from dlrun.core.library_warnings import diverted
from dlrun.core.problems import ErrorList
from dlrun.engine.device import cores
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.runs.reports.console import Console, clock, facts
from dlrun.sweep.jobs import Job, parse_key
from dlrun.sweep.process_engine import Parallel


def check_jobs(jobs: Sequence[Job], begin: Callable[[Job], None] | None = None) -> dict[str, str]:
    """Build every job once; returns why data cannot be had, by the key of the job.

    begin: called with each job before it is built. RequestError with all that is wrong. Data that are not there cost
    their jobs only, unless nothing else is left.
    """
    problems = ErrorList()
    lacking: dict[str, str] = {}
    labels_of: dict[str, list[str]] = {}  # the jobs that have a problem, by its sentence
    for job in jobs:
        if begin is not None:
            begin(job)
        own_problems = ErrorList()
        settings = schema.read(job.request.config, job.request.choices, own_problems)
        try:
            with contextlib.ExitStack() as held:
                process = enter_device_session(held, settings, own_problems)
                prepare(settings, process, job.request.trusted_modules, own_problems)
        except UnavailableError as error:
            lacking[job.key] = str(error)
        except SystemExit:
            # Code of the user's own. The job fails by itself when it runs, and says why.
            continue
        except RequestError as error:
            for each in getattr(error, "found", [error]):
                labels_of.setdefault(str(each), []).append(job.label)

    for message, labels in labels_of.items():
        if len(labels) < len(jobs) and not message.startswith(labels[0]):
            more = f" (and {len(labels) - 1} more like it)" if len(labels) > 1 else ""
            message = f"{labels[0]}{more}: {message}"
        problems.add(RequestError(message))
    problems.settle()
    if lacking and len(lacking) == len(jobs):
        raise RequestError(next(iter(lacking.values())))
    return lacking


@dataclass(frozen=True)
class Checked:
    """What checking the jobs of a sweep in another process came to."""

    lacking: dict[str, str] = field(default_factory=dict)  # why data cannot be had, by the key of the job
    wrong: str | None = None
    death: str | None = None  # which job ended the process, and how


def check_in_process(jobs: Sequence[Job], engine: Parallel) -> Checked:
    """Check jobs in a process that their code may end without ending the sweep; RequestError with all that is wrong."""
    process, answers = engine.start_process(_send_check, list(jobs))
    tried = ""
    try:
        while True:
            answer = answers.recv()
            if isinstance(answer, Checked):
                break
            tried = str(answer)
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return Checked(death=f"{tried} ended the process that tried it ({how})")
    finally:
        answers.close()
        process.kill()
        process.join()
    if answer.wrong is not None:
        raise RequestError(answer.wrong)
    return answer


def _send_check(jobs: Sequence[Job], answers: Connection) -> None:
    """Run in the other process: send the label of each job before it is built, and what all came to."""
    try:
        with diverted(lambda text: None):  # the job says it in its own log
            answers.send(Checked(check_jobs(jobs, lambda job: answers.send(job.label))))
    except RequestError as error:
        answers.send(Checked(wrong=str(error)))


def print_plan(
    console: Console, folder: Path, jobs: Sequence[Job], waiting: Sequence[Job], at_once: int, notes: Sequence[str]
) -> None:
    """Print what will be run, and where it lies."""
    settings = {tuple(w for w in job.request.overrides if _tells_settings_apart(w)) for job in jobs}
    each, rest = divmod(len(jobs), len(settings))
    of_each = f" × {each} seeds" if not rest else ""
    seeds = f": {len(settings)} setting{'s' * (len(settings) > 1)}{of_each}" if each > 1 else ""
    done = len(jobs) - len(waiting)
    finished = f", {done} of them finished before" if done else ""
    threads = max(1, cores() // at_once)
    how = "one at a time" if at_once == 1 else f"{at_once} at a time, {threads} thread{'s' * (threads > 1)} each"
    if not waiting:
        how = "nothing is left to do"
    console.say(facts([("sweep", f"{len(jobs)} runs{seeds}{finished}; {how}"), ("sweep folder", str(folder))]))
    for note in notes:
        console.say(f"note: {note}")
    console.say()


def _tells_settings_apart(word: str) -> bool:
    """Whether a word is part of a setting, which seeds and what config_hash leaves out are not."""
    key = parse_key(word)
    return key != "seed" and (key.split(".")[0] not in schema.NOT_IDENTITY or key.startswith("device"))


def format_duration(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def format_size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
