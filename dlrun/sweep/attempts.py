"""Attempts at jobs on a cluster: what a machine is sent, and the file of the attempt in the sweep's folder.

The machine writes into that file when the job begins and how it ended. A sweep reads the outcome from there, even
if the process that started the job is gone by then. The file holds plain data: nothing is unpickled here.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun.core.bounded import MEGABYTE, parse_line, read_bytes
from dlrun.core.errors import DamageError
from dlrun.core.terminal import escape_line
from dlrun.sweep.jobs import Job

# In the sweep's folder: the files of the attempts, and what the cluster itself writes.
FOLDER = "cluster"

_LARGEST = 10 * MEGABYTE


@dataclass(frozen=True)
class RemoteJob:
    """A job as a machine of the cluster gets it."""

    job: Job
    # Absolute: where the machine writes how it goes.
    file: Path
    # Of the sweep: paths of the job may be relative to it.
    working_directory: Path
    threads: int


@dataclass(frozen=True)
class Progress:
    """How far an attempt has come, by its machine's own account."""

    # Process of the job on its machine; None while it is queued.
    process: int | None = None
    # None until the job has ended.
    code: int | None = None
    error: str | None = None


@dataclass
class Attempt:
    """A job that was handed to the cluster."""

    remote: RemoteJob
    # What the cluster knows it by.
    handle: Any = None
    progress: Progress = Progress()
    # When it was told to stop, and whether it had begun by then.
    stop_time: float | None = None
    had_begun: bool = False

    @property
    def job(self) -> Job:
        """The job that is tried."""
        return self.remote.job

    @property
    def has_begun(self) -> bool:
        """Whether a machine has taken the job."""
        return self.progress.process is not None

    def listen(self) -> None:
        """Read what the machine has written."""
        self.progress = read_progress(self.remote.file)


def open_attempt(folder: Path, job: Job, threads: int) -> Attempt:
    """A new attempt at a job of the sweep in `folder`, with its empty file."""
    place = folder.absolute() / FOLDER
    place.mkdir(exist_ok=True)
    number = sum(1 for _ in place.glob(f"{job.number}_*.jsonl")) + 1
    file = place / f"{job.number}_{number}.jsonl"
    file.touch()
    return Attempt(RemoteJob(job, file, Path.cwd(), threads))


def write_progress(file: Path, values: dict[str, Any]) -> None:
    """Append a line; it is on the disk when this returns."""
    with file.open("a") as lines:
        lines.write(json.dumps(values) + "\n")
        lines.flush()
        os.fsync(lines.fileno())


def read_progress(file: Path) -> Progress:
    """How far an attempt has come, by the lines of its file; of a job that was queued again, the newest try counts."""
    progress = Progress()
    try:
        for line in read_bytes(file, _LARGEST).split(b"\n")[:-1]:
            values = parse_line(line)
            process = values.get("began")
            code = values.get("code")
            error = values.get("error")
            if isinstance(process, int):
                progress = Progress(process)
            elif isinstance(code, int):
                progress = Progress(progress.process, code, None if error is None else escape_line(str(error)))
    except (OSError, ValueError, DamageError):
        # A line that a dying machine has cut off: whether the job has ended, the cluster tells.
        pass
    return progress
