"""The models of all members as one: a chain of stacked layers, or torch.func for any other model."""

import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import is_lazy

from dlrun.engine.stack.layers import STACKED_LAYERS, draw_dropout_masks, list_chain

# Attributes of every module: registries of tensors and modules, described elsewhere, and hooks.
_MODULE_ATTRIBUTES = vars(nn.Module()).keys()

# Nested values are described down to this depth.
_DEEPEST = 8


def has_chain(model: nn.Module) -> bool:
    """Whether a model is a chain of layers that STACKED_LAYERS covers; torch.func stacks any other model."""
    return list_chain(model) is not None


def describe_structure(model: nn.Module) -> str:
    """Text that is equal for models that can share a stack, and no others.

    It has the class, the sizes and the settings of all modules, and leaves out the values of parameters and buffers,
    and the rates of nn.Dropout: the only settings that may differ. Equal texts are of one program: a class is known by
    its name, and an object that cannot be compared by its address.
    """
    names = {id(part): name for name, part in model.named_modules()}
    names |= {id(part): name for name, part in (*model.named_parameters(), *model.named_buffers())}
    lines = []
    for name, module in model.named_modules(remove_duplicate=False):
        # A module with two names.
        if names[id(module)] != name:
            lines.append(f"{name} is {names[id(module)]}")
            continue
        lines.append(f"{name}: {_describe_class(type(module))} {_describe_module(module, name, names)}")
    return "\n".join(lines)


def _describe_module(module: nn.Module, prefix: str, names: Mapping[int, str]) -> str:
    """The tensors of a module by shape, and all else it holds but its submodules."""
    tensors = []
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None:
            tensors.append(f"{name}=None")
            continue
        # Two layers may share a tensor.
        first_name = names[id(tensor)]
        if first_name != f"{prefix}.{name}".lstrip("."):
            tensors.append(f"{name}={first_name}")
            continue
        shape = "unknown" if is_lazy(tensor) else tuple(tensor.shape)
        tensors.append(f"{name}={shape} {tensor.dtype} {tensor.device} {tensor.requires_grad}")

    values = {name: value for name, value in vars(module).items() if name not in _MODULE_ATTRIBUTES}
    if type(module) is nn.Dropout:
        del values["p"]
    for name in _MODULE_ATTRIBUTES:
        hooks = vars(module)[name]
        # Keys of hooks are numbers that no other module has.
        if "hooks" in name and hooks:
            values[name] = list(hooks.values()) if isinstance(hooks, Mapping) else hooks
    settings = [f"{name}={_describe_value(value, names)}" for name, value in sorted(values.items())]
    return f"[{', '.join(tensors)}] [{', '.join(settings)}]"


def _describe_class(kind: type) -> str:
    # Classes that are made in a function may share a name.
    number = f" {id(kind)}" if "<locals>" in kind.__qualname__ else ""
    return f"{kind.__module__}.{kind.__qualname__}{number}"


def _describe_value(value: Any, names: Mapping[int, str], depth: int = 0) -> str:
    """A value that a module holds; an object that cannot be compared is identified by its address.

    names: of the modules and tensors of the model, by their id.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    # The limit ends the recursion for values that contain themselves.
    if depth < _DEEPEST:
        text = _describe_parts(value, names, depth + 1)
        if text is not None:
            return text
    return f"{_describe_class(type(value))} at {id(value)}"


def _describe_parts(value: Any, names: Mapping[int, str], depth: int) -> str | None:
    """A value by what it consists of; None for one of an unknown kind."""

    def describe(part: Any) -> str:
        return _describe_value(part, names, depth)

    kind = _describe_class(type(value))
    if isinstance(value, nn.Module):
        # A module outside of the model is not stacked: members would have to share it.
        return f"module {names[id(value)]}" if id(value) in names else None
    if isinstance(value, type):
        return _describe_class(value)
    if isinstance(value, Enum):
        return f"{kind}.{value.name}"
    if isinstance(value, Tensor):
        if value.is_cuda or is_lazy(value) or value.layout != torch.strided:
            return None
        return f"{kind} {value.dtype} {value.tolist()}"
    if isinstance(value, Mapping):
        return f"{kind} {[(describe(key), describe(part)) for key, part in value.items()]}"
    if isinstance(value, Set):
        return f"{kind} {sorted(map(describe, value))}"
    if isinstance(value, Sequence):
        return f"{kind} {[describe(part) for part in value]}"
    if dataclasses.is_dataclass(value):
        return f"{kind} {[describe(getattr(value, field.name)) for field in dataclasses.fields(value)]}"
    if isinstance(value, functools.partial):
        return f"{kind} {[describe(part) for part in (value.func, value.args, value.keywords)]}"
    if isinstance(value, types.MethodType):
        return f"{kind} {describe(value.__self__)} {value.__name__}"
    if isinstance(value, types.FunctionType) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, Tensor):
        return f"{value.__module__}.{value.__qualname__}"
    return None


class StackedModel:
    """Holds the parameters of M models in one tensor (M, D), and computes all their outputs at once.

    The models themselves keep working: their parameters and buffers are views of the stacked ones from now on, until
    `release`. `gradient` (M, D) holds what `compute_gradient` has computed.
    """

    def __init__(self, models: Sequence[nn.Module], generators: Sequence[torch.Generator]) -> None:
        """generators: one of each member, on the device of the models, from which its dropout is drawn."""
        self.models = list(models)
        self.generators = list(generators)
        self.names = [name for name, _ in models[0].named_parameters()]
        self.sizes = [parameter.numel() for parameter in models[0].parameters()]

        with torch.no_grad():
            rows = [torch.cat(list(map(torch.flatten, model.parameters()))) for model in models]
            self.weights = torch.stack(rows)

        self.gradient = torch.zeros_like(self.weights)
        self.parameters = self._view_parameters()
        self.buffers = self._stack_buffers()
        self.chain = list_chain(models[0])
        self._template = models[0] if self.chain is not None else copy.deepcopy(models[0])
        self._forward = self._stack_chain() if self.chain is not None else self._vectorize()

    def _view_parameters(self) -> dict[str, Tensor]:
        """Parameters (M, *shape) that are views of `weights`, and the models' parameters as views of these."""
        parameters: dict[str, Tensor] = {}
        begin = 0
        shapes = [parameter.shape for parameter in self.models[0].parameters()]
        for name, shape, size in zip(self.names, shapes, self.sizes, strict=True):
            part = slice(begin, begin + size)
            parameters[name] = self.weights[:, part].view(-1, *shape).requires_grad_()
            begin += size

        for number, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.data = parameters[name].data[number]
        return parameters

    def _stack_buffers(self) -> dict[str, Tensor]:
        """Buffers (M, *shape), and the models' buffers as views of these."""
        buffers: dict[str, Tensor] = {}
        for name, _ in self.models[0].named_buffers():
            owner_name, _, attribute = name.rpartition(".")
            owners = [model.get_submodule(owner_name) for model in self.models]
            stacked = torch.stack([getattr(owner, attribute) for owner in owners])
            buffers[name] = stacked
            for number, owner in enumerate(owners):
                owner._buffers[attribute] = stacked[number]
        return buffers

    def _stack_chain(self) -> Callable[..., Tensor]:
        """The forward pass of a chain of layers."""
        assert self.chain is not None
        prefixes = {id(module): name for name, module in self.models[0].named_modules()}
        tensors = self.parameters | self.buffers

        layers = []
        # Layers that the model itself does not own, such as a Flatten between its parts, are shared.
        chains = [list_chain(model) or [] for model in self.models]
        for position, first in enumerate(self.chain):
            prefix = prefixes.get(id(first))
            layer_tensors: dict[str, Tensor] = {}
            if prefix is not None:
                start = f"{prefix}." if prefix else ""
                layer_tensors = {
                    name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
                }
            member_layers = [chain[position] for chain in chains]
            layers.append(STACKED_LAYERS[type(first)](member_layers, layer_tensors, self.generators).forward)

        self._layers = layers
        self._layer_names = [prefixes.get(id(first)) for first in self.chain]

        def forward(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        return forward

    def _vectorize(self) -> Callable[..., Tensor]:
        """The forward pass of any model, by torch.func; its dropout layers draw from the members' generators."""
        template = self._template
        # A layer in two places has two names.
        for name, module in list(template.named_modules(remove_duplicate=False)):
            if type(module) is nn.Dropout:
                rates = [float(model.get_submodule(name).p) for model in self.models]  # type: ignore[arg-type]
                owner_name, _, attribute = name.rpartition(".")
                setattr(template.get_submodule(owner_name), attribute, _MemberDropout(rates, self.generators))

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(template, (parameters, buffers), inputs)
            return output

        vectorized = vmap(call)

        def forward(*inputs: Tensor) -> Tensor:
            output: Tensor = vectorized(self.parameters, self.buffers, *inputs)
            return output

        return forward

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Inputs (M, B, ...) -> outputs (M, B, ...)."""
        return self._forward(*inputs)

    @torch.no_grad()
    def find_awake_units(
        self, x: Tensor, kinds: tuple[type[nn.Module], ...], units_are_last: bool
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Outputs (M, B, ...) of a chain, and for each use of a layer of some kinds which units give more than 0.

        x: (M, B, ...). Returns the uses by the layer's name, bool (M, units), over rows and positions; the units are
        the last dimension, or else the channels (M, B, C, ...).
        """
        assert self.chain is not None
        uses: dict[str, list[Tensor]] = {}
        for layer, name, forward in zip(self.chain, self._layer_names, self._layers, strict=True):
            x = forward(x)
            if name is not None and isinstance(layer, kinds):
                units = x if units_are_last or x.dim() == 3 else x.movedim(2, -1)
                uses.setdefault(name, []).append((units > 0).flatten(1, -2).any(1))
        return x, uses

    def compute_gradient(self, losses: Tensor, is_first: bool = True) -> None:
        """Compute the gradient of losses (M,) with respect to each member's parameters.

        is_first: False adds it to the gradient of earlier batches of the same step.
        """
        # The loss of a member depends on its own parameters alone.
        parts = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
        flat = [
            torch.zeros_like(parameter).flatten(1) if part is None else part.flatten(1)
            for part, parameter in zip(parts, self.parameters.values(), strict=True)
        ]
        if is_first:
            torch.cat(flat, 1, out=self.gradient)
        else:
            self.gradient.add_(torch.cat(flat, 1))

    def train(self, training: bool = True) -> None:
        """Put all members into training or evaluation mode."""
        # The mode of one model speaks for all: setting it in hundreds of small models takes as long as a step.
        self._template.train(training)

    @contextlib.contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Put all members into evaluation mode; on exit they are in the mode they were in before."""
        is_training = self._template.training
        self.train(False)
        try:
            yield
        finally:
            self.train(is_training)

    def release(self) -> None:
        """Give each model tensors of its own again."""
        for model in self.models:
            model.train(self._template.training)
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
                parameter.grad = None
            for module in model.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = buffer.clone()


class _MemberDropout(nn.Module):
    """Dropout inside of vmap, with the rates and generators of the members."""

    def __init__(self, rates: Sequence[float], generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.rates = rates
        self.generators = generators

    def forward(self, x: Tensor) -> Tensor:
        """The shape of a member's activations, which vmap hides the members of."""
        if not self.training:
            return x
        mask: Tensor = _DropoutMask.apply(x.detach(), self.rates, self.generators)
        return x * mask


class _DropoutMask(torch.autograd.Function):
    """The mask of a dropout layer; its rule for vmap sees the dimension of members, which the layer does not."""

    @staticmethod
    def forward(x: Tensor, rates: Sequence[float], generators: Sequence[torch.Generator]) -> Tensor:
        """Never called: outside of vmap there are no members."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept, as the mask has no gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, rates: Sequence[float], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, int]:
        """Masks (M, ...), and the place of the members among the dimensions."""
        return draw_dropout_masks(x.movedim(in_dims[0], 0), rates, generators), 0
