"""One process at a time writes a run folder."""

import contextlib
import errno
import os
import socket
import sys
from datetime import datetime
from pathlib import Path
from types import TracebackType

from dlrun.core.errors import RequestError
from dlrun.core.inside import refuse_outside

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link is never written through
_TAKEN = (errno.EACCES, errno.EAGAIN)  # POSIX leaves it open which


class Lock:
    """Holds a folder until the `with` block ends; the kernel lets go of it when the process dies, however it dies.

    A record lock (fcntl), as forked children do not inherit it: data workers outlive a killed run by seconds.
    Where there are no such locks (Windows, some network file systems) nothing is locked.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._handle = -1

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def take(self, folder: Path, to_remove: bool = False) -> None:
        """Hold `folder`, which exists; RequestError says who does already, or that nothing can be written there.

        to_remove: it is held to be removed, and links in it are removed with it; else a link out of it is refused.
        """
        if folder == self.folder:
            return
        if not to_remove:
            refuse_outside(folder)  # all that writes a folder takes it first
        path = folder / ".lock"
        try:
            handle = _locked(path)
        except OSError as error:
            said = f"cannot write to {folder} ({error.strerror}); choose another folder"
            raise RequestError(said) from error
        if handle is None:
            raise RequestError(f"{folder} is being written by {_holder(path)}; wait until that has ended, or stop it")
        self.folder, self._handle = folder, handle

    def release(self) -> None:
        """Let go; the file goes too, while it is still ours."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / ".lock").unlink()
            os.close(self._handle)
            self.folder = None


def is_locked(folder: Path) -> bool:
    """Whether another process writes `folder` at this moment."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | _NO_LINK)
    except OSError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def _locked(path: Path) -> int | None:
    """An open file that this process has locked and that says so; null when another process has."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        if not try_lock(handle):
            os.close(handle)
            return None
        if _is(path, handle):
            break
        os.close(handle)  # whoever had it has let go and removed it meanwhile: this file is nobody's
    try:
        os.ftruncate(handle, 0)
        os.write(
            handle, f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}".encode()
        )
    except OSError:
        path.unlink()
        os.close(handle)
        raise
    return handle


def _is(path: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def try_lock(handle: int) -> bool:
    """Lock an open file until it is closed; false when another process has it, true where there are no locks."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN  # anything else: no locks on this file system
    return True


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text().strip() or "another process"
    return "another process"
