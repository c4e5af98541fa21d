"""What a run records while it trains: TensorBoard events and metrics.jsonl."""

import itertools
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dlrun.core.bounded import LARGEST_LOG, read_bytes
from dlrun.core.errors import DamageError, UnreadableError
from dlrun.core.files import DiskProblems, GrowingFile, write_atomically
from dlrun.core.user_code import add_user_line, first_line_of
from dlrun.core.yaml import flatten
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.evaluation import evaluation_mode
from dlrun.engine.state import TrainState
from dlrun.runs.record import FINGERPRINTS, METRICS, RunRecord, parse_line

_END = ".end"
_MOST_CURVES = 20
_count = itertools.count()


class Events:
    """An event file, written where it is asked for: what a full disk refuses is tried again at the next flush.

    It stands in for TensorBoard's EventFileWriter, whose thread would end with the first error, and raise it later.
    Its name sorts by age, as the readers of a folder with several files expect.
    """

    def __init__(self, folder: Path, suffix: str, unsaved: DiskProblems) -> None:
        started = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count):06d}"
        path = folder / f"events.out.tfevents.{started}{suffix}"
        self.file = GrowingFile(path, "TensorBoard's events", unsaved)
        self._records = RecordWriter(self.file)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        """Add one; on the disk after `flush`."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Everything is on the disk after this, or said not to be."""
        self.file.flush()

    def close(self) -> None:
        """The same: the file is open only while something is added to it."""
        self.file.flush()


class _FileWriter(FileWriter):
    """torch's summaries into events of ours."""

    def __init__(self, events: Events) -> None:
        self.event_writer = events


class _SummaryWriter(SummaryWriter):
    """torch's writer of summaries, over one event file of ours."""

    def __init__(self, events: Events) -> None:
        self._events = events
        super().__init__(str(events.file.path.parent))

    def _get_file_writer(self) -> Any:
        writer: Any = _FileWriter(self._events)
        self.file_writer, self.all_writers = writer, {self.log_dir: writer}  # type: ignore[assignment]
        return writer


class Logger(Callback):
    """Scalars, text and pictures into TensorBoard events; a row an epoch into metrics.jsonl."""

    def __init__(self, folder: Path, purge_step: int | None = None, unsaved: DiskProblems | None = None) -> None:
        self.folder, self.unsaved = folder, unsaved or DiskProblems()
        if purge_step is not None:
            _wait_for_a_later_name(folder)
        events = Events(folder, "", self.unsaved)
        if purge_step is not None:  # readers drop what an earlier file has from this step on
            status = SessionLog(status=SessionLog.START)
            events.add_event(Event(wall_time=time.time(), step=purge_step, session_log=status))
        self.writer = _SummaryWriter(events)
        self.rows = read_rows(folder)  # all of them, also those that the disk did not take
        self.file = GrowingFile(folder / METRICS, METRICS, self.unsaved)
        self.at_end = False

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Values of one optimizer step."""
        self.log_step(step, values)

    def on_epoch_end(self, training: TrainState, epoch: EpochSummary) -> None:
        """The row of an epoch, with its timings."""
        self.log_epoch(epoch.row, epoch.timings)

    def on_partial_epoch(self) -> None:
        """What follows is dropped by a resumed run."""
        self.begin_end()

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Values of one optimizer step, as one event: writing each by itself takes three times as long."""
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        events: Any = self.writer.file_writer
        events.add_summary(Summary(value=entries), step)
        self.writer.flush()

    def log_epoch(self, row: dict[str, float], timings: dict[str, float]) -> None:
        """One line of metrics.jsonl, on the disk before this returns; the same tags as events."""
        self.rows.append({k: v if math.isfinite(v) else math.nan for k, v in row.items()})
        self.file.write(json.dumps({k: _json_value(v) for k, v in row.items()}) + "\n")
        self.file.flush()
        step = int(row["step"])
        scalars = {k: v for k, v in row.items() if k not in ("epoch", "step")}
        self.log_step(step, scalars | {f"time/{k}": v for k, v in timings.items()})

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Markdown."""
        self.writer.add_text(tag, text, step)
        self.writer.flush()  # a run that is killed and resumed says it no second time

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """The distribution of every parameter's values."""
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter.detach(), step)
        self.writer.flush()

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        """An image (3, H, W) of uint8 or of floats in 0..1."""
        self.writer.add_image(tag, image, step)
        self.writer.flush()

    def log_pr_curves(self, targets: Tensor, probabilities: Tensor, names: Sequence[str], step: int) -> None:
        """Precision over recall, of class 1 for probabilities (N,), of every class against the rest for (N, classes).

        targets: class numbers (N,). A curve costs about a millisecond, so of many classes only the first are shown.
        """
        columns = probabilities.unsqueeze(1) if probabilities.dim() == 1 else probabilities
        first = 1 if probabilities.dim() == 1 else 0
        for number, column in enumerate(columns[:, :_MOST_CURVES].unbind(1), first):
            name = names[number] if number < len(names) else str(number)
            self.writer.add_pr_curve(f"pr_curves/{name}", targets == number, column, step)

    def log_graph(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
        """The model's graph; returns why there is none. Leaves model and generators as they were."""
        state = torch.get_rng_state()
        try:
            with evaluation_mode(model), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # tracing is deprecated in torch, but TensorBoard has no other way
                self.writer.add_graph(model, inputs)
        except Exception as error:  # tracing user code can raise anything; a missing picture must not end a run
            return add_user_line(f"{type(error).__name__}: {first_line_of(error)}", error)
        finally:
            torch.set_rng_state(state)
        return None

    def begin_end(self) -> None:
        """What follows goes into an event file of its own: a resumed run drops it and writes its own end."""
        if self.at_end:
            return
        self.at_end = True
        self.writer.close()
        self.writer = _SummaryWriter(Events(self.folder, _END, self.unsaved))

    def log_hparams(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Hyperparameters with the final metrics, under tags of their own in the run's own folder.

        SummaryWriter.add_hparams would open a sub-run, and a curve's tag would be wiped by its last value.
        """
        flat = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flatten(settings).items()}
        final = {f"hparam/{k}": v for k, v in metrics.items() if math.isfinite(v)}
        events: Any = self.writer.file_writer
        for summary in hparams(flat, final):  # type: ignore[no-untyped-call]
            events.add_summary(summary)
        self.log_step(step, final)

    def close(self) -> None:
        """Everything is on the disk after this, or said not to be."""
        self.writer.close()
        self.file.flush()


def _wait_for_a_later_name(folder: Path) -> None:
    """At most a second: event files are read in the order of their names, which begin with the second."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) <= max(seconds):
        time.sleep(0.02)


@contextmanager
def open_logger(folder: Path, purge_step: int | None = None, unsaved: DiskProblems | None = None) -> Iterator[Logger]:
    """A tracker that is closed however the run ends: TensorBoard loses its last scalars otherwise."""
    tracker = Logger(folder, purge_step, unsaved)
    try:
        yield tracker
    finally:
        tracker.close()


def rows_until(folder: Path, epoch: int) -> tuple[dict[str, list[str]], list[str]]:
    """By file, the lines of metrics and fingerprints up to `epoch`; and a note on lines that cannot be read.

    By epochs, not steps: a run that max_steps ended in mid-epoch has a row of what there was of that epoch.
    UnreadableError where a file is there but cannot be read.
    """
    lines: dict[str, list[str]] = {}
    notes: list[str] = []
    for name in (METRICS, FINGERPRINTS):
        try:
            content = read_bytes(folder / name, LARGEST_LOG)
        except FileNotFoundError:
            continue
        except DamageError as error:
            said = f"{folder / name} cannot be read ({error.reason}); everything is left as it was"
            raise UnreadableError(said) from error

        written = content.splitlines()
        lines[name] = []
        for number, line in enumerate(written, 1):
            try:
                row = parse_line(name, line)
            except ValueError:
                if number < len(written):  # the last one is cut short where a process was killed
                    notes.append(f"{folder / name} was damaged in line {number}, which is left out")
                continue
            if row["epoch"] <= epoch:
                lines[name].append(json.dumps(row) + "\n")
    return lines, notes


def cut_back(folder: Path, rows: dict[str, list[str]]) -> None:
    """Leave these rows in metrics and fingerprints, and drop the events of the run's end: they come again."""
    for events in folder.glob(f"events.out.tfevents.*{_END}"):
        events.unlink()
    for name, lines in rows.items():
        write_atomically(folder / name, "".join(lines).encode())


def read_rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl as dictionaries; null, which stands for what is not finite, as NaN."""
    return RunRecord(folder).history


def _json_value(value: Any) -> float | None:
    """A plain number, also of a NumPy scalar or a tensor; None where it is not finite: strict JSON has no NaN."""
    number: float = value.tolist() if hasattr(value, "tolist") else value
    return number if math.isfinite(number) else None
