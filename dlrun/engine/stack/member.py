"""One training of a stack, as callbacks see it."""

from collections.abc import Sequence
from typing import Any

import torch

from dlrun.engine.best_epoch import BestEpoch
from dlrun.engine.callback import Callback, CallbackList, TrainerView
from dlrun.engine.stack.snapshot import MemberWeights
from dlrun.engine.state import TrainState


class Member(TrainerView):
    """A training of its own, whose steps are made by a stack."""

    def __init__(self, state: TrainState, rng: dict[str, Any], callbacks: Sequence[Callback] = ()) -> None:
        """rng: state of all generators before the first step, as `get_rng_state` returns it."""
        super().__init__(state)
        self.callbacks = CallbackList([BestEpoch(), *callbacks])
        self.error: Exception | None = None
        # Whether halving has taken it out of the stack.
        self.is_pruned = False
        # Copied at the end of each epoch, if the model's state holds nothing else.
        self.weights: MemberWeights | None = None

        # Takes the place of torch's global generator in a training alone.
        self.device = next(state.model.parameters()).device
        # Looking for them in hundreds of nets every epoch takes longer than a step.
        self._has_watched_parameters = bool(state.get_parameter_values())
        self.generator = torch.Generator(self.device)
        self.set_rng_state(rng)

    def get_rng_state(self) -> dict[str, Any]:
        """State of all generators, as a training alone would have them now."""
        if self.device.type != "cuda":
            return self._rng | {"torch": self.generator.get_state()}
        # On a GPU dropout draws from the generator of that device alone.
        index = self.device.index or 0
        cuda_states = list(self._rng.get("cuda", []))
        # A stack that was saved on a CPU, or beside fewer GPUs, knows nothing of this one.
        if index >= len(cuda_states):
            cuda_states = torch.cuda.get_rng_state_all()
        cuda_states[index] = self.generator.get_state()
        return self._rng | {"cuda": cuda_states}

    def set_rng_state(self, rng: dict[str, Any]) -> None:
        """The inverse of `get_rng_state`."""
        self._rng = rng
        index = self.device.index or 0
        if self.device.type != "cuda":
            self.generator.set_state(rng["torch"])
        elif index < len(rng.get("cuda", [])):
            self.generator.set_state(rng["cuda"][index])

    @property
    def is_finished(self) -> bool:
        """Whether the member leaves the stack."""
        return self.error is not None or self.is_pruned or self.state.is_finished

    @property
    def status(self) -> str:
        """ "completed", "early_stopped", "pruned", "failed", or "interrupted" for a member that is still training."""
        if self.error is not None:
            return "failed"
        if self.is_pruned:
            return "pruned"
        if not self.state.is_finished:
            return "interrupted"
        return "completed" if self.state.is_done else "early_stopped"

    def end_epoch(self, train_metrics: dict[str, float], val_metrics: dict[str, float] | None) -> None:
        """Count the epoch as ended, make its row, and call on_epoch_end; an error in it ends this member alone."""
        self.start_row()
        self.add_metrics("train", train_metrics)
        if val_metrics is not None:
            self.add_metrics("val", val_metrics)
        self.row |= self.state.schedule.get_learning_rates()
        if self._has_watched_parameters:
            self.row |= self.state.get_parameter_values()
        try:
            self.callbacks.on_epoch_end(self, self.row)
        except Exception as error:
            # Callbacks may be the user's own, so anything can come.
            self.error = error

    def check_losses(self, first_step: int, losses: Sequence[float]) -> None:
        """Record the losses of the steps from `first_step` on; one that is not finite ends this member."""
        # On the CPU already, so that `check_finite` waits for no device.
        self.state.recent_losses = [(first_step + i, torch.tensor(loss)) for i, loss in enumerate(losses)]
        try:
            self.state.check_finite()
        except Exception as error:
            # Any error ends this member alone; the others train on.
            self.error = error
