"""The interface of an engine, which runs the jobs of a sweep, and the engine that runs them in this process."""

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from dlrun.config.request import Request
from dlrun.core import signals, user_code
from dlrun.core.errors import DlrunError
from dlrun.core.terminal import escape_text
from dlrun.engine.stack.comparison import compare_with_alone
from dlrun.experiment import run as experiment
from dlrun.experiment.callbacks.pruning import Pruner
from dlrun.experiment.stack import choice
from dlrun.experiment.stack.member import StackedRun
from dlrun.experiment.stack.stack import Stack, prepare_run
from dlrun.runs.reports.console import Console
from dlrun.sweep.jobs import Job
from dlrun.sweep.stacks import PreparedJobs, Unit


@dataclass(frozen=True)
class Outcome:
    """Exit code of a job, and its error in a sentence."""

    code: int
    error: str | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended the job, and with it the sweep."""
        return signals.is_interruption(self.code)


class Watcher(Protocol):
    """Callback of an engine."""

    def on_job_start(self, job: Job) -> None:
        """Called before a job runs."""
        ...

    def on_job_end(self, job: Job, outcome: Outcome) -> bool:
        """Called after a job has run; returns False to start no further job."""
        ...

    def note(self, text: str) -> None:
        """Called with a line for the user."""
        ...

    def on_pace_change(self, at_once: int) -> None:
        """Called when another number of units is run at a time from now on."""
        ...


class Engine(Protocol):
    """Runs units in any order and any place; a job alone equals the same job outside of a sweep."""

    def run(self, units: Sequence[Unit], watcher: Watcher) -> int:
        """Run the units; returns 0, or the exit code of an interruption."""
        ...


class Serial:
    """Runs one unit after the other in this process, whose state `device_session` restores after each job."""

    def __init__(self, prepared: PreparedJobs | None = None) -> None:
        """prepared: jobs that this process has built already."""
        self.prepared = prepared or PreparedJobs()
        # False once the watcher wants no further job.
        self.is_continuing = True

    def run(self, units: Sequence[Unit], watcher: Watcher) -> int:
        """Run the units in order; returns 0, or the exit code of an interruption."""

        def report(job: Job, outcome: Outcome) -> bool:
            self.is_continuing = watcher.on_job_end(job, outcome)
            return self.is_continuing

        for unit in units:
            for job in unit.open_jobs:
                watcher.on_job_start(job)
            code = run_unit(unit, report, watcher.note, self.prepared)

            # The watcher has recorded it, so that a resumed sweep trains it to its end.
            if code:
                return code
            if not self.is_continuing:
                break
        return 0


# Called with a job that has ended and its outcome; returns False to start no further job.
Report = Callable[[Job, Outcome], bool]


def run_unit(unit: Unit, report: Report, note: Callable[[str], None], prepared: PreparedJobs | None = None) -> int:
    """Run one job, or a stack of jobs; returns 0, or the exit code of an interruption."""
    if unit.file is None:
        return run_alone(unit.jobs, report)
    return _run_stack(unit, unit.file, report, note, prepared or PreparedJobs())


def run_alone(jobs: Sequence[Job], report: Report) -> int:
    """Run jobs one after the other; returns 0, or the exit code of an interruption."""
    for job in jobs:
        outcome = run_request(job.request, job.pruner)
        is_continuing = report(job, outcome)
        if outcome.is_interrupted:
            return outcome.code
        if not is_continuing:
            break
    return 0


def _run_stack(unit: Unit, file: Path, report: Report, note: Callable[[str], None], prepared: PreparedJobs) -> int:
    """Run jobs as one stack, and those that do not fit into it alone; returns 0, or an interruption's exit code."""
    open_keys = {job.key for job in unit.open_jobs}
    runs: list[StackedRun] = []
    jobs: list[Job] = []
    misfits: list[Job] = []
    for job in unit.jobs:
        try:
            preflight = runs[0].context.preflight if runs else None
            run = prepare_run(replace(job.request, key=job.key), prepared.take(job), preflight)
        except (Exception, SystemExit) as error:
            # The user's own code may raise anything. What a finished run raises now is no news.
            if job.key in open_keys:
                open_keys.discard(job.key)
                is_continuing = report(job, _make_outcome(job.request, error))
                if not is_continuing:
                    return 0
            continue

        obstacle = choice.find_obstacle(run.context) or choice.find_difference(runs, run)
        if obstacle is None:
            runs.append(run)
            jobs.append(job)
        elif job.key in open_keys:
            note(f"{job.label} trains alone: {obstacle}")
            misfits.append(job)

    is_continuing = True

    def report_run(number: int, code: int, error: BaseException | None) -> bool:
        nonlocal is_continuing
        job = jobs[number]
        open_keys.discard(job.key)
        is_continuing = report(job, Outcome(code) if error is None else _make_outcome(job.request, error))
        return is_continuing

    reason = compare_with_alone([run.member for run in runs]) if runs else None
    if reason is not None:
        note(f"not stacked: {reason}")
        misfits = [job for job in (*jobs, *misfits) if job.key in open_keys]
        runs = []
    if runs:
        recorded = [job.key not in open_keys for job in jobs]
        try:
            code = Stack(runs, file, recorded, report_run, note, unit.halving).train()
        except KeyboardInterrupt as interrupt:
            code = signals.get_interrupt_exit_code(interrupt)
        except Exception as error:
            # A layer of the user's own that cannot be stacked, or too little memory.
            note(f"the stack failed ({user_code.get_first_line(error)}); its runs train alone")
            file.unlink(missing_ok=True)
            misfits = [job for job in jobs if job.key in open_keys] + misfits
            code = 0
        if code:
            for job in [*jobs, *misfits]:
                if job.key in open_keys:
                    report(job, Outcome(code))
            return code
    return run_alone(misfits, report) if is_continuing else 0


def run_request(request: Request, pruner: Pruner | None = None) -> Outcome:
    """Run one training without a terminal; whatever it raises becomes its outcome."""
    try:
        return Outcome(experiment.run(request, Console(quiet=True), pruner))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # The user's own code may raise anything.
        return _make_outcome(request, error)


def _make_outcome(request: Request, error: BaseException) -> Outcome:
    """The outcome of a job that has raised an error; an unexpected one goes into the job's log."""
    if isinstance(error, DlrunError):
        return Outcome(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        # It came before there was a state to save: later ones are handled by the run itself.
        return Outcome(signals.get_interrupt_exit_code(error))

    # The user's own code may raise anything before the run has opened its log.
    if request.folder is not None:
        with contextlib.suppress(OSError):
            request.folder.mkdir(parents=True, exist_ok=True)
            with (request.folder / "run.log").open("a") as log:
                log.write(escape_text("".join(traceback.format_exception(error))))

    # The sweep shows one line; the traceback is in the log.
    message = f"{type(error).__name__}: {user_code.get_first_line(error)}"
    return Outcome(1, user_code.explain(error) or message)
