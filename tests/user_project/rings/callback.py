"""A callback that cools the learning rate down after epochs that bring little, and watches the gradients."""

import dlrun
from dlrun.engine.callback import TrainerView


class Cooling(dlrun.Callback):
    """Multiplies the learning rate by `factor` after an epoch that lowers the loss by less than `least`."""

    def __init__(self, factor: float = 0.7, least: float = 0.02) -> None:
        self.factor = factor
        self.least = least
        self.losses: list[float] = []
        self.cooled = 0

    def on_step_end(self, trainer: TrainerView) -> None:
        """Log how large the gradient of the first layer is."""
        gradient = next(trainer.model.parameters()).grad
        if gradient is not None:
            self.log("first_layer/gradient", gradient.norm())

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Compare the loss with that of the epoch before."""
        self.losses.append(row["train/loss"])
        if len(self.losses) > 1 and self.losses[-2] - self.losses[-1] < self.least:
            self.cooled += 1
            for group in trainer.optimizer.param_groups:
                group["lr"] *= self.factor
        self.log("cooled", self.cooled)
