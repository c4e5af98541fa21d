"""Callback protocol of the trainer, for logging, checkpoints, progress, pictures and diagnostics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dlrun.engine.state import TrainState


@dataclass(frozen=True)
class EpochSummary:
    """Results of one epoch."""

    # Epoch, step, metrics and learning rates, as in metrics.jsonl.
    row: dict[str, float]
    # epoch_seconds and samples_per_second.
    timings: dict[str, float] = field(default_factory=dict)
    # Whether the monitored metric is better than in all epochs before.
    is_best: bool = False


class Callback:
    """Hooks of a training, called in the order of the trainer's list. Override those that are needed.

    A hook that no callback overrides is never called. An exception in a hook ends the run.
    """

    # Name under which trainer.profile sums up the time of these hooks.
    phase = "log"

    def on_step_end(self, state: TrainState) -> None:
        """Called after every optimizer step; must not wait for the device."""

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Called every log_every_steps steps, with loss, gradient norm and learning rates of that step."""

    def on_epoch_end(self, state: TrainState, epoch: EpochSummary) -> None:
        """Called after every epoch, also a last one that max_steps cut short."""

    def on_interrupt(self, state: TrainState) -> None:
        """Called when the run stops and may be resumed, in the middle of an epoch or after one."""

    def on_partial_epoch(self) -> None:
        """Called before the row of an epoch that max_steps cut short; a resumed run drops that row."""


# All hooks, by the name of their method.
HOOKS = ("on_step_end", "on_log", "on_epoch_end", "on_interrupt", "on_partial_epoch")


class CallbackList(Callback):
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

    def on_step_end(self, state: TrainState) -> None:
        """Call on_step_end of all callbacks."""
        for hook in self.hooks["on_step_end"]:
            hook(state)

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Call on_log of all callbacks."""
        for hook in self.hooks["on_log"]:
            hook(step, values)

    def on_epoch_end(self, state: TrainState, epoch: EpochSummary) -> None:
        """Call on_epoch_end of all callbacks."""
        for hook in self.hooks["on_epoch_end"]:
            hook(state, epoch)

    def on_interrupt(self, state: TrainState) -> None:
        """Call on_interrupt of all callbacks."""
        for hook in self.hooks["on_interrupt"]:
            hook(state)

    def on_partial_epoch(self) -> None:
        """Call on_partial_epoch of all callbacks."""
        for hook in self.hooks["on_partial_epoch"]:
            hook()
