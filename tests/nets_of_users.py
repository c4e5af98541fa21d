"""Small nets as users write them, unlike dlrun's own; tests copy this file into the working directory."""

from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec


class Base(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.first = nn.Linear(spec.input_size, 4)
        self.last = nn.Linear(4, spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(torch.tanh(self.first(x)))

    def answer(self, hidden: Tensor) -> Tensor:
        return self.last(hidden)  # type: ignore[no-any-return]


class Late(Base):
    def answer(self, hidden: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(1))
        return self.last(hidden) * self.scale  # type: ignore[no-any-return]


class Counting(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.steps = 0

    def answer(self, hidden: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.steps += 1
        return self.last(hidden) / (1 + 0.01 * self.steps)  # type: ignore[no-any-return]

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class MadeBuffer(Base):
    scale: Tensor

    def answer(self, hidden: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.zeros(4))
        if self.training:
            self.scale.lerp_(hidden.detach().abs().mean(0), 0.1)
        return self.last(hidden / (0.5 + self.scale))  # type: ignore[no-any-return]


class SetBuffer(Base):
    mean: Tensor | None

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", None)

    def answer(self, hidden: Tensor) -> Tensor:
        if self.training:
            now = hidden.detach().mean(0)
            self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return self.last(hidden if self.mean is None else hidden - self.mean)  # type: ignore[no-any-return]


class GrownBuffer(Base):
    history: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("history", torch.zeros(0))

    def answer(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.history = torch.cat([self.history, hidden.detach().mean().reshape(1)])
        shift = self.history.mean() if len(self.history) else 0.0
        return self.last(hidden - shift)  # type: ignore[no-any-return]


class Lazy(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.first = nn.LazyLinear(5)
        self.norm = nn.LazyBatchNorm1d()
        self.last = nn.LazyLinear(spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


class Unknowable(Lazy):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class LazyConvolution(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.first = nn.LazyConv1d(3, 1)
        self.last = nn.LazyLinear(spec.output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.unsqueeze(1)).flatten(1))  # type: ignore[no-any-return]


class OldWeightNorm(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first = nn.utils.weight_norm(self.first)


class WeightNorm(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first = nn.utils.parametrizations.weight_norm(self.first)  # type: ignore[assignment]


class SpectralNorm(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first = nn.utils.parametrizations.spectral_norm(self.first)


class OldSpectralNorm(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first = nn.utils.spectral_norm(self.first)


class Tied(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.one = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.one.weight

    def answer(self, hidden: Tensor) -> Tensor:
        return self.last(self.other(torch.tanh(self.one(hidden))))  # type: ignore[no-any-return]


class Unused(Base):
    """Which of its layers take part depends on the rows; one never does."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        sides = hidden.clone()
        is_left = x[:, 0] < 0
        if is_left.any():
            sides[is_left] = self.left(hidden[is_left])
        if not is_left.all():
            sides[~is_left] = self.right(hidden[~is_left])
        return self.last(sides)  # type: ignore[no-any-return]


class ComplexBuffer(Base):
    phase: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("phase", torch.exp(1j * torch.arange(4.0)))

    def answer(self, hidden: Tensor) -> Tensor:
        return self.last((torch.fft.fft(hidden) * self.phase).real)  # type: ignore[no-any-return]


class WholeBuffers(Base):
    steps: Tensor
    mask: Tensor
    codes: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("codes", torch.arange(4, dtype=torch.uint8))

    def answer(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return self.last(hidden * self.mask / (1 + self.steps.sqrt()))  # type: ignore[no-any-return]


class Lists(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        weights = [torch.randn(spec.input_size, 4), torch.randn(4, spec.output_size)]
        self.weights = nn.ParameterList([nn.Parameter(weight) for weight in weights])
        self.scales = nn.ParameterDict({"hidden": nn.Parameter(torch.ones(4))})
        self.functions = nn.ModuleDict({"tanh": nn.Tanh()})

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.functions["tanh"](x @ self.weights[0]) * self.scales["hidden"]
        return hidden @ self.weights[1]  # type: ignore[no-any-return]


class Shared(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.one = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.other = self.one

    def answer(self, hidden: Tensor) -> Tensor:
        return self.last(self.other(self.one(hidden)))  # type: ignore[no-any-return]


class Marked(Tensor):
    """A tensor of a class of its own."""


class Subclass(Base):
    def answer(self, hidden: Tensor) -> Tensor:
        return self.last(hidden).as_subclass(Marked)  # type: ignore[no-any-return]


class Scalar(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def answer(self, hidden: Tensor) -> Tensor:
        return self.last(hidden) * self.scale  # type: ignore[no-any-return]


class BufferClass(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.mean = nn.Buffer(torch.zeros(4))
        self.constant = nn.Buffer(torch.ones(4), persistent=False)

    def answer(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return self.last(hidden - self.mean * self.constant)  # type: ignore[no-any-return]


class Uninitialized(Base):
    mean: Any

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", nn.UninitializedBuffer())

    def answer(self, hidden: Tensor) -> Tensor:
        if isinstance(self.mean, nn.UninitializedBuffer):
            self.mean.materialize((4,))
            self.mean.zero_()
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return self.last(hidden - self.mean)  # type: ignore[no-any-return]


class Frozen(Base):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.first.requires_grad_(False)
