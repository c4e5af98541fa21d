"""An exponential moving average of a model's weights: smoother than the weights of any one step, often better."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dlrun.data.files.tensors import load_weights
from dlrun.engine.made_buffers import BuiltBuffers
from dlrun.engine.object_state import duplicate


class ExponentialMovingAverage:
    """average ← decay · average + (1 − decay) · weights, after every optimizer step; it begins at the first step's.

    What is no parameter (the statistics of batch norm) is taken over as it is. The same as
    torch.optim.swa_utils.AveragedModel, which asks the device at every step whether it is the first.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float) -> None:
        """Follows `model` from now on; a step that the gradient scaler skips does not count."""
        self._model: nn.Module = duplicate(model).requires_grad_(False)
        self.built = BuiltBuffers(self._model)
        self.followed, self.decay = model, decay
        self._made: int | Tensor = 0  # steps; a tensor on the device where a scaler decides there which are skipped
        self._modules = list(zip(self._model.modules(), model.modules(), strict=True))
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        optimizer.register_step_post_hook(lambda stepped, *_: self.update(getattr(stepped, "found_inf", None)))

    @property
    def steps(self) -> int:
        """How many steps were taken in; this may wait for the device."""
        return int(self._made)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, and with what the followed one keeps besides."""
        for mine, other in self._modules:
            if type(other).get_extra_state is not nn.Module.get_extra_state:
                mine.set_extra_state(copy.deepcopy(other.get_extra_state()))
        return self._model

    @torch.no_grad()
    def update(self, skipped: Tensor | None = None) -> None:
        """Take the model's present weights in; nothing here waits for the device.

        skipped: above 0 where the step was not made, which a fused optimizer finds out by itself, on the device.
        """
        ours: list[Tensor] = list(self._model.parameters())
        theirs: list[Tensor] = list(self.followed.parameters())
        if skipped is not None or isinstance(self._made, Tensor):
            self._update_unless(skipped, ours, theirs)
        elif self._made:
            self._average(ours, theirs, self._made)
            self._made += 1
        else:
            torch._foreach_copy_(ours, theirs)
            self._made = 1
        self._follow_buffers()

    def _update_unless(self, skipped: Tensor | None, ours: list[Tensor], theirs: list[Tensor]) -> None:
        """The same, but nothing where `skipped` is above 0."""
        first = ours[0]
        made = torch.as_tensor(self._made, dtype=torch.int64, device=first.device)
        counts = torch.ones_like(made) if skipped is None else (skipped.to(first.device) == 0).reshape(()).long()
        # The weight of the present weights is 1 at the first step that is made, and 0 at one that is skipped.
        weight = torch.where(made == 0, 1.0, 1.0 - self.decay) * counts
        for mine, other in zip(ours, theirs, strict=True):
            mine.lerp_(other, weight.to(mine.dtype))
        self._made = made + counts

    def _follow_buffers(self) -> None:
        """Take the buffers over, also those that the model has made, replaced or given up since."""
        for mine, other in self._modules:
            if not (mine._buffers or other._buffers):
                continue
            for name, value in other._buffers.items():
                present = mine._buffers.get(name)
                if value is not None and present is not None and present.shape == value.shape:
                    present.copy_(value)
                elif name in mine._buffers:
                    mine._buffers[name] = None if value is None else value.detach().clone()
                else:
                    is_saved = name not in other._non_persistent_buffers_set
                    copied = None if value is None else value.detach().clone()
                    mine.register_buffer(name, copied, persistent=is_saved)
            for name in [name for name in mine._buffers if name not in other._buffers]:
                del mine._buffers[name]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain Python."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any], made_buffers: Collection[str] = ()) -> None:
        """The inverse of `state_dict`, in place. made_buffers: those that the saved model had made in `forward`."""
        self._made = int(state["steps"])
        self.built.fit(state["model"], made_buffers)
        load_weights(self._model, state["model"])
