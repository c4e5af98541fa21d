"""Our recurrent nets in ONNX's own recurrent operators, which take the lengths of padded sequences.

torch's graphs have no packed sequences, and they unroll the loop over time for one length. The operators RNN,
LSTM and GRU (ONNX operator specification) give what packing gives: no state is touched by padding, the backward
direction begins at the last real code, and outputs behind it are 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.inference.export.source import is_recurrent
from dlrun.models.one_hot import OneHotRNN
from dlrun.models.recurrent import RNN

# Where ONNX's gates are among torch's: torch has r z n (GRU) and i f g o (LSTM), ONNX z r h and i o f c.
_GATES: dict[str, tuple[int, ...]] = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def rebuild(model: nn.Module) -> nn.Module | None:
    """A net of the same answers for torch.onnx.export alone; null where the model is none of our recurrent ones."""
    if isinstance(model, RNN) and is_recurrent(model):
        return Classifier(model)
    if isinstance(model, OneHotRNN) and is_recurrent(model):
        return Tagger(model)
    return None


class Layer(nn.Module):
    """One recurrent layer of one or two directions: (T, B, in) -> (T, B, out) and the last states (B, out)."""

    def __init__(self, operator: str, cells: Sequence[tuple[Tensor, ...]]) -> None:
        """cells: of each direction the weights and biases of input and state, as torch has them."""
        super().__init__()
        self.operator, self.directions = operator, len(cells)
        weights, states, biases, state_biases = (
            torch.stack([self._reordered(part) for part in parts]) for parts in zip(*cells, strict=True)
        )
        self.hidden_size = states.shape[2]
        self.weights, self.states = nn.Buffer(weights), nn.Buffer(states)
        self.biases = nn.Buffer(torch.cat([biases, state_biases], 1))

    def _reordered(self, part: Tensor) -> Tensor:
        order = _GATES[self.operator]
        gates = part.detach().chunk(len(order))
        return torch.cat([gates[i] for i in order])

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """lengths: (B,); null where padding may be run over."""
        steps, rows = x.shape[:2]
        last = (self.directions, rows, self.hidden_size)
        settings: dict[str, Any] = {"hidden_size": self.hidden_size}
        settings["direction"] = "bidirectional" if self.directions == 2 else "forward"
        if self.operator == "GRU":
            settings["linear_before_reset"] = 1  # the bias of the state is inside the reset, as in torch
        states = 2 if self.operator == "LSTM" else 1
        outputs, hidden, *_ = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            (x, self.weights, self.states, self.biases, None if lengths is None else lengths.to(torch.int32)),
            settings,
            dtypes=(x.dtype,) * (1 + states),
            shapes=((steps, *last), *(last,) * states),
        )
        return outputs.transpose(1, 2).flatten(2), hidden.transpose(0, 1).flatten(1)


class Classifier(nn.Module):
    """RNN, LSTM or GRU of dlrun.models.recurrent: (B, T) and (B,) -> what the original gives."""

    def __init__(self, net: RNN) -> None:
        super().__init__()
        recurrent, tails = net.recurrent, ("", "_reverse")[: 1 + net.recurrent.bidirectional]
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.embedding, self.classifier, self.tags = net.embedding, net.classifier, net.tags
        self.layers = nn.ModuleList(
            Layer(
                recurrent.mode.split("_")[0], [tuple(getattr(recurrent, f"{n}_l{i}{t}") for n in names) for t in tails]
            )
            for i in range(recurrent.num_layers)
        )

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """See the original."""
        x = self.embedding(codes).transpose(0, 1)
        last = x
        for layer in self.layers:
            x, last = layer(x, lengths)
        found: Tensor = self.classifier(x.transpose(0, 1) if self.tags else last)
        return found


class Tagger(nn.Module):
    """OneHotRNN or OneHotRNNCell, which run over padding."""

    def __init__(self, net: OneHotRNN) -> None:
        super().__init__()
        end = "_l0" if isinstance(net.recurrent, nn.RNN) else ""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        self.layer = Layer("RNN", [tuple(getattr(net.recurrent, name + end) for name in names)])
        self.letters = nn.Buffer(torch.arange(1, net.letters + 1))

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """See the original."""
        x = codes.unsqueeze(-1).eq(self.letters).to(self.layer.weights.dtype)
        found: Tensor = self.layer(x.transpose(0, 1), None)[0]
        return found.transpose(0, 1)
