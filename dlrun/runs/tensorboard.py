"""TensorBoard's event files, written and read back without torch."""

import itertools
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event

from dlrun.core.files import DiskProblems, GrowingFile

# Part of the name: a process may open several files in one second.
_count = itertools.count()


class EventFile:
    """A TensorBoard event file on a disk that may be full: failed writes are retried at the next flush.

    It replaces TensorBoard's EventFileWriter, whose thread ends with the first error and raises it later.
    Its name sorts by age, as readers of a folder with several event files expect.
    """

    def __init__(self, folder: Path, suffix: str, disk_problems: DiskProblems) -> None:
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count):06d}"
        path = folder / f"events.out.tfevents.{stamp}{suffix}"
        self.file = GrowingFile(path, "TensorBoard's events", disk_problems)
        # Scalars that are no event yet: when they were measured, after which step, and their values by tag.
        self._scalars: list[tuple[float, int, Mapping[str, float]]] = []
        # Readers expect the version as the first event of a file.
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add_event(self, event: Event) -> None:
        """Add an event; it is on the disk after `flush`."""
        self._encode_scalars()
        self._write(event)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add scalars of one optimizer step; they are on the disk after `flush`."""
        self._scalars.append((time.time(), step, values))

    def _encode_scalars(self) -> None:
        """Make an event of each step: one of each scalar takes three times as long."""
        scalars = self._scalars
        self._scalars = []
        for wall_time, step, values in scalars:
            event = Event(wall_time=wall_time, step=step)
            add_value = event.summary.value.add
            for tag, value in values.items():
                # Epoch and step are the axis of the curves.
                if tag not in ("epoch", "step"):
                    add_value(tag=tag, simple_value=value)
            self._write(event)

    def _write(self, event: Event) -> None:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        self.file.write(b"".join((length, _compute_checksum(length), content, _compute_checksum(content))))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let flushes inside the block wait for its end, for what is written all at once."""
        with self.file.hold():
            yield
            self._encode_scalars()

    def flush(self) -> None:
        """Write everything to the disk, or report that it cannot be written."""
        self._encode_scalars()
        self.file.flush()

    def close(self) -> None:
        """Flush: the file is only open while something is added to it."""
        self.flush()


def _compute_checksum(content: bytes) -> bytes:
    """The masked CRC-32C of a record, as https://www.tensorflow.org/tutorials/load_data/tfrecord describes it.

    TensorBoard computes it in Python, which takes 6 ms for the curves of 50 epochs.
    """
    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def wait_for_later_name(folder: Path) -> None:
    """Wait, for a second at most, until a new event file sorts after those in `folder`.

    Event files are read in the order of their names, which begin with the second they were opened in.
    """
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    while seconds and int(time.time()) <= max(seconds):
        time.sleep(0.02)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Read a run's scalars except timings: (step, value) by tag, the value as text, so that NaN equals NaN."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # TensorBoard warns of events that a resumed run has replaced.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()

    scalars: dict[str, list[tuple[int, str]]] = {}
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("time/"):
            scalars[tag] = [(event.step, repr(event.value)) for event in events.Scalars(tag)]
    return scalars
