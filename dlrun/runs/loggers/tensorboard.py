"""TensorBoard's event files in the run folder: scalars, text, pictures, histograms and the graph."""

import functools
import math
import shlex
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor, nn
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dlrun.core.files import DiskProblems
from dlrun.core.user_code import add_user_line, get_first_line
from dlrun.core.yaml import flatten
from dlrun.engine.evaluation import evaluation_mode
from dlrun.runs.loggers.base import LoggedRun, Logger
from dlrun.runs.record import END_SUFFIX
from dlrun.runs.tensorboard import EventFile, wait_for_later_name

# In front of the tags of images: TensorBoard sorts by tag, and scalars come first (test/, train/, val/).
IMAGES = "visuals/"

# Classes that get a precision-recall curve: the first ones.
_MOST_CURVES = 20


class _FileWriter(FileWriter):
    """torch's FileWriter over an EventFile of dlrun."""

    def __init__(self, events: EventFile) -> None:
        # Deliberately without super().__init__, which would open an EventFileWriter with its thread.
        self.event_writer = events


@functools.cache
def _list_bins() -> list[float]:
    """The bounds 0 and ±1e-12 × 1.1^i below 1e20, which each writer of torch lists anew, for longer than it logs."""
    bounds = []
    value = 1e-12
    while value < 1e20:
        bounds.append(value)
        value *= 1.1
    return [*(-bound for bound in reversed(bounds)), 0, *bounds]


class _SummaryWriter(SummaryWriter):
    """torch's SummaryWriter over one EventFile of dlrun."""

    def __init__(self, events: EventFile) -> None:
        self.events = events
        # Deliberately without super().__init__.
        self.log_dir = str(events.file.path.parent)
        self.file_writer = self.all_writers = None
        self._get_file_writer()

    @property
    def default_bins(self) -> list[float]:  # type: ignore[override]
        """The bounds of histograms."""
        return _list_bins()

    def _get_file_writer(self) -> Any:
        writer: Any = _FileWriter(self.events)
        self.file_writer = writer
        # SummaryWriter flushes and closes all of these.
        self.all_writers = {self.log_dir: writer}  # type: ignore[assignment]
        return writer


def _mark_varied(summary: Summary, keys: Sequence[str]) -> Summary:
    """Mark hyperparameters as different between runs: they are the first columns of the table, which are by name else.

    TensorBoard reads the columns of all runs from the description in one of them.
    """
    data = summary.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in keys
    data.content = content.SerializeToString()
    return summary


class TensorBoardLogger(Logger):
    """Write what a run logs to event files in its folder."""

    run: LoggedRun
    folder: Path
    disk_problems: DiskProblems
    writer: _SummaryWriter
    at_end: bool

    def start(self, run: LoggedRun) -> None:
        """Open an event file. Readers drop what earlier ones hold after the checkpoint of a resumed run."""
        self.run = run
        self.folder = run.folder
        self.disk_problems = run.disk_problems
        self.at_end = run.is_ended
        if run.resumed_step is not None:
            wait_for_later_name(run.folder)

        events = EventFile(run.folder, END_SUFFIX if run.is_ended else "", self.disk_problems)
        if run.resumed_step is not None:
            # TensorBoard drops what earlier files hold from this step on when it meets such an event.
            status = SessionLog(status=SessionLog.START)
            events.add_event(Event(wall_time=time.time(), step=run.resumed_step + 1, session_log=status))
        self.writer = _SummaryWriter(events)

    def hold(self) -> AbstractContextManager[None]:
        """Let what is logged inside the block be written at its end."""
        return self.writer.events.hold()

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        """Log scalars of one optimizer step; they are on the disk after `flush`, or as soon as one is due."""
        # Past torch's writer, which makes the same event in twice the time.
        events = self.writer.events
        events.add_scalars(values, step)
        # Not much later: a dashboard would lag behind.
        if events.file.is_due:
            events.flush()

    def flush(self) -> None:
        """Write to the disk what has been logged."""
        self.writer.events.flush()

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
                # Without torch's check, which traces twice and imports 0.7 s of modules for it.
                traced = torch.jit.trace(model, inputs, check_trace=False)  # type: ignore[no-untyped-call]
                self.writer.add_graph(traced, inputs)
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
        self.writer = _SummaryWriter(EventFile(self.folder, END_SUFFIX, self.disk_problems))

    def log_hparams(self, settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log hyperparameters and the final metrics, under tags of their own in the run's own folder.

        SummaryWriter.add_hparams would open a sub-run, and overwrite a curve with its last value.
        """
        flat: dict[str, Any] = {}
        for key, value in flatten(settings).items():
            flat[key] = value if isinstance(value, bool | int | float | str) else str(value)
        final = {f"hparam/{key}": value for key, value in metrics.items() if math.isfinite(value)}

        events: Any = self.writer.file_writer
        experiment, *session = hparams(flat, final)  # type: ignore[no-untyped-call]
        events.add_summary(_mark_varied(experiment, self.run.varied))
        for summary in session:
            events.add_summary(summary)
        self.log_metrics(final, step)

    def suggest_view(self) -> str | None:
        """The command that opens TensorBoard."""
        # It compares all runs of the outputs folder; a run that lies elsewhere is shown with its neighbours.
        outputs = self.run.outputs
        watched = outputs if self.folder.is_relative_to(outputs) else self.folder.parent
        return f"tensorboard --logdir {shlex.quote(str(watched))}"

    def finish(self, status: str) -> None:
        """Write everything to the disk, or report that it cannot be written."""
        self.writer.close()
