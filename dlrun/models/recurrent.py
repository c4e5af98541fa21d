"""Recurrent nets on sequences of codes, or on windows of numbers: plain, LSTM and GRU."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.checks import check_counts, check_dropout


class RNN(nn.Module):
    """Embedding, recurrent layers, linear layer; padding never reaches the recurrent layers.

    (B, T) codes and (B,) lengths, or (B, T, F) numbers, which have no embedding -> (B, output_size) from the last
    state of the top layer, both directions side by side; for task "tagging" (B, T, output_size) from its output at
    every position.
    dropout: probability between recurrent layers in training. Cell: Elman 1990, "Finding structure in
    time", with tanh. Raises RequestError on sizes below 1, MisfitError on codes without a vocabulary.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens", "series")
    cell: ClassVar[type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]] = nn.RNN

    def __init__(
        self,
        spec: DataSpec,
        embedding_size: int = 100,
        hidden_size: int = 100,
        layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_counts("model.embedding_size", [embedding_size], "model.embedding_size=100")
        check_counts("model.hidden_size", [hidden_size], "model.hidden_size=100")
        check_counts("model.layers", [layers], "model.layers=2")
        check_dropout(dropout)
        if dropout > 0 and layers == 1:
            raise RequestError(
                f"model.dropout={dropout} acts between recurrent layers, but model.layers=1: "
                "type model.layers=2 or model.dropout=0."
            )
        self.tags = spec.task == "tagging"
        self.embedding: nn.Embedding | nn.Identity
        if spec.kind == "series":
            self.embedding = nn.Identity()
            embedding_size = spec.input_shape[-1]
        elif spec.vocabulary:
            # Code 0 is the padding, whose embedding stays 0.
            self.embedding = nn.Embedding(len(spec.vocabulary), embedding_size, padding_idx=0)
        else:
            raise MisfitError(
                "A recurrent model needs to know how many codes there are, but the spec of this data has "
                "no vocabulary: fill DataSpec.vocabulary."
            )

        self.recurrent = self.cell(
            embedding_size,
            hidden_size,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        self.classifier = nn.Linear(hidden_size * (1 + bidirectional), spec.output_size)

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) and (B,) int64, lengths >= 1, or (B, T, F) -> (B, output_size), for tagging (B, T, output_size)."""
        x = self.embedding(codes)
        if lengths is None:
            outputs, state = self.recurrent(x)
        else:
            # Packing reads lengths on the host: a tensor on an accelerator would cost a sync a step.
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            outputs, state = self.recurrent(packed)
        if self.tags:
            if lengths is not None:
                outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=codes.shape[1])
            scores: Tensor = self.classifier(outputs)
            return scores

        # (layers x directions, B, hidden_size); an LSTM returns its cell state as well.
        hidden = state[0] if isinstance(state, tuple) else state
        # The top layer comes last.
        directions = hidden[-2:] if self.recurrent.bidirectional else hidden[-1:]
        logits: Tensor = self.classifier(torch.cat(list(directions), dim=-1))
        return logits


class LSTM(RNN):
    """The same net with the cell of Hochreiter and Schmidhuber 1997, "Long short-term memory"."""

    cell = nn.LSTM


class GRU(RNN):
    """The same net with the gated recurrent unit of Cho et al. 2014, "Learning phrase representations"."""

    cell = nn.GRU
