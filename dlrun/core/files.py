"""Writing to a disk that may fill up, be taken away, or lose its power: files are whole, old, or not there."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line, write_error

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # it is full, or takes nothing
_HALF = re.compile(r"\..+\.\d+\.tmp")


def is_about(error: OSError, folder: Path) -> bool:
    """Whether an error is of writing into a folder: not of a file elsewhere, nor of the user's own code."""
    if error.errno not in _OF_A_DISK and user_code.find_user_line(error):
        return False
    if error.filename is None:  # writing to an open file does not name it
        return True
    place = Path(os.path.abspath(os.fsdecode(error.filename)))  # noqa: PTH100  (links are not followed)
    inside = Path(os.path.abspath(folder))  # noqa: PTH100
    return place.is_relative_to(inside) or inside.is_relative_to(place)


@contextlib.contextmanager
def convert_write_errors(folder: Path, instead: str) -> Iterator[None]:
    """RequestError, with what to do instead, where the disk does not take what is written into a folder.

    Errors of other files, and of the user's own code, pass as they are.
    """
    try:
        yield
    except OSError as error:
        if not is_about(error, folder):
            raise
        raise RequestError(f"cannot write to {folder} ({error.strerror or error}); {instead}") from error


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """The file appears whole under its name, and survives a power cut once this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """The same with text as UTF-8; what a file of somebody else holds of half characters is written as an escape."""
    write_atomically(path, text.encode(errors="backslashreplace"))


def link(file: Path, name: Path) -> None:
    """`name` becomes another name of `file`, at once; a copy where the file system has no hard links."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
        temporary.replace(name)
    finally:
        temporary.unlink(missing_ok=True)  # two names of one file: the rename does nothing, says POSIX
    _sync_folder(name.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_there(path: Path) -> bool:
    """Whether something lies there. OSError where that cannot be told; since Python 3.14 pathlib takes it for a no."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_temporary(name: str) -> bool:
    """Whether a file is one that `write_atomically` or `link` has begun: .<name>.<process>.tmp."""
    return _HALF.fullmatch(name) is not None


def remove_temporaries(*folders: Path) -> None:
    """Remove what a killed process left half-written; only for who alone writes there."""
    for folder in folders:
        for half in folder.glob(".*.tmp"):
            if is_temporary(half.name):
                with contextlib.suppress(OSError):
                    half.unlink()


def _complain(text: str) -> None:
    write_error(escape_line(text))


class DiskProblems:
    """What a run has not been able to write: said once each when it happens, and there to be said at the end."""

    def __init__(self, say: Callable[[str], None] = _complain) -> None:
        self.say = say
        self.reasons: dict[str, str] = {}  # why, by name of what the disk still lacks
        self._said: set[str] = set()

    @contextlib.contextmanager
    def tolerate(self, what: str, again: bool = True) -> Iterator[None]:
        """An OSError inside is noted, not raised: a full disk must not cost what has been trained.

        again: whether a later attempt that succeeds brings all of it.
        """
        try:
            yield
        except OSError as error:
            own = None if error.errno in _OF_A_DISK else user_code.explain(error)
            self.reasons[what] = own or error.strerror or str(error)
            if what not in self._said:
                self._said.add(what)
                more = ", and the next save tries again" if again else ""
                self.say(f"{what} could not be saved ({self.reasons[what]}); the run goes on{more}")
        else:
            if again:
                self.reasons.pop(what, None)

    def summary(self) -> str:
        """All of it in one line; empty when everything is on the disk."""
        return ", ".join(f"{what} ({why})" for what, why in self.reasons.items())


class GrowingFile:
    """A file that is only added to. What the disk does not take is held, and tried again at the next flush."""

    def __init__(self, path: Path, what: str, unsaved: DiskProblems) -> None:
        self.path, self.what, self.unsaved = path, what, unsaved
        self._held = bytearray()
        with unsaved.tolerate(what), path.open("ab"):  # it is there from the start, if empty
            pass

    def write(self, content: str | bytes) -> None:
        """Add text (as UTF-8) or bytes; on the disk after `flush`."""
        self._held += content.encode() if isinstance(content, str) else content

    def flush(self) -> None:
        """All that was written is on the disk after this, or none of it since the last flush."""
        if not self._held:
            return
        with self.unsaved.tolerate(self.what):
            before = None
            try:
                with self.path.open("ab") as file:
                    before = file.tell()
                    file.write(self._held)
            except OSError:
                # Half a line is worse than none.
                if before is not None:
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, before)
                raise
            self._held.clear()
