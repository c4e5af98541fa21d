"""`dlrun clean [FOLDER ...] [key=value ...] [--yes]`: remove failed and empty runs, after showing them."""

import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from dlrun.cli.list_runs import format_columns, format_size, list_cells
from dlrun.core import lock
from dlrun.core.errors import RequestError, RunError, join_names
from dlrun.core.inside import OF_A_RUN
from dlrun.core.terminal import escape_line, write_out
from dlrun.runs.filters import Filter
from dlrun.runs.query import Query, count_bytes, parse_query
from dlrun.runs.record import RunRecord

_DEFAULT_STATUSES = "failed,empty"
# Seconds in which an empty folder may belong to a run that is just starting.
_YOUNG = 60


def clean(words: Sequence[str], is_confirmed: bool, sort: str | None, limit: int | None, last: int | None) -> None:
    """Show what would be removed, and with --yes remove it; RunError if something cannot be removed.

    Never removed: anything outside paths.outputs or behind a symbolic link, a run under way, a folder with files of
    the user's own. Completed and interrupted runs only if status=... names them.
    """
    selection = parse_query(words, "dlrun clean", sort, limit, last)
    _refuse_query(selection)
    status_filter = selection.get_status_filter() or Filter("status", "=", _DEFAULT_STATUSES)
    if status_filter not in selection.filters:
        selection.filters.append(status_filter)

    # --last counts all runs that match, whether they may be removed or not.
    runs = selection.sort_and_cut(selection.select_runs())
    objections = {run.folder: _find_objection(run, selection.outputs) for run in runs}
    removable = [run for run in runs if not objections[run.folder]]
    if removable:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        lines = [(run.folder, list_cells(run)) for run in removable]
        write_out("\n".join(format_columns(lines, width)))
    for run in runs:
        objection = objections[run.folder]
        if objection:
            write_out(escape_line(f"kept: {run.folder} ({objection})"))

    size = format_size(sum(count_bytes(run.folder) for run in removable))
    if not removable:
        reason = "" if runs else f": no run with status={status_filter.text}"
        write_out(escape_line(f"nothing to remove in {selection.outputs}{reason}"))
    elif not is_confirmed:
        # Removing needs a second look.
        options = [f"{name}={value}" for name, value in (("sort", sort), ("limit", limit), ("last", last)) if value]
        command = shlex.join(["dlrun", "clean", *words, *options, "--yes"])
        count = _format_count(len(removable))
        write_out(escape_line(f"{count}, {size}; nothing is removed yet: type {command}"))
    else:
        remove_all(removable, selection.outputs)


def _format_count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _refuse_query(selection: Query) -> None:
    """RequestError for folders that do not lie in `outputs`, and for runs under way."""
    for place in selection.places:
        if not place.resolve().is_relative_to(selection.outputs.resolve()):
            raise RequestError(
                f"{place} is not in {selection.outputs}, and dlrun clean removes nothing elsewhere; "
                "type paths.outputs=..."
            )
    statuses = [condition for condition in selection.filters if condition.key == "status"]
    if any(condition.operator != "=" for condition in statuses):
        # The status decides what is removed, so it is named.
        raise RequestError("dlrun clean takes the statuses of runs to remove, as in status=failed,empty")
    if any("running" in condition.patterns for condition in statuses):
        raise RequestError("a run under way is not removed; stop it first, and leave status=running out")


def _find_objection(run: RunRecord, outputs: Path) -> str:
    """Why a run must not be removed; "" if it may be."""
    # Symbolic links are resolved first: a run behind one lies elsewhere.
    root = outputs.resolve()
    folder = run.folder.resolve()
    if not folder.is_relative_to(root) or folder == root:
        return f"it is not in {outputs}"
    if run.status == "running":
        return "it is under way"
    # A sweep locks its own folder, above those of its runs.
    if any(lock.is_locked(place) for place in run.folder.parents):
        return "its sweep is under way"

    # Some file systems have no locks: the age protects a run that is just starting.
    if run.status == "empty" and time.time() - _find_last_change(run.folder) < _YOUNG:
        return f"it has changed less than {_YOUNG} seconds ago, so it may only just have begun"
    if run.status == "damaged" and run.has_checkpoints:
        return f"it holds checkpoints, which may be intact: {run.damage[0]}"

    try:
        names = sorted(path.name for path in run.folder.iterdir())
    except OSError as error:
        return f"it cannot be listed: {error.strerror}"
    # rmtree would take the user's own files along.
    foreign = [name for name in names if not _is_of_a_run(name)]
    return f"it holds more than a run: {join_names(foreign, most=3)}" if foreign else ""


def _is_of_a_run(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in OF_A_RUN)


def _find_last_change(folder: Path) -> float:
    """The newest modification time in a folder, in seconds since 1970."""
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


def remove_all(runs: Sequence[RunRecord], outputs: Path) -> None:
    """Remove runs and print how much room that made; RunError lists those that could not be removed."""
    removed_count = 0
    freed_bytes = 0
    errors = list[str]()
    for run in runs:
        size = count_bytes(run.folder)
        try:
            remove(run, outputs)
        except RequestError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"{run.folder} cannot be removed ({error.strerror})")
        else:
            removed_count += 1
            freed_bytes += size

    write_out(f"removed {_format_count(removed_count)}, {format_size(freed_bytes)}")
    if errors:
        # The error goes to stderr: keep the order of the lines on a terminal.
        sys.stdout.flush()
        raise RunError(f"not everything is removed: {'; '.join(errors)}")


def remove(run: RunRecord, outputs: Path) -> None:
    """Remove a run's folder, and its parents in `outputs` that are empty then; RequestError if it is in use."""
    # The lock keeps anyone from resuming the run meanwhile.
    with lock.Lock() as run_lock:
        run_lock.take(run.folder, to_remove=True)
        if replace(run).recorded_status != run.recorded_status:
            # Someone has resumed it since it was shown: a new record reads another status.
            raise RequestError(f"{run.folder} has been resumed meanwhile")
        shutil.rmtree(run.folder)

    # The folder of the date, or of the sweep, stays as long as other runs are in it.
    for parent in run.folder.parents:
        if parent.resolve() == outputs.resolve() or parent.is_symlink():
            break
        try:
            parent.rmdir()
        except OSError:
            # It is not empty.
            break
