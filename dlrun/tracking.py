"""What a run records while it trains: TensorBoard events and metrics.jsonl."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

_END = ".end"


class FileTracker:
    """Scalars, text and pictures into TensorBoard events; a row an epoch into metrics.jsonl."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        if purge_step is not None:
            _wait_for_a_later_name(folder)
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        self.rows = (folder / "metrics.jsonl").open("a")
        self.each_epoch: list[Callable[[FileTracker, dict[str, float]], None]] = []  # what else to record of an epoch

    def log_step(self, step: int, values: dict[str, float]) -> None:
        """Values of one optimizer step, as one event: writing each by itself takes three times as long."""
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        events: Any = self.writer.file_writer
        events.add_summary(Summary(value=entries), step)

    def log_epoch(self, row: dict[str, float], timings: dict[str, float]) -> None:
        """One line of metrics.jsonl, on the disk before this returns; the same tags as events."""
        self.rows.write(json.dumps({k: _json_value(v) for k, v in row.items()}) + "\n")
        self.rows.flush()
        step = int(row["step"])
        scalars = {k: v for k, v in row.items() if k not in ("epoch", "step")}
        self.log_step(step, scalars | {f"time/{k}": v for k, v in timings.items()})
        for record in self.each_epoch:
            record(self, row)
        self.writer.flush()

    def log_text(self, tag: str, text: str, step: int = 0) -> None:
        """Markdown."""
        self.writer.add_text(tag, text, step)

    def log_histograms(self, model: nn.Module, step: int) -> None:
        """The distribution of every parameter's values."""
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter.detach(), step)

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        """An image (3, H, W) of uint8 or of floats in 0..1."""
        self.writer.add_image(tag, image, step)

    def log_graph(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
        """The model's graph; returns why there is none. Leaves model and generators as they were."""
        training, state = model.training, torch.get_rng_state()
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # tracing is deprecated in torch, but TensorBoard has no other way
                self.writer.add_graph(model.eval(), inputs)
        except Exception as error:  # tracing user code can raise anything; a missing picture must not end a run
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        finally:
            model.train(training)
            torch.set_rng_state(state)
        return None

    def begin_end(self) -> None:
        """What follows goes into an event file of its own: a resumed run drops it and writes its own end."""
        self.writer.close()
        self.writer = SummaryWriter(str(self.folder), filename_suffix=_END)

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
        """Everything is on the disk after this."""
        self.writer.close()
        self.rows.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """At most a second: event files are read in the order of their names, which begin with the second."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) <= max(seconds):
        time.sleep(0.02)


@contextmanager
def tracked(folder: Path, purge_step: int | None = None) -> Iterator[FileTracker]:
    """A tracker that is closed however the run ends: TensorBoard loses its last scalars otherwise."""
    tracker = FileTracker(folder, purge_step)
    try:
        yield tracker
    finally:
        tracker.close()


def cut_back(folder: Path, step: int) -> None:
    """Drop the rows of metrics.jsonl past `step`, and the events of the run's end: both are written again."""
    for events in folder.glob(f"events.out.tfevents.*{_END}"):
        events.unlink()
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break  # a line that a crash cut short
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl as dictionaries; null, which stands for what is not finite, as NaN."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in lines]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _json_value(value: float) -> float | None:
    """Strict JSON has no NaN."""
    return value if math.isfinite(value) else None
