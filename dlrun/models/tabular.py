"""Nets for tables: embeddings of categories, then an MLP or residual blocks, and a linear layer beside."""

import math
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error, check_counts, check_dropout
from dlrun.models.mlp import ACTIVATIONS

_BLOCKS = ("mlp", "resnet")
_LARGEST_EMBEDDING = 600

# The outputs of the linear layer count so many times: Adam moves each weight by about the learning rate a step, and
# small tables have few steps, in which the net would else learn what a line explains, less well.
WIDE_SCALE = 10.0


def choose_embedding_size(codes: int) -> int:
    """Numbers in which a column of so many codes is embedded: 1.6 codes^0.56, at most 600.

    The rule of thumb of fastai (Howard & Gugger 2020, "fastai: A layered API for deep learning"); 2 codes give 2, 10
    give 6, 100 give 21, 1,000 give 77.
    """
    return min(_LARGEST_EMBEDDING, round(1.6 * math.pow(codes, 0.56)))


class Tabular(nn.Module):
    """A net on numbers and codes of categories: (B, features) -> (B, output_size).

    Each column of codes is embedded, after Guo & Berkhahn 2016, "Entity embeddings of categorical variables". The
    numbers and the embeddings side by side go through `blocks`:
        "mlp"     hidden layers of an activation and dropout each
        "resnet"  a linear layer, then x + dropout(linear(dropout(act(linear(norm(x)))))) for each block, and in the end
                  act(norm(x)), after Gorishniy et al. 2021, "Revisiting deep learning models for tabular data",
                  section 3.2; with LayerNorm in the place of their BatchNorm, so that a batch may have a single row
    To the output is added that of a linear layer on the same columns, after Cheng et al. 2016, "Wide & deep learning
    for recommender systems": the net learns what a linear model leaves. wide=False leaves it out, as an autoencoder
    does.

    Code 0, of categories that the training rows did not have, is embedded as zeros, and so is one out of range.
    hidden_sizes: units of each hidden layer, or of each residual block, which are `hidden_sizes[0]` wide outside.
    embedding_size: of every column; None is the rule of `choose_embedding_size`.
    Raises RequestError on sizes below 1, an unknown activation or kind of blocks.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vector",)
    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "multiclass", "multilabel", "multitask")
    # Tables hand over the code of a category in place of a 0 or 1 for each.
    takes_codes: ClassVar[bool] = True

    # Buffers: positions of the numbers and of the codes, and for each column of codes how many it has and where they
    # begin in `wide_codes`.
    _numbers: Tensor
    _coded: Tensor
    _counts: Tensor
    _starts: Tensor

    def __init__(
        self,
        spec: DataSpec,
        blocks: str = "mlp",
        hidden_sizes: list[int] = [128, 64],  # noqa: B006  (only read; the runner shows it as the default)
        activation: str = "relu",
        dropout: float = 0.1,
        embedding_size: int | None = None,
        wide: bool = True,
    ) -> None:
        super().__init__()
        if blocks not in _BLOCKS:
            raise build_unknown_error("model.blocks", str(blocks), _BLOCKS)
        check_counts("model.hidden_sizes", hidden_sizes, "model.hidden_sizes=[128,64]")
        if not hidden_sizes:
            raise RequestError("model.hidden_sizes=[] leaves no hidden layer: type model=linear, or a size.")
        check_dropout(dropout)
        if activation not in ACTIVATIONS:
            raise build_unknown_error("model.activation", activation, ACTIVATIONS)
        if embedding_size is not None:
            check_counts("model.embedding_size", [embedding_size], "model.embedding_size=8")

        counts = spec.code_counts or (0,) * spec.input_size
        numbers = [column for column, count in enumerate(counts) if not count]
        coded = [column for column, count in enumerate(counts) if count]
        sizes = [embedding_size or choose_embedding_size(counts[column]) for column in coded]
        self._keep_constants(numbers, coded, [counts[column] for column in coded])

        self.embeddings = nn.ModuleList()
        for column, size in zip(coded, sizes, strict=True):
            self.embeddings.append(nn.Embedding(counts[column], size, padding_idx=0))

        width = len(numbers) + sum(sizes)
        self.layers = nn.Sequential()
        if blocks == "mlp":
            for before, after in pairwise([width, *hidden_sizes]):
                self.layers.extend([nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)])
            width = hidden_sizes[-1]
        else:
            self.layers.append(nn.Linear(width, hidden_sizes[0]))
            width = hidden_sizes[0]
            for hidden_size in hidden_sizes:
                self.layers.append(ResidualBlock(width, hidden_size, activation, dropout))
            self.layers.extend([nn.LayerNorm(width), ACTIVATIONS[activation]()])
        self.head = nn.Linear(width, spec.output_size)

        # An autoencoder would only copy its inputs.
        wide = wide and not spec.reconstructs
        self.wide_numbers = nn.Linear(len(numbers), spec.output_size, bias=False) if wide and numbers else None
        self.wide_codes = nn.Embedding(sum(counts), spec.output_size) if wide and coded else None
        # The linear part learns first, as nothing of the net is in the way. Code 0 does not occur in training: its
        # zeros stay.
        for weight in (*self._list_wide_weights(), self.head.weight, self.head.bias):
            nn.init.zeros_(weight)

    def _keep_constants(self, numbers: list[int], coded: list[int], counts: list[int]) -> None:
        starts = [0, *accumulate(counts)][: len(counts)]
        constants = {"numbers": numbers, "coded": coded, "counts": counts, "starts": starts}
        for name, values in constants.items():
            self.register_buffer(f"_{name}", torch.tensor(values, dtype=torch.int64), persistent=False)

    def _list_wide_weights(self) -> list[Tensor]:
        return [module.weight for module in (self.wide_numbers, self.wide_codes) if module is not None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, features), floats that hold codes where the spec has them, -> (B, output_size)."""
        numbers = x[:, self._numbers]
        if not len(self.embeddings):
            return self._add_wide(self.head(self.layers(numbers)), numbers, None)

        codes = x[:, self._coded].long()
        codes = torch.where((codes < 0) | (codes >= self._counts), 0, codes)
        embedded = [embedding(codes[:, number]) for number, embedding in enumerate(self.embeddings)]
        return self._add_wide(self.head(self.layers(torch.cat([numbers, *embedded], dim=1))), numbers, codes)

    def _add_wide(self, output: Tensor, numbers: Tensor, codes: Tensor | None) -> Tensor:
        if self.wide_numbers is not None:
            output = output + WIDE_SCALE * self.wide_numbers(numbers)
        if self.wide_codes is not None and codes is not None:
            output = output + WIDE_SCALE * self.wide_codes(codes + self._starts).sum(1)
        return output


class ResidualBlock(nn.Module):
    """x + dropout(linear(dropout(act(linear(norm(x)))))): (B, width) -> the same shape."""

    def __init__(self, width: int, hidden_size: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden_size)
        self.activation = ACTIVATIONS[activation]()
        self.linear2 = nn.Linear(hidden_size, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        hidden = self.dropout(self.activation(self.linear1(self.norm(x))))
        output: Tensor = x + self.dropout(self.linear2(hidden))
        return output
