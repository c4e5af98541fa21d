"""The models of all members as one: a chain of stacked layers, or torch.func for any other model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dlrun.engine.stack.layers import STACKED_LAYERS, draw_dropout_masks, list_chain


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
            rows = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
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
            own: dict[str, Tensor] = {}
            if prefix is not None:
                start = f"{prefix}." if prefix else ""
                own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            of_members = [chain[position] for chain in chains]
            layers.append(STACKED_LAYERS[type(first)](of_members, own, self.generators).forward)

        def forward(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        return forward

    def _vectorize(self) -> Callable[..., Tensor]:
        """The forward pass of any model, by torch.func; its dropout layers draw from the members' generators."""
        template = self._template
        for name, module in template.named_modules():
            if isinstance(module, nn.Dropout):
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
