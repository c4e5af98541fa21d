"""`device.strategy=fsdp2`: a net in training whose parameters, gradients and optimizer state are split over the ranks.

Training runs through a copy of the net, split by torch's `fully_shard`. The net itself stays unsplit and serves all
else: evaluation, pictures, checkpoints. Its values are released while an epoch trains, and `gather` brings them back
from the copy. A checkpoint is thus the file that one process would write, and any number of processes resumes from it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from dlrun.core.errors import RequestError, RunError
from dlrun.engine.object_state import duplicate

# Fewest parameters of a block that is gathered by itself: a smaller exchange costs more than the memory it saves.
_SMALLEST_BLOCK = 10_000

# Containers whose entries are blocks. torch splits no list, as a list has no forward pass.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Optimizers whose fused kernels take shards too.
_FUSED = (torch.optim.Adam, torch.optim.AdamW)

# Attributes of these types may be set by a forward pass; they are copied between the model and its training copy.
_PLAIN_TYPES = (bool, int, float, str, type(None))


class ShardedWeights:
    """The parameters of an unsplit model, and the shards that stand for them in training."""

    def __init__(self, model: nn.Module, shards: Sequence[Tensor]) -> None:
        """shards: a DTensor for each parameter of `model`, in the same order."""
        self.parameters = list(model.parameters())
        self.shards = list(shards)
        self.is_gathered = True
        # Convolutions may have another layout than that of their shards.
        self._strides = [parameter.stride() for parameter in self.parameters]

    @torch.no_grad()
    def gather(self) -> None:
        """Fill the parameters with the values of all shards. A collective call."""
        for parameter, shard, stride in zip(self.parameters, self.shards, self._strides, strict=True):
            if not self.is_gathered:
                parameter.data = torch.empty_strided(shard.shape, stride, dtype=shard.dtype, device=shard.device)
            # One parameter at a time, so that only one is in memory twice.
            parameter.copy_(_gather_tensor(shard))
        self.is_gathered = True

    @torch.no_grad()
    def scatter(self) -> None:
        """Fill the shards with the values of the parameters, which every rank has."""
        for parameter, shard in zip(self.parameters, self.shards, strict=True):
            # In place: fully_shard keeps all shards of a block in one piece of memory.
            _get_local(shard).copy_(_get_local(_split_like(shard, parameter.detach())))

    def list_local(self) -> list[Tensor]:
        """This rank's part of each shard, as plain tensors of the same memory; some may be empty."""
        return [_get_local(shard.detach()) for shard in self.shards]

    def release(self) -> None:
        """Free the memory of the parameters, which read as NaN until they are gathered again."""
        if not self.is_gathered:
            return
        for parameter in self.parameters:
            # A single NaN, expanded: code that forgets to gather shows at once.
            parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)
        self.is_gathered = False


class ShardedModel:
    """A model, and its copy in training, split over the ranks by torch's `fully_shard`.

    Both have the same buffers. A block of the net is gathered for its own forward and backward pass only: a rank
    holds the parameters, gradients and optimizer state of its share, and one full block at a time.
    """

    def __init__(self, model: nn.Module, group: Any, has_blocks: bool = True) -> None:
        """group: the processes, all of which must call this at the same time, with the same weights.

        has_blocks: False to gather the model at once in its forward pass. RequestError for a model that torch cannot
        split.
        """
        device = next(model.parameters()).device
        self.mesh = DeviceMesh.from_group(group, device.type)
        self.training: nn.Module = _copy_for_training(model)
        self.modules = list(zip(self.training.modules(), model.modules(), strict=True))
        try:
            for block in list_blocks(self.training) if has_blocks else []:
                fully_shard(block, mesh=self.mesh)
            fully_shard(self.training, mesh=self.mesh)
        except (ValueError, NotImplementedError, AssertionError, RuntimeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise RequestError(
                f"device.strategy=fsdp2 cannot split this model: {reason}; type device.strategy=ddp"
            ) from error

        self.weights = ShardedWeights(model, list(self.training.parameters()))
        self._trainable = [parameter.requires_grad for parameter in self.weights.shards]
        # The setting of each group of the optimizer, as it was built.
        self._is_fused: list[Any] = []

    def gather(self) -> None:
        """Bring the unsplit model up to date with the copy in training. A collective call."""
        self.weights.gather()
        for replica, original in self.modules:
            _copy_attributes(replica, original)

    def scatter(self) -> None:
        """Bring the copy in training up to date with the unsplit model, which every rank has."""
        if isinstance(self.training, FSDPModule):
            # A forward pass without a backward one leaves a block gathered, with the old values.
            for module in self.training.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        self.weights.scatter()
        for replica, original in self.modules:
            _copy_attributes(original, replica)

    def gather_norm(self, norm: Tensor) -> Tensor:
        """The norm of all shards together. A collective call."""
        return _gather_tensor(norm)

    def refuse_shards(self, auxiliary_loss: Tensor) -> None:
        """RunError for a loss of the model's own that is made of its parameters, of which each rank has its share."""
        if isinstance(auxiliary_loss, DTensor):
            raise RunError(
                "with device.strategy=fsdp2 auxiliary_loss can use what the forward pass computed, and no parameter; "
                "type device.strategy=ddp"
            )

    def check_trainable(self) -> None:
        """RunError where a callback has frozen or unfrozen parameters, which torch would not notice."""
        if [parameter.requires_grad for parameter in self.weights.shards] != self._trainable:
            raise RunError(
                "with device.strategy=fsdp2 parameters cannot be frozen or unfrozen during the training; "
                "type device.strategy=ddp"
            )

    def record_trainable(self) -> None:
        """Record which parameters are frozen now, for `check_trainable`."""
        self._trainable = [parameter.requires_grad for parameter in self.weights.shards]

    def adopt(self, optimizer: Optimizer) -> None:
        """Let an optimizer of the unsplit model train the shards."""
        shards: dict[Any, Tensor] = dict(zip(self.weights.parameters, self.weights.shards, strict=True))
        self._is_fused = [group.get("fused") for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group.update(_unfuse(optimizer, group))
            group["params"] = [shards.get(parameter, parameter) for parameter in group["params"]]
        # Adagrad and its like have state before the first step.
        parameters: list[Any] = list(optimizer.state)
        for parameter in parameters:
            if parameter in shards:
                values = optimizer.state.pop(parameter)
                shard = shards[parameter]
                optimizer.state[shard] = {key: _split_value(shard, value) for key, value in values.items()}

    def split_optimizer_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """This rank's share of a full optimizer state; values that are split already stay as they are."""
        parameters: list[Tensor] = []
        for group in optimizer.param_groups:
            parameters += group["params"]
        split: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            split[number] = {key: _split_value(parameters[number], value) for key, value in values.items()}
        groups = [group | _unfuse(optimizer, group) for group in state["param_groups"]]
        return {"state": split, "param_groups": groups}

    def gather_optimizer_state(self, optimizer: Optimizer, keep_tensors: bool) -> dict[str, Any]:
        """The full state of an optimizer of shards, on the CPU. A collective call.

        keep_tensors: False for a rank that only takes part; its tensors are None. The state has torch's own form, by
        the number of the parameter. (torch.distributed.checkpoint has one by name, and makes a step to load it.)
        """
        state = optimizer.state_dict()
        full: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            full[number] = {}
            for key, value in values.items():
                if isinstance(value, DTensor):
                    tensor = _gather_tensor(value)
                    value = tensor.cpu() if keep_tensors else None
                full[number][key] = value
        # A single process may use the fused kernel, which shards cannot.
        for group, is_fused in zip(state["param_groups"], self._is_fused, strict=True):
            if "fused" in group:
                group["fused"] = is_fused
        return state | {"state": full}


def _gather_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all ranks if it is split: then a collective call. Any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def list_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that are gathered by themselves, inner ones first; the model gathers what is in none.

    A block has `_SMALLEST_BLOCK` parameters besides those of the blocks inside it, and shares none with the rest of
    the model.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    uses = Counter(id(parameter) for _, parameter in parameters)
    modules = dict(model.named_modules())
    blocks = []
    assigned: set[int] = set()

    # Reversed, so that a module comes after its submodules.
    for name, module in reversed(modules.items()):
        parent = modules[name.rpartition(".")[0]]
        if module is model or not _is_called(module, parent):
            continue
        own_uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
        unassigned = [parameter for parameter in module.parameters() if id(parameter) not in assigned]
        is_large = sum(parameter.numel() for parameter in unassigned) >= _SMALLEST_BLOCK
        if is_large and all(own_uses[key] == uses[key] for key in own_uses):
            blocks.append(module)
            assigned.update(own_uses)
    return blocks


def _is_called(module: nn.Module, parent: nn.Module) -> bool:
    """Whether the forward pass of a module is what uses its parameters, as far as its type tells."""
    if isinstance(module, _CONTAINERS):
        return False
    # torch's own layers may read the weights of their parts, as attention does.
    is_of_torch = type(parent).__module__.startswith("torch.nn.") and not isinstance(parent, _CONTAINERS)
    return not is_of_torch or any(module.children())


def _copy_for_training(model: nn.Module) -> nn.Module:
    """A copy of a model with the same buffers and parameters of its own, as fully_shard takes them."""
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise RequestError(
            f"device.strategy=fsdp2 cannot split {lazy[0]}, which has no shape before the first batch; "
            "type preflight=true or device.strategy=ddp"
        )
    replica_model: nn.Module = duplicate(model)
    for replica, original in zip(replica_model.modules(), model.modules(), strict=True):
        # Both dictionaries and the set: a forward pass may create buffers.
        replica._buffers = original._buffers
        replica._non_persistent_buffers_set = original._non_persistent_buffers_set
    for parameter in replica_model.parameters():
        parameter.data = parameter.data.contiguous()
    return replica_model


def _copy_attributes(source: nn.Module, target: nn.Module) -> None:
    """Give a module the plain attributes and the extra state of its copy: counters, hidden states."""
    for name, value in vars(source).items():
        if name == "training" or name.startswith("_"):
            continue
        if type(value) in _PLAIN_TYPES or type(value) is Tensor:
            vars(target)[name] = value
    if type(source).get_extra_state is not nn.Module.get_extra_state:
        target.set_extra_state(source.get_extra_state())


def _unfuse(optimizer: Optimizer, group: dict[str, Any]) -> dict[str, Any]:
    """{"fused": False} for a group whose optimizer has a fused kernel that takes no shards; else empty."""
    return {"fused": False} if group.get("fused") and type(optimizer) not in _FUSED else {}


def _split_value(shard: Tensor, value: Any) -> Any:
    """The share of a value in an optimizer's state; a number of steps is the same on every rank."""
    if type(value) is not Tensor or value.shape != shard.shape:
        return value
    return _split_like(shard, value)


def _split_like(shard: Tensor, tensor: Tensor) -> Tensor:
    """This rank's share of a full tensor, split as `shard` is; the tensor itself if `shard` is not split."""
    if not isinstance(shard, DTensor):
        return tensor
    # Without a source each rank takes its share of its own copy, and nothing is sent.
    tensor = tensor.to(shard.device).contiguous()
    return distribute_tensor(tensor, shard.device_mesh, shard.placements, src_data_rank=None)


def _get_local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
