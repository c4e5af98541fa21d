"""An exponential moving average of a model's weights: smoother than the weights of any one step, often better."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dlrun.models.tensor_files import load_weights


class Average:
    """average ← decay · average + (1 − decay) · weights, after every optimizer step; it begins at the first step's.

    What is no parameter (the statistics of batch norm) is taken over as it is. The same as
    torch.optim.swa_utils.AveragedModel, which asks the device at every step whether it is the first.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float) -> None:
        """Follows `model` from now on; a step that the gradient scaler skips does not count."""
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.followed, self.steps, self.decay = model, 0, decay
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in; nothing here waits for the device."""
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(self.followed.parameters())
        if self.steps:
            self._average(ours, theirs, self.steps)
        else:
            torch._foreach_copy_(ours, theirs)
        for mine, other in zip(self.model.buffers(), self.followed.buffers(), strict=True):
            mine.copy_(other)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, in place."""
        self.steps = int(state["steps"])
        load_weights(self.model, state["model"])
