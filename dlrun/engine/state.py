"""State of a training run: all that changes while it trains, and therefore all that a resumed run must restore."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Number
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.core import user_code
from dlrun.core.errors import CheckpointError, RunError
from dlrun.data.augmentation import BatchMix
from dlrun.data.batches import Batches
from dlrun.data.files.tensors import load_weights
from dlrun.engine.device import get_rng_state, set_rng_state
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.forward_buffers import BuiltBuffers
from dlrun.engine.logged_values import LoggedValues
from dlrun.engine.objective import MetricAccumulator, Objective
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule

if TYPE_CHECKING:
    from dlrun.engine.sharding import ShardedModel

# Key of a saved state: names of the buffers that the model created in its forward pass.
CREATED_BUFFERS = "made_buffers"

# A model of at most so many trained numbers has each of them in its rows, for people to watch.
_MAX_LOGGED_PARAMETERS = 4

_EARLY_STOPPING_FIELDS = ("best_value", "best_epoch", "best_step", "epochs_without_improvement")


@dataclass
class StopRules:
    """When training ends and how a step is made; None switches a rule off."""

    # Training ends at whichever of the two is reached first.
    epochs: int = 1
    max_steps: int | None = None
    # Batches of one optimizer step.
    accumulate_steps: int = 1
    # Gradients are scaled down to at most this norm.
    grad_clip_norm: float | None = None
    # Optimizer steps between log points.
    log_every_steps: int = 50
    # Training ends after so many epochs without an improvement of more than min_delta.
    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class Progress:
    """Counters of a run, from its first step on, over all resumes."""

    # Epochs that have ended.
    epoch: int = 0
    # Batches trained on in the current epoch.
    batch: int = 0
    # Optimizer steps.
    step: int = 0
    # The monitored metric, and the epoch and step it was measured after.
    best_value: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    epochs_without_improvement: int = 0
    # Training loss of the first step, and of the last step that was checked.
    first_loss: float | None = None
    last_finite_loss: float = math.nan
    # First log point whose gradient norm was not finite.
    bad_gradient_step: int | None = None
    # Whether a callback has asked for the epoch under way to be the last one.
    is_stopped: bool = False
    # Warnings about learning that were shown, by kind.
    troubles: dict[str, str] = field(default_factory=dict)
    # Time and rows of training, without evaluation.
    train_seconds: float = 0.0
    samples: int = 0

    def add_epoch_time(self, seconds: float, train: Batches, first_batch: int) -> dict[str, float]:
        """Add up training time and samples; returns the timings of the epoch from `first_batch` on."""
        samples = train.count_rows_before(self.batch) - train.count_rows_before(first_batch)
        self.train_seconds += seconds
        self.samples += samples
        return {"epoch_seconds": seconds, "samples_per_second": samples / seconds}


class Stateful(Protocol):
    """What a checkpoint can hold, as plain values and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


@dataclass
class TrainState:
    """Everything that one run trains with."""

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    train: Batches
    val: Batches | None
    stop_rules: StopRules
    # Metric that picks the best epoch, and "min" or "max".
    monitor: str
    mode: str
    autocast: Callable[[], AbstractContextManager[Any]]
    # Waits for the device.
    synchronize: Callable[[], None]
    # Moving average of the weights, where trainer.ema_decay asks for one.
    ema: ExponentialMovingAverage | None = None
    # Mixes training batches, whose targets become soft.
    mixing: BatchMix | None = None
    progress: Progress = field(default_factory=Progress)
    # Callbacks of the user, by name; checkpoints hold their state.
    callbacks: Mapping[str, Stateful] = field(default_factory=dict)
    # Values that callbacks and the model have logged in the current epoch.
    logged: LoggedValues = field(default_factory=LoggedValues)
    # Makes optimizer steps from a recorded CUDA graph where it can, eagerly otherwise.
    graph_step: Callable[..., Any] | None = field(default=None, init=False)
    # Time of torch.compile before the first step.
    compile_seconds: float | None = field(default=None, init=False)
    # Metric sums of the current epoch.
    totals: MetricAccumulator = field(init=False)
    # Buffers of the model as it was built, before its first forward pass.
    built_buffers: BuiltBuffers = field(init=False)
    # The processes that train together.
    ranks: Distributed = field(default=SINGLE_PROCESS, init=False)
    # The model's own methods, where it has them: scalars to log after a step, and what to add to each batch's loss.
    compute_model_metrics: Callable[[], dict[str, Any]] | None = field(init=False)
    compute_auxiliary_loss: Callable[[], Tensor] | None = field(init=False)
    # The model's forward pass in training; its gradients are averaged over the ranks.
    forward: Callable[..., Tensor] = field(init=False)
    # The split copy of `model` that trains under device.strategy=fsdp2; `model` itself serves all else.
    sharded: "ShardedModel | None" = field(default=None, init=False)
    # Step and loss, on the device, since `check_finite` last read them.
    recent_losses: list[tuple[int, Tensor]] = field(default_factory=list)
    # Gradient norm of the last step that was clipped or measured.
    grad_norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    # States of the callbacks in the checkpoint that this training resumes from; None for a new training.
    resumed_callbacks: dict[str, Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.totals = self.objective.new_accumulator()
        self.forward = self.model
        self.compute_model_metrics = _get_method(self.model, "training_metrics")
        self.compute_auxiliary_loss = _get_method(self.model, "auxiliary_loss")
        self.built_buffers = BuiltBuffers(self.model)

    def list_parameters(self) -> list[nn.Parameter]:
        """Parameters of the model in training, and of a loss that is a module."""
        parameters: list[Any] = list(self.model.parameters())
        if self.sharded is not None:
            parameters = list(self.sharded.weights.shards)
        if self.objective.loss_module is not None:
            parameters += self.objective.loss_module.parameters()
        return parameters

    def join(self, ranks: Distributed, timeout_seconds: float) -> None:
        """Train together with other processes; all of them must call this at the same time.

        timeout_seconds: from here on they wait for each other no longer than this.
        """
        ranks.set_timeout(timeout_seconds)
        self.ranks = ranks

    def wrap_model(self) -> None:
        """Let each rank train the whole model, on its share of the rows."""
        self.forward = self.ranks.wrap_model(self.model)

    def shard_model(self, has_blocks: bool) -> None:
        """Let each rank train its share of the model, too; has_blocks: see `ShardedModel`. A collective call."""
        sharded = self.ranks.shard_model(self.model, has_blocks)
        sharded.adopt(self.optimizer)
        if self.ema is not None:
            self.ema.shard(sharded)
        self.sharded = sharded
        self.forward = sharded.training
        self.compute_model_metrics = _get_method(sharded.training, "training_metrics")
        self.compute_auxiliary_loss = _get_method(sharded.training, "auxiliary_loss")

    def leave_shards(self) -> None:
        """After the training: give every rank the full model with the final weights. A collective call."""
        if self.sharded is None:
            return
        self.gather()
        self.sharded = None
        self.forward = self.model

    def gather(self) -> None:
        """Bring `model` and its average up to date under fsdp2, else do nothing. A collective call."""
        if self.sharded is not None:
            self.sharded.gather()
            if self.ema is not None:
                self.ema.gather()

    def release(self) -> None:
        """Free the memory of `model` and its average under fsdp2, else do nothing."""
        if self.sharded is not None:
            self.sharded.weights.release()
            if self.ema is not None:
                self.ema.release()

    @contextmanager
    def summon_full_weights(self) -> Iterator[None]:
        """In the block, `model` has the weights in training even if they are split. A collective call then."""
        is_released = self.sharded is not None and not self.sharded.weights.is_gathered
        if is_released:
            self.gather()
        yield
        if is_released:
            self.release()

    @property
    def training_model(self) -> nn.Module:
        """The module whose parameters are trained: `model`, or under fsdp2 its split copy."""
        return self.model if self.sharded is None else self.sharded.training

    @property
    def is_done(self) -> bool:
        """Whether all epochs, or all steps, are made."""
        progress = self.progress
        if progress.epoch >= self.stop_rules.epochs:
            return True
        max_steps = self.stop_rules.max_steps
        return max_steps is not None and progress.step >= max_steps

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the monitored metric has not improved for `patience` epochs."""
        patience = self.stop_rules.patience
        return patience is not None and self.progress.epochs_without_improvement >= patience

    @property
    def is_finished(self) -> bool:
        """Whether there is no epoch left to train."""
        return self.is_done or self.is_out_of_patience or self.progress.is_stopped

    def log_model_metrics(self) -> None:
        """Log what the model's `training_metrics` returns, if it has that method."""
        if self.compute_model_metrics is not None:
            for name, value in self.compute_model_metrics().items():
                self.logged.add(name, value)

    def update_best(self, value: float) -> bool:
        """Record the monitored value of the epoch that has just ended; returns whether it is the best, NaN never."""
        progress = self.progress
        sign = 1 if self.mode == "max" else -1

        if progress.best_value is None:
            is_better = sign * value > -math.inf
        else:
            is_better = sign * value > sign * progress.best_value + self.stop_rules.min_delta

        if is_better:
            progress.best_value = value
            progress.best_epoch = progress.epoch
            progress.best_step = progress.step
            progress.epochs_without_improvement = 0
        else:
            progress.epochs_without_improvement += 1
        return is_better

    def get_parameter_values(self) -> dict[str, float]:
        """{"parameter/<name>": value} for every trained number of a tiny model; empty for any other model."""
        # Called after every epoch; the first weight shows of most models that they are not tiny.
        for parameter in self.optimizer.param_groups[0]["params"][:1]:
            is_of_model = self.objective.loss_module is None
            if is_of_model and parameter.requires_grad and parameter.numel() > _MAX_LOGGED_PARAMETERS:
                return {}

        trainable: dict[str, nn.Parameter] = {}
        count = 0
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                trainable[name] = parameter
                count += parameter.numel()
            if count > _MAX_LOGGED_PARAMETERS:
                return {}

        row: dict[str, float] = {}
        for name, parameter in trainable.items():
            values = parameter.detach().flatten().tolist()
            if len(values) == 1:
                row[f"parameter/{name}"] = values[0]
                continue
            for i, value in enumerate(values):
                row[f"parameter/{name}[{i}]"] = value
        return row

    def check_finite(self) -> None:
        """Read the losses since the last call, in one transfer; RunError names the first step that is not finite."""
        if not self.recent_losses:
            return

        progress = self.progress
        steps = [step for step, _ in self.recent_losses]
        tensors = [loss for _, loss in self.recent_losses]
        self.recent_losses = []

        for step, loss in zip(steps, torch.stack(tensors).tolist(), strict=True):
            if not math.isfinite(loss):
                last = progress.last_finite_loss
                before = f"the last finite loss was {last:.6g}" if math.isfinite(last) else "no loss was finite before"
                raise RunError(
                    f"the loss is {loss} at step {step} (epoch {progress.epoch + 1}); {before}; "
                    "try a smaller optimizer.lr, trainer.grad_clip_norm=1, or inputs of a size around 1"
                )
            progress.last_finite_loss = loss
            if progress.first_loss is None:
                progress.first_loss = loss

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain Python; RunError instead after a loss that is not finite.

        A collective call under fsdp2; only rank 0 gets the full state.
        """
        # Reads first_loss, which is part of the state.
        self.check_finite()

        state: dict[str, Any] = {}
        loss_state = {} if self.objective.loss_module is None else self.objective.loss_module.state_dict()
        state |= self.get_weights()
        if loss_state:
            state["loss"] = loss_state
        if self.objective.class_weights is not None:
            state["class_weights"] = list(self.objective.class_weights)
        state["optimizer"] = self._get_optimizer_state()
        state["scheduler"] = self.schedule.state_dict()
        state["scaler"] = self.scaler.state_dict()

        counters = asdict(self.progress)
        early_stopping = {name: counters.pop(name) for name in _EARLY_STOPPING_FIELDS}
        state["progress"] = counters
        state["early_stopping"] = early_stopping
        if self.callbacks:
            # A callback may freeze and unfreeze parameters as the training continues.
            state["frozen"] = [name for name, p in self.training_model.named_parameters() if not p.requires_grad]
        return state | self.get_local_state()

    def _get_optimizer_state(self) -> dict[str, Any]:
        if self.sharded is None:
            return self.optimizer.state_dict()
        return self.sharded.gather_optimizer_state(self.optimizer, keep_tensors=self.ranks.rank == 0)

    def get_local_state(self) -> dict[str, Any]:
        """The part of the state that differs between ranks: sums of the current epoch, and users' callbacks."""
        state: dict[str, Any] = {"totals": self.totals.state_dict()}
        logged = self.logged.state_dict()
        if logged:
            state["logged"] = logged
        if self.callbacks:
            state["callbacks"] = {name: callback.state_dict() for name, callback in self.callbacks.items()}
        return state

    def get_weights(self) -> dict[str, Any]:
        """The part of the state that `use_weights` loads: of the model, and of the average if there is one."""
        state: dict[str, Any] = {}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        state["model"] = self.model.state_dict()
        created = self.built_buffers.list_created()
        if created:
            state[CREATED_BUFFERS] = created
        return state

    def use_weights(self, state: dict[str, Any]) -> None:
        """Load `model`, and `ema` if there is one, of a saved state."""
        created = state.get(CREATED_BUFFERS, [])
        self.built_buffers.fit(state["model"], created)
        load_weights(self.model, state["model"])
        if self.ema is not None and "ema" in state:
            self.ema.load_state_dict(state["ema"], created)
        if self.sharded is not None:
            self.sharded.scatter()

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """The inverse of `state_dict`, in place; CheckpointError if the state does not fit this run."""
        try:
            self._load(state, device)
        except Exception as error:
            # A damaged file, or one of another dlrun, makes torch raise anything; a model may load states itself.
            explanation = user_code.explain(error)
            if explanation is not None:
                raise CheckpointError(f"the checkpoint cannot be loaded: {explanation}") from error
            if isinstance(error, KeyError):
                message = f"the checkpoint lacks {error}: it is of an older or newer dlrun or torch"
                raise CheckpointError(message) from error
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the checkpoint does not fit this model, optimizer and dlrun: {reason}") from error

    def _load(self, state: dict[str, Any], device: torch.device) -> None:
        # An average would silently start anew.
        if self.ema is not None and "ema" not in state:
            raise KeyError("ema")
        self.use_weights(state)
        self._load_optimizer(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        if self.objective.loss_module is not None and "loss" in state:
            load_weights(self.objective.loss_module, state["loss"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

        # Metric sums are per rank, everything above is the same on all.
        self.progress = Progress(**state["progress"], **state["early_stopping"])
        self.totals = self.objective.new_accumulator()
        self.logged = LoggedValues()
        rank_states = self._select_rank_states(state)
        for rank_state in rank_states:
            self.totals.load_state_dict(rank_state["totals"], device)
            self.logged.add_state_dict(rank_state.get("logged", {}), device)

        # If the world size changed, all ranks take the callbacks of rank 0.
        own_state = rank_states[0] if rank_states else state
        self.resumed_callbacks = own_state.get("callbacks", {})
        if "frozen" in state:
            for model in dict.fromkeys((self.model, self.training_model)):
                for name, parameter in model.named_parameters():
                    parameter.requires_grad_(name not in state["frozen"])
            if self.sharded is not None:
                self.sharded.record_trainable()

    @contextmanager
    def keep_resumed_state(self) -> Iterator[None]:
        """Keep `on_fit_start` from changing a resumed training.

        On exit the weights, the optimizer, the schedule and the random generators are as before, and the callbacks
        have the state that the checkpoint holds of them. A new training is left alone.
        """
        if self.resumed_callbacks is None or not self.callbacks:
            yield
            return

        generators = get_rng_state()
        before = copy.deepcopy([self.get_weights(), self.optimizer.state_dict(), self.schedule.state_dict()])
        yield
        weights, optimizer, schedule = before
        self.use_weights(weights)
        self._load_optimizer(optimizer)
        self.schedule.load_state_dict(schedule)
        set_rng_state(generators)
        for name, state in self.resumed_callbacks.items():
            if name in self.callbacks:
                self.callbacks[name].load_state_dict(state)
        self.resumed_callbacks = None

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        # torch loads any values into a group: a damaged file would be noticed only when training.
        expected_kinds = [_get_setting_kinds(group) for group in self.optimizer.param_groups]
        if self.sharded is not None:
            state = self.sharded.split_optimizer_state(self.optimizer, state)
        load_optimizer_state(self.optimizer, state)

        for expected, group in zip(expected_kinds, self.optimizer.param_groups, strict=True):
            for key, kind in _get_setting_kinds(group).items():
                if kind != expected.get(key, kind):
                    raise TypeError(f"{key} of the optimizer is {group[key]!r}")

    def _select_rank_states(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Per-rank states that this rank restores: its own; if the world size changed, rank 0 restores all."""
        states = [state, *state.get("others", [])]
        if len(states) == self.ranks.world_size:
            return [states[self.ranks.rank]]
        return states if self.ranks.rank == 0 else []


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state, including NumPy arrays of it, which torch would turn into lists of numbers."""
    arrays: dict[tuple[int, str], np.ndarray[Any, Any]] = {}
    others: dict[int, dict[str, Any]] = {}
    for number, values in state["state"].items():
        others[number] = {}
        for key, value in values.items():
            if isinstance(value, np.ndarray):
                arrays[number, key] = value
            else:
                others[number][key] = value

    # The ordinary case; torch copies the state itself.
    if not arrays:
        optimizer.load_state_dict(state)
        return

    optimizer.load_state_dict(state | {"state": others})
    parameters: list[nn.Parameter] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    for (number, key), array in arrays.items():
        optimizer.state[parameters[number]][key] = array


def _get_setting_kinds(group: dict[str, Any]) -> dict[str, str]:
    """Kind of value of each setting of a parameter group; settings that are None have none."""
    kinds = {}
    for key, value in group.items():
        if isinstance(value, list | tuple):
            kinds[key] = "several"
        elif isinstance(value, bool | str):
            kinds[key] = type(value).__name__
        elif isinstance(value, Number | Tensor):
            kinds[key] = "number"
        elif value is not None:
            kinds[key] = "other"
    return kinds


def _get_method(model: nn.Module, name: str) -> Callable[[], Any] | None:
    """A method that the model's class defines, or None; an attribute of that name is the model's own affair."""
    if not callable(getattr(type(model), name, None)):
        return None
    method: Callable[[], Any] = getattr(model, name)
    return method
