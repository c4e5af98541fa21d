"""A record of an epoch that the disk does not take."""

from typing import Any

import pytest

from dlrun.core.files import DiskProblems
from dlrun.engine.callback import Callback, TrainerView
from dlrun.experiment.callbacks.tolerant import DiskTolerant

UNUSED: Any = None


class Failing(Callback):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        raise self.error


def test_a_picture_of_an_epoch_that_cannot_be_written_is_said() -> None:
    messages: list[str] = []
    callback = DiskTolerant(Failing(OSError(28, "No space left on device")), DiskProblems(messages.append))
    for epoch in (1, 2):
        callback.on_epoch_end(UNUSED, {"epoch": epoch, "step": epoch})
    assert messages == ["an epoch's picture could not be saved (No space left on device); the run continues"]


def test_what_is_no_fault_of_the_disk_ends_the_run() -> None:
    callback = DiskTolerant(Failing(ZeroDivisionError("a mistake")), DiskProblems())
    with pytest.raises(ZeroDivisionError):
        callback.on_epoch_end(UNUSED, {"epoch": 1, "step": 1})
