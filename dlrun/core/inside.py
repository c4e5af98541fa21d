"""The border of a run folder: nothing that dlrun reads, writes or removes for a run lies outside of it.

The folder itself may be a link to another disk, and so may any folder above it. The files inside must be its own: a
link out of it could show any file of the machine in a report, or have it overwritten.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from dlrun.core.errors import RequestError

# What dlrun writes into the folder of a run; other files are the user's own.
OF_A_RUN = (
    ".hydra", "checkpoints", "figures", "profile", "eval*", "export*", "environment.json", "result.json", "run.log",
    "metrics.jsonl", "fingerprints.jsonl", "report.html", "loggers.json", "metrics.csv", "events.out.tfevents.*",
    ".lock", ".*.tmp",
)  # fmt: skip
_OF_A_RUN_OR_SWEEP = (*OF_A_RUN, "sweep.jsonl", "comparison.csv", "comparison.md", "expectations.md", "*.pt")


def refuse_outside(folder: Path) -> None:
    """RequestError if a file of the run or sweep in `folder` is a link out of it, or no ordinary file.

    No link is followed and no file is opened. A folder that does not exist has nothing to refuse.
    """
    border = os.path.realpath(folder)
    pending = [str(folder)]

    while pending:
        place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise RequestError(f"{place} cannot be read: {error.strerror}") from error

        for entry in entries:
            # Other files at the top are the user's own.
            if place == str(folder) and not _is_of_a_run_or_sweep(entry.name):
                continue
            _refuse_entry(entry, border, folder)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)


def _is_of_a_run_or_sweep(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _OF_A_RUN_OR_SWEEP)


def _refuse_entry(entry: os.DirEntry[str], border: str, folder: Path) -> None:
    target = Path(os.path.realpath(entry.path))

    if entry.is_symlink() and not is_within(str(target), border):
        raise RequestError(
            f"{entry.path} is a link to {target}, outside of {folder}, and dlrun follows no link out of a run; "
            "put the file itself there, or remove the link"
        )

    # Opening a pipe or a device could wait for ever, or do something.
    if target.exists() and not target.is_file() and not target.is_dir():
        raise RequestError(f"{entry.path} is no ordinary file; remove it")


def refuse_elsewhere(folder: Path, place: Path) -> None:
    """RequestError if `place`, by its name a folder in `folder`, lies elsewhere because part of it is a link."""
    if not is_within(os.path.realpath(place), os.path.realpath(folder)):
        raise RequestError(
            f"{place} is a link out of {folder}, and dlrun follows no link out of a sweep; put the folder itself "
            "there, or remove the link"
        )


def is_within(path: str, border: str) -> bool:
    """Whether a resolved path is that of the border, or lies below it."""
    return path == border or path.startswith(border.rstrip(os.sep) + os.sep)
