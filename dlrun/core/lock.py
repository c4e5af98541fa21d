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

# A link is never written through.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

# POSIX leaves open which of them says that another process has the lock.
_TAKEN = (errno.EACCES, errno.EAGAIN)


class Lock:
    """Holds a folder until the `with` block ends; the kernel releases it when the process dies, however it dies.

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
        """Lock an existing folder. RequestError names the process that has it, or says that it cannot be written.

        to_remove: the folder is about to be removed, and links in it with it; else a link out of it is refused.
        """
        if folder == self.folder:
            return

        # Whatever writes a folder takes its lock first, so links are refused here.
        if not to_remove:
            refuse_outside(folder)

        path = folder / ".lock"
        try:
            handle = _open_locked(path)
        except OSError as error:
            message = f"cannot write to {folder} ({error.strerror}); choose another folder"
            raise RequestError(message) from error
        if handle is None:
            holder = _read_holder(path)
            raise RequestError(f"{folder} is being written by {holder}; wait until that has ended, or stop it")

        self.folder = folder
        self._handle = handle

    def release(self) -> None:
        """Release the lock, and remove its file before another process can lock it."""
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

    # Closing the file releases the lock again.
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def _open_locked(path: Path) -> int | None:
    """Open and lock a file, and write into it who has it; None if another process has locked it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o644)
        if not try_lock(handle):
            os.close(handle)
            return None
        if _is_same_file(path, handle):
            break
        # The holder has released and removed it between our open and our lock: try the new one.
        os.close(handle)

    try:
        os.ftruncate(handle, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}"
        os.write(handle, holder.encode())
    except OSError:
        # The disk is full: leave no empty file behind.
        path.unlink()
        os.close(handle)
        raise
    return handle


def _is_same_file(path: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def try_lock(handle: int) -> bool:
    """Lock an open file until it is closed. False if another process has it; True where there are no locks."""
    if sys.platform == "win32":
        return True

    # Windows has no such module.
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error: this file system has no locks.
        return error.errno not in _TAKEN
    return True


def _read_holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text().strip() or "another process"
    return "another process"
