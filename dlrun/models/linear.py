"""One linear layer: linear regression, and with a logistic loss logistic and softmax regression."""

from typing import ClassVar

from torch import Tensor, nn

from dlrun.data.spec import DataSpec


class Linear(nn.Linear):
    """y = x Wᵀ + b on flattened inputs: (B, ...) -> (B, output_size).

    Parameters `weight` (output_size, input_size) and `bias` (output_size,).
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector", "image", "series")
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")

    def __init__(self, spec: DataSpec, bias: bool = True) -> None:
        super().__init__(spec.input_size, spec.output_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features), (B, C, H, W) or (B, T, features) -> (B, output_size)."""
        return super().forward(x.flatten(1))


class Logistic(Linear):
    """The same layer giving logits: the loss applies the sigmoid (binary, multilabel) or softmax (multiclass)."""

    # Logits of a regression would be the linear model itself.
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")
