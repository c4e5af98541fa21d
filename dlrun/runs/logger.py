"""The callback that logs a run: a row an epoch in metrics.jsonl, and all that is logged to the chosen loggers."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrun.core.files import FLUSH_SECONDS, GrowingFile
from dlrun.engine.callback import Callback, TrainerView
from dlrun.runs.loggers import states
from dlrun.runs.loggers.base import LoggedRun, Logger
from dlrun.runs.loggers.channels import Channel, make_channel
from dlrun.runs.loggers.tensorboard import TensorBoardLogger
from dlrun.runs.record import METRICS, RunRecord

# Refuses NaN and infinities.
_STRICT_JSON = json.JSONEncoder(allow_nan=False)


class RunLogger(Callback):
    """Append a row an epoch to metrics.jsonl, and log scalars, text and pictures to the chosen loggers."""

    def __init__(self, run: LoggedRun, loggers: Mapping[str, Logger]) -> None:
        """loggers: by their names in the config."""
        self.run = run
        self.folder = run.folder
        self.disk_problems = run.disk_problems
        # How the run ends, for loggers that record it.
        self.status = "failed"

        # All rows, also those that the disk refused.
        self.rows = read_rows(run.folder)
        self.file = GrowingFile(run.folder / METRICS, METRICS, self.disk_problems)

        # Pictures, histograms and the graph are for TensorBoard alone.
        self.boards: list[TensorBoardLogger] = []
        self.others: dict[str, Logger] = {}
        for name, logger in loggers.items():
            # A class of the user's own that derives from it may raise anything, as other loggers may.
            if type(logger) is TensorBoardLogger:
                logger.start(run)
                self.boards.append(logger)
            else:
                self.others[name] = logger

        self.channels: list[Channel] = []
        self._saved_states: dict[str, Any] = {}
        self._seconds_waited = 0.0

    def start_others(self, hyperparameters: dict[str, Any], say: Callable[[str], None]) -> None:
        """Start the loggers besides TensorBoard.

        hyperparameters: by dotted key; say: shows a line at once.
        """
        if not self.others:
            return
        self._saved_states, damage = states.read_states(self.folder)
        if damage:
            say(damage)

        for name, logger in self.others.items():
            logger.state = self._saved_states.get(name)
            channel = make_channel(name, logger, say)
            channel.start(self.run)
            channel.log_hyperparameters(hyperparameters)
            self.channels.append(channel)

        self._save_states()

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        """Log the values of one optimizer step."""
        self.log_step(trainer.step, values)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Log the row of an epoch with its timings."""
        self.log_epoch(row, trainer.timings)

    def on_interrupt(self, trainer: TrainerView) -> None:
        """If max_steps has cut the epoch short, its row belongs to the final events, which a resumed run drops."""
        if trainer.state.is_done:
            self.start_final_events()

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of one optimizer step."""
        for board in self.boards:
            board.log_metrics(values, step)
        for channel in self.channels:
            channel.log_metrics(values, step)

    def log_epoch(self, row: dict[str, float], timings: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, on the disk when this returns, and log the same scalars.

        Of epochs shorter than FLUSH_SECONDS the loggers may write several together; `flush` writes them.
        """
        # Written before the epoch's checkpoint is saved: a run resumed from that needs every row up to it.
        self._write_row(row, timings)
        if timings.get("epoch_seconds", math.inf) >= FLUSH_SECONDS:
            self.flush()
        self._save_states()

    def flush(self) -> None:
        """Write to the disk what TensorBoard's events have been given: a checkpoint is saved after them."""
        for board in self.boards:
            board.flush()

    def _write_row(self, row: dict[str, float], timings: dict[str, float]) -> None:
        self.rows.append(replace_infinite(row))
        self.file.write(_format_row(row) + "\n")
        self.file.flush()
        self.log_step(int(row["step"]), row | {f"time/{key}": value for key, value in timings.items()})

    def log_history(
        self,
        rows: Sequence[dict[str, float]],
        timings: Sequence[dict[str, float]],
        log_points: Sequence[tuple[int, dict[str, float]]],
    ) -> None:
        """Log a whole training at once: rows with their timings, and the values of single steps among them."""
        waiting = list(log_points)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.file.hold())
            for board in self.boards:
                stack.enter_context(board.hold())

            for row, of_epoch in zip(rows, timings, strict=True):
                while waiting and waiting[0][0] <= row["step"]:
                    self.log_step(*waiting.pop(0))
                self._write_row(row, of_epoch)
            for step, values in waiting:
                self.log_step(step, values)

        self._save_states()

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Log Markdown."""
        for board in self.boards:
            board.log_text(tag, text, step)
        for channel in self.channels:
            channel.log_text(tag, text, step)

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """Log a histogram of every parameter to TensorBoard."""
        for board in self.boards:
            board.log_histograms(model, step)

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        """Log an image (3, H, W) of uint8, or of floats in 0..1, to TensorBoard."""
        for board in self.boards:
            board.log_image(tag, image, step)

    def log_pr_curves(self, targets: Tensor, probabilities: Tensor, names: Sequence[str], step: int) -> None:
        """Log precision over recall to TensorBoard; see TensorBoardLogger.log_pr_curves."""
        for board in self.boards:
            board.log_pr_curves(targets, probabilities, names, step)

    def log_graph(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
        """Log the model's graph to TensorBoard; returns the reason if it cannot be traced."""
        for board in self.boards:
            reason = board.log_graph(model, inputs)
            if reason:
                return reason
        return None

    def log_hparams(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log hyperparameters and the final metrics to TensorBoard; other loggers have both already."""
        for board in self.boards:
            board.log_hparams(settings, metrics, step)

    def start_final_events(self) -> None:
        """Write what follows to an event file of its own: a resumed run drops it and writes its own end."""
        for board in self.boards:
            board.start_final_events()

    def settle(self) -> list[str]:
        """Wait for the loggers in the background, as long as `wait_seconds` allows; returns notes on what is lost."""
        began = time.monotonic()
        notes: list[str] = []
        for channel in self.channels:
            # They work at the same time, so the seconds of all begin now.
            notes += channel.settle(began + channel.logger.wait_seconds)

        self._seconds_waited += time.monotonic() - began
        self._save_states()
        return notes

    def close(self) -> None:
        """Write everything to the disk, or report that it cannot be written, and finish the loggers."""
        for board in self.boards:
            board.finish(self.status)
        self.file.flush()

        for channel in self.channels:
            channel.begin_finish(self.status)
        began = time.monotonic() - self._seconds_waited
        for channel in self.channels:
            channel.wait_for_finish(began + channel.logger.wait_seconds)
        self._save_states()

    def _save_states(self) -> None:
        """Write loggers.json where a logger has changed its state."""
        new_states = {channel.name: channel.state for channel in self.channels}
        kept_states = {name: state for name, state in new_states.items() if state is not None}
        # A logger that is left out of a resumed run may come back.
        all_states = {**self._saved_states, **kept_states}
        if all_states == self._saved_states:
            return
        with self.disk_problems.tolerate(states.STATES):
            states.write_states(self.folder, all_states)
            self._saved_states = all_states


@contextmanager
def open_logger(run: LoggedRun, loggers: Mapping[str, Logger] | None = None) -> Iterator[RunLogger]:
    """Open a logger and close it however the run ends: TensorBoard would lose the last scalars otherwise.

    loggers: by their names in the config; None for TensorBoard alone.
    """
    run_logger = RunLogger(run, {"tensorboard": TensorBoardLogger()} if loggers is None else loggers)
    try:
        yield run_logger
    finally:
        run_logger.close()


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl as dictionaries, with NaN for null, which stands for values that are not finite."""
    return RunRecord(folder).history


def replace_infinite(row: dict[str, float]) -> dict[str, float]:
    """A row as metrics.jsonl gives it when it is read again: with NaN for all that is not finite."""
    if all(map(math.isfinite, row.values())):
        return dict(row)
    return {key: value if math.isfinite(value) else math.nan for key, value in row.items()}


def _format_row(row: dict[str, float]) -> str:
    try:
        return _STRICT_JSON.encode(row)
    except (ValueError, TypeError):
        # Numbers that are not finite, or of NumPy or torch.
        return json.dumps({key: _to_json_number(value) for key, value in row.items()})


def _to_json_number(value: Any) -> float | None:
    """Convert a number, NumPy scalar or tensor; None if it is not finite, as strict JSON has no NaN."""
    number: float = value.tolist() if hasattr(value, "tolist") else value
    return number if math.isfinite(number) else None
