"""`dlrun watch RUN`: follow a run that trains in another process, until it ends."""

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core.errors import InterruptedRunError, RunError
from dlrun.core.shell import quote
from dlrun.core.terminal import escape_line, write_error, write_out
from dlrun.runs.query import find_run
from dlrun.runs.record import CUT_SHORT, METRICS, RunRecord, replace_none_with_nan
from dlrun.runs.reports.console import (
    Console,
    build_table,
    describe_end,
    format_epoch,
    format_number,
    is_printed_epoch,
)

# Statuses of a run that has come to its end.
FINISHED = ("completed", "early_stopped")
# Between two looks at the files.
_SECONDS = 0.5


def watch(words: Sequence[str]) -> None:
    """`dlrun watch RUN`: print epochs as they come, then the result. The run itself is only read.

    A run that does not train is printed as it is. RequestError for a folder that holds no run, RunError for a run that
    did not end well, so that a script may wait for it.
    """
    folder = find_run(words, "watch").folder
    display = EpochDisplay(folder)
    try:
        if RunRecord(folder).status == "running":
            write_out(escape_line(f"{folder} is training; Ctrl-C leaves it alone"))
        # The status comes first: what is written before a run ends is read after that.
        while RunRecord(folder).status == "running":
            display.print_new()
            time.sleep(_SECONDS)
        display.print_new()
    except KeyboardInterrupt:
        write_error(escape_line(f"{folder} trains on; dlrun watch {quote(folder)} follows it again"))
        raise

    display.print_last()
    run = RunRecord(folder)
    _print_end(run)
    sys.stdout.flush()
    if run.recorded_status == "interrupted":
        raise InterruptedRunError(f"{folder} was interrupted")
    if run.recorded_status not in FINISHED:
        raise RunError(f"{folder} is {run.recorded_status}")


class EpochDisplay:
    """Prints the rows of a run's metrics once each, in the format of the training's own display."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Size and time of the file when it was read last.
        self._state: tuple[int, int] | None = None
        self._last_epoch = 0
        self._best: float | None = None
        # The line of the last epoch, if a long run's display leaves it out.
        self._line_left_out: str | None = None

    def print_new(self) -> None:
        """Print the rows that were added since the last call."""
        state = self._read_state()
        if state is None or state == self._state:
            return

        self._state = state
        run = RunRecord(self._folder)
        for row in replace_none_with_nan(run.rows):
            # Epochs that a resumed run trains again are printed already.
            if row["epoch"] > self._last_epoch:
                self._print_row(run, row)
        # A closed pipe is reported now, where main() handles it.
        sys.stdout.flush()

    def _read_state(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._folder / METRICS)  # noqa: PTH116
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _print_row(self, run: RunRecord, row: dict[str, float]) -> None:
        epochs = (run.config.get("trainer") or {}).get("epochs")
        text = format_epoch(row, epochs, "", self._is_best(run, row))
        is_first = not self._last_epoch
        self._last_epoch = int(row["epoch"])
        if is_first or is_printed_epoch(self._last_epoch, epochs):
            self._line_left_out = None
            write_out(escape_line(text))
        else:
            self._line_left_out = text

    def _is_best(self, run: RunRecord, row: dict[str, float]) -> bool:
        metric = run.get_monitor(row)
        value = row.get(metric)
        # NaN is never better.
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return False

        is_higher_better = run.get_mode(metric) == "max"
        is_best = self._best is None or (value > self._best if is_higher_better else value < self._best)
        if is_best:
            self._best = value
        return is_best

    def print_last(self) -> None:
        """Print the last epoch however long the run is."""
        if self._line_left_out is not None:
            write_out(escape_line(self._line_left_out))
            self._line_left_out = None


def _print_end(run: RunRecord) -> None:
    """Print the table of the result, and how the run ended."""
    status = run.recorded_status
    console = Console()
    rows = _list_result_rows(run.result)
    if rows:
        console.say()
        console.say(build_table(("metric", "train", "val", "test", "trivial"), rows))
    if run.best_epoch is not None and run.best is not None:
        console.say(f"best: epoch {run.best_epoch}, {run.best[0]} {format_number(run.best[1])}")

    if status == "damaged":
        for damage in run.damage:
            console.say(damage)
    elif status == "empty":
        console.say(f"{run.folder} ended before its first epoch")
    elif not run.result:
        console.say(f"interrupted after {run.epochs} epochs: its process ended without a result")
    else:
        console.say(describe_end(run.result))

    if run.result.get("error"):
        console.say(f"error: {run.result['error']}")

    if status in CUT_SHORT and run.has_checkpoints:
        console.say(f"{run.advise_resume()} continues it")
    elif status not in ("damaged", "empty"):
        console.say(f"dlrun show {quote(run.folder)} shows more")


def _list_result_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each metric: its value on each split, and that of the trivial answer on the last split that has it."""
    metrics = result.get("metrics", {})
    baseline = result.get("baseline", {})
    rows = []
    for name in dict.fromkeys(key.partition("/")[2] for key in metrics):
        cells = []
        trivial = ""
        for split in ("train", "val", "test"):
            key = f"{split}/{name}"
            cells.append(_format_cell(metrics[key]) if key in metrics else "")
            trivial = _format_cell(baseline[key]) if key in baseline else trivial
        rows.append((name, *cells, trivial))

    return rows


def _format_cell(value: Any) -> str:
    # null in a file stands for a value that is not finite.
    return "nan" if value is None else format_number(value)
