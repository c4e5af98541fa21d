"""Callbacks that a full disk may cost an epoch's record, but not the run."""

from dlrun.core.files import DiskProblems
from dlrun.engine.callback import Callback, TrainerView


class Tolerant(Callback):
    """Wraps a callback: where the disk does not take an epoch's record, it is left out and reported."""

    def __init__(self, callback: Callback, disk_problems: DiskProblems) -> None:
        self.callback = callback
        self.disk_problems = disk_problems
        self.phase = callback.phase

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Let the callback record the epoch; an error of the disk does not end the run."""
        with self.disk_problems.tolerate("an epoch's picture", again=False):
            self.callback.on_epoch_end(trainer, row)
