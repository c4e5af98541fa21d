"""The learning rate over time: any of torch's schedulers, with a linear warm-up in front."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

# Arguments of schedulers that are the length of the training where they are null in the config.
LENGTH_ARGUMENTS = ("T_max", "total_steps", "total_iters")


def count_scheduler_steps(steps: int, steps_per_epoch: int, interval: str, warmup_steps: int) -> int:
    """How often a scheduler moves in a training of `steps` optimizer steps.

    It moves once for every step or epoch that ends after the warm-up; 0 times if the warm-up takes the whole
    training. steps_per_epoch: of complete epochs; `steps` may end inside one.
    """
    if steps <= warmup_steps:
        return 0
    if interval == "step":
        return steps - warmup_steps
    # An epoch that max_steps cuts short counts as one.
    epochs = math.ceil(steps / steps_per_epoch)
    epochs_in_warmup = warmup_steps // steps_per_epoch
    return epochs - epochs_in_warmup


class Schedule:
    """Moves a torch scheduler every epoch or every step, once the warm-up is over.

    scheduler: None leaves the learning rate constant.
    interval: "epoch" or "step".
    warmup_steps: in optimizer step k of the first warmup_steps the learning rate is k / warmup_steps of the full one
        (Goyal et al. 2017, 2.2). The step or epoch that follows the warm-up has the scheduler's first rate: the
        warm-up delays the scheduler by its length.
    spans_training: whether the scheduler was built to end with the training, so that more epochs would stretch it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        interval: str = "epoch",
        warmup_steps: int = 0,
        spans_training: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.interval = interval
        self.warmup_steps = warmup_steps
        self.spans_training = spans_training
        self.steps = 0
        # Learning rates that the warm-up leads up to, by parameter group.
        self.full = [group["lr"] for group in optimizer.param_groups]
        self._set_warmup_rate()

    def _set_warmup_rate(self) -> None:
        """Set the learning rate of step `steps` + 1, if it is in the warm-up."""
        if self.steps < self.warmup_steps:
            for group, lr in zip(self.optimizer.param_groups, self.full, strict=True):
                group["lr"] = lr * (self.steps + 1) / self.warmup_steps

    def advance_step(self) -> None:
        """Call after every optimizer step."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            self._set_warmup_rate()
        elif self.scheduler is not None and self.interval == "step":
            self.scheduler.step()

    def advance_epoch(self, monitored: float) -> None:
        """Call after every epoch, with the monitored metric, which ReduceLROnPlateau looks at."""
        if self.scheduler is None or self.interval != "epoch" or self.steps <= self.warmup_steps:
            return
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(monitored)
        else:
            self.scheduler.step()

    def get_learning_rates(self) -> dict[str, float]:
        """{"lr": ...}, or {"lr/<group>": ...} if the optimizer has several parameter groups."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            return {"lr": float(groups[0]["lr"])}
        return {f"lr/{group.get('name', i)}": float(group["lr"]) for i, group in enumerate(groups)}

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values; the learning rates themselves are in the optimizer's state."""
        scheduler_state = {} if self.scheduler is None else self.scheduler.state_dict()
        return {"steps": self.steps, "full": self.full, "scheduler": scheduler_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, in place."""
        self.steps = state["steps"]
        self.full = state["full"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
