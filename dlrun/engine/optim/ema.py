"""An exponential moving average of a model's weights: smoother than the weights of any one step, often better."""

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dlrun.data.files.tensors import load_weights
from dlrun.engine.forward_buffers import BuiltBuffers
from dlrun.engine.object_state import duplicate

if TYPE_CHECKING:
    from dlrun.engine.sharding import ShardedModel, ShardedWeights


class ExponentialMovingAverage:
    """average ← decay · average + (1 − decay) · weights, after every optimizer step; it starts at the first step's.

    Buffers, such as batch norm statistics, are copied as they are. The same as torch.optim.swa_utils.AveragedModel,
    which waits for the device at every step to see whether it is the first.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, decay: float) -> None:
        """Follow `model` from now on; a step that the gradient scaler skips does not count."""
        self._model: nn.Module = duplicate(model).requires_grad_(False)
        self.built = BuiltBuffers(self._model)
        self.followed = model
        self.decay = decay
        # A tensor on the device where a scaler decides there which steps are skipped.
        self._steps: int | Tensor = 0
        self._modules = list(zip(self._model.modules(), model.modules(), strict=True))
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        # The shards of the average, under device.strategy=fsdp2.
        self._sharded: ShardedWeights | None = None
        optimizer.register_step_post_hook(lambda stepped, *_: self.update(getattr(stepped, "found_inf", None)))

    @property
    def steps(self) -> int:
        """Number of steps averaged; reading it may wait for the device."""
        return int(self._steps)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, and with the extra state of the followed one."""
        # Copied when it is needed, not at every step.
        for mine, other in self._modules:
            if type(other).get_extra_state is not nn.Module.get_extra_state:
                mine.set_extra_state(copy.deepcopy(other.get_extra_state()))
        return self._model

    @torch.no_grad()
    def update(self, skipped: Tensor | None = None) -> None:
        """Average the model's current weights in, without waiting for the device.

        skipped: above 0 if a fused optimizer has skipped the step, which it decides on the device.
        """
        averaged: list[Tensor] = list(self._model.parameters())
        current: list[Tensor] = list(self.followed.parameters())
        if self._sharded is not None:
            # Number by number, so that the ranks need not talk.
            averaged = self._sharded.list_local()
            current = self._followed.list_local()

        if skipped is not None or isinstance(self._steps, Tensor):
            self._update_unless(skipped, averaged, current)
        elif self._steps:
            self._average(averaged, current, self._steps)
            self._steps += 1
        else:
            # The average starts at the weights after the first step.
            torch._foreach_copy_(averaged, current)
            self._steps = 1
        self._follow_buffers()

    def _update_unless(self, skipped: Tensor | None, averaged: list[Tensor], current: list[Tensor]) -> None:
        """Average the weights in, but leave all as it is where `skipped` is above 0."""
        device = averaged[0].device
        steps = torch.as_tensor(self._steps, dtype=torch.int64, device=device)
        # 1, or 0 at a step that is skipped.
        increment = torch.ones_like(steps)
        if skipped is not None:
            increment = (skipped.to(device) == 0).reshape(()).long()

        # The weight of the current weights is 1 at the first step that is made, and 0 at one that is skipped.
        weight = torch.where(steps == 0, 1.0, 1.0 - self.decay) * increment
        for mine, other in zip(averaged, current, strict=True):
            mine.lerp_(other, weight.to(mine.dtype))
        self._steps = steps + increment

    def _follow_buffers(self) -> None:
        """Copy the buffers, including those that the model has created, replaced or removed since."""
        for mine, other in self._modules:
            # Most modules have none; this runs at every step.
            if not (mine._buffers or other._buffers):
                continue

            for name, value in other._buffers.items():
                present = mine._buffers.get(name)
                if value is not None and present is not None and present.shape == value.shape:
                    present.copy_(value)
                    continue
                copied = None if value is None else value.detach().clone()
                if name in mine._buffers:
                    mine._buffers[name] = copied
                else:
                    is_saved = name not in other._non_persistent_buffers_set
                    mine.register_buffer(name, copied, persistent=is_saved)

            removed = [name for name in mine._buffers if name not in other._buffers]
            for name in removed:
                del mine._buffers[name]

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain Python."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any], created_buffers: Collection[str] = ()) -> None:
        """The inverse of `state_dict`, in place.

        created_buffers: names of those that the saved model had created in its forward pass.
        """
        self._steps = int(state["steps"])
        self.built.fit(state["model"], created_buffers)
        load_weights(self._model, state["model"])
        if self._sharded is not None:
            self._sharded.scatter()

    def shard(self, followed: "ShardedModel") -> None:
        """Average the shards of the model from now on."""
        from dlrun.engine.sharding import ShardedWeights

        self._followed = followed.weights
        self._sharded = ShardedWeights(self._model, [shard.detach().clone() for shard in self._followed.shards])

    def gather(self) -> None:
        """Give `model` the average of all shards. A collective call."""
        if self._sharded is not None:
            self._sharded.gather()

    def release(self) -> None:
        """Give back the memory of `model`, until it is gathered again."""
        if self._sharded is not None:
            self._sharded.release()
