"""Ends a run that does worse than others, between two epochs, so that it can be taken up again."""

from collections.abc import Callable, Mapping, Sequence

from dlrun.engine.callback import Callback, TrainerView


class Pruner(Callback):
    """Judges a run after each epoch. This one lets every run train to its end; subclasses have their rules."""

    # Whether the run is to end here.
    is_pruned = False

    def judge(self, row: Mapping[str, float]) -> bool:
        """Whether a run whose newest row is this one is to end; called for each row once, in their order."""
        return False

    def catch_up(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Judge the rows that an earlier process has written: it may have been killed after it had judged the last."""
        for row in rows:
            self.is_pruned = self.judge(row)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Judge the run; the trainer ends it by `join`."""
        self.is_pruned = self.judge(row)

    def join(self, stop_requested: Callable[[], bool]) -> Callable[[], bool]:
        """A request to stop, from elsewhere or from here."""
        return lambda: self.is_pruned or stop_requested()

    def name_status(self, status: str) -> str:
        """What the trainer's status is called: a run that was stopped from here is "pruned"."""
        return "pruned" if self.is_pruned and status == "interrupted" else status
