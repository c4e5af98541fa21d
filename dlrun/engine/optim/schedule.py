"""The learning rate over time: any of torch's schedulers, with a linear warm-up in front."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# A scheduler's arguments that null makes the length of the whole training.
LENGTH_ARGUMENTS = ("T_max", "total_steps", "total_iters")


def count_scheduler_steps(steps: int, steps_per_epoch: int, interval: str, warmup_steps: int) -> int:
    """How often a scheduler moves in a training of `steps` optimizer steps: once a step or epoch that ends after the
    warm-up.

    steps_per_epoch: of whole epochs; `steps` may end inside one. 0 where the warm-up takes the whole training.
    """
    if steps <= warmup_steps:
        return 0
    if interval == "step":
        return steps - warmup_steps
    epochs = math.ceil(steps / steps_per_epoch)
    epochs_in_warmup = warmup_steps // steps_per_epoch
    return epochs - epochs_in_warmup


class Schedule:
    """Moves a torch scheduler every epoch or every step, once the warm-up is over.

    scheduler: null keeps the learning rate. interval: "epoch" or "step". warmup_steps: in optimizer step k of
    the first warmup_steps the learning rate is k / warmup_steps of what it will be (Goyal et al. 2017, 2.2). The step
    or epoch that follows the warm-up has the scheduler's first rate: the warm-up delays the scheduler by its length.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        interval: str = "epoch",
        warmup_steps: int = 0,
    ) -> None:
        self.optimizer, self.scheduler = optimizer, scheduler
        self.interval, self.warmup_steps = interval, warmup_steps
        self.steps = 0
        self.full = [group["lr"] for group in optimizer.param_groups]
        self._warm()

    def _warm(self) -> None:
        """The learning rate of step `steps` + 1."""
        if self.steps < self.warmup_steps:
            for group, lr in zip(self.optimizer.param_groups, self.full, strict=True):
                group["lr"] = lr * (self.steps + 1) / self.warmup_steps

    def step_end(self) -> None:
        """After every optimizer step."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._warm()
        elif self.scheduler is not None and self.interval == "step":
            self.scheduler.step()

    def epoch_end(self, monitored: float) -> None:
        """After every epoch, with the monitored metric (which only plateau looks at)."""
        if self.scheduler is None or self.interval != "epoch" or self.steps <= self.warmup_steps:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(monitored)
        else:
            self.scheduler.step()

    def learning_rates(self) -> dict[str, float]:
        """{"lr": ...}, or {"lr/<group>": ...} where the parameters are in several groups."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            return {"lr": float(groups[0]["lr"])}
        return {f"lr/{g.get('name', i)}": float(g["lr"]) for i, g in enumerate(groups)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the learning rates themselves are in the optimizer's state."""
        inner = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "full": self.full, "scheduler": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps, self.full = state["steps"], state["full"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
