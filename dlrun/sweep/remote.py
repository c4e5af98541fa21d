"""Jobs on the machines of a cluster, which share the sweep's folder: what the engines of Ray and Slurm share."""

import os
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch

from dlrun.core import lock, signals
from dlrun.core.errors import DlrunError
from dlrun.core.search_path import drop_child_flag
from dlrun.sweep.attempts import Attempt, RemoteJob, open_attempt, write_progress
from dlrun.sweep.continuation import prepare_job
from dlrun.sweep.engines import Outcome, Watcher, run_request
from dlrun.sweep.jobs import Job
from dlrun.sweep.stacks import Unit

# A job whose machine died so often may be the reason.
_MOST_LOSSES = 3
# A machine that is cut off may continue to write for a while.
_LOCK_SECONDS = 60.0
# A job that has not begun is told to stop again after so many seconds.
_REPEAT_SECONDS = 10.0


# On the machine that runs the job


def run_remote_job(remote: RemoteJob) -> int | str:
    """Run the job from its newest checkpoint; returns its exit code, or why this machine cannot run it."""
    if not remote.file.is_file() or not remote.working_directory.is_dir():
        return f"{socket.gethostname()} does not see {remote.file.parent.parent}"

    drop_child_flag()
    os.chdir(remote.working_directory)
    if str(remote.working_directory) not in sys.path:
        sys.path.append(str(remote.working_directory))
    torch.set_num_threads(remote.threads)
    write_progress(remote.file, {"began": os.getpid(), "host": socket.gethostname()})

    outcome = _run_interruptibly(remote.job)
    write_progress(remote.file, {"code": outcome.code, "error": outcome.error})
    return outcome.code


def _run_interruptibly(job: Job) -> Outcome:
    try:
        with signals.raise_on_signals():
            until = time.monotonic() + _LOCK_SECONDS
            while lock.is_locked(job.folder) and time.monotonic() < until:
                time.sleep(0.2)
            return run_request(prepare_job(job).request, job.pruner)
    except KeyboardInterrupt as interrupt:
        # The signal came before the run handled signals itself.
        return Outcome(signals.get_interrupt_exit_code(interrupt))
    except (DlrunError, OSError) as error:
        # A damaged run folder costs its own job only.
        return Outcome(1, str(error))


# On the machine of the sweep


class Remote(ABC):
    """Hands jobs to a cluster, listens to them, and hands those in again that were lost with their machine."""

    # Signals that end the sweep's process, while the jobs run on.
    leaving_signals: tuple[int, ...] = ()

    def __init__(self, folder: Path, threads: int, at_once: int | None) -> None:
        """folder: of the sweep; threads: of a job; at_once: jobs that the cluster has at most; None for all."""
        self.folder = folder
        self.threads = threads
        self.at_once = at_once
        # By job key, how often it has ended without a result.
        self.losses: dict[str, int] = {}

    @abstractmethod
    def submit(self, attempts: Sequence[Attempt], watcher: Watcher) -> None:
        """Hand attempts to the cluster, and set their handles."""

    @abstractmethod
    def collect_ended(self, attempts: Sequence[Attempt], watcher: Watcher) -> list[tuple[Attempt, str]]:
        """Wait a moment; returns the attempts that have ended, each with why, in case that it did not say so."""

    @abstractmethod
    def stop(self, attempt: Attempt) -> None:
        """Have a running job save and end, and a queued one not begin."""

    @abstractmethod
    def describe(self) -> str:
        """Where jobs run, for the plan."""

    @abstractmethod
    def close(self) -> None:
        """Leave the cluster."""

    def count_at_once(self, jobs: int) -> int:
        """Number of jobs, out of `jobs`, that run at a time, as far as it is known."""
        return max(1, min(jobs, self.at_once or jobs))

    def attach(self, jobs: Sequence[Job]) -> list[Attempt]:
        """The attempts of an earlier process of the sweep that are still queued or running."""
        return []

    def run(self, units: Sequence[Unit], watcher: Watcher) -> int:
        """Run the units, each of one job; returns 0, or the exit code of an interruption."""
        jobs = [job for unit in units for job in unit.open_jobs]
        begun = set[str]()
        is_continuing = True

        def begin(job: Job) -> None:
            if job.key not in begun:
                begun.add(job.key)
                watcher.on_job_start(job)

        with signals.catch_signals() as stop:
            running = self.attach(jobs)
            attached = {attempt.job.key for attempt in running}
            waiting = [job for job in jobs if job.key not in attached]
            while running or waiting:
                if stop() or not is_continuing:
                    waiting = []
                    if stop.signal_number in self.leaving_signals:
                        break
                    self._stop_all(running, only_queued=not stop())

                room = len(waiting) if self.at_once is None else max(0, self.at_once - len(running))
                attempts = [open_attempt(self.folder, job, self.threads) for job in waiting[:room]]
                waiting = waiting[room:]
                if attempts:
                    self.submit(attempts, watcher)
                    running += attempts

                ended = self.collect_ended(running, watcher) if running else []
                for attempt in running:
                    attempt.listen()
                    if attempt.has_begun:
                        begin(attempt.job)

                for attempt, reason in ended:
                    running.remove(attempt)
                    if attempt.stop_time is not None and not attempt.has_begun:
                        # Withdrawn in time: it stays pending.
                        continue

                    outcome = self._find_outcome(attempt, reason, stop.signal_number, watcher)
                    if outcome is None:
                        waiting.insert(0, attempt.job)
                        continue
                    begin(attempt.job)
                    is_continuing &= watcher.on_job_end(attempt.job, outcome)
        return signals.get_signal_exit_code(stop.signal_number) if stop() else 0

    def _find_outcome(self, attempt: Attempt, reason: str, stop_signal: int, watcher: Watcher) -> Outcome | None:
        """The outcome of an attempt that has ended; None if the job is to be run again.

        reason: why it may have ended without a word; "" if this machine cannot run it.
        """
        progress = attempt.progress
        is_stopped = attempt.stop_time is not None
        if progress.code is not None:
            outcome = Outcome(progress.code, progress.error)
            # Otherwise its machine was taken away, or somebody else has sent a signal.
            if is_stopped or not outcome.is_interrupted:
                return outcome
        elif is_stopped:
            return Outcome(signals.get_signal_exit_code(stop_signal or signals.STOP_SIGNALS[0]))
        if not reason:
            return None

        key = attempt.job.key
        self.losses[key] = self.losses.get(key, 0) + 1
        if self.losses[key] >= _MOST_LOSSES:
            return Outcome(1, f"{reason}, {_MOST_LOSSES} times")
        watcher.note(f"{attempt.job.label}: {reason}; it is run again, from its newest checkpoint")
        return None

    def _stop_all(self, attempts: Sequence[Attempt], only_queued: bool) -> None:
        """Stop all jobs, or only those that have not begun, as after a failure."""
        now = time.monotonic()
        for attempt in attempts:
            has_begun = attempt.has_begun
            if has_begun and only_queued:
                continue
            is_new = attempt.stop_time is None or (has_begun and not attempt.had_begun)
            is_late = attempt.stop_time is not None and not has_begun and now - attempt.stop_time > _REPEAT_SECONDS
            # One that was told while it ran is not told twice: a second signal would end it without saving.
            if is_new or is_late:
                self.stop(attempt)
                attempt.stop_time = now
                attempt.had_begun = has_begun
