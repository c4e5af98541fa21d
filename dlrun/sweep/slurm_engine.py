"""The engine that runs jobs as job arrays of Slurm, through submitit.

The jobs need no process of the sweep: each saves and is queued again by itself before its time is over, and
`dlrun resume` takes up those that are still queued or running.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlrun.core import signals
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line
from dlrun.engine.device import count_cores
from dlrun.sweep.attempts import FOLDER, Attempt, RemoteJob
from dlrun.sweep.engines import Watcher
from dlrun.sweep.jobs import Job
from dlrun.sweep.process_engine import hide_working_directory
from dlrun.sweep.remote import Remote, run_remote_job
from dlrun.sweep.slurm_jobs import SUBMITTED, import_submitit, is_alive, is_ours, is_waiting, read_submitted

_POLL_SECONDS = 0.2
# Of an array, by Slurm's default.
_LARGEST_ARRAY = 1000
# A job that takes longer than its time is queued again so often.
_MOST_REQUEUES = 1000
# After SIGTERM Slurm kills the job, and where it is preempted queues it again.
_KILL_SECONDS = 600.0
# What ends the sweep's process while the jobs run on: the connection is gone, or its own job in Slurm is over.
_LEAVING = tuple(number for number in signals.STOP_SIGNALS if number not in (signal.SIGINT, signal.SIGTERM))


class SlurmJob:
    """What submitit calls on the machine of a job, with what it calls before the job is queued again."""

    def __init__(self, remote: RemoteJob) -> None:
        self.remote = remote

    def __call__(self) -> None:
        """Run the job; if it was told that its time is over, or that it is preempted, have it queued again."""
        submitit = import_submitit()
        # The sweep's process had them blocked, so that only it gets a Ctrl-C.
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.STOP_SIGNALS)

        code = run_remote_job(self.remote)
        if code == signals.get_signal_exit_code(signal.SIGUSR1):
            # By the handler of submitit, which calls `checkpoint`, queues the job again and exits.
            signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])
        if code == signals.get_signal_exit_code(signal.SIGTERM) and "SLURM_JOB_ID" in os.environ:
            # All is saved. A job that ended by itself now would not be queued again.
            time.sleep(_KILL_SECONDS)

    def checkpoint(self) -> Any:
        """What is to run next time: the same, from the checkpoint that it then finds."""
        return import_submitit().helpers.DelayedSubmission(self)


class Slurm(Remote):
    """Submits jobs as an array, and waits for them."""

    leaving_signals = _LEAVING

    def __init__(self, folder: Path, settings: dict[str, Any], at_once: int | None) -> None:
        """settings: sweep.slurm. RequestError where submitit or Slurm is missing, or refuses a setting."""
        super().__init__(folder, settings["cpus"], at_once)
        self.is_local = settings["cluster"] == "local"
        # By id, those that this process has submitted.
        self._jobs: dict[str, Any] = {}
        place = folder.absolute() / FOLDER
        words: dict[str, Any] = {"max_num_timeout": _MOST_REQUEUES}

        submitit = import_submitit()
        self._make: Callable[[], Any] = lambda: submitit.SlurmExecutor(place, **words)
        if self.is_local:
            # submitit starts them all at once.
            self.at_once = at_once or count_cores()
            self.parameters = {"timeout_min": settings["time"], "signal_delay_s": settings["signal_seconds"]}
            self._make = lambda: submitit.LocalExecutor(place, **words)
            return

        if shutil.which("srun") is None:
            raise RequestError(
                "sweep.engine=slurm needs a machine from which Slurm takes jobs: srun is not found here; "
                "type sweep.engine=local, or sweep.slurm.cluster=local for a rehearsal"
            )
        self.parameters = {
            "job_name": "dlrun",
            "time": settings["time"],
            "signal_delay_s": settings["signal_seconds"],
            "cpus_per_task": settings["cpus"],
            "array_parallelism": at_once or _LARGEST_ARRAY,
            "additional_parameters": settings["options"] or {},
        }
        if settings["memory_gb"] is not None:
            self.parameters["mem"] = f"{int(settings['memory_gb'] * 1024)}MB"
        if settings["gpus"]:
            self.parameters["gpus_per_node"] = settings["gpus"]
        for name in ("partition", "account", "qos", "constraint", "setup"):
            if settings[name]:
                self.parameters[name] = settings[name]
        # The array has the limit.
        self.at_once = None

    def describe(self) -> str:
        """Where jobs run."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        if self.is_local:
            return f"as processes of submitit on this machine, {self.at_once} at a time, {threads} each"
        partition = self.parameters.get("partition")
        return f"as jobs of Slurm{f' in {partition}' if partition else ''}, {threads} each"

    def submit(self, attempts: Sequence[Attempt], watcher: Watcher) -> None:
        """Submit an array of jobs, and record their ids."""
        executor = self._make()
        executor.update_parameters(**self.parameters)
        for start in range(0, len(attempts), _LARGEST_ARRAY):
            batch = attempts[start : start + _LARGEST_ARRAY]
            try:
                # Processes on this machine inherit it: they are told to stop by the sweep alone.
                with signals.block_signals(*signals.STOP_SIGNALS), hide_working_directory():
                    jobs = executor.submit_array([SlurmJob(attempt.remote) for attempt in batch])
            except Exception as error:
                # submitit raises an error of its own with what sbatch wrote.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                raise RequestError(f"Slurm does not take the jobs: {reason}; change sweep.slurm.…") from error

            for attempt, job in zip(batch, jobs, strict=True):
                attempt.handle = job.job_id
                self._jobs[job.job_id] = job
                self._record(attempt)

    def _record(self, attempt: Attempt) -> None:
        name = attempt.remote.file.name
        line = {"key": attempt.job.key, "file": name, "id": attempt.handle, "is_local": self.is_local}
        with (self.folder / FOLDER / SUBMITTED).open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    def collect_ended(self, attempts: Sequence[Attempt], watcher: Watcher) -> list[tuple[Attempt, str]]:
        """Ask for the states of the jobs."""
        time.sleep(_POLL_SECONDS)
        ended = []
        for attempt in attempts:
            if not is_alive(self.folder, attempt.handle, self.is_local):
                job = self._jobs.pop(attempt.handle, None)
                if job is not None and self.is_local:
                    # A child of this process, which may still be about to end.
                    job.wait()
                self._remove_pickles(attempt.handle)
                attempt.listen()
                if not self.is_local and attempt.progress.code is None:
                    # Lost: Slurm itself may queue it again, beside the job that takes its place.
                    _run_command("scancel", attempt.handle)
                ended.append((attempt, f"its job {attempt.handle} was lost ({self._describe_end(attempt)})"))
        return ended

    def _remove_pickles(self, number: str) -> None:
        """Remove the files of a job that has ended: they hold the permissions of a command line."""
        for file in (self.folder / FOLDER).glob(f"{number}_*.pkl"):
            file.unlink(missing_ok=True)

    def _describe_end(self, attempt: Attempt) -> str:
        if self.is_local:
            return "its process died"
        return escape_line(str(import_submitit().SlurmJob(self.folder.absolute() / FOLDER, attempt.handle).state))

    def stop(self, attempt: Attempt) -> None:
        """Send SIGINT to a job that runs, so that it saves, and cancel one that is queued."""
        if self.is_local:
            if attempt.progress.process is not None and is_ours(attempt.progress.process, self.folder):
                os.kill(attempt.progress.process, signal.SIGINT)
        elif not attempt.has_begun:
            _run_command("scancel", "--state=PENDING", attempt.handle)
        else:
            _run_command("scancel", "--signal=INT", attempt.handle)

    def attach(self, jobs: Sequence[Job]) -> list[Attempt]:
        """The attempts that are still queued or running."""
        attempts = []
        submitted = read_submitted(self.folder)
        for job in jobs:
            line = submitted.get(job.key)
            if line is None or line["is_local"] != self.is_local:
                continue
            if is_waiting(self.folder, line) and is_alive(self.folder, line["id"], self.is_local):
                file = self.folder.absolute() / FOLDER / line["file"]
                attempts.append(Attempt(RemoteJob(job, file, Path.cwd(), self.threads), line["id"]))

        # Of jobs that have ended since, with nobody to remove theirs.
        attached = {attempt.handle for attempt in attempts}
        for line in submitted.values():
            if line["id"] not in attached and not is_alive(self.folder, line["id"], line["is_local"]):
                self._remove_pickles(line["id"])
        return attempts

    def close(self) -> None:
        """Nothing is to be left: jobs live without this process."""


def _run_command(*words: str) -> None:
    """Run a command of Slurm; that a job has ended meanwhile is no error."""
    with contextlib.suppress(OSError):
        subprocess.run(words, capture_output=True, check=False)
