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
from dlrun.core.errors import RequestError, RunError, listed
from dlrun.core.inside import OF_A_RUN
from dlrun.core.terminal import escape_line, write_out
from dlrun.runs.query import Query, bytes_of, query
from dlrun.runs.record import RunRecord

_DEFAULT = ["failed", "empty"]
_YOUNG = 60  # seconds in which an empty folder may be that of a run which is only just beginning


def clean(words: Sequence[str]) -> None:
    """Show what would be removed, and with --yes remove it; RunError when something could not be.

    Nothing outside of paths.outputs, behind a symbolic link, of a run under way, or beside files of the user's own;
    completed and interrupted runs only where status=... names them.
    """
    sure = "--yes" in words
    asked = query([word for word in words if word != "--yes"], "dlrun clean")
    refuse_query(asked)
    asked.filters.setdefault("status", _DEFAULT)
    runs = asked.runs()[: asked.last]
    reasons = {run.folder: find_objection(run, asked.outputs) for run in runs}
    going = [run for run in runs if not reasons[run.folder]]
    if going:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write_out("\n".join(format_columns([(run.folder, list_cells(run)) for run in going], width)))
    for run in runs:
        if reasons[run.folder]:
            write_out(escape_line(f"stays: {run.folder} ({reasons[run.folder]})"))
    room = format_size(sum(bytes_of(run.folder) for run in going))
    if not going:
        why = "" if runs else f": no run with status={','.join(asked.filters['status'])}"
        write_out(escape_line(f"nothing to remove in {asked.outputs}{why}"))
    elif not sure:
        again = shlex.join(["dlrun", "clean", *words, "--yes"])
        write_out(escape_line(f"{_counted(going)}, {room}; nothing is removed yet: type {again}"))
    else:
        remove_all(going, asked.outputs)


def _counted(runs: Sequence[RunRecord]) -> str:
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}"


def refuse_query(asked: Query) -> None:
    """RequestError for folders that do not lie in `outputs`, and for runs under way."""
    for place in asked.places:
        if not place.resolve().is_relative_to(asked.outputs.resolve()):
            raise RequestError(
                f"{place} is not in {asked.outputs}, and dlrun clean removes nothing elsewhere; type paths.outputs=..."
            )
    if "running" in asked.filters.get("status", []):
        raise RequestError("a run under way is not removed; stop it first, and leave status=running out")


def find_objection(run: RunRecord, outputs: Path) -> str:
    """Why a run stays where it is; "" for one that may go."""
    root = outputs.resolve()
    if not run.folder.resolve().is_relative_to(root) or run.folder.resolve() == root:
        return f"it is not in {outputs}"
    if run.status == "running" or any(lock.is_held(place) for place in run.folder.parents):
        return "it is under way" if run.status == "running" else "its sweep is under way"
    if run.status == "empty" and time.time() - _changed(run.folder) < _YOUNG:  # also where there are no locks
        return f"it has changed less than {_YOUNG} seconds ago, so it may only just have begun"
    if run.status == "damaged" and run.has_checkpoints:
        return f"it holds checkpoints, which may be whole: {run.damage[0]}"
    try:
        names = sorted(path.name for path in run.folder.iterdir())
    except OSError as error:
        return f"it cannot be listed: {error.strerror}"
    others = [name for name in names if not any(fnmatchcase(name, own) for own in OF_A_RUN)]
    return f"it holds more than a run: {listed(others, most=3)}" if others else ""


def _changed(folder: Path) -> float:
    """When anything in a folder was written last, in seconds since 1970."""
    found = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            found.append(path.lstat().st_mtime)
    return max(found)


def remove_all(runs: Sequence[RunRecord], outputs: Path) -> None:
    """Remove runs, each held meanwhile so that nobody goes on with it; says what room that made."""
    gone, room, lost = list[RunRecord](), 0, list[str]()
    for run in runs:
        held = bytes_of(run.folder)
        try:
            remove(run, outputs)
        except RequestError as error:
            lost.append(str(error))
        except OSError as error:
            lost.append(f"{run.folder} cannot be removed ({error.strerror})")
        else:
            gone.append(run)
            room += held
    write_out(f"removed {_counted(gone)}, {format_size(room)}")
    if lost:
        sys.stdout.flush()
        raise RunError(f"not everything is removed: {'; '.join(lost)}")


def remove(run: RunRecord, outputs: Path) -> None:
    """Remove a run's folder, and those above it in `outputs` that are empty then. RequestError for one in use."""
    with lock.Lock() as own:
        own.take(run.folder, to_remove=True)
        if replace(run).left != run.left:  # since it was shown
            raise RequestError(f"{run.folder} has been gone on with meanwhile")
        shutil.rmtree(run.folder)
    for parent in run.folder.parents:
        if parent.resolve() == outputs.resolve() or parent.is_symlink():
            break
        try:
            parent.rmdir()
        except OSError:
            break
