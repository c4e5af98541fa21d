"""The state of a run: all that changes while it trains, and so all that a resumed run must know."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.core import user_code
from dlrun.core.errors import CheckpointError, RunError
from dlrun.data.batches import Batches
from dlrun.data.files.tensors import load_weights
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.made_buffers import BuiltBuffers
from dlrun.engine.objective import MetricAccumulator, Objective
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule


@dataclass
class StopRules:
    """When training ends and how a step is made; null switches off."""

    epochs: int = 1
    max_steps: int | None = None
    accumulate_steps: int = 1
    grad_clip_norm: float | None = None
    log_every_steps: int = 50
    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs that have ended
    batch: int = 0  # batches of the epoch under way
    step: int = 0  # optimizer steps
    best_value: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    epochs_without_improvement: int = 0
    first_loss: float | None = None  # of the first step
    last_finite_loss: float = math.nan
    bad_gradient_step: int | None = None  # the first log point whose gradient was not finite
    troubles: dict[str, str] = field(default_factory=dict)  # what was said of learning, by kind
    train_seconds: float = 0.0
    samples: int = 0

    def count(self, seconds: float, train: Batches, first_batch: int) -> dict[str, float]:
        """Add training time and samples up; returns the timings since `first_batch` of the epoch."""
        samples = train.count_rows_before(self.batch) - train.count_rows_before(first_batch)
        self.train_seconds += seconds
        self.samples += samples
        return {"epoch_seconds": seconds, "samples_per_second": samples / seconds}


MADE_BUFFERS = "made_buffers"  # the key of a state that names buffers which the model made in its forward pass
MOST_SHOWN = 4  # trained numbers of a model small enough for people to watch each of them move
_STOPPING = ("best_value", "best_epoch", "best_step", "epochs_without_improvement")


@dataclass
class TrainState:
    """Everything one run trains with."""

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    train: Batches
    val: Batches | None
    stop_rules: StopRules
    monitor: str
    mode: str
    autocast: Callable[[], AbstractContextManager[Any]]
    synchronize: Callable[[], None]
    ema: ExponentialMovingAverage | None = None  # of the weights, where trainer.ema_decay asks for one
    progress: Progress = field(default_factory=Progress)
    graph_step: Callable[..., bool] | None = field(default=None, init=False)  # makes steps, or says that it does not
    totals: MetricAccumulator = field(init=False)
    built_buffers: BuiltBuffers = field(init=False)  # the model's buffers before it has met any data
    ranks: Distributed = field(default=SINGLE_PROCESS, init=False)  # the processes that train together
    forward: Callable[..., Tensor] = field(init=False)  # the model in training; its gradients are of all processes
    recent_losses: list[tuple[int, Tensor]] = field(
        default_factory=list
    )  # step and loss, since they were last looked at
    grad_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))

    def __post_init__(self) -> None:
        self.totals = self.objective.new_accumulator()
        self.forward = self.model
        self.built_buffers = BuiltBuffers(self.model)

    def join(self, ranks: Distributed) -> None:
        """Train together with other processes, which do the same at this moment."""
        self.ranks, self.forward = ranks, ranks.wrap_model(self.model)

    @property
    def is_done(self) -> bool:
        """All epochs or steps are made."""
        p, limits = self.progress, self.stop_rules
        return p.epoch >= limits.epochs or (limits.max_steps is not None and p.step >= limits.max_steps)

    @property
    def is_out_of_patience(self) -> bool:
        """The monitored metric has not improved for `patience` epochs."""
        patience = self.stop_rules.patience
        return patience is not None and self.progress.epochs_without_improvement >= patience

    def update_best(self, value: float) -> bool:
        """Note the monitored value of the epoch that has just ended; NaN never improves."""
        p, sign = self.progress, 1 if self.mode == "max" else -1
        best = -math.inf if p.best_value is None else sign * p.best_value
        better = sign * value > best + (self.stop_rules.min_delta if p.best_value is not None else 0.0)
        if better:
            p.best_value, p.best_epoch, p.best_step = value, p.epoch, p.step
        p.epochs_without_improvement = 0 if better else p.epochs_without_improvement + 1
        return better

    def get_parameter_values(self) -> dict[str, float]:
        """{"parameter/<name>": value} of every trained number, or nothing where there are more than MOST_SHOWN."""
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if sum(p.numel() for p in trained.values()) > MOST_SHOWN:
            return {}
        found: dict[str, float] = {}
        for name, parameter in trained.items():
            values = parameter.detach().flatten().tolist()
            keys = [name] if len(values) == 1 else [f"{name}[{i}]" for i in range(len(values))]
            found |= {f"parameter/{key}": value for key, value in zip(keys, values, strict=True)}
        return found

    def check_finite(self) -> None:
        """Look at the losses since the last look, in one transfer; RunError names the first step that is not finite."""
        if not self.recent_losses:
            return
        p, (steps, tensors) = self.progress, zip(*self.recent_losses, strict=True)
        self.recent_losses = []
        for step, loss in zip(steps, torch.stack(tensors).tolist(), strict=True):
            if not math.isfinite(loss):
                last = p.last_finite_loss
                before = f"the last finite loss was {last:.6g}" if math.isfinite(last) else "no loss was finite before"
                raise RunError(
                    f"the loss is {loss} at step {step} (epoch {p.epoch + 1}); {before}; "
                    "try a smaller optimizer.lr, trainer.grad_clip_norm=1, or inputs of a size around 1"
                )
            p.last_finite_loss = loss
            if p.first_loss is None:
                p.first_loss = loss

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain Python; RunError rather than the state after a loss that is not finite."""
        self.check_finite()  # first_loss is part of the state
        loss_state = {} if self.objective.loss_module is None else self.objective.loss_module.state_dict()
        of_loss = {"loss": loss_state} if loss_state else {}
        return (
            self.weights()
            | of_loss
            | {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "progress": {k: v for k, v in asdict(self.progress).items() if k not in _STOPPING},
                "early_stopping": {k: v for k, v in asdict(self.progress).items() if k in _STOPPING},
                "totals": self.totals.state_dict(),
            }
        )

    def weights(self) -> dict[str, Any]:
        """The part of the state that `use_weights` takes: of the model, and of the average where there is one."""
        state: dict[str, Any] = {} if self.ema is None else {"ema": self.ema.state_dict()}
        state["model"] = self.model.state_dict()
        made = self.built_buffers.made()
        return state | {MADE_BUFFERS: made} if made else state

    def use_weights(self, state: dict[str, Any]) -> None:
        """Take over `model`, and `ema` where there is one, of a saved state."""
        made = state.get(MADE_BUFFERS, [])
        self.built_buffers.fit(state["model"], made)
        load_weights(self.model, state["model"])
        if self.ema is not None and "ema" in state:
            self.ema.load_state_dict(state["ema"], made)

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, in place; CheckpointError when it is not of such a run."""
        try:
            self._load(state, device)
        except Exception as error:
            # What is damaged or of another dlrun can make torch raise anything, and a model may load states itself.
            own = user_code.explain(error)
            if own is not None:
                raise CheckpointError(f"the checkpoint cannot be loaded: {own}") from error
            if isinstance(error, KeyError):
                message = f"the checkpoint lacks {error}: it is of an older or newer dlrun or torch"
                raise CheckpointError(message) from error
            said = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint does not fit this model, optimizer and dlrun: {said}") from error

    def _load(self, state: dict[str, Any], device: torch.device) -> None:
        if self.ema is not None and "ema" not in state:
            raise KeyError("ema")
        self.use_weights(state)
        kinds = [_kinds_of(group) for group in self.optimizer.param_groups]
        load_optimizer_state(self.optimizer, state["optimizer"])
        for expected, group in zip(kinds, self.optimizer.param_groups, strict=True):
            for key, kind in _kinds_of(group).items():
                if kind != expected.get(key, kind):
                    raise TypeError(f"{key} of the optimizer is {group[key]!r}")
        self.schedule.load_state_dict(state["scheduler"])
        if self.objective.loss_module is not None and "loss" in state:
            load_weights(self.objective.loss_module, state["loss"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"], **state["early_stopping"])
        self.totals = self.objective.new_accumulator()
        for part in self._parts(state):
            self.totals.load_state_dict(part["totals"], device)

    def _parts(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Those of a checkpoint's processes that this one goes on for: its own, or of another number the first all."""
        states = [state, *state.get("others", [])]
        if len(states) == self.ranks.world_size:
            return [states[self.ranks.rank]]
        return [] if self.ranks.rank else states


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, also where an optimizer keeps NumPy arrays: torch would take them apart into numbers."""
    kept_back: dict[tuple[int, str], Any] = {}
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, np.ndarray):
                kept_back[number, key] = value
    if not kept_back:
        optimizer.load_state_dict(state)
        return

    others = {
        number: {key: value for key, value in values.items() if (number, key) not in kept_back}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": others})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for (number, key), value in kept_back.items():
        optimizer.state[parameters[number]][key] = value


def _kinds_of(group: dict[str, Any]) -> dict[str, str]:
    """What the settings of a parameter group are; a setting that is off says nothing."""
    kinds = {}
    for key, value in group.items():
        if isinstance(value, list | tuple):
            kinds[key] = "several"
        elif isinstance(value, bool | str):
            kinds[key] = type(value).__name__
        elif value is not None:
            kinds[key] = "number" if isinstance(value, Number | Tensor) else "other"
    return kinds
