"""A folder that appears complete or not at all."""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dlrun.core.errors import RequestError


class NewFolder:
    """A folder that is being written: at `temporary` now, at `final` once it is complete."""

    def __init__(self, temporary: Path) -> None:
        self.temporary = temporary
        self.final = temporary


@contextlib.contextmanager
def create_folder(parent: Path, name: str) -> Iterator[NewFolder]:
    """Create parent/name, or parent/name_2 and so on if it exists, with all that the block writes, or not at all.

    What the disk refuses is raised as it is, and so are errors of the block. A parent that was made for it goes again.
    """
    # By this name a leftover of a killed process is known for what it is.
    folder = NewFolder(parent / f".{name}.{os.getpid()}.tmp")
    is_new_parent = not parent.exists()

    try:
        folder.temporary.mkdir(parents=True)
        yield folder
        _sync(folder.temporary)
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
            raise
        return final
    raise RequestError(f"{parent} holds ten thousand folders of the name {name}; remove some")


def _sync(folder: Path) -> None:
    """Sync all files: they must be on the disk before their folder gets its name."""
    for path in itertools.chain(folder.rglob("*"), [folder]):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
