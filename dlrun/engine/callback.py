"""What watches a training: one protocol for logging, checkpoints, progress, pictures and diagnoses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dlrun.engine.state import TrainState


@dataclass(frozen=True)
class EpochSummary:
    """What an epoch came to."""

    row: dict[str, float]  # epoch, step, metrics and learning rates, as in metrics.jsonl
    timings: dict[str, float] = field(default_factory=dict)  # epoch_seconds, samples_per_second
    is_best: bool = False  # by the monitored metric


class Callback:
    """Hooks of a training, called in the order of the trainer's list. Override those that are needed.

    A hook that no callback overrides costs nothing. An exception in a hook ends the run.
    """

    phase = "log"  # what trainer.profile counts the time of these hooks as

    def on_step_end(self, training: TrainState) -> None:
        """An optimizer step has been made. Nothing here may wait for the device."""

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Loss, gradient norm and learning rates of one step, every log_every_steps steps."""

    def on_epoch_end(self, training: TrainState, epoch: EpochSummary) -> None:
        """An epoch has ended, or what there was of the last one."""

    def on_interrupt(self, training: TrainState) -> None:
        """The run stops here and may be resumed, in the middle of an epoch or after one."""

    def on_partial_epoch(self) -> None:
        """The last epoch ended early; its row follows, which a resumed run drops: it trains that epoch to its end."""


HOOKS = ("on_step_end", "on_log", "on_epoch_end", "on_interrupt", "on_partial_epoch")


def find_overriding(callbacks: Sequence[Callback], hook: str) -> list[Callback]:
    """The callbacks that override a hook, in their order."""
    return [callback for callback in callbacks if getattr(type(callback), hook) is not getattr(Callback, hook)]


def collect_hooks(callbacks: Sequence[Callback]) -> dict[str, list[Callable[..., None]]]:
    """By name, the hooks that callbacks override, in their order."""
    return {name: [getattr(callback, name) for callback in find_overriding(callbacks, name)] for name in HOOKS}
