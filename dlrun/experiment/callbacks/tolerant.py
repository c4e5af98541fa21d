"""Callbacks whose failed writes, as on a full disk, do not end the run."""

from dlrun.core.files import DiskProblems
from dlrun.engine.callback import Callback, TrainerView


class DiskTolerant(Callback):
    """Wraps a callback: a record that cannot be written is left out and reported."""

    def __init__(self, callback: Callback, disk_problems: DiskProblems) -> None:
        self.callback = callback
        self.disk_problems = disk_problems
        self.phase = callback.phase

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Let the callback record the epoch; a disk error does not end the run."""
        with self.disk_problems.tolerate("an epoch's picture", again=False):
            self.callback.on_epoch_end(trainer, row)
