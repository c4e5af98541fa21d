"""`dlrun ls runs [FOLDER ...] [key=value ...] [--last N]`: what was run, newest first, a line each."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dlrun.core import lock
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line, write_error, write_out
from dlrun.runs.query import Query, bytes_of, is_stamped, query, started, typed_words
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import number
from dlrun.sweep.ledger import DONE, Ledger

HEADERS = ("run", "status", "epochs", "best", "size", "choice")
_LEAST = 8  # columns that the choice is worth showing in


def list_runs(words: Sequence[str]) -> None:
    """Print a line a run, or a sweep. On a terminal the folders that they lie in are headings, in a pipe part of it."""
    asked = query(words, "dlrun ls runs")
    units = group_runs(asked)[: asked.last]
    for damage in asked.unreadable:
        write_error(f"note: {damage}")
    if not units:
        none = "no run matches" if asked.filters else "there is no run"
        write_out(f"{none} in {escape_line(', '.join(map(str, asked.places or [asked.outputs])))}")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write_out("\n".join(format_columns([unit.line() for unit in units], width)))
    sys.stdout.flush()


@dataclass(frozen=True)
class Unit:
    """A run, or a sweep with its jobs."""

    runs: list[RunRecord]
    sweep: Path | None = None

    def line(self) -> tuple[Path, list[str]]:
        """Its folder, and the cells behind it."""
        return describe_sweep(self.sweep, self.runs) if self.sweep else (self.runs[0].folder, list_cells(self.runs[0]))


def group_runs(asked: Query) -> list[Unit]:
    """The runs that are asked for, newest first; the jobs of a sweep as one, unless a filter or its folder is named."""
    runs = asked.runs()
    jobs: dict[Path, list[RunRecord]] = {}
    units = []
    for run in runs:
        if run.sweep is None or asked.filters or any(p == run.sweep or run.sweep in p.parents for p in asked.places):
            units.append(Unit([run]))
            continue
        if run.sweep not in jobs:  # where its newest job stands
            jobs[run.sweep] = []
            units.append(Unit(jobs[run.sweep], run.sweep))
        jobs[run.sweep].append(run)
    return units


def list_cells(run: RunRecord) -> list[str]:
    """Status, epochs, best metric, size and choice of one run."""
    best = f"{run.best[0]} {number(run.best[1])}" if run.best else "-"
    return [run.status, str(run.epochs), best, format_size(bytes_of(run.folder)), describe_choice(run)]


def describe_choice(run: RunRecord) -> str:
    """Time, model, data and optimizer, and what else was typed; without what the folder's own name tells.

    Of a damaged run what is wrong with it.
    """
    if run.left == "damaged":
        return run.damage[0]
    model, data, optimizer = (run.choices.get(group, "") for group in ("model", "data", "optimizer"))
    if run.sweep is not None:
        return f"{model} {data} {optimizer}".strip()
    when = [] if is_stamped(run.folder) else [f"{datetime.fromtimestamp(started(run)[0]):%Y-%m-%d %H:%M}"]
    named = [] if f"{model}_{data}" in run.folder.name else [model, data]
    return " ".join([*when, *named, optimizer, *typed_words(run)]).strip()


def describe_sweep(folder: Path, runs: list[RunRecord]) -> tuple[Path, list[str]]:
    """A sweep: how many of its runs are done, and the command that began it."""
    statuses, words = [run.status for run in runs], list[str]()
    try:
        ledger = Ledger.read(folder)
        statuses, words = [ledger.read_status(entry) for entry in ledger.entries.values()], ledger.words
    except RequestError as error:
        return folder, ["damaged", "-", "-", format_size(bytes_of(folder)), str(error)]
    done, failed = sum(s in DONE for s in statuses), statuses.count("failed")
    said = f"sweep, {failed} failed:" if failed else "sweep:"
    state = f"{'running, ' if lock.is_held(folder) else ''}{done}/{len(statuses)} done"
    return folder, [state, "-", "-", format_size(bytes_of(folder)), " ".join([said, *words])]


def format_size(count: float) -> str:
    """Bytes for people."""
    scale, unit = next((s, u) for s, u in ((1e3, "kB"), (1e6, "MB"), (1e9, "GB")) if count < 999.95 * s or u == "GB")
    return f"{count / scale:,.1f} {unit}"


def format_columns(lines: Sequence[tuple[Path, list[str]]], width: int | None) -> list[str]:
    """Columns under HEADERS. width: of a terminal, whose last column is cut; null for whole lines with whole paths."""
    rows = [list(HEADERS)]
    for folder, cells_of_run in lines:
        name = str(folder) if width is None else f"  {folder.name}"
        rows.append([escape_line(cell) for cell in (name, *cells_of_run)])

    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADERS) - 1)]
    text = []
    for i, row in enumerate(rows):
        if width is not None and i and (i == 1 or lines[i - 1][0].parent != lines[i - 2][0].parent):
            text.append(escape_line(str(lines[i - 1][0].parent)))
        right = (False, False, True, False, True)
        made = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=False)]
        text.append("  ".join(made + _last(row[-1], None if width is None else width - sum(widths) - 2 * len(widths))))
    return [line.rstrip() for line in text]


def _last(cell: str, room: int | None) -> list[str]:
    if room is None or len(cell) <= room:
        return [cell]
    return [f"{cell[: room - 1]}…"] if room >= _LEAST else []
