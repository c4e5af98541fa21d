"""Saved runs as Python lists them, in a terminal and in a notebook."""

from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line
from dlrun.runs.query import find_runs
from dlrun.runs.record import RunRecord
from dlrun.runs.reports import page


class RunList(list[RunRecord]):
    """Saved runs, newest first, read without their weights; `dlrun.load(run.folder)` opens one."""

    def __repr__(self) -> str:
        lines = [f"{run.folder}  {run.status}  {_format_best(run)}".rstrip() for run in self]
        return "\n".join(map(escape_line, lines)) or "no runs"

    def _repr_html_(self) -> str:
        """The runs as a table: folder, status, epochs, and the monitored metric at its best."""
        names = ("run", "status", "epochs", "best")
        rows = [[str(run.folder), run.status, str(run.epochs), _format_best(run)] for run in self]
        return page.render_text_table(names, rows, left=2)


def list_runs(folder: Path) -> RunList:
    """List the runs in a folder and below it, newest first; RequestError where there is no such folder."""
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; type dlrun.runs('outputs')")
    return RunList(find_runs([folder]))


def _format_best(run: RunRecord) -> str:
    """The monitored metric at its best; "" for a run without one."""
    return "" if run.best is None else f"{run.best[0]} {run.best[1]:.4g}"
