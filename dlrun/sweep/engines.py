"""The interface of an engine, which runs the jobs of a sweep, and the engine that runs them one after the other."""

import contextlib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dlrun.config.request import Request
from dlrun.core import signals, user_code
from dlrun.core.errors import DlrunError
from dlrun.core.terminal import escape_text
from dlrun.experiment import run as experiment
from dlrun.runs.reports.console import Console
from dlrun.sweep.jobs import Job


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


class Engine(Protocol):
    """Runs jobs in any order and any place, so that job k of a sweep equals the same job alone."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """Run the jobs; returns 0, or the exit code of an interruption."""
        ...


class Serial:
    """Runs one job after the other in this process, whose state `device_session` restores after each."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """Run the jobs in order; returns 0, or the exit code of an interruption."""
        for job in jobs:
            watcher.on_job_start(job)
            outcome = run_request(job.request)
            is_continuing = watcher.on_job_end(job, outcome)

            # The watcher has recorded it, so that a resumed sweep trains it to its end.
            if outcome.is_interrupted:
                return outcome.code
            if not is_continuing:
                break
        return 0


def run_request(request: Request) -> Outcome:
    """Run one training without a terminal; whatever it raises becomes its outcome."""
    try:
        return Outcome(experiment.run(request, Console(quiet=True)))
    except DlrunError as error:
        return Outcome(error.exit_code, str(error))
    except KeyboardInterrupt as interrupt:
        # It came before there was a state to save: later ones are handled by the run itself.
        return Outcome(signals.get_interrupt_exit_code(interrupt))
    except (Exception, SystemExit) as error:
        # The user's own code may raise anything before the run has opened its log.
        if request.folder is not None:
            with contextlib.suppress(OSError):
                request.folder.mkdir(parents=True, exist_ok=True)
                with (request.folder / "run.log").open("a") as log:
                    log.write(escape_text("".join(traceback.format_exception(error))))

        # The sweep shows one line; the traceback is in the log.
        message = f"{type(error).__name__}: {user_code.get_first_line(error)}"
        return Outcome(1, user_code.explain(error) or message)
