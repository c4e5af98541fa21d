"""sweep.jsonl: the jobs of a sweep and their status, one line per change.

The first line describes the sweep. A line with `config` adds a job, one with `trial` a trial of a search, a line with
`jobs` says how many there are by then, and any other line changes the status of one: pending, running, completed,
early_stopped, pruned, interrupted or failed. A job's own result.json takes precedence over the ledger.
"""

import errno
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dlrun.config.request import Request, from_saved
from dlrun.config.schema import strip_permission_words, strip_permissions
from dlrun.core.bounded import MEGABYTE, parse_line, read_bytes
from dlrun.core.errors import DamageError, RequestError
from dlrun.core.files import write_atomically
from dlrun.core.inside import refuse_elsewhere, refuse_outside
from dlrun.core.shell import quote
from dlrun.runs.record import (
    CONFIG_MAPPING,
    COUNT,
    ENDED,
    LEDGER,
    NAMED_TEXTS,
    NUMBER,
    PLACE,
    TEXT,
    TEXTS,
    Check,
    RunRecord,
    allow_none,
    refuse_wrong_types,
)
from dlrun.sweep.jobs import Job

VERSION = 1
# A pruned run is done as far as its sweep goes.
DONE = ("completed", "early_stopped", "pruned")
_LARGEST = 1000 * MEGABYTE
_STATUSES = ("pending", "running", *ENDED)
_KEYS: dict[str, Check] = {
    "words": TEXTS,
    "added_by": TEXTS,
    "jobs": COUNT,
    "number": COUNT,
    "key": TEXT,
    "folder": PLACE,
    "overrides": TEXTS,
    "choices": NAMED_TEXTS,
    "config": CONFIG_MAPPING,
    "group": allow_none(PLACE),
    "extra": TEXTS,
    "status": (lambda value: value in _STATUSES, f"one of {', '.join(_STATUSES)}"),
    "error": allow_none(TEXT),
    "seconds": allow_none(NUMBER),
    "trial": COUNT,
    "told": COUNT,
    "point": TEXTS,
    "keys": TEXTS,
}


@dataclass
class Entry:
    """A job in the ledger."""

    number: int
    key: str
    # Relative to the sweep's folder.
    folder: str
    overrides: list[str]
    choices: dict[str, str]
    config: dict[str, Any]
    group: str | None = None
    extra: list[str] = field(default_factory=list)
    status: str = "pending"
    error: str | None = None
    # Duration of the last attempt.
    seconds: float | None = None


@dataclass(frozen=True)
class Trial:
    """A trial of a search in the ledger, with all that its sampler went by."""

    number: int
    # How many trials had a result when this one was proposed: all before that number.
    told: int
    # The words that a search chose.
    point: list[str]
    # Keys of its jobs, which may be those of an earlier trial at the same point.
    keys: list[str]
    # Why its point cannot be trained at all.
    error: str | None = None


class Ledger:
    """The ledger of one sweep folder; a new one has no entries and no file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LEDGER
        # The command line that began the sweep.
        self.words: list[str] = []
        # The command lines that added jobs.
        self.extensions: list[list[str]] = []
        # By job key.
        self.entries: dict[str, Entry] = {}
        # Of a search, in their order.
        self.trials: list[Trial] = []
        # Number of entries by the file's own account.
        self._count: int | None = None
        # Bytes of the file when it was read.
        self._size = 0

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """Read the ledger of a sweep folder; RequestError if it is missing or damaged."""
        ledger = cls(folder)
        refuse_outside(folder)
        try:
            content = read_bytes(ledger.path, _LARGEST)
        except (OSError, DamageError) as error:
            reason = error.reason if isinstance(error, DamageError) else error
            raise RequestError(f"{ledger.path} cannot be read ({reason}); type another sweep.dir") from error

        # The size tells later, under the lock, whether another process has written.
        ledger._size = len(content)

        # A whole file ends with a newline, so that its last part is empty.
        lines = content.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            ledger._apply_line(line, number)
        if lines[-1] or ledger._count is None or ledger._count != len(ledger.entries):
            raise ledger._explain_damage(len(lines))
        return ledger

    def _apply_line(self, line: bytes, number: int) -> None:
        try:
            values = parse_line(line)
            refuse_wrong_types(self.path, values, _KEYS)
            if number == 1:
                version = values["version"]
                if version != VERSION:
                    raise RequestError(f"{self.path} has version {version}; use the dlrun that wrote it")
                self.words = values["words"]
            elif "jobs" in values:
                self._count = values["jobs"]
                if "added_by" in values:
                    self.extensions.append(values["added_by"])
            elif "trial" in values:
                number = values["trial"]
                self.trials.append(Trial(number, values["told"], values["point"], values["keys"], values.get("error")))
            elif "config" in values:
                values.pop("time", None)
                entry = Entry(**values)
                self._refuse_outside(entry.folder, entry.group)
                self.entries[entry.key] = entry
            else:
                entry = self.entries[values["key"]]
                entry.status = values["status"]
                entry.error = values.get("error")
                entry.seconds = values.get("seconds")
        except (ValueError, KeyError, TypeError, DamageError) as error:
            raise self._explain_damage(number) from error

    @property
    def command(self) -> str:
        """The shell command that makes the sweep with all points added since."""
        return " && ".join(shlex.join(["dlrun", *words]) for words in (self.words, *self.extensions))

    def _refuse_outside(self, *folders: str | None) -> None:
        """RequestError if a job's folder lies outside the sweep's: a ledger may come from anyone."""
        for name in folders:
            if name is None:
                continue
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise RequestError(
                    f"{self.path} names a folder outside of {self.folder}: {name}; choose another sweep.dir"
                )
            refuse_elsewhere(self.folder, self.folder / name)

    def _explain_damage(self, number: int) -> RequestError:
        # With all jobs known, the damaged line can only hold a status.
        if self._count and self._count == len(self.entries):
            return RequestError(
                f"{self.path} is cut short or damaged in line {number}, which holds the status of a job; delete that "
                "line and type the command again: the results are in the folders of the jobs"
            )

        return RequestError(
            f"{self.path} is cut short or damaged in line {number}, where it names the jobs, so the sweep cannot be "
            f"resumed; type it again with another sweep.dir (dlrun compare {quote(self.folder)} shows what "
            "is finished)"
        )

    def refuse_changed(self) -> None:
        """RequestError if another process has written since the ledger was read; the folder must be locked."""
        if self.path.exists() and self.path.stat().st_size != self._size:
            raise RequestError(f"{self.folder} was resumed by another process meanwhile; type the command again")

    def add(self, jobs: Sequence[Job], words: Sequence[str] | None, trials: Sequence[Trial] = ()) -> None:
        """Add the jobs that are new and the trials of a search, all or none.

        words: the command, with which a new file begins; None if an earlier line of the file has them.
        """
        entries = [self._make_entry(job) for job in jobs if job.key not in self.entries]
        if not entries and not trials:
            return

        self.entries |= {entry.key: entry for entry in entries}
        self.trials += trials
        self._count = len(self.entries)
        lines: list[dict[str, Any]] = [{"time": _format_now(), **vars(entry)} for entry in entries]
        for trial in trials:
            lines.append(
                {"trial": trial.number, **{key: value for key, value in vars(trial).items() if key != "number"}}
            )
        end: dict[str, Any] = {"jobs": self._count}
        if words is None:
            pass
        elif not self.words:
            # The working directory is for a human reader: relative paths in the words start there.
            self.words = strip_permission_words(words)
            lines.insert(0, {"version": VERSION, "words": self.words, "working_directory": str(Path.cwd())})
        else:
            self.extensions.append(strip_permission_words(words))
            end["added_by"] = self.extensions[-1]

        # All jobs or none: a ledger that names only some of them cannot be resumed.
        before = self.path.read_bytes() if self.path.exists() else b""
        write_atomically(self.path, before + _encode_lines(*lines, end))

    def _make_entry(self, job: Job) -> Entry:
        request = job.request
        return Entry(
            number=job.number,
            key=job.key,
            folder=os.path.relpath(job.folder, self.folder),
            overrides=strip_permission_words(request.overrides),
            choices=request.choices,
            config=strip_permissions(job.plain),
            group=os.path.relpath(request.group, self.folder) if request.group else None,
            extra=strip_permission_words(request.extra),
        )

    def record_status(self, key: str, status: str, error: str | None = None, seconds: float | None = None) -> None:
        """Set the status of a job; it is on the disk when this returns."""
        entry = self.entries[key]
        entry.status = status
        entry.error = error
        entry.seconds = seconds
        self._append({"key": key, "status": status, "error": error, "seconds": seconds, "time": _format_now()})

    def _append(self, values: dict[str, Any]) -> None:
        """Append a whole line or, on a full disk, nothing."""
        line = _encode_lines(values)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            # A short write means a full disk: cut the half line off, so that the file stays readable.
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

    def read_status(self, entry: Entry, run: RunRecord | None = None) -> str:
        """Status of a job by its own result.json, which is newer than a ledger that was cut off.

        run: the job's record, where it has been read already.
        """
        run = run or RunRecord(self.folder / entry.folder)
        status = run.result.get("status")

        # Without a result the job has not ended, whatever the ledger says.
        if status is None and not run.damage:
            return "interrupted" if entry.status in ("running", *DONE) else entry.status

        # An unreadable result counts as interrupted, so that the job runs again.
        return str(status) if status in (*DONE, "failed") else "interrupted"

    def make_request(self, entry: Entry, settings: list[str], words: list[str]) -> Request:
        """The request of a recorded job.

        settings: overrides of this command line that apply to all jobs (device, figures, ...); words: all of it.
        """
        request = from_saved(entry.config, entry.choices, settings, self.folder / entry.folder)
        return replace(
            request,
            overrides=entry.overrides,
            sweep=self.folder,
            group=None if entry.group is None else self.folder / entry.group,
            extra=entry.extra,
            words=words,
            key=entry.key,
        )


def _encode_lines(*values: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in values).encode()


def _format_now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
