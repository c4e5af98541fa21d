"""How far a training is: a bar on a terminal, lines in a pipe and in run.log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.state import TrainState
from dlrun.runs.reports.console import Console, format_clock, format_metrics

# Lines for the epochs of a run: a thousand would hide the tables before and after them.
_MOST_LINES = 50


class ProgressDisplay(Callback):
    """Shows each epoch; on a terminal by a bar that reads the counters four times a second.

    The bar polls, the loop does not notify it: a step costs nothing for it.
    """

    phase = "other"

    def __init__(self, console: Console, state: TrainState) -> None:
        self._console = console
        self._state = state
        self._last_row: dict[str, float] = {}
        # The line of the last epoch, if it was not printed.
        self._line_left_out: str | None = None
        self._started = time.perf_counter()
        self._first_step = state.progress.step

    @contextmanager
    def show(self) -> Iterator[None]:
        """Show the bar while the training lasts, and the line of the last epoch however it ends."""
        terminal = self._console.terminal
        try:
            if terminal.is_terminal and not terminal.quiet:
                with Live(get_renderable=self._make_bar, console=terminal, refresh_per_second=4, transient=True):
                    yield
            else:
                yield
        finally:
            if self._line_left_out is not None:
                self._print_epoch(self._line_left_out)

    def _make_bar(self) -> RenderableType:
        progress = self._state.progress
        limits = self._state.stop_rules
        steps_per_epoch = -(-len(self._state.train) // limits.accumulate_steps)
        total = min(limits.epochs * steps_per_epoch, limits.max_steps or limits.epochs * steps_per_epoch)

        # Of this process: a resumed run has made others before.
        seconds = time.perf_counter() - self._started
        steps = progress.step - self._first_step
        time_left = f"{format_clock(seconds / steps * (total - progress.step))} left" if steps else ""

        line = Table.grid(padding=(0, 1))
        head = Text(f"epoch {min(progress.epoch + 1, limits.epochs)}/{limits.epochs}", style="bold")
        bar = ProgressBar(total=total, completed=progress.step, width=24)
        line.add_row(head, bar, Text(f"{progress.step}/{total}"), Text(time_left))
        return Group(line, Text(format_metrics(self._last_row), style="dim", no_wrap=True, overflow="ellipsis"))

    def on_epoch_end(self, state: TrainState, epoch: EpochSummary) -> None:
        """Print one line an epoch, or every so many epochs of a long run; on a terminal the bar shows it instead."""
        row = epoch.row
        is_first = not self._last_row
        self._last_row = row

        epochs = state.stop_rules.epochs
        rate = f"{epoch.timings['samples_per_second']:,.0f} samples/s"
        best = "  best" if epoch.is_best else ""
        text = f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}  {format_metrics(row)}  {rate}{best}"
        if is_first or row["epoch"] % -(-epochs // _MOST_LINES) == 0:
            self._print_epoch(text)
        else:
            self._line_left_out = text

    def _print_epoch(self, text: str) -> None:
        self._line_left_out = None
        if self._console.terminal.is_terminal:
            self._console.log_only(text)
        else:
            self._console.say(text)
