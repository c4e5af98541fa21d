"""Callbacks that a full disk may cost an epoch's record, but not the run."""

from dlrun.core.files import DiskProblems
from dlrun.engine.callback import Callback, EpochSummary
from dlrun.engine.state import TrainState


class Tolerant(Callback):
    """A callback whose record of an epoch is left out, and said to be, where the disk does not take it."""

    def __init__(self, callback: Callback, unsaved: DiskProblems) -> None:
        self.callback = callback
        self.unsaved = unsaved
        self.phase = callback.phase

    def on_epoch_end(self, training: TrainState, epoch: EpochSummary) -> None:
        """The record of an epoch, if the disk lets us."""
        with self.unsaved.attempt("an epoch's picture", again=False):
            self.callback.on_epoch_end(training, epoch)
