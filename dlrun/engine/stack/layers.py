"""Layers with a leading dimension of members: inputs (M, B, ...), each member with parameters of its own.

`register_stacked_layer` adds a class of layers to STACKED_LAYERS; `list_chain` says which models consist of these.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLayer:
    """One layer of all members; subclasses define `forward`.

    layers: those of the members, which have the same class and sizes, and may differ in what `forward` looks up there.
    tensors: parameters and buffers by name, each with a leading dimension of members (M, ...).
    generators: one of each member, on the device, for layers that draw random numbers.
    """

    def __init__(
        self, layers: Sequence[Any], tensors: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> None:
        self.layers = layers
        self.tensors = tensors
        self.generators = generators

    @classmethod
    def covers(cls, layer: Any) -> bool:
        """Whether this class computes what a layer does with its settings; otherwise torch.func stacks the net."""
        return True

    @property
    def first(self) -> Any:
        """The layer of the first member, for what all of them share."""
        return self.layers[0]

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, ...) -> (M, B, ...)."""
        raise NotImplementedError


class StackedElementwise(StackedLayer):
    """A layer that treats every number by itself and draws nothing: it does not notice the members."""

    def __init__(
        self, layers: Sequence[Any], tensors: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__(layers, tensors, generators)
        # The input may be one that all members share, which must not change; in a chain nothing else reads it.
        self._layer = copy.copy(self.first)
        if hasattr(self._layer, "inplace"):
            self._layer.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        output: Tensor = self._layer(x)
        return output


class StackedFlatten(StackedLayer):
    """nn.Flatten: (M, B, ...) -> (M, B, features)."""

    def forward(self, x: Tensor) -> Tensor:
        """The dimensions of a sample, counted from behind the members and the batch."""
        start = self.first.start_dim
        end = self.first.end_dim
        return x.flatten(start if start < 0 else start + 1, end if end < 0 else end + 1)


class StackedLinear(StackedLayer):
    """One batched matrix product: (M, B, ..., in) -> (M, B, ..., out), with weight (M, out, in) and bias (M, out)."""

    def forward(self, x: Tensor) -> Tensor:
        """W x + b of each member."""
        weight = self.tensors["weight"]
        # bmm takes three dimensions only: each position of a sequence is a row.
        rows = x if x.dim() == 3 else x.flatten(1, -2)
        output: Tensor = _BatchedLinear.apply(rows, weight, self.tensors.get("bias"))
        return output if x.dim() == 3 else output.view(*x.shape[:-1], -1)


class _BatchedLinear(torch.autograd.Function):
    """x Wᵀ + b for x (M, N, in), W (M, out, in), b (M, out) or None.

    The gradient of W has the layout of W. On a CPU it is computed as its transpose and copied where there are more
    outputs than inputs: such narrow products take a quarter of the time that way.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return torch.bmm(x, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        # The data of the first layer take no gradient.
        input_gradient: Tensor | None = None
        if ctx.needs_input_grad[0]:
            # With one output the product is an outer product.
            input_gradient = gradient * weight if weight.shape[1] == 1 else torch.bmm(gradient, weight)
        # One number of the bias serves all rows.
        bias_gradient = gradient.sum(1) if ctx.has_bias else None
        if not x.is_cuda and weight.shape[1] > weight.shape[2]:
            return input_gradient, torch.bmm(x.transpose(1, 2), gradient).transpose(1, 2).contiguous(), bias_gradient
        return input_gradient, torch.bmm(gradient.transpose(1, 2), x), bias_gradient


class StackedFlatLinear(StackedLinear):
    """A linear layer that flattens its input."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, ...) -> (M, B, out)."""
        return super().forward(x.flatten(2))


class StackedDropout(StackedLayer):
    """nn.Dropout with a probability and a generator of each member, which draws what it would draw alone."""

    def __init__(
        self, layers: Sequence[Any], tensors: Mapping[str, Tensor], generators: Sequence[torch.Generator]
    ) -> None:
        super().__init__(layers, tensors, generators)
        self.rates = [float(layer.p) for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """x / (1 - p) for what stays, 0 for the rest."""
        # All members are in one mode, that of the stack.
        if not self.first.training:
            return x
        return x * draw_dropout_masks(x, self.rates, self.generators)


def draw_dropout_masks(x: Tensor, rates: Sequence[float], generators: Sequence[torch.Generator]) -> Tensor:
    """Factors (M, ...) for inputs (M, ...): 0 with the member's rate, otherwise 1 / (1 - rate)."""
    masks = torch.empty_like(x, memory_format=torch.contiguous_format)
    for mask, rate, generator in zip(masks, rates, generators, strict=True):
        # As F.dropout does, which draws nothing for these two rates.
        if rate == 0.0:
            mask.fill_(1.0)
        elif rate == 1.0:
            mask.zero_()
        else:
            mask.bernoulli_(1 - rate, generator=generator).div_(1 - rate)

    return masks


class StackedLayerNorm(StackedLayer):
    """nn.LayerNorm with the scale and shift of each member."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize over the last dimensions."""
        output = F.layer_norm(x, self.first.normalized_shape, eps=self.first.eps)
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            if name in self.tensors:
                values = self.tensors[name]
                # (M, 1 for each dimension between, *normalized_shape)
                missing = x.dim() - values.dim()
                output = combine(output, values.view(len(values), *(1,) * missing, *values.shape[1:]))

        return output


class StackedBatchNorm(StackedLayer):
    """nn.BatchNorm1d and 2d: the channels of all members side by side, (B, M C, ...), are normalized as one's."""

    @classmethod
    def covers(cls, layer: Any) -> bool:
        """All but momentum=None, a mean over all batches so far."""
        return layer.momentum is not None

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, C, ...) -> the same shape; in training it updates the running statistics of each member."""
        members, rows, channels = x.shape[:3]
        # Buffers (M,), such as the count of batches, are of no channel.
        flat = {name: values.flatten(0, 1) for name, values in self.tensors.items() if values.dim() == 2}
        layer = self.first
        # Without running statistics torch normalizes by the batch in evaluation too.
        uses_batch = layer.training or "running_mean" not in flat
        if layer.training and "num_batches_tracked" in self.tensors:
            self.tensors["num_batches_tracked"].add_(1)

        merged = F.batch_norm(
            _join_channels(x),
            flat.get("running_mean") if not layer.training or layer.track_running_stats else None,
            flat.get("running_var") if not layer.training or layer.track_running_stats else None,
            flat.get("weight"),
            flat.get("bias"),
            uses_batch,
            layer.momentum,
            layer.eps,
        )
        return _split_channels(merged, members, rows, channels)


class StackedGroupNorm(StackedLayer):
    """nn.GroupNorm over the channels of all members, with as many groups for each."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, C, ...) -> the same shape."""
        members, rows, channels = x.shape[:3]
        flat = {name: values.flatten() for name, values in self.tensors.items()}
        # Groups lie within the channels of one member, so that no mean crosses members.
        merged = F.group_norm(
            _join_channels(x), members * self.first.num_groups, flat.get("weight"), flat.get("bias"), self.first.eps
        )
        return _split_channels(merged, members, rows, channels)


class StackedConvolution(StackedLayer):
    """nn.Conv1d and 2d: on a CPU one member after the other, elsewhere one grouped convolution over all channels.

    On a CPU either takes as long, and so do unfolded inputs times matrices; one by one rounds as a net alone does.
    """

    @classmethod
    def covers(cls, layer: Any) -> bool:
        """Padding by zeros."""
        return bool(layer.padding_mode == "zeros")

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, in, ...) -> (M, B, out, ...)."""
        layer = self.first
        members, rows = x.shape[:2]
        bias = self.tensors.get("bias")
        convolve = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        if x.device.type == "cpu":
            biases = [None] * members if bias is None else bias.unbind()
            parts = zip(x.unbind(), self.tensors["weight"].unbind(), biases, strict=True)
            settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
            return torch.stack([convolve(member_x, weight, b, *settings) for member_x, weight, b in parts])

        merged = convolve(
            _join_channels(x),
            self.tensors["weight"].flatten(0, 1),
            None if bias is None else bias.flatten(),
            layer.stride,
            layer.padding,
            layer.dilation,
            # Groups keep the channels of one member from those of the next.
            members * layer.groups,
        )
        return _split_channels(merged, members, rows, layer.out_channels)


class StackedBySample(StackedLayer):
    """A layer without parameters that treats every sample by itself, such as a pooling layer."""

    @classmethod
    def covers(cls, layer: Any) -> bool:
        """All but pooling that returns indices, and a softmax over the batch."""
        if isinstance(layer, nn.Softmax | nn.LogSoftmax):
            # A softmax over dimension 0 would mix the rows of the batch.
            return layer.dim is not None and (layer.dim > 0 or layer.dim == -1)
        return not getattr(layer, "return_indices", False)

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, ...) -> (M, B, ...)."""
        # A convolution leaves the members inside of each row; in that order nothing is copied.
        is_inside = x.stride(0) < x.stride(1)
        ordered = x.transpose(0, 1) if is_inside else x
        output: Tensor = self.first(ordered.flatten(0, 1))
        output = output.view(*ordered.shape[:2], *output.shape[1:])
        return output.transpose(0, 1) if is_inside else output


def _join_channels(x: Tensor) -> Tensor:
    """(M, B, C, ...) -> (B, M C, ...)."""
    return x.transpose(0, 1).flatten(1, 2)


def _split_channels(x: Tensor, members: int, rows: int, channels: int) -> Tensor:
    """(B, M C, ...) -> (M, B, C, ...)."""
    return x.view(rows, members, channels, *x.shape[2:]).transpose(0, 1)


# By the exact class: a class derived from one of these may compute anything.
STACKED_LAYERS: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Linear: StackedLinear,
    nn.Flatten: StackedFlatten,
    nn.Dropout: StackedDropout,
    nn.LayerNorm: StackedLayerNorm,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
    nn.GroupNorm: StackedGroupNorm,
    nn.Conv1d: StackedConvolution,
    nn.Conv2d: StackedConvolution,
}
for by_sample in (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
    nn.Softmax,
    nn.LogSoftmax,
):
    STACKED_LAYERS[by_sample] = StackedBySample
for elementwise in (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Identity,
):
    STACKED_LAYERS[elementwise] = StackedElementwise


def register_stacked_layer(layer: type[nn.Module], stacked: type[StackedLayer]) -> None:
    """Let `stacked` compute layers of the class `layer`, whose parameters may differ from member to member."""
    STACKED_LAYERS[layer] = stacked


def list_chain(model: nn.Module) -> list[nn.Module] | None:
    """The layers of a model that is a chain of layers which can be stacked, in the order of its forward pass.

    Such a model is an nn.Sequential, or has a method `list_layers` that returns the layers its forward pass calls, one
    after the other. None for any other model, and for one with parameters or buffers outside of these layers.
    """
    layers = _list_parts(model)
    if layers is None:
        return None

    # Tensors of the layers, by identity: equality would compare their numbers.
    known_ids: set[int] = set()
    for layer in layers:
        known_ids.update(map(id, layer.parameters()))
        known_ids.update(map(id, layer.buffers()))

    model_ids = map(id, (*model.parameters(), *model.buffers()))
    return layers if known_ids.issuperset(model_ids) else None


def _list_parts(model: nn.Module) -> list[nn.Module] | None:
    # A hook may compute anything.
    if _is_altered(model):
        return None
    if type(model) in STACKED_LAYERS:
        # A layer with parts of its own is stacked as a whole.
        return [model] if STACKED_LAYERS[type(model)].covers(model) else None

    if type(model) is nn.Sequential:
        parts = list(model)
    elif _lists_its_layers(type(model)):
        parts = model.list_layers()  # type: ignore[operator]
    else:
        return None

    layers: list[nn.Module] = []
    for part in parts:
        inner = _list_parts(part)
        if inner is None:
            return None
        layers += inner

    return layers


def _is_altered(module: nn.Module) -> bool:
    """Whether something besides its class decides what a module computes: hooks, or a forward pass of its own."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)


def _lists_its_layers(model: type[nn.Module]) -> bool:
    """Whether a class has `list_layers`, and no class derived from the one that has it changes the forward pass."""
    for kind in model.__mro__:
        if "list_layers" in vars(kind):
            return True
        if {"forward", "__call__"} & vars(kind).keys():
            return False
    return False
