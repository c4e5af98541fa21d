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
        """Average the weights of `model`, the source, after each step that the gradient scaler does not skip."""
        self._model: nn.Module = duplicate(model).requires_grad_(False)
        self.built = BuiltBuffers(self._model)
        self._source = model
        self.decay = decay
        # A tensor on the device where a scaler decides there which steps are skipped.
        self._steps: int | Tensor = 0
        self._modules = list(zip(self._model.modules(), model.modules(), strict=True))
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        # Under device.strategy=fsdp2: the shards of the average, and those of the source.
        self._shards: ShardedWeights | None = None
        self._source_shards: ShardedWeights | None = None
        optimizer.register_step_post_hook(lambda stepped, *_: self.update(getattr(stepped, "found_inf", None)))

    @property
    def steps(self) -> int:
        """Number of steps averaged; reading it may wait for the device."""
        return int(self._steps)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, and with the extra state of the source."""
        # Copied when it is needed, not at every step.
        for module, source in self._modules:
            if type(source).get_extra_state is not nn.Module.get_extra_state:
                module.set_extra_state(copy.deepcopy(source.get_extra_state()))
        return self._model

    @torch.no_grad()
    def update(self, skipped: Tensor | None = None) -> None:
        """Average the model's current weights in, without waiting for the device.

        skipped: above 0 if a fused optimizer has skipped the step, which it decides on the device.
        """
        averaged: list[Tensor] = list(self._model.parameters())
        current: list[Tensor] = list(self._source.parameters())
        if self._shards is not None and self._source_shards is not None:
            # Element by element, so that the ranks need not communicate.
            averaged = self._shards.list_local()
            current = self._source_shards.list_local()

        if skipped is not None or isinstance(self._steps, Tensor):
            self._update_unless(skipped, averaged, current)
        elif self._steps:
            self._average(averaged, current, self._steps)
            self._steps += 1
        else:
            # The average starts at the weights after the first step.
            torch._foreach_copy_(averaged, current)
            self._steps = 1
        self._copy_buffers()

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
        for average, value in zip(averaged, current, strict=True):
            average.lerp_(value, weight.to(average.dtype))
        self._steps = steps + increment

    def _copy_buffers(self) -> None:
        """Copy the buffers, including those that the model has created, replaced or removed since."""
        for module, source in self._modules:
            # Most modules have none; this runs at every step.
            if not (module._buffers or source._buffers):
                continue

            for name, value in source._buffers.items():
                present = module._buffers.get(name)
                if value is not None and present is not None and present.shape == value.shape:
                    present.copy_(value)
                    continue
                copy_of_value = None if value is None else value.detach().clone()
                if name in module._buffers:
                    module._buffers[name] = copy_of_value
                else:
                    is_saved = name not in source._non_persistent_buffers_set
                    module.register_buffer(name, copy_of_value, persistent=is_saved)

            removed = [name for name in module._buffers if name not in source._buffers]
            for name in removed:
                del module._buffers[name]

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
        if self._shards is not None:
            self._shards.scatter()

    def shard(self, source: "ShardedModel") -> None:
        """Average the shards of the source from now on."""
        from dlrun.engine.sharding import ShardedWeights

        self._source_shards = source.weights
        self._shards = ShardedWeights(self._model, [shard.detach().clone() for shard in source.weights.shards])

    def gather(self) -> None:
        """Give `model` the average of all shards. A collective call."""
        if self._shards is not None:
            self._shards.gather()

    def release(self) -> None:
        """Give back the memory of `model`, until it is gathered again."""
        if self._shards is not None:
            self._shards.release()
