"""Find run folders, and those that a command line asks for, without torch."""

import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from dlrun.config.compose import GROUPS
from dlrun.core.errors import RequestError
from dlrun.core.shell import quote, suggest_example
from dlrun.runs.filters import Filter, list_unknown_tags, parse_filter, refuse_unknown_key, sort_runs
from dlrun.runs.record import ENVIRONMENT, LEDGER, MARKS, RunRecord

_OUTPUTS = "paths.outputs="
# The end of a path that `folder.create_folder` chose.
_STAMP = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_")


def read_start(run: RunRecord) -> tuple[float, float]:
    """Return when a run started, as a sort key: seconds since 1970, then a file time that orders one second."""
    # `started` has whole seconds, in which a sweep may start several runs.
    file_time = _read_mtime(run.folder / ENVIRONMENT) or _read_mtime(run.folder) or 0.0
    try:
        return datetime.fromisoformat(run.environment["started"]).timestamp(), file_time
    except (KeyError, ValueError, OverflowError, OSError):
        return file_time, file_time


def _read_mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def is_stamped(folder: Path) -> bool:
    """Whether the path of a run folder contains its start time."""
    return bool(_STAMP.match(f"{folder.parent.name}/{folder.name}"))


def list_typed_overrides(run: RunRecord) -> list[str]:
    """List the overrides on a run's command line, without group choices and paths."""
    command = run.environment.get("command", "")
    words = command.split()
    # shlex takes 0.1 ms, and raises at a quote that is not closed.
    if "'" in command:
        with contextlib.suppress(ValueError):
            words = shlex.split(command)

    # Choices and names have columns of their own in the lists, and paths do not tell what was trained.
    prefixes = ("hydra.", "paths.", "run.", *(f"{group}=" for group in GROUPS))
    return [word for word in words if "=" in word and not word.startswith(prefixes)]


def count_bytes(folder: Path) -> int:
    """Sum the sizes of the files below a folder. Hard links count once; files that vanish meanwhile do not."""
    sizes: dict[tuple[int, int], int] = {}
    pending = [str(folder)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    status = entry.stat(follow_symlinks=False)
                    # By inode: last.pt and best.pt are links to files that are counted already.
                    sizes[status.st_dev, status.st_ino] = status.st_size

    return sum(sizes.values())


def find_runs(places: Sequence[Path]) -> list[RunRecord]:
    """Find the runs at or below some folders, newest first."""
    return sorted(scan_folders(places), key=read_start, reverse=True)


def scan_folders(places: Sequence[Path]) -> list[RunRecord]:
    """Find the runs at or below some folders, unsorted and unread. Symbolic links below them are not followed."""
    runs: dict[Path, RunRecord] = {}
    sweeps: dict[Path, Path | None] = {}
    for root in places:
        for name, subfolders, files in os.walk(root):
            place = Path(name)
            # os.walk visits a folder before its subfolders, so that the parent's sweep is known here.
            sweeps[place] = place if LEDGER in files else sweeps.get(place.parent)
            if _is_run(place, subfolders, files, sweeps[place]):
                # Resolved, as two of the folders may be one, or one may lie in the other.
                runs.setdefault(place.resolve(), RunRecord(place, sweeps[place]))
                # Runs are not nested, so do not descend.
                subfolders.clear()

    return list(runs.values())


def _is_run(place: Path, subfolders: list[str], files: list[str], sweep: Path | None) -> bool:
    """Whether a folder holds a run, or was made for a run whose process ended before it wrote anything."""
    if MARKS & {*files, *subfolders} or ".hydra" in subfolders:
        return True
    is_bare = not subfolders and set(files) <= {".lock"}
    return is_bare and (sweep is not None or is_stamped(place))


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder holds a sweep, by its ledger."""
    return (folder / LEDGER).is_file()


def find_run(words: Sequence[str], command: str) -> RunRecord:
    """The run that the only word names. RequestError for other words, and for a folder that holds no run."""
    if len(words) != 1 or not words[0]:
        wrong = f"; leave out {' '.join(words[1:])}" if len(words) > 1 else ""
        raise RequestError(f"dlrun {command} takes one run folder{wrong or f'; type {suggest_example(command)}'}")

    return open_run(Path(words[0]), command)


def open_run(
    folder: Path, command: str, count: str = "one run", of_sweep: str = "dlrun ls runs {} lists its runs"
) -> RunRecord:
    """The run in a folder; RequestError if it holds none.

    count: of the runs that the command takes; of_sweep: what to type for a sweep.
    """
    if is_sweep_folder(folder):
        advice = of_sweep.format(quote(folder))
        raise RequestError(f"{folder} is a sweep, and dlrun {command} takes {count}; {advice}")
    if _is_run_folder(folder):
        # A job of a sweep lies in the sweep's folder, or one below if several sweeps are one.
        above = (folder.absolute().parent, folder.absolute().parent.parent)
        sweep = next((place for place in above if is_sweep_folder(place)), None)
        if sweep is not None and not folder.is_absolute():
            sweep = Path(os.path.relpath(sweep))
        return RunRecord(folder, sweep)

    if folder.is_dir():
        problem = "holds no run"
    elif folder.exists():
        problem = "is a file"
    else:
        problem = "does not exist"

    raise RequestError(f"{folder} {problem}; dlrun {command} takes a run folder, one of `dlrun ls runs`")


def _is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run, as lists of runs have it."""
    try:
        entries = {entry.name: entry.is_dir() for entry in folder.iterdir()}
    except OSError:
        return False
    subfolders = [name for name, is_folder in entries.items() if is_folder]
    files = [name for name, is_folder in entries.items() if not is_folder]
    return _is_run(folder, subfolders, files, None)


@dataclass
class Query:
    """Which runs a command line selects, and in which order."""

    outputs: Path = Path("outputs")
    # Folders to search; all of `outputs` if empty.
    places: list[Path] = field(default_factory=list)
    # A run must fulfil all of them.
    filters: list[Filter] = field(default_factory=list)
    # Number of runs to take, the newest first; None for all.
    last: int | None = None
    # Values to sort by, as `filters.sort_runs` takes them; the first counts most.
    sort: list[str] = field(default_factory=list)
    # Number of runs to take from the sorted list; None for all.
    limit: int | None = None
    # Damage that prevented a filter from reading a run.
    unreadable: list[str] = field(default_factory=list)
    # A sentence for each tag of a filter that no run has.
    hints: list[str] = field(default_factory=list)

    def get_status_filter(self) -> Filter | None:
        """The condition on the status; None without one."""
        return next((condition for condition in self.filters if condition.key == "status"), None)

    def find_value_to_show(self) -> str:
        """The key that the list is sorted by or filtered on, of those that have no column; "" without one."""
        keys = [key.removeprefix("-") for key in self.sort]
        keys += [condition.key for condition in self.filters if condition.operator not in ("=", "!=")]
        return next((key for key in keys if key not in ("status", "epochs")), "")

    def select_runs(self) -> list[RunRecord]:
        """Find the matching runs, newest first. RequestError for a key that no run has."""
        runs = find_runs(self.places or [self.outputs])
        for key in (*(condition.key for condition in self.filters), *self.sort):
            refuse_unknown_key(runs, key.removeprefix("-"))

        self.hints = []
        for condition in self.filters:
            self.hints += list_unknown_tags(runs, condition)
        for condition in self.filters:
            matching: list[RunRecord] = []
            for run in runs:
                if condition.matches(run):
                    matching.append(run)
                elif condition.key != "status":
                    self.unreadable += run.damage
            runs = matching

        return runs

    def sort_and_cut(self, runs: Sequence[RunRecord]) -> list[RunRecord]:
        """Sort the newest `last` runs, and cut the list at `limit`."""
        sorted_runs = list(runs[: self.last])
        # Sorting is stable, so the last key comes first.
        for key in reversed(self.sort):
            sorted_runs = sort_runs(sorted_runs, key)
        return sorted_runs[: self.limit]


def parse_query(
    words: Sequence[str], command: str, sort: str | None = None, limit: int | None = None, last: int | None = None
) -> Query:
    """Parse FOLDER..., filters and paths.outputs=X. RequestError for anything else.

    sort: keys with commas between them; limit, last: as in Query.
    """
    if sort == "":
        raise RequestError("sort= names no key; type sort=-val/accuracy")

    query = Query(last=last, sort=sort.split(",") if sort else [], limit=limit)
    for word in words:
        if word.startswith(_OUTPUTS):
            query.outputs = Path(word.removeprefix(_OUTPUTS))
        elif "=" not in word and Path(word).is_dir():
            query.places.append(Path(word))
        else:
            query.filters.append(_parse_condition(word, command))

    return query


def _parse_condition(word: str, command: str) -> Filter:
    condition = parse_filter(word.removeprefix("--"))
    if condition is not None:
        return condition
    if "=" not in word and word[:1] != "-":
        raise RequestError(f"there is no folder {word}; {command} takes folders and filters, as in status=failed")
    raise RequestError(f"{command} takes folders and filters, as in status=failed or model=resnet; not {word}")
