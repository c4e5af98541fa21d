"""Nets from scratch: torch's parameters, with hand-written forward and backward passes (see scratch_autograd.py).

Each layer has `reference`, the same by torch's own operations, which `dlrun check gradients` compares with.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models import scratch_autograd
from dlrun.models.checks import build_unknown_error, check_counts
from dlrun.models.scratch_autograd import apply_function


class ScratchLinear(nn.Linear):
    """y = x Wᵀ + b: (..., in) -> (..., out); parameters, their names and initial values are nn.Linear's."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return apply_function(scratch_autograd.Linear, x, self.weight, self.bias)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same by torch."""
        return super().forward(x)


class ScratchSigmoid(nn.Sigmoid):
    """1 / (1 + exp(-z)), any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return apply_function(scratch_autograd.Sigmoid, x)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same by torch."""
        return super().forward(x)


class ScratchTanh(nn.Tanh):
    """The hyperbolic tangent, any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return apply_function(scratch_autograd.Tanh, x)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same by torch."""
        return super().forward(x)


class ScratchReLU(nn.ReLU):
    """max(z, 0), any shape."""

    # A difference quotient across 0 is not the derivative.
    bends_at_zero: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return apply_function(scratch_autograd.ReLU, x)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same by torch."""
        return super().forward(x)


class ScratchELU(nn.ELU):
    """z where z > 0, else alpha (exp(z) - 1), any shape."""

    # With alpha other than 1 the slope jumps at 0.
    bends_at_zero: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return apply_function(scratch_autograd.ELU, x, self.alpha)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the same by torch."""
        return super().forward(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": ScratchTanh,
    "sigmoid": ScratchSigmoid,
    "relu": ScratchReLU,
    "elu": ScratchELU,
}


class ScratchMLP(nn.Module):
    """The multilayer perceptron of hand-written layers on flattened inputs: (B, ...) -> (B, output_size).

    Parameters have the names and, from the same seed, the values of dlrun.models.mlp.MLP's. hidden_sizes: []
    leaves one linear layer. init_std: weights are init_std · N(0, 1) and biases 0; None: initialized as nn.Linear.
    output_activation: "sigmoid" makes the output a probability, for task.loss=bce or scratch_bce; None: a logit.
    Raises RequestError on sizes below 1, a negative init_std, an unknown activation, or a sigmoid at the end of a
    net whose task is neither binary nor multilabel.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector", "image")
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self,
        spec: DataSpec,
        hidden_sizes: list[int] = [4],  # noqa: B006  (only read; the runner shows it as the default)
        activation: str = "tanh",
        bias: bool = True,
        init_std: float | None = None,
        output_activation: str | None = None,
    ) -> None:
        super().__init__()
        check_counts("model.hidden_sizes", hidden_sizes, "model.hidden_sizes=[4]")
        if activation not in ACTIVATIONS:
            raise build_unknown_error("model.activation", activation, ACTIVATIONS)
        _check_output(output_activation, spec)

        # Vectors are flat already: without Flatten their layers are numbered from 0.
        layers: list[nn.Module] = [nn.Flatten()] if spec.kind == "image" else []
        sizes = [spec.input_size, *hidden_sizes]
        for before, after in pairwise(sizes):
            layers += [ScratchLinear(before, after, bias=bias), ACTIVATIONS[activation]()]
        # The loss takes logits by default: no activation at the end.
        layers.append(ScratchLinear(sizes[-1], spec.output_size, bias=bias))
        if output_activation is not None:
            layers.append(ScratchSigmoid())
        self.layers = nn.Sequential(*layers)
        if init_std is not None:
            self._draw_parameters(init_std)

    def _draw_parameters(self, init_std: float) -> None:
        if init_std < 0:
            raise RequestError(f"model.init_std={init_std} is no spread: type model.init_std=0.01.")
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=init_std)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) or (B, C, H, W) -> (B, output_size)."""
        output: Tensor = self.layers(x)
        return output


def _check_output(activation: str | None, spec: DataSpec) -> None:
    if activation not in (None, "sigmoid"):
        raise build_unknown_error("model.output_activation", str(activation), ("sigmoid", "null"))
    if activation is not None and spec.task not in ("binary", "multilabel"):
        raise RequestError(
            f"model.output_activation={activation} gives the probability of one of two classes, "
            f"and this data is for {spec.task}: type model.output_activation=null."
        )
