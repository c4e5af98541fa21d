"""A folder that appears whole or not at all."""

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
    """A folder in the making: `temporary` now, `final` once it is whole."""

    def __init__(self, temporary: Path) -> None:
        self.temporary, self.final = temporary, temporary


@contextlib.contextmanager
def create_folder(parent: Path, name: str) -> Iterator[NewFolder]:
    """parent/name, or parent/name_2 and so on where there is one: with all that is written into it, or not at all."""
    made = NewFolder(parent / f".{name}.{os.getpid()}.tmp")
    new = not parent.exists()
    try:
        try:
            made.temporary.mkdir(parents=True)
        except OSError as error:
            raise _unwritable(parent, error) from error
        try:
            yield made
            _sync(made.temporary)
        except OSError as error:
            if not is_about(error, made.temporary):  # of the data, or of the model that is exported
                raise
            raise _unwritable(parent, error) from error
        made.final = _renamed(made.temporary, parent, name)
    finally:
        shutil.rmtree(made.temporary, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                parent.rmdir()  # where it stayed empty


def _renamed(temporary: Path, parent: Path, name: str) -> Path:
    for suffix in ("", *(f"_{i}" for i in range(2, 10_000))):
        final = parent / f"{name}{suffix}"
        if final.exists():
            continue
        try:
            temporary.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another export was as fast
                continue
            raise _unwritable(parent, error) from error
        return final
    raise RequestError(f"{parent} holds ten thousand exports; remove some")


def _sync(folder: Path) -> None:
    """The files are on the disk before their folder gets its name."""
    for path in itertools.chain(folder.rglob("*"), [folder]):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _unwritable(folder: Path, error: OSError) -> RequestError:
    return RequestError(f"cannot write to {folder} ({error.strerror or error}); make room there, or copy the run")
