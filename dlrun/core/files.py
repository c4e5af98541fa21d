"""Writing to a disk that may fill up, be taken away, or lose its power: a file is complete, the old one, or absent."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line, write_error

# The disk is full, or takes nothing.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Without O_BINARY Windows would write other ends of lines.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
# What is written more often than that, in seconds, may be written together: an open, a write and a close after each
# epoch of a tiny net take as long as some of its steps.
FLUSH_SECONDS = 0.2


def is_about(error: OSError, folder: Path) -> bool:
    """Whether an error comes from writing into a folder, not from a file elsewhere or the user's own code."""
    if error.errno not in _DISK_ERRORS and user_code.find_user_line(error):
        return False

    # An error from writing to an open file does not name it.
    if error.filename is None:
        return True

    # Not resolved: links are not followed here.
    place = Path(os.path.abspath(os.fsdecode(error.filename)))  # noqa: PTH100
    border = Path(os.path.abspath(folder))  # noqa: PTH100
    return place.is_relative_to(border) or border.is_relative_to(place)


@contextlib.contextmanager
def convert_write_errors(folder: Path, instead: str) -> Iterator[None]:
    """Raise RequestError if the disk refuses what the block writes into a folder.

    instead: the advice at the end of the message. Errors of other files, and of the user's own code, pass as they are.
    """
    try:
        yield
    except OSError as error:
        if not is_about(error, folder):
            raise
        raise RequestError(f"cannot write to {folder} ({error.strerror or error}); {instead}") from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file that appears complete under its name, and survives a power cut once this returns."""
    # In the same folder, as a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

        # Only once the content is on the disk: a power cut could leave an empty file under the name.
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically; lone surrogates, as names of files may hold them, become escapes."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write indented JSON atomically: NumPy values and tensors as plain numbers, NaN and infinities as null."""
    text = json.dumps(_to_json_value(values), indent=2) + "\n"
    write_atomically(path, text.encode())


def _to_json_value(value: Any) -> Any:
    # NumPy scalars, arrays and tensors.
    if hasattr(value, "tolist"):
        value = value.tolist()

    if isinstance(value, dict):
        items: dict[Any, Any] = {}
        for key, item in value.items():
            plain_key = key.tolist() if hasattr(key, "tolist") else key
            items[plain_key] = _to_json_value(item)
        return items
    if isinstance(value, list | tuple):
        return [_to_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def link(file: Path, name: Path) -> None:
    """Make `name` a hard link to `file`, atomically; a copy where the file system has no hard links."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)

        temporary.replace(name)
    finally:
        # By POSIX, a rename does nothing if both names are links to one file already.
        temporary.unlink(missing_ok=True)
    _sync_folder(name.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a folder: a rename is on the disk only when its folder is."""
    # Windows cannot open a folder.
    if sys.platform == "win32":
        return

    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_there(path: Path) -> bool:
    """Whether a path exists, if only as a broken link.

    OSError if that cannot be told, which Path.exists takes for a no since Python 3.14.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_temporary(name: str) -> bool:
    """Whether a file is one that `write_atomically` or `link` has begun: .<name>.<process>.tmp."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(*folders: Path) -> None:
    """Remove the temporary files of a killed process. Only for folders that no other process writes."""
    for folder in folders:
        for file in folder.glob(".*.tmp"):
            if is_temporary(file.name):
                with contextlib.suppress(OSError):
                    file.unlink()


def _print_problem(text: str) -> None:
    write_error(escape_line(text))


def _write_all(handle: int, content: bytearray) -> None:
    """Write all of it: one call may take a part alone, as where the disk is nearly full."""
    written = os.write(handle, content)
    while written < len(content):
        written += os.write(handle, memoryview(content)[written:])


class DiskProblems:
    """What a run could not write: reported once each when it happens, and kept for the report at the end."""

    def __init__(self, say: Callable[[str], None] = _print_problem) -> None:
        self.say = say

        # Why, by the name of what the disk still lacks.
        self.reasons: dict[str, str] = {}
        self._reported: set[str] = set()

    @contextlib.contextmanager
    def tolerate(self, what: str, again: bool = True) -> Iterator[None]:
        """Record an OSError of the block instead of raising it: a full disk must not cost a trained model.

        what: what the block saves; again: whether a later attempt that succeeds writes all of it.
        """
        try:
            yield
        except OSError as error:
            # The user's own code runs in some of these blocks.
            own = None if error.errno in _DISK_ERRORS else user_code.explain(error)
            self.reasons[what] = own or error.strerror or str(error)
            if what not in self._reported:
                self._reported.add(what)
                more = ", and the next save tries again" if again else ""
                self.say(f"{what} could not be saved ({self.reasons[what]}); the run continues{more}")
        else:
            if again:
                self.reasons.pop(what, None)

    def summary(self) -> str:
        """All problems in one line; empty when everything is on the disk."""
        return ", ".join(f"{what} ({why})" for what, why in self.reasons.items())


class GrowingFile:
    """A file that is only appended to. What the disk does not take is buffered until the next flush."""

    def __init__(self, path: Path, what: str, disk_problems: DiskProblems) -> None:
        self.path = path
        self.what = what
        self.disk_problems = disk_problems
        self._buffer = bytearray()
        self._is_held = False
        # When the next flush is due, on the clock of time.monotonic.
        self._due = 0.0

        # The file exists from the start, if empty.
        with disk_problems.tolerate(what), path.open("ab"):
            pass

    def write(self, content: str | bytes) -> None:
        """Add text (as UTF-8) or bytes; they are on the disk after `flush`."""
        self._buffer += content.encode() if isinstance(content, str) else content

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let flushes inside the block wait for its end, for what is written all at once."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self.flush()

    @property
    def is_due(self) -> bool:
        """Whether FLUSH_SECONDS have passed since the last flush; whoever can wait flushes only then."""
        return time.monotonic() >= self._due

    def flush(self) -> None:
        """Append all that was written since the last flush that succeeded, or none of it."""
        if not self._buffer or self._is_held:
            return
        self._due = time.monotonic() + FLUSH_SECONDS

        with self.disk_problems.tolerate(self.what):
            # Every epoch appends to three files: a file object of Python's would take twice as long.
            handle = os.open(self.path, _APPEND, 0o666)
            try:
                before = os.fstat(handle).st_size
                try:
                    _write_all(handle, self._buffer)
                except OSError:
                    # Half a line is worse than none.
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, before)
                    raise
            finally:
                os.close(handle)

            # Only now: what the disk did not take is tried again.
            self._buffer.clear()
