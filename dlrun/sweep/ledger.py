"""sweep.jsonl: what the jobs of a sweep are and how far each has come, a line a change.

The first line says what the sweep is. A line with `config` is a job when it was added, and one with `jobs` how many
there are then; the others say what became of one: pending, running, completed, early_stopped, interrupted or failed.
The job's own result.json has the last word.
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
from dlrun.config.schema import recorded, recorded_words
from dlrun.core.bounded import MEGABYTE, parse_line, read_bytes
from dlrun.core.errors import DamageError, RequestError
from dlrun.core.files import write_atomically
from dlrun.core.inside import refuse_elsewhere, refuse_outside
from dlrun.core.shell import quote
from dlrun.runs.record import (
    CONFIG_MAPPING,
    COUNT,
    ENDED,
    NAMED_TEXTS,
    NUMBER,
    PLACE,
    TEXT,
    TEXTS,
    Check,
    RunRecord,
    or_none,
    refuse_wrong_types,
)
from dlrun.sweep.jobs import Job

NAME = "sweep.jsonl"
VERSION = 1
DONE = ("completed", "early_stopped")
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
    "group": or_none(PLACE),
    "extra": TEXTS,
    "status": (lambda value: value in _STATUSES, f"one of {', '.join(_STATUSES)}"),
    "error": or_none(TEXT),
    "seconds": or_none(NUMBER),
}


@dataclass
class Entry:
    """A job as the ledger knows it."""

    number: int
    key: str
    folder: str  # relative to the sweep's
    overrides: list[str]
    choices: dict[str, str]
    config: dict[str, Any]
    group: str | None = None
    extra: list[str] = field(default_factory=list)
    status: str = "pending"
    error: str | None = None
    seconds: float | None = None  # of the last attempt


class Ledger:
    """The ledger of one sweep folder, read or begun."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.words: list[str] = []  # the command line that began the sweep
        self.extensions: list[list[str]] = []  # those that added jobs to it
        self.entries: dict[str, Entry] = {}  # by key
        self._count = 0  # how many there should be
        self._size = 0  # bytes that were read

    @classmethod
    def read(cls, folder: Path) -> "Ledger":
        """The ledger of a sweep folder; RequestError when there is none, or it is damaged."""
        made = cls(folder)
        refuse_outside(folder)
        try:
            content = read_bytes(made.path, _LARGEST)
        except (OSError, DamageError) as error:
            reason = error.reason if isinstance(error, DamageError) else error
            raise RequestError(f"{made.path} cannot be read ({reason}); type another sweep.dir") from error
        made._size = len(content)
        lines = content.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            made._take(line, number)
        if lines[-1] or not made._count or made._count != len(made.entries):
            raise made._damaged(len(lines))
        return made

    def _take(self, line: bytes, number: int) -> None:
        try:
            values = parse_line(line)
            refuse_wrong_types(self.path, values, _KEYS)
            if number == 1:
                if values["version"] != VERSION:
                    raise RequestError(f"{self.path} has version {values['version']}; use the dlrun that wrote it")
                self.words = values["words"]
            elif "jobs" in values:
                self._count = values["jobs"]
                if "added_by" in values:
                    self.extensions.append(values["added_by"])
            elif "config" in values:
                entry = Entry(**{k: v for k, v in values.items() if k != "time"})
                self._refuse_outside(entry.folder, entry.group)
                self.entries[entry.key] = entry
            else:
                entry = self.entries[values["key"]]
                entry.status = values["status"]
                entry.error = values.get("error")
                entry.seconds = values.get("seconds")
        except (ValueError, KeyError, TypeError, DamageError) as error:
            raise self._damaged(number) from error

    @property
    def command(self) -> str:
        """What makes the sweep as it is now, as a line for the shell."""
        return " && ".join(shlex.join(["dlrun", *words]) for words in (self.words, *self.extensions))

    def _refuse_outside(self, *folders: str | None) -> None:
        """RequestError for a job that is said to lie elsewhere: a ledger is a file like any other."""
        for name in folders:
            if name is not None and (Path(name).is_absolute() or ".." in Path(name).parts):
                raise RequestError(
                    f"{self.path} names a folder outside of {self.folder}: {name}; choose another sweep.dir"
                )
            if name is not None:
                refuse_elsewhere(self.folder, self.folder / name)

    def _damaged(self, number: int) -> RequestError:
        if self._count and self._count == len(self.entries):  # all jobs are known: it is what became of one of them
            return RequestError(
                f"{self.path} is cut short or damaged in line {number}, which says how a job got on; delete that "
                "line and type the command again: what the jobs came to is in their own folders"
            )
        return RequestError(
            f"{self.path} is cut short or damaged in line {number}, where it names the jobs, so the sweep cannot be "
            f"gone on with; type it again with another sweep.dir (dlrun compare {quote(self.folder)} shows what "
            "is finished)"
        )

    def refuse_changed(self) -> None:
        """RequestError when another process has written since this one has read; to be asked with the folder locked."""
        if self.path.exists() and self.path.stat().st_size != self._size:
            raise RequestError(f"{self.folder} was gone on with by another process meanwhile; type the command again")

    def add(self, jobs: Sequence[Job], words: Sequence[str]) -> None:
        """Note jobs that are not in it yet, all in one go; a new ledger begins with the command's words."""
        made = [self._entry(job) for job in jobs if job.key not in self.entries]
        if not made:
            return
        self.entries |= {entry.key: entry for entry in made}
        lines: list[dict[str, Any]] = [{"time": _now(), **vars(entry)} for entry in made]
        self._count = len(self.entries)
        end: dict[str, Any] = {"jobs": self._count}
        if not self.words:
            self.words = recorded_words(words)
            lines.insert(0, {"version": VERSION, "words": self.words, "working_directory": str(Path.cwd())})
        else:
            self.extensions.append(recorded_words(words))
            end["added_by"] = self.extensions[-1]
        before = self.path.read_bytes() if self.path.exists() else b""
        write_atomically(self.path, before + _lines(*lines, end))

    def _entry(self, job: Job) -> Entry:
        request = job.request
        return Entry(
            number=job.number,
            key=job.key,
            folder=os.path.relpath(job.folder, self.folder),
            overrides=recorded_words(request.overrides),
            choices=request.choices,
            config=recorded(job.plain),
            group=os.path.relpath(request.group, self.folder) if request.group else None,
            extra=recorded_words(request.extra),
        )

    def record_status(self, key: str, status: str, error: str | None = None, seconds: float | None = None) -> None:
        """What became of a job; on the disk when this returns."""
        entry = self.entries[key]
        entry.status, entry.error, entry.seconds = status, error, seconds
        self._append({"key": key, "status": status, "error": error, "seconds": seconds, "time": _now()})

    def _append(self, line: dict[str, Any]) -> None:
        """All of the line or, when the disk does not take it, nothing."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            before, content = os.fstat(handle).st_size, _lines(line)
            try:
                if os.write(handle, content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)

    def read_status(self, entry: Entry) -> str:
        """What a job has come to: its own result.json says more than the ledger, which may have been cut off."""
        run = RunRecord(self.folder / entry.folder)
        status = run.result.get("status")
        if status is None and not run.damage:
            return "interrupted" if entry.status in ("running", *DONE) else entry.status
        return str(status) if status in (*DONE, "failed") else "interrupted"

    def request(self, entry: Entry, settings: list[str], words: list[str]) -> Request:
        """A job as it was asked for, with settings of this command line that all jobs take (device, figures, ...)."""
        folder = self.folder / entry.folder
        asked = from_saved(entry.config, entry.choices, settings, folder)
        return replace(
            asked,
            overrides=entry.overrides,
            sweep=self.folder,
            group=None if entry.group is None else self.folder / entry.group,
            extra=entry.extra,
            words=words,
            key=entry.key,
        )


def _lines(*values: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in values).encode()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
