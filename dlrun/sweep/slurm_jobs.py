"""The jobs of a sweep that Slurm has, by the ids in the sweep's folder; read without torch, for lists too."""

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

from dlrun.core import signals
from dlrun.core.bounded import MEGABYTE, parse_line, read_bytes
from dlrun.core.errors import DamageError, RequestError
from dlrun.sweep.attempts import FOLDER, read_progress

# In the folder of the attempts, a line for each job that was submitted.
SUBMITTED = "submitted.jsonl"


def import_submitit() -> Any:
    """The library; RequestError where it is not installed."""
    # Read on import: the signal that tells a job to save, which dlrun takes for that as well.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise RequestError("sweep.engine=slurm needs submitit; type pip install 'dlrun[slurm]'") from error


def read_submitted(folder: Path) -> dict[str, dict[str, Any]]:
    """By job key, the file, the id and the kind of the last job that was submitted; empty where there are none."""
    submitted: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError, DamageError):
        for line in read_bytes(folder / FOLDER / SUBMITTED, 100 * MEGABYTE).split(b"\n")[:-1]:
            values = parse_line(line)
            number = str(values["id"])
            # A folder may come from anyone: these words go to commands, and into paths.
            if number.replace("_", "").isdecimal() and Path(values["file"]).name == values["file"]:
                key = str(values["key"])
                submitted[key] = {"file": values["file"], "id": number, "is_local": bool(values["is_local"])}
    return submitted


def is_waiting(folder: Path, line: dict[str, Any]) -> bool:
    """Whether a job has not ended by its own account: one that was interrupted may be queued again."""
    code = read_progress(folder / FOLDER / line["file"]).code
    return code is None or signals.is_interruption(code)


def is_alive(folder: Path, number: str, is_local: bool) -> bool:
    """Whether a job is queued or running; number: its id."""
    if is_local:
        return is_ours(int(number), folder)
    return not import_submitit().SlurmJob(folder.absolute() / FOLDER, number).done()


def is_ours(process: int, folder: Path) -> bool:
    """Whether a process of this machine is one of submitit for this sweep."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(folder.absolute() / FOLDER) in words and any(b"submitit" in word for word in words)


def describe_states(folder: Path) -> str:
    """How many jobs of a sweep are queued and running in Slurm, as "2 queued, 3 running"; "" for none."""
    running_count = 0
    queued_count = 0
    for line in read_submitted(folder).values():
        try:
            if not is_waiting(folder, line) or not is_alive(folder, line["id"], line["is_local"]):
                continue
        except RequestError:
            # Without submitit, the files are all that is known.
            return ""
        progress = read_progress(folder / FOLDER / line["file"])
        # One that has ended, and is still alive, is queued again.
        if progress.process is not None and progress.code is None:
            running_count += 1
        else:
            queued_count += 1
    counts = ((queued_count, "queued"), (running_count, "running"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)
