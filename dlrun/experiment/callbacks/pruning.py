"""Ends a run that does worse than others, between two epochs, so that it can be resumed later."""

from collections.abc import Callable, Mapping, Sequence

from dlrun.engine.callback import Callback, TrainerView


class Pruner(Callback):
    """Judges a run after each epoch. This one lets every run train to its end; subclasses have their rules."""

    # Whether the run is to end here.
    is_pruned = False

    def judge(self, row: Mapping[str, float]) -> bool:
        """Return whether the run ends after this row; called once for each row, in order."""
        return False

    def catch_up(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Judge the rows that an earlier process has written: it may have been killed after it had judged the last."""
        for row in rows:
            self.is_pruned = self.judge(row)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Judge the run; the trainer ends it by the stop request of `add_to`."""
        self.is_pruned = self.judge(row)

    def add_to(self, stop_requested: Callable[[], bool]) -> Callable[[], bool]:
        """Return a stop request that is true for a pruned run too."""
        return lambda: self.is_pruned or stop_requested()

    def name_status(self, status: str) -> str:
        """Return the status of the run: "pruned" in place of "interrupted" if this callback has stopped it."""
        return "pruned" if self.is_pruned and status == "interrupted" else status


class PrunedBefore(Pruner):
    """Ends a run that an earlier process had pruned before it could write that down."""

    def judge(self, row: Mapping[str, float]) -> bool:
        """It has no say any more."""
        return True
