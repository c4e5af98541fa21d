"""The callback that logs a run: scalars and pictures for TensorBoard, a row an epoch in metrics.jsonl."""

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dlrun.core.bounded import LARGEST_LOG, read_bytes
from dlrun.core.errors import DamageError, UnreadableError
from dlrun.core.files import DiskProblems, GrowingFile, write_atomically
from dlrun.core.user_code import add_user_line, get_first_line
from dlrun.core.yaml import flatten
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.evaluation import evaluation_mode
from dlrun.engine.state import TrainState
from dlrun.runs.record import FINGERPRINTS, METRICS, RunRecord, parse_line
from dlrun.runs.tensorboard import EventFile, wait_for_later_name

# Suffix of the event file that holds the run's end.
_END = ".end"
# Classes that get a precision-recall curve: the first ones.
_MOST_CURVES = 20


class _FileWriter(FileWriter):
    """torch's FileWriter over an EventFile of dlrun."""

    def __init__(self, events: EventFile) -> None:
        # Deliberately without super().__init__, which would open an EventFileWriter with its thread.
        self.event_writer = events


class _SummaryWriter(SummaryWriter):
    """torch's SummaryWriter over one EventFile of dlrun."""

    def __init__(self, events: EventFile) -> None:
        self._events = events
        super().__init__(str(events.file.path.parent))

    def _get_file_writer(self) -> Any:
        writer: Any = _FileWriter(self._events)
        self.file_writer = writer
        # SummaryWriter flushes and closes all of these.
        self.all_writers = {self.log_dir: writer}  # type: ignore[assignment]
        return writer


class Logger(Callback):
    """Log scalars, text and pictures as TensorBoard events, and a row an epoch to metrics.jsonl."""

    def __init__(self, folder: Path, purge_step: int | None = None, disk_problems: DiskProblems | None = None) -> None:
        """purge_step: readers drop the events of earlier files from this step on, as a resumed run repeats them."""
        self.folder = folder
        self.disk_problems = disk_problems or DiskProblems()
        if purge_step is not None:
            wait_for_later_name(folder)

        events = EventFile(folder, "", self.disk_problems)
        if purge_step is not None:
            # TensorBoard drops what earlier files hold from this step on when it meets such an event.
            status = SessionLog(status=SessionLog.START)
            events.add_event(Event(wall_time=time.time(), step=purge_step, session_log=status))
        self.writer = _SummaryWriter(events)

        # All rows, also those that the disk refused.
        self.rows = read_rows(folder)
        self.file = GrowingFile(folder / METRICS, METRICS, self.disk_problems)
        self.at_end = False

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Log the values of one optimizer step."""
        self.log_step(step, values)

    def on_epoch_end(self, state: TrainState, epoch: EpochSummary) -> None:
        """Log the row of an epoch with its timings."""
        self.log_epoch(epoch.row, epoch.timings)

    def on_partial_epoch(self) -> None:
        """Log what follows as the run's end, which a resumed run drops."""
        self.start_final_events()

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Log scalars of one optimizer step as one event: an event for each takes three times as long."""
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        events: Any = self.writer.file_writer
        events.add_summary(Summary(value=entries), step)
        # Flushed at once: a kill would cost the last scalars, and a dashboard would lag behind.
        self.writer.flush()

    def log_epoch(self, row: dict[str, float], timings: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, on the disk when this returns, and log the same scalars as events."""
        self.rows.append({key: value if math.isfinite(value) else math.nan for key, value in row.items()})
        # Written before the epoch's checkpoint is saved: a run resumed from that needs every row up to it.
        line = json.dumps({key: _to_json_number(value) for key, value in row.items()})
        self.file.write(line + "\n")
        self.file.flush()

        step = int(row["step"])
        # Epoch and step are the axis of the curves.
        scalars = {key: value for key, value in row.items() if key not in ("epoch", "step")}
        self.log_step(step, scalars | {f"time/{key}": value for key, value in timings.items()})

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Log Markdown."""
        self.writer.add_text(tag, text, step)
        # Flush, so that a run that is killed and resumed does not log it twice.
        self.writer.flush()

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """Log a histogram of every parameter."""
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter.detach(), step)
        self.writer.flush()

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        """Log an image (3, H, W) of uint8, or of floats in 0..1."""
        self.writer.add_image(tag, image, step)
        self.writer.flush()

    def log_pr_curves(self, targets: Tensor, probabilities: Tensor, names: Sequence[str], step: int) -> None:
        """Log precision over recall: of class 1 for probabilities (N,), one versus rest for (N, classes).

        targets: class numbers (N,). A curve costs about a millisecond, so only the first classes are logged.
        """
        columns = probabilities
        first = 0
        if probabilities.dim() == 1:
            columns = probabilities.unsqueeze(1)
            first = 1

        for number, column in enumerate(columns[:, :_MOST_CURVES].unbind(1), first):
            name = names[number] if number < len(names) else str(number)
            self.writer.add_pr_curve(f"pr_curves/{name}", targets == number, column, step)

    def log_graph(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
        """Log the model's graph; returns the reason if it cannot be traced. Model and RNG state stay as they are."""
        # Tracing runs the model, and a user's net may draw random numbers even in evaluation mode.
        state = torch.get_rng_state()
        try:
            with evaluation_mode(model), warnings.catch_warnings(), torch.no_grad():
                # Tracing is deprecated in torch, but TensorBoard has no other way.
                warnings.simplefilter("ignore")
                self.writer.add_graph(model, inputs)
        except Exception as error:
            # Tracing user code can raise anything; a missing picture must not end a run.
            return add_user_line(f"{type(error).__name__}: {get_first_line(error)}", error)
        finally:
            torch.set_rng_state(state)
        return None

    def start_final_events(self) -> None:
        """Write what follows to an event file of its own: a resumed run drops it and writes its own end."""
        if self.at_end:
            return
        self.at_end = True
        self.writer.close()
        self.writer = _SummaryWriter(EventFile(self.folder, _END, self.disk_problems))

    def log_hparams(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log hyperparameters and the final metrics, under tags of their own in the run's own folder.

        SummaryWriter.add_hparams would open a sub-run, and overwrite a curve with its last value.
        """
        flat: dict[str, Any] = {}
        for key, value in flatten(settings).items():
            flat[key] = value if isinstance(value, bool | int | float | str) else str(value)
        final = {f"hparam/{key}": value for key, value in metrics.items() if math.isfinite(value)}

        events: Any = self.writer.file_writer
        for summary in hparams(flat, final):  # type: ignore[no-untyped-call]
            events.add_summary(summary)
        self.log_step(step, final)

    def close(self) -> None:
        """Write everything to the disk, or report that it cannot be written."""
        self.writer.close()
        self.file.flush()


@contextmanager
def open_logger(
    folder: Path, purge_step: int | None = None, disk_problems: DiskProblems | None = None
) -> Iterator[Logger]:
    """Open a logger and close it however the run ends: TensorBoard would lose the last scalars otherwise."""
    logger = Logger(folder, purge_step, disk_problems)
    try:
        yield logger
    finally:
        logger.close()


def read_lines_until(folder: Path, epoch: int) -> tuple[dict[str, list[str]], list[str]]:
    """Read the lines of metrics and fingerprints up to `epoch`, by file, and notes on unreadable lines.

    By epochs, not steps: if max_steps ended a run in mid-epoch, that partial epoch has a row too.
    UnreadableError if a file exists but cannot be read.
    """
    lines: dict[str, list[str]] = {}
    notes: list[str] = []
    for name in (METRICS, FINGERPRINTS):
        try:
            content = read_bytes(folder / name, LARGEST_LOG)
        except FileNotFoundError:
            continue
        except DamageError as error:
            message = f"{folder / name} cannot be read ({error.reason}); everything is left as it was"
            raise UnreadableError(message) from error

        stored_lines = content.splitlines()
        lines[name] = []
        for number, line in enumerate(stored_lines, 1):
            try:
                row = parse_line(name, line)
            except ValueError:
                # A killed process leaves its last line cut short, which is no damage.
                if number < len(stored_lines):
                    notes.append(f"{folder / name} was damaged in line {number}, which is left out")
                continue
            if row["epoch"] <= epoch:
                # Written anew rather than copied: a last line without its newline would swallow the next row.
                lines[name].append(json.dumps(row) + "\n")
    return lines, notes


def truncate_after(folder: Path, rows: dict[str, list[str]]) -> None:
    """Reduce metrics and fingerprints to `rows`, and delete the events of the run's end: they are logged again."""
    # Their step is that of the checkpoint, so that no purge step would make readers drop them.
    for events in folder.glob(f"events.out.tfevents.*{_END}"):
        events.unlink()
    for name, lines in rows.items():
        write_atomically(folder / name, "".join(lines).encode())


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl as dictionaries, with NaN for null, which stands for values that are not finite."""
    return RunRecord(folder).history


def _to_json_number(value: Any) -> float | None:
    """Convert a number, NumPy scalar or tensor; None if it is not finite, as strict JSON has no NaN."""
    number: float = value.tolist() if hasattr(value, "tolist") else value
    return number if math.isfinite(number) else None
