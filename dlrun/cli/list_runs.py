"""`dlrun ls runs [FOLDER ...] [key=value ...] [sort=KEY] [limit=N]`: a line for each run, the newest first."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dlrun.config.schema import KEYS
from dlrun.core import lock
from dlrun.core.errors import RequestError
from dlrun.core.format import format_folder_name
from dlrun.core.output_format import format_csv, format_json
from dlrun.core.terminal import escape_line, write_error, write_out
from dlrun.runs.filters import FACTS, read_value
from dlrun.runs.query import Query, count_bytes, is_stamped, list_typed_overrides, parse_query, read_start
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import format_number
from dlrun.sweep.ledger import DONE, Ledger
from dlrun.sweep.slurm_jobs import describe_states

_HEADERS = ("run", "status", "epochs", "best", "size", "choice")
# Before the choice, where any run of the list has tags.
TAGS = "tags"
# Keys of a run as data.
RUN_COLUMNS = (
    "run", "name", "tags", "status", "sweep", "started", "epochs", "best_metric", "best_value", "best_epoch",
    *(fact for fact in FACTS if fact != "epochs"), "bytes", *KEYS, "overrides", "metrics", "damage",
)  # fmt: skip
_RIGHT_ALIGNED = ("epochs", "size")
# Columns of the choice; with less room than this it is left out.
_LEAST_CHOICE = 8


def list_runs(words: Sequence[str], format: str, sort: str | None, limit: int | None, last: int | None) -> None:
    """Print a line for each run or sweep.

    On a terminal their parent folders are headings, in a pipe each line has the whole path. As data, each run of a
    sweep is listed.
    """
    selection = parse_query(words, "dlrun ls runs", sort, limit, last)
    runs = selection.select_runs()
    # Notes go to stderr, so that a pipe gets the list alone.
    for note in (*selection.unreadable, *selection.hints):
        write_error(f"note: {note}")

    if format != "table":
        records = [describe_run(run) for run in selection.sort_and_cut(runs)]
        write_out(format_json(records) if format == "json" else _format_runs_csv(records))
        sys.stdout.flush()
        return

    list_lines = make_lines(selection, runs)
    for sweep in dict.fromkeys(run.sweep for run in runs if run.sweep and _is_named(run.sweep, selection.places)):
        on_cluster = describe_states(sweep)
        if on_cluster:
            write_error(f"note: jobs of {sweep} in Slurm: {on_cluster}")
    if not list_lines:
        message = "no run matches" if selection.filters else "there is no run"
        places = ", ".join(map(str, selection.places or [selection.outputs]))
        write_out(f"{message} in {escape_line(places)}")
        return

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    key = selection.find_value_to_show()
    lines = [line.list_cells(key) for line in list_lines]
    headers = ["value" if key and header == "best" else header for header in _HEADERS]
    tags = [line.tags for line in list_lines]
    if any(tags):
        headers.insert(-1, TAGS)
        for (_, cells), text in zip(lines, tags, strict=True):
            cells.insert(-1, text)
    write_out("\n".join(format_columns(lines, width, headers)))
    sys.stdout.flush()


@dataclass(frozen=True)
class ListLine:
    """A line of the list: a run, or a sweep with its runs."""

    runs: list[RunRecord]
    sweep: Path | None = None

    @property
    def tags(self) -> str:
        """Tags of the run, or of a sweep's newest one: its runs share them, and reading each config takes long."""
        return ",".join(self.runs[0].tags)

    def list_cells(self, key: str = "") -> tuple[Path, list[str]]:
        """The folder, and the cells of the other columns. key: of the value to show in place of the best metric."""
        if self.sweep:
            return self.sweep, _list_sweep_cells(self.sweep)
        return self.runs[0].folder, list_cells(self.runs[0], key)


def make_lines(selection: Query, runs: Sequence[RunRecord]) -> list[ListLine]:
    """The lines of the list: runs of a sweep as one, unless a filter, an order or the sweep's folder is given.

    runs: those that match, newest first.
    """
    if selection.filters or selection.sort:
        return [ListLine([run]) for run in selection.sort_and_cut(runs)]

    by_sweep: dict[Path, list[RunRecord]] = {}
    lines = []
    for run in runs:
        if run.sweep is None or _is_named(run.sweep, selection.places):
            lines.append(ListLine([run]))
            continue

        # A sweep is listed at the place of its newest run.
        if run.sweep not in by_sweep:
            by_sweep[run.sweep] = []
            lines.append(ListLine(by_sweep[run.sweep], run.sweep))
        by_sweep[run.sweep].append(run)
    # A sweep counts as one.
    return lines[: selection.last][: selection.limit]


def describe_run(run: RunRecord) -> dict[str, Any]:
    """A run as data, for JSON: the same keys for every run, None where it has no such value."""
    # First, so that only damage to the files that tell the status makes it "damaged", as in the table.
    status = run.status
    best = run.result.get("best", {})
    description: dict[str, Any] = {
        "run": str(run.folder),
        "name": run.name or None,
        "tags": run.tags,
        "status": status,
        "sweep": str(run.sweep) if run.sweep else None,
        "started": run.environment.get("started"),
        "epochs": run.epochs,
        "best_metric": best.get("metric"),
        "best_value": best.get("value"),
        "best_epoch": best.get("epoch"),
        **{key: run.result.get(key) for key in FACTS if key != "epochs"},
        "bytes": count_bytes(run.folder),
        **{group: run.choices.get(group) for group in KEYS},
        "overrides": run.overrides,
        "metrics": run.metrics,
    }
    # Last, as it tells of all files that were read above.
    description["damage"] = run.damage
    return description


def _format_runs_csv(records: Sequence[dict[str, Any]]) -> str:
    """Descriptions of runs as CSV, with a column for each metric in place of "metrics"."""
    metrics: dict[str, None] = {}
    rows = []
    for record in records:
        metrics |= dict.fromkeys(record["metrics"])
        rows.append({**record, **record["metrics"]})
    columns = [column for column in RUN_COLUMNS if column != "metrics"]
    return format_csv([*columns, *metrics], rows)


def _is_named(sweep: Path, places: Sequence[Path]) -> bool:
    """Whether one of the places is the sweep's folder or lies in it."""
    return any(place == sweep or sweep in place.parents for place in places)


def list_cells(run: RunRecord, key: str = "") -> list[str]:
    """Status, epochs, best metric, size and choice of a run. key: of the value to show in place of the best metric."""
    # A run that ended before its first evaluation has no best value.
    best = f"{run.best[0]} {format_number(run.best[1])}" if run.best else "-"
    if key:
        best = _format_value(run, key)
    return [run.status, str(run.epochs), best, format_size(count_bytes(run.folder)), _describe_choice(run)]


def _format_value(run: RunRecord, key: str) -> str:
    """A key and its value; "-" where the run has none."""
    try:
        value = read_value(run, key)
    except KeyError:
        return "-"
    return "-" if value is None else f"{key} {format_number(value)}"


def _describe_choice(run: RunRecord) -> str:
    """Name, time, model, data, optimizer and further overrides, as far as the folder's name does not tell them.

    Of a damaged run, its first damage.
    """
    if run.recorded_status == "damaged":
        return run.damage[0]

    words = []
    if run.name and format_folder_name(run.name) not in run.folder.name:
        words.append(run.name)

    model = run.choices.get("model", "")
    data = run.choices.get("data", "")
    optimizer = run.choices.get("optimizer", "")
    if run.sweep is not None:
        return " ".join([*words, model, data, optimizer]).strip()

    if not is_stamped(run.folder):
        start_time = datetime.fromtimestamp(read_start(run)[0])
        words.append(f"{start_time:%Y-%m-%d %H:%M}")
    if f"{model}_{data}" not in run.folder.name:
        words += [model, data]
    return " ".join([*words, optimizer, *list_typed_overrides(run)]).strip()


def _list_sweep_cells(folder: Path) -> list[str]:
    """The cells of a sweep: how many of its runs are done, its size, and the command that began it."""
    try:
        ledger = Ledger.read(folder)
        statuses = [ledger.read_status(entry) for entry in ledger.entries.values()]
    except RequestError as error:
        return ["damaged", "-", "-", format_size(count_bytes(folder)), str(error)]

    done_count = sum(status in DONE for status in statuses)
    state = f"{done_count}/{len(statuses)} done"
    # The lock tells whether the sweep's process is alive; the ledger cannot. Jobs of Slurm need no such process.
    on_cluster = describe_states(folder)
    if on_cluster:
        state = f"{on_cluster}, {state}"
    elif lock.is_locked(folder):
        state = f"running, {state}"

    failure_count = statuses.count("failed")
    label = f"sweep, {failure_count} failed:" if failure_count else "sweep:"
    return [state, "-", "-", format_size(count_bytes(folder)), " ".join([label, *ledger.words])]


def format_size(count: float) -> str:
    """A number of bytes in kB, MB or GB."""
    # 999.95 is the first number that one decimal rounds to 1,000.0.
    for scale, unit in ((1e3, "kB"), (1e6, "MB")):
        if count < 999.95 * scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e9:,.1f} GB"


def format_columns(
    lines: Sequence[tuple[Path, list[str]]], width: int | None, headers: Sequence[str] = _HEADERS
) -> list[str]:
    """Columns under headers, with a heading for each parent folder.

    width: of the terminal, at which the last column is cut; None for whole lines with whole paths and no headings.
    """
    rows = [list(headers)]
    for folder, cells in lines:
        name = str(folder) if width is None else f"  {folder.name}"
        rows.append([escape_line(cell) for cell in (name, *cells)])

    # The last column is not padded.
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns[:-1]]
    room = None if width is None else width - sum(widths) - 2 * len(widths)

    text = [_join_cells(rows[0], headers, widths, room)]
    heading = None
    for (folder, _), row in zip(lines, rows[1:], strict=True):
        if width is not None and folder.parent != heading:
            heading = folder.parent
            text.append(escape_line(str(heading)))
        text.append(_join_cells(row, headers, widths, room))
    return [line.rstrip() for line in text]


def _join_cells(row: Sequence[str], headers: Sequence[str], widths: Sequence[int], room: int | None) -> str:
    """A line of padded cells. room: for the last cell, which is cut or left out; None for all it needs."""
    cells = []
    for cell, width, header in zip(row[:-1], widths, headers[:-1], strict=True):
        cells.append(cell.rjust(width) if header in _RIGHT_ALIGNED else cell.ljust(width))

    last = row[-1]
    if room is None or len(last) <= room:
        cells.append(last)
    elif room >= _LEAST_CHOICE:
        cells.append(f"{last[: room - 1]}…")
    return "  ".join(cells)
