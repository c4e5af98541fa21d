"""A small Transformer encoder on sequences of codes, or on windows of numbers."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.checks import build_unknown_error, check_counts, check_dropout

POOLINGS = ("mean", "cls", "last")


class Transformer(nn.Module):
    """Embedding, sinusoidal positions, encoder layers with the norm first, pooling, linear layer.

    (B, T) codes and (B,) lengths, or (B, T, F) numbers -> (B, output_size); for task "tagging" (B, T, output_size) at
    every position. Padding is masked: it changes no answer beyond rounding. pooling: the mean of the outputs at the
    positions of a sequence, the output at a learned position in front of it (cls), or that at its last position.
    Encoder: Vaswani et al. 2017, "Attention is all you need"; norm first: Xiong et al. 2020, "On layer normalization
    in the Transformer architecture"; cls: Devlin et al. 2019, "BERT". Raises RequestError on sizes below 1 and heads
    that do not divide hidden_size, MisfitError on codes without a vocabulary.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens", "series")

    def __init__(
        self,
        spec: DataSpec,
        hidden_size: int = 64,
        heads: int = 4,
        layers: int = 2,
        feedforward_size: int = 128,
        dropout: float = 0.1,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        check_counts("model.hidden_size", [hidden_size], "model.hidden_size=64")
        check_counts("model.heads", [heads], "model.heads=4")
        check_counts("model.layers", [layers], "model.layers=2")
        check_counts("model.feedforward_size", [feedforward_size], "model.feedforward_size=128")
        check_dropout(dropout)
        if hidden_size % heads or hidden_size % 2:
            raise RequestError(
                f"model.hidden_size={hidden_size} must be even and a multiple of model.heads={heads}: "
                f"type model.hidden_size={2 * heads * max(1, round(hidden_size / (2 * heads)))}."
            )
        if pooling not in POOLINGS:
            raise build_unknown_error("model.pooling", pooling, POOLINGS)

        self.tags = spec.task == "tagging"
        self.pooling = pooling
        self.embedding: nn.Embedding | nn.Linear
        if spec.kind == "series":
            self.embedding = nn.Linear(spec.input_shape[-1], hidden_size)
        elif spec.vocabulary:
            # Code 0 is the padding. torch draws embeddings of variance 1, so the paper's factor is not needed.
            self.embedding = nn.Embedding(len(spec.vocabulary), hidden_size, padding_idx=0)
        else:
            raise MisfitError(
                "A Transformer needs to know how many codes there are, but the spec of this data has no vocabulary: "
                "fill DataSpec.vocabulary."
            )
        if pooling == "cls" and not self.tags:
            self.cls = nn.Parameter(torch.randn(hidden_size))

        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            hidden_size, heads, feedforward_size, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        # Layers are copied, and then drawn anew, so that each has start values of its own.
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden_size), enable_nested_tensor=False)
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.classifier = nn.Linear(hidden_size, spec.output_size)

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T) and (B,) int64, lengths >= 1, or (B, T, F) -> (B, output_size), for tagging (B, T, output_size)."""
        if lengths is not None and not self.tags and not torch.compiler.is_compiling():
            # Columns that are padding in every row cost as much as others. Lengths are on the host.
            codes = codes[:, : int(lengths.max())]
        x = self.embedding(codes)
        x = self.dropout(x + encode_positions(x.shape[1], x))

        padding = None
        if lengths is not None:
            lengths = lengths.to(x.device, non_blocking=True)
            padding = torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1)
        if self.pooling == "cls" and not self.tags:
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], dim=1)
            padding = None if padding is None else functional.pad(padding, (1, 0))

        x = self.encoder(x, src_key_padding_mask=padding)
        outputs: Tensor = self.classifier(x if self.tags else self._pool(x, lengths, padding))
        return outputs

    def _pool(self, x: Tensor, lengths: Tensor | None, padding: Tensor | None) -> Tensor:
        """(B, T, hidden_size) -> (B, hidden_size)."""
        if self.pooling == "cls":
            return x[:, 0]
        if lengths is None or padding is None:
            return x.mean(1) if self.pooling == "mean" else x[:, -1]
        if self.pooling == "mean":
            return x.masked_fill(padding.unsqueeze(2), 0.0).sum(1) / lengths.unsqueeze(1).to(x.dtype)
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, x.shape[2])
        return x.gather(1, last).squeeze(1)


def encode_positions(length: int, like: Tensor) -> Tensor:
    """Sines and cosines of the positions (length, size), as like[-1] has size: Vaswani et al. 2017, section 3.5."""
    size = like.shape[-1]
    exponents = torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size
    angles = torch.arange(length, device=like.device, dtype=like.dtype).unsqueeze(1) * torch.exp(
        -math.log(10_000.0) * exponents
    )
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
