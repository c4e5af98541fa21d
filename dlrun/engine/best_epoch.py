"""The callback that decides which epoch is the best, and when no better one is to be expected."""

from dlrun.core.errors import RunError
from dlrun.core.suggest import did_you_mean
from dlrun.engine.callback import Callback, TrainerView


class BestEpoch(Callback):
    """Compares the monitored metric with that of earlier epochs, counts epochs of patience, and moves the schedule.

    It stands between the callbacks that log values, any of which may be monitored, and those that record the epoch.
    """

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Complete the row by what callbacks have logged, and judge the epoch by it. RunError without the metric."""
        state = trainer.state
        trainer.add_logged_values(row)

        monitor = state.monitor
        if monitor not in row:
            hint = did_you_mean(monitor, row)
            raise RunError(f"checkpoint.monitor={monitor} was not logged in epoch {int(row['epoch'])}; {hint}log it")
        trainer.is_best = state.update_best(row[monitor])
        state.schedule.advance_epoch(row[monitor])
