"""Our recurrent nets in ONNX's own recurrent operators, which take the lengths of padded sequences.

torch's graphs have no packed sequences, and they unroll the loop over time for one length. The operators RNN, LSTM
and GRU (ONNX operator specification) compute what packing does: padding changes no state, the backward direction
begins at the last real code, and outputs behind it are 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.models.one_hot import OneHotRNN
from dlrun.models.recurrent import RNN
from dlrun.models.transformer import Transformer

# Order of ONNX's gates among torch's: torch has r z n (GRU) and i f g o (LSTM), ONNX z r h and i o f c.
_GATES: dict[str, tuple[int, ...]] = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _is_recurrent(model: nn.Module) -> bool:
    """Whether the model is one of our recurrent nets, which take sequences of any length."""
    # A subclass with a forward of its own may compute anything.
    if isinstance(model, RNN):
        return type(model).forward is RNN.forward
    return isinstance(model, OneHotRNN) and type(model).__module__ == OneHotRNN.__module__


def takes_any_length(model: nn.Module, spec: DataSpec) -> bool:
    """Whether the model is known to take sequences longer than those of training."""
    is_transformer = isinstance(model, Transformer) and type(model).forward is Transformer.forward
    return spec.kind == "tokens" and (_is_recurrent(model) or is_transformer)


def rebuild(model: nn.Module) -> nn.Module | None:
    """Return an equivalent net for torch.onnx.export alone; None if the model is none of our recurrent nets."""
    if not _is_recurrent(model):
        return None
    if isinstance(model, RNN):
        return Classifier(model)
    assert isinstance(model, OneHotRNN)
    return Tagger(model)


class Layer(nn.Module):
    """One recurrent layer of one or two directions: (T, B, in) -> (T, B, out) and the last states (B, out)."""

    def __init__(self, operator: str, cells: Sequence[tuple[Tensor, ...]]) -> None:
        """cells: for each direction the weights and biases of input and state, in torch's layout."""
        super().__init__()
        self.operator = operator
        self.directions = len(cells)
        weights, states, biases, state_biases = map(self._stack_directions, zip(*cells, strict=True))
        self.hidden_size = states.shape[2]
        self.weights = nn.Buffer(weights)
        self.states = nn.Buffer(states)
        self.biases = nn.Buffer(torch.cat([biases, state_biases], 1))

    def _stack_directions(self, parts: Sequence[Tensor]) -> Tensor:
        """Stack one parameter of all directions, with the gates in ONNX's order."""
        order = _GATES[self.operator]
        directions = []
        for part in parts:
            gates = part.detach().chunk(len(order))
            directions.append(torch.cat([gates[i] for i in order]))
        return torch.stack(directions)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """lengths: (B,); None to run over the padding too."""
        steps, rows = x.shape[:2]
        state_shape = (self.directions, rows, self.hidden_size)
        settings: dict[str, Any] = {"hidden_size": self.hidden_size}
        settings["direction"] = "bidirectional" if self.directions == 2 else "forward"
        if self.operator == "GRU":
            # The bias of the state is inside the reset, as in torch.
            settings["linear_before_reset"] = 1

        # The operators want int32, and an LSTM returns the cell state as a third output.
        int_lengths = None if lengths is None else lengths.to(torch.int32)
        state_count = 2 if self.operator == "LSTM" else 1
        outputs, hidden, *_ = torch.onnx.ops.symbolic_multi_out(
            self.operator,
            (x, self.weights, self.states, self.biases, int_lengths),
            settings,
            dtypes=(x.dtype,) * (1 + state_count),
            shapes=((steps, *state_shape), *(state_shape,) * state_count),
        )

        # (T, directions, B, hidden) -> (T, B, out) and (directions, B, hidden) -> (B, out)
        return outputs.transpose(1, 2).flatten(2), hidden.transpose(0, 1).flatten(1)


class Classifier(nn.Module):
    """RNN, LSTM or GRU of dlrun.models.recurrent: (B, T) and (B,), or (B, T, F) -> the outputs of the original."""

    def __init__(self, net: RNN) -> None:
        super().__init__()
        self.embedding = net.embedding
        self.classifier = net.classifier
        self.tags = net.tags

        recurrent = net.recurrent
        operator = recurrent.mode.split("_")[0]
        directions = ("", "_reverse") if recurrent.bidirectional else ("",)
        self.layers = nn.ModuleList()
        for number in range(recurrent.num_layers):
            cells = [_read_cell(recurrent, f"_l{number}{direction}") for direction in directions]
            self.layers.append(Layer(operator, cells))

    def forward(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return logits (B, classes), or (B, T, tags) of a tagger; without lengths all sequences are of length T."""
        x = self.embedding(codes).transpose(0, 1)
        last = x
        for layer in self.layers:
            x, last = layer(x, lengths)
        outputs: Tensor = self.classifier(x.transpose(0, 1) if self.tags else last)
        return outputs


class Tagger(nn.Module):
    """OneHotRNN or OneHotRNNCell, which run over padding."""

    def __init__(self, net: OneHotRNN) -> None:
        super().__init__()
        # A cell has no layers, so its parameters carry no number.
        suffix = "_l0" if isinstance(net.recurrent, nn.RNN) else ""
        self.layer = Layer("RNN", [_read_cell(net.recurrent, suffix)])
        # Codes from 1 to letters are one-hot; padding, 0, becomes a row of zeros.
        self.letters = nn.Buffer(torch.arange(1, net.letters + 1))

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Return logits (B, T, tags); lengths are not used."""
        x = codes.unsqueeze(-1).eq(self.letters).to(self.layer.weights.dtype)
        outputs: Tensor = self.layer(x.transpose(0, 1), None)[0]
        return outputs.transpose(0, 1)


def _read_cell(module: nn.Module, suffix: str) -> tuple[Tensor, ...]:
    return tuple(getattr(module, name + suffix) for name in _PARAMETERS)
