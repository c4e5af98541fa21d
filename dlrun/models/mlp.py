"""The multilayer perceptron: linear layers with an activation between them."""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error, check_counts, check_dropout

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "identity": nn.Identity,
    "none": nn.Identity,
}


class MLP(nn.Module):
    """Fully connected layers on flattened inputs: (B, ...) -> (B, output_size).

    hidden_sizes: units of each hidden layer; [] leaves one linear layer. dropout: probability that a
    hidden unit is dropped in training. Raises RequestError on sizes below 1 or an unknown activation.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector", "image", "series")
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(
        self,
        spec: DataSpec,
        hidden_sizes: list[int] = [128],  # noqa: B006  (only read; the runner shows it as the default)
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_counts("model.hidden_sizes", hidden_sizes, "model.hidden_sizes=[128]")
        check_dropout(dropout)
        if activation not in ACTIVATIONS:
            raise build_unknown_error("model.activation", activation, ACTIVATIONS)

        # Vectors are flat already: without Flatten their layers are numbered from 0.
        layers: list[nn.Module] = [] if spec.kind == "vector" else [nn.Flatten()]
        sizes = [spec.input_size, *hidden_sizes]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after, bias=bias), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        # The loss takes logits: no activation at the end.
        layers.append(nn.Linear(sizes[-1], spec.output_size, bias=bias))
        self.layers = nn.Sequential(*layers)

    def list_layers(self) -> list[nn.Module]:
        """The layers that a forward pass calls, one after the other."""
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features), (B, C, H, W) or (B, T, features) -> (B, output_size)."""
        output: Tensor = self.layers(x)
        return output
