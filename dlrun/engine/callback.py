"""Callback protocol of the trainer, for dlrun's own recording, display and checkpoints, and for users' callbacks."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.core.errors import RunError
from dlrun.engine import plain
from dlrun.engine.logged_values import LoggedValues
from dlrun.engine.state import TrainState


class TrainerView:
    """The part of a training that callbacks see: of `trainer.Trainer`, or of one member of a stack."""

    def __init__(self, state: TrainState) -> None:
        """state: everything that the training changes."""
        self.state = state

        # The epoch that ended last, or is ending: its metrics as far as they are known, ...
        self.row: dict[str, float] = {}
        # ... whether it is better than all before, and epoch_seconds and samples_per_second.
        self.is_best = False
        self.timings: dict[str, float] = {}

        # Outputs, targets and loss of the batches of the last step.
        self.records: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def model(self) -> nn.Module:
        """The model in training; the tensors of a stack's member are views of the stack's.

        With device.strategy=fsdp2 each process has its share of every parameter, as a DTensor.
        """
        return self.state.training_model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, with its gradients and groups; a stack reads the settings of its members' alone."""
        return self.state.optimizer

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, from 1; in on_epoch_end of the one that has just ended."""
        return int(self.row["epoch"]) if self.row else self.state.progress.epoch + 1

    @property
    def step(self) -> int:
        """Number of optimizer steps made since the run began."""
        return self.state.progress.step

    def stop(self) -> None:
        """End the training after the epoch under way, as early stopping does."""
        self.state.progress.is_stopped = True

    def start_row(self) -> None:
        """Count the epoch as ended, and start its row."""
        progress = self.state.progress
        progress.epoch += 1
        progress.batch = 0
        self.row = {"epoch": progress.epoch, "step": progress.step}

    def add_metrics(self, split: str, metrics: dict[str, float]) -> None:
        """Add the metrics of a split to the row."""
        self.row |= {f"{split}/{name}": value for name, value in metrics.items()}

    def add_logged_values(self, row: dict[str, float]) -> None:
        """Add the values logged since the last call to a row; here none, as in a stack nothing is logged."""


class Callback:
    """Hooks of a training, in the order in which they are called. Override those that are needed.

    A hook that no callback overrides is never called, so it costs nothing. An exception in a hook ends the run.
    Callbacks of users come first, in the order of the config; dlrun's own, which record what those have logged, follow.
    Under torchrun every process has its own callbacks of users, and records the mean of what they log.
    """

    # Name under which trainer.profile sums up the time of these hooks.
    phase = "log"

    # Where `log` adds its values; set by the trainer.
    _logged_values: LoggedValues | None = None

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Called before the first step of this process.

        A resumed run loads the state of the checkpoint after this hook, so that what it sets up anew is replaced.
        """

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Called before the first step of an epoch; not again where a run resumes in the middle of one."""

    def on_step_end(self, trainer: TrainerView) -> None:
        """Called after every optimizer step; should not wait for the device."""

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        """Called every log_every_steps steps, with loss, gradient norm and learning rates of that step."""

    def on_validation_end(self, trainer: TrainerView) -> None:
        """Called when the validation part has been evaluated; `trainer.row` has its metrics."""

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Called after every epoch, also a last one that max_steps cut short.

        row: epoch, step, metrics and learning rates, as metrics.jsonl gets them. What `log` is given here joins it.
        """

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Called when the run stops and may be resumed, in the middle of an epoch or after one."""

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Called after the last epoch; not when the run was interrupted."""

    def on_exception(self, trainer: TrainerView, error: Exception) -> None:
        """Called when an error ends the training; the error is raised again afterwards."""

    def log(self, name: str, value: Tensor | float) -> None:
        """Log a scalar. The row of the epoch gets the mean of all values that are logged under this name until then.

        It is in metrics.jsonl and TensorBoard, and can be the `checkpoint.monitor`. Tensors are not waited for.
        RunError for anything but one number, and after the last epoch.
        """
        if self._logged_values is None:
            raise RunError(f"log({name!r}, ...) has no epoch to belong to; call it from on_fit_start to on_epoch_end")
        self._logged_values.add(name, value)

    def log_to(self, values: LoggedValues | None) -> None:
        """Let `log` add to `values`, or refuse; the trainer calls this."""
        self._logged_values = values

    def state_dict(self) -> dict[str, Any]:
        """The state of this callback in checkpoints, as plain values and tensors.

        By default all attributes that a checkpoint can hold, but for those whose name begins with an underscore.
        """
        return {name: value for name, value in _get_public_attributes(self).items() if _is_saveable(value)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        vars(self).update(state)


def list_unsaved(callback: Callback) -> list[str]:
    """Public attributes that the default `state_dict` leaves out, each with its type; none of one that has its own."""
    if type(callback).state_dict is not Callback.state_dict:
        return []
    attributes = _get_public_attributes(callback)
    return [f"{name} ({type(value).__name__})" for name, value in attributes.items() if not _is_saveable(value)]


def _get_public_attributes(callback: Callback) -> dict[str, Any]:
    return {name: value for name, value in vars(callback).items() if not name.startswith("_")}


def _is_saveable(value: Any) -> bool:
    return not plain.explain_refusal("", value)


# All hooks, by the name of their method.
HOOKS = (
    "on_fit_start",
    "on_epoch_start",
    "on_step_end",
    "on_log",
    "on_validation_end",
    "on_epoch_end",
    "on_interrupt",
    "on_fit_end",
    "on_exception",
)


class CallbackList:
    """Calls each hook of several callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        # Only methods that a callback overrides, so that others cost nothing in a step.
        self.hooks: dict[str, list[Callable[..., None]]] = {}
        for name in HOOKS:
            default = getattr(Callback, name)
            overriding = [callback for callback in callbacks if getattr(type(callback), name) is not default]
            self.hooks[name] = [self.get_hook(callback, name) for callback in overriding]

    def get_hook(self, callback: Callback, name: str) -> Callable[..., None]:
        """The function that is called for a hook of a callback."""
        hook: Callable[..., None] = getattr(callback, name)
        return hook

    def on_fit_start(self, trainer: TrainerView) -> None:
        """Call on_fit_start of all callbacks."""
        for hook in self.hooks["on_fit_start"]:
            hook(trainer)

    def on_epoch_start(self, trainer: TrainerView) -> None:
        """Call on_epoch_start of all callbacks."""
        for hook in self.hooks["on_epoch_start"]:
            hook(trainer)

    def on_step_end(self, trainer: TrainerView) -> None:
        """Call on_step_end of all callbacks."""
        for hook in self.hooks["on_step_end"]:
            hook(trainer)

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        """Call on_log of all callbacks."""
        for hook in self.hooks["on_log"]:
            hook(trainer, values)

    def on_validation_end(self, trainer: TrainerView) -> None:
        """Call on_validation_end of all callbacks."""
        for hook in self.hooks["on_validation_end"]:
            hook(trainer)

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Call on_epoch_end of all callbacks."""
        for hook in self.hooks["on_epoch_end"]:
            hook(trainer, row)

    def on_interrupt(self, trainer: TrainerView) -> None:
        """Call on_interrupt of all callbacks."""
        for hook in self.hooks["on_interrupt"]:
            hook(trainer)

    def on_fit_end(self, trainer: TrainerView) -> None:
        """Call on_fit_end of all callbacks."""
        for hook in self.hooks["on_fit_end"]:
            hook(trainer)

    def on_exception(self, trainer: TrainerView, error: Exception) -> None:
        """Call on_exception of all callbacks; what fails there must not take the place of the error itself."""
        for hook in self.hooks["on_exception"]:
            with contextlib.suppress(Exception):
                # It may be the user's, and raise anything.
                hook(trainer, error)
