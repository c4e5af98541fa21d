"""What runs the jobs of a sweep: one interface, and the engine that runs them one after the other."""

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
    """What became of a job: the command's exit code, and what went wrong in a sentence."""

    code: int
    error: str | None = None

    @property
    def stopped(self) -> bool:
        """It was interrupted, and the sweep with it."""
        return signals.is_stopped(self.code)


class Watcher(Protocol):
    """Who is told how the jobs get on."""

    def started(self, job: Job) -> None:
        """A job begins."""
        ...

    def ended(self, job: Job, outcome: Outcome) -> bool:
        """A job has ended; False ends the sweep."""
        ...


class Engine(Protocol):
    """Runs jobs somewhere, in any order, each in a state of its own: job k equals the same job alone."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """0, or the exit code of who was interrupted."""
        ...


class Serial:
    """One after the other in this process, whose state runtime.session puts back after each."""

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> int:
        """See Engine."""
        for job in jobs:
            watcher.started(job)
            outcome = run_request(job.request)
            goes_on = watcher.ended(job, outcome)
            if outcome.stopped:
                return outcome.code
            if not goes_on:
                break
        return 0


def run_request(request: Request) -> Outcome:
    """One run without a terminal; whatever goes wrong in it stays in it."""
    try:
        return Outcome(experiment.run(request, Console(quiet=True)))
    except DlrunError as error:
        return Outcome(error.exit_code, str(error))
    except KeyboardInterrupt as stopped:  # before there was anything to save
        return Outcome(signals.code_of(stopped))
    except (Exception, SystemExit) as error:  # of the user's own code, before the run began
        if request.folder is not None:
            with contextlib.suppress(OSError):
                request.folder.mkdir(parents=True, exist_ok=True)
                with (request.folder / "run.log").open("a") as log:
                    log.write(escape_text("".join(traceback.format_exception(error))))
        message = f"{type(error).__name__}: {user_code.first_line(error)}"
        return Outcome(1, user_code.explain(error) or message)
