"""`tracking.weight_histograms`: the distribution of every parameter, epoch by epoch."""

from torch import nn

from dlrun.engine.callback import Callback, TrainerView
from dlrun.runs.logger import RunLogger


class WeightHistograms(Callback):
    """Logs a histogram of each parameter after every epoch."""

    def __init__(self, model: nn.Module, run_logger: RunLogger) -> None:
        self.model = model
        self.run_logger = run_logger

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Log the histograms at the epoch's last step."""
        self.run_logger.log_histograms(self.model, int(row["step"]))
