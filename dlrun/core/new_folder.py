"""A folder that appears complete or not at all."""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.core.files import is_about


class NewFolder:
    """A folder that is being written: at `temporary` now, at `final` once it is complete."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.final = temporary


@contextlib.contextmanager
def create_folder(parent: Path, name: str) -> Iterator[NewFolder]:
    """Create parent/name, or parent/name_2 and so on if it exists, with all that the block writes, or not at all."""
    # By this name a leftover of a killed process is known for what it is.
    folder = NewFolder(parent / f".{name}.{os.getpid()}.tmp")
    is_new_parent = not parent.exists()

    try:
        try:
            folder.temporary.mkdir(parents=True)
        except OSError as error:
            raise _explain_unwritable(parent, error) from error

        try:
            yield folder
            _sync(folder.temporary)
        except OSError as error:
            # An error may also come from the data, or from the model that is exported.
            if not is_about(error, folder.temporary):
                raise
            raise _explain_unwritable(parent, error) from error

        folder.final = _rename(folder.temporary, parent, name)
    finally:
        shutil.rmtree(folder.temporary, ignore_errors=True)
        if is_new_parent:
            # Succeeds only if the parent is still empty.
            with contextlib.suppress(OSError):
                parent.rmdir()


def _rename(temporary: Path, parent: Path, name: str) -> Path:
    """Give the folder the first free name."""
    for number in range(1, 10_000):
        final = parent / (name if number == 1 else f"{name}_{number}")
        if final.exists():
            continue

        try:
            temporary.rename(final)
        except OSError as error:
            # Another process took the name in between.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue
            raise _explain_unwritable(parent, error) from error
        return final
    raise RequestError(f"{parent} holds ten thousand exports; remove some")


def _sync(folder: Path) -> None:
    """Sync all files: they must be on the disk before their folder gets its name."""
    for path in itertools.chain(folder.rglob("*"), [folder]):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explain_unwritable(folder: Path, error: OSError) -> RequestError:
    return RequestError(f"cannot write to {folder} ({error.strerror or error}); make room there, or copy the run")
