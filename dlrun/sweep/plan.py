"""Check all jobs of a sweep and print the plan, before the first one trains."""

import contextlib
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from dlrun.config import schema
from dlrun.config.overrides import get_key
from dlrun.config.settings import read_settings
from dlrun.core.errors import ErrorList, MultipleErrors, RequestError, UnavailableError
from dlrun.core.library_warnings import divert_warnings
from dlrun.engine.device import count_cores
from dlrun.experiment.context import RunContext
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.runs.reports.console import Console, format_facts
from dlrun.sweep.jobs import Job, has_own_code
from dlrun.sweep.process_engine import Parallel


def check_jobs(
    jobs: Sequence[Job],
    on_start: Callable[[Job], None] | None = None,
    on_end: Callable[[Job, RunContext], None] | None = None,
) -> dict[str, str]:
    """Build every job once; returns, by job key, why the data of a job cannot be had.

    on_start: called with each job before it is built; on_end: with what it is made of. RequestError lists all that is
    wrong. Missing data cost their own jobs only, unless all jobs miss theirs.
    """
    errors = ErrorList()
    missing_data: dict[str, str] = {}
    labels_by_message: dict[str, list[str]] = {}
    passed = set[str]()
    for job in jobs:
        # Before the job is built: if that ends the process, this name is the last that the parent has heard.
        if on_start is not None:
            on_start(job)

        job_errors = ErrorList()
        settings = read_settings(job.request.config, job.request.choices, job_errors)
        subject = _describe_subject(job)
        if subject in passed:
            # Batches went through such a model already. The job itself repeats it before its first step.
            settings = replace(settings, preflight=False)
        try:
            with contextlib.ExitStack() as resources:
                runtime = enter_device_session(resources, settings, job_errors)
                context = prepare(settings, runtime, job.request.trusted_modules, job_errors)
                passed.add(subject)
                if on_end is not None:
                    on_end(job, context)
        except UnavailableError as error:
            missing_data[job.key] = str(error)
        except SystemExit:
            # The user's own code exits. The job will fail by itself when it runs, and say why.
            continue
        except RequestError as error:
            for part in error.errors if isinstance(error, MultipleErrors) else [error]:
                labels_by_message.setdefault(str(part), []).append(job.label)

    # An error that not all jobs have says whose it is.
    for message, labels in labels_by_message.items():
        if len(labels) < len(jobs) and not message.startswith(labels[0]):
            more = f" (and {len(labels) - 1} more like it)" if len(labels) > 1 else ""
            message = f"{labels[0]}{more}: {message}"
        errors.add(RequestError(message))
    errors.raise_if_any()

    # Nothing would be left to run: refuse the sweep as a whole.
    if missing_data and len(missing_data) == len(jobs):
        raise RequestError(next(iter(missing_data.values())))
    return missing_data


def _describe_subject(job: Job) -> str:
    """What the preflight of a job looks at, as text: jobs that share it differ in their seeds and rates alone."""
    config = dict(job.request.config)
    config["optimizer"] = {key: value for key, value in config["optimizer"].items() if key != "lr"}
    # The user's own code may do with its seed what it likes.
    ignored = () if has_own_code(job) else ("seed",)
    return json.dumps({key: value for key, value in config.items() if key not in ignored}, sort_keys=True, default=str)


@dataclass(frozen=True)
class CheckOutcome:
    """What `check_jobs` returned, raised or died of in another process."""

    # By job key.
    missing_data: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    # Which job ended the process, and how.
    death: str | None = None


def check_in_process(jobs: Sequence[Job], engine: Parallel) -> CheckOutcome:
    """Check jobs in a process of their own, which their code may end; RequestError lists all that is wrong."""
    process, results = engine.start_process(_send_check, list(jobs))
    label = ""
    try:
        # The process sends the label of each job before it builds it, and the result at the end.
        while True:
            message = results.recv()
            if isinstance(message, CheckOutcome):
                break
            label = str(message)
    except (EOFError, OSError):
        # The pipe broke before a result: the job whose label came last has ended the process.
        process.join()
        code = process.exitcode or 0
        cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return CheckOutcome(death=f"{label} ended the process that tried it ({cause})")
    finally:
        results.close()
        # Dead or not: code of the user's own may have left threads that keep it alive.
        process.kill()
        process.join()

    if message.error is not None:
        raise RequestError(message.error)
    return message


def _send_check(jobs: Sequence[Job], results: Connection) -> None:
    try:
        # Warnings are dropped here: each job writes them to its own log when it runs.
        with divert_warnings(lambda text: None):
            missing_data = check_jobs(jobs, lambda job: results.send(job.label))
            results.send(CheckOutcome(missing_data))
    except RequestError as error:
        results.send(CheckOutcome(error=str(error)))


def print_plan(
    console: Console,
    folder: Path,
    jobs: Sequence[Job],
    unfinished: Sequence[Job],
    at_once: int,
    notes: Sequence[str],
    place: str = "",
) -> None:
    """Print what will be run, how many at a time and where, and the notes; place: of a cluster."""
    settings = set[tuple[str, ...]]()
    for job in jobs:
        settings.add(tuple(word for word in job.request.overrides if _is_part_of_setting(word)))

    # "12 runs: 4 settings × 3 seeds, 5 of them finished before"
    text = f"{len(jobs)} runs"
    seeds, rest = divmod(len(jobs), len(settings))
    if seeds > 1:
        text += f": {len(settings)} setting{'s' * (len(settings) > 1)}"
        if not rest:
            text += f" × {seeds} seeds"
    if len(unfinished) < len(jobs):
        text += f", {len(jobs) - len(unfinished)} of them finished before"

    if not unfinished:
        pace = "nothing is left to do"
    elif place:
        pace = place
    elif at_once == 1:
        pace = "one at a time"
    else:
        threads = max(1, count_cores() // at_once)
        pace = f"{at_once} at a time, {threads} thread{'s' * (threads > 1)} each"

    console.say(format_facts([("sweep", f"{text}; {pace}"), ("sweep folder", str(folder))]))
    for note in notes:
        console.say(f"note: {note}")
    console.say()


def _is_part_of_setting(word: str) -> bool:
    """Whether an override is part of a setting: not the seed, nor what config_hash leaves out except the device."""
    key = get_key(word)
    is_in_identity = key.split(".")[0] not in schema.NOT_IDENTITY
    return key != "seed" and (is_in_identity or key.startswith("device"))
