"""The newest valid checkpoint of a run, and whether it still is."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun.runs import checkpoint
from dlrun.runs.folder import list_saved_files

# Name, inode, time of change (ns) and size of a file.
FileStatus = tuple[str, int, int, int]


@dataclass(frozen=True)
class NewestCheckpoint:
    """The newest valid checkpoint of a run, and a sentence for each newer one that was skipped."""

    folder: Path
    state: dict[str, Any]
    skipped: list[str]
    # The files that it was chosen from.
    files: list[FileStatus]

    @classmethod
    def load(cls, folder: Path, required_keys: Sequence[str]) -> "NewestCheckpoint | None":
        """Load the newest checkpoint with all of `required_keys`; None where the run has saved none.

        UnreadableError, with the reason of each, where there are checkpoints and none of them can be opened.
        """
        files = _list_status(folder)
        if not files:
            return None
        _, state, skipped = checkpoint.load_newest(folder / "checkpoints", required_keys)
        return cls(folder, state, skipped, files)

    def is_current(self) -> bool:
        """Whether the run has the same files as when this one was loaded."""
        return _list_status(self.folder) == self.files


def _list_status(folder: Path) -> list[FileStatus]:
    """The status of each file that a run has saved."""
    files = []
    for path in list_saved_files(folder):
        # A process that is still writing this run may have removed the file.
        with contextlib.suppress(OSError):
            status = path.lstat()
            files.append((path.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return files
