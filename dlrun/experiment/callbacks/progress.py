"""The progress of a training: a line for each epoch, and a bar on a terminal or in a notebook."""

import html
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.state import TrainState
from dlrun.runs.reports.console import Console, format_clock, format_epoch, format_number, is_printed_epoch

# Share of the earlier losses in the smoothed one.
_SMOOTHING = 0.9

_BAR_WIDTH = 16
_NOTEBOOK_WIDTH = 80
_NOTEBOOK_SECONDS = 0.5


class ProgressDisplay(Callback):
    """Shows each epoch as a line, and the epoch under way as a bar that reads the counters four times a second.

    The bar polls, the loop does not notify it: a step costs nothing for it.
    """

    phase = "other"

    def __init__(self, console: Console, state: TrainState, mode: str = "bar") -> None:
        """mode: trainer.progress. Whatever it is, run.log has a line an epoch."""
        self._console = console
        self._state = state
        self._mode = mode
        self._smoothed_loss: float | None = None
        self._has_rows = False
        # Prints the line of the last epoch, if it was not printed.
        self._print_left_out: Callable[[], None] | None = None
        self._started = time.perf_counter()
        self._first_step = state.progress.step

    @contextmanager
    def show(self) -> Iterator[None]:
        """Show the bar while the training lasts, and the line of the last epoch however it ends."""
        try:
            with self._show_bar():
                yield
        finally:
            if self._print_left_out is not None:
                self._print_left_out()

    def _show_bar(self) -> AbstractContextManager[object]:
        terminal = self._console.terminal
        if self._mode != "bar" or terminal.quiet:
            return nullcontext()
        if terminal.is_terminal:
            return Live(get_renderable=self._make_bar, console=terminal, refresh_per_second=4, transient=True)
        if self._console.is_notebook:
            return _show_in_notebook(self._make_bar)
        return nullcontext()

    def _make_bar(self) -> RenderableType:
        progress = self._state.progress
        limits = self._state.stop_rules
        steps_per_epoch = -(-len(self._state.train) // limits.accumulate_steps)
        total = min(limits.epochs * steps_per_epoch, limits.max_steps or limits.epochs * steps_per_epoch)

        # After the last epoch its bar stays full.
        epoch = min(progress.epoch + 1, limits.epochs)
        steps_of_epoch = progress.step - steps_per_epoch * (epoch - 1)

        # Steps of this process: an earlier one may have made others.
        seconds = time.perf_counter() - self._started
        steps = progress.step - self._first_step
        rate = ""
        time_left = ""
        if steps:
            rate = f"{steps / seconds:,.0f} steps/s"
            time_left = f"{format_clock(seconds / steps * (total - progress.step))} left"
        loss = "" if self._smoothed_loss is None else f"loss {format_number(self._smoothed_loss)}"

        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(f"epoch {epoch}/{limits.epochs}", style="bold"),
            ProgressBar(total=steps_per_epoch, completed=steps_of_epoch, width=_BAR_WIDTH),
            Text(f"{steps_of_epoch}/{steps_per_epoch}"),
            *(Text(part) for part in (rate, time_left, loss) if part),
        )
        return line

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        """Smooth the loss that was read for the log, so that the bar itself never waits for the device."""
        loss = values["train/loss_step"]
        if self._smoothed_loss is None:
            self._smoothed_loss = loss
        else:
            self._smoothed_loss = _SMOOTHING * self._smoothed_loss + (1 - _SMOOTHING) * loss

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Print one line an epoch, or every so many epochs of a long run."""
        is_first = not self._has_rows
        self._has_rows = True

        epochs = trainer.state.stop_rules.epochs
        print_epoch = partial(self._print_epoch, row, epochs, trainer.timings["samples_per_second"], trainer.is_best)
        if is_first or is_printed_epoch(row["epoch"], epochs):
            print_epoch()
        else:
            self._print_left_out = print_epoch

    def _print_epoch(self, row: dict[str, float], epochs: int, samples_per_second: float, is_best: bool) -> None:
        self._print_left_out = None
        text = format_epoch(row, epochs, f"{samples_per_second:,.0f} samples/s", is_best)
        if self._mode == "off":
            self._console.log_only(text)
        else:
            self._console.say_line(text, shorter=format_epoch(row, epochs, "", is_best))


@contextmanager
def _show_in_notebook(render: Callable[[], RenderableType]) -> Iterator[None]:
    """Show an output in a notebook cell that is redrawn twice a second, and emptied at the end."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    ended = threading.Event()

    def draw_repeatedly() -> None:
        while not ended.wait(_NOTEBOOK_SECONDS):
            text = _render_text(render())
            handle.update({"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}, raw=True)

    thread = threading.Thread(target=draw_repeatedly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _render_text(content: RenderableType) -> str:
    """Render as plain text, in the width of a terminal."""
    console = RichConsole(file=io.StringIO(), width=_NOTEBOOK_WIDTH, force_jupyter=False, no_color=True)
    console.print(content)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined,no-any-return]
