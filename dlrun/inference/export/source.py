"""A network as Python source that needs torch alone: `network(weights, *inputs)` gives the outputs."""

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.export import ExportedProgram

from dlrun.core.errors import RequestError
from dlrun.inference.export import graph
from dlrun.models.one_hot import OneHotRNN
from dlrun.models.recurrent import RNN

_HEAD = '"""The network in plain torch: network(weights, {inputs}) -> outputs, weights as in model.safetensors."""\n'
_KNOWN = {
    "torch": "import torch",
    "device": "from torch import device",
    "inf": "from math import inf",
    "operator": "import operator",
}
_WORD = re.compile(r"(?<![.\w])[A-Za-z_]\w*")  # a name, but of no attribute
_RECURRENT = """\
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Network(nn.Module):
    def __init__(self):
        super().__init__()
{modules}
    def forward(self, codes, lengths):  # (B, T) padded with 0, and (B,)
{forward}

@torch.inference_mode()
def network(weights, codes, lengths):
    return functional_call(Network().eval(), weights, (codes, lengths))
"""
_PACKED = """\
packed = pack_padded_sequence(self.embedding(codes), lengths.cpu(), batch_first=True, enforce_sorted=False)
outputs, state = self.recurrent(packed)
"""
_TAGS = "outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=codes.shape[1])\n"
_ONE_HOT = "letters = nn.functional.one_hot(codes, {codes})[..., 1:].to(torch.{dtype})\n"
_CELL = """\
state, states = None, []
for letter in letters.unbind(1):
    state = self.recurrent(letter, state)
    states.append(state)
return torch.stack(states, 1)
"""


def of(model: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> str:
    """The source of a model; RequestError where it is no fixed graph. inputs: two rows, for tracing."""
    if isinstance(model, RNN) and is_recurrent(model):
        return _written(model, _packed(model))
    if isinstance(model, OneHotRNN) and is_recurrent(model):
        return _written(model, _one_hot(model))
    return _of_graph(graph.trace(model, inputs, names))


def is_recurrent(model: nn.Module) -> bool:
    """Whether it is one of our nets for sequences, of any length."""
    own = isinstance(model, OneHotRNN) and type(model).__module__ == OneHotRNN.__module__
    return own or (isinstance(model, RNN) and type(model).forward is RNN.forward)


def _packed(model: RNN) -> str:
    if model.tags:
        return _PACKED + _TAGS + "return self.classifier(outputs)\n"
    state = "state[0]" if isinstance(model.recurrent, nn.LSTM) else "state"
    directions = 2 if model.recurrent.bidirectional else 1
    return _PACKED + f"return self.classifier(torch.cat(list({state}[-{directions}:]), 1))\n"


def _one_hot(model: OneHotRNN) -> str:
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    first = _ONE_HOT.format(codes=model.letters + 1, dtype=dtype)
    return first + (_CELL if isinstance(model.recurrent, nn.RNNCell) else "return self.recurrent(letters)[0]\n")


def _written(model: nn.Module, forward: str) -> str:
    """Modules by their own descriptions, which are calls of their constructors."""
    modules = [f"        self.{name} = nn.{module!r}\n" for name, module in model.named_children()]
    lines = [f"        {line}\n" for line in forward.splitlines()]
    return _HEAD.format(inputs="codes, lengths") + _RECURRENT.format(modules="".join(modules), forward="".join(lines))


def _of_graph(program: ExportedProgram) -> str:
    """The operations in their order, with the weights by their names in the state_dict."""
    code, signature = program.graph_module.graph.python_code("self"), program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    renamed = {node: f"weights[{key!r}]" for node, key in stored.items()}
    body = [re.sub(r";  .*= None$", "", line).rstrip() for line in code.src.splitlines() if line.startswith("    ")]
    body = [_WORD.sub(lambda word: renamed.get(word[0], word[0]), line) for line in body if line.strip()]
    body[-1] = re.sub(r"return \((.*?),?\)$", r"return \1", body[-1])
    used = {word for line in body for word in _WORD.findall(line)}
    unknown = {"self", *code.globals} - set(_KNOWN)
    if used & unknown or signature.lifted_tensor_constants or signature.non_persistent_buffers:
        raise RequestError("its graph holds tensors of its own or control flow")
    imports = "\n".join(line for name, line in _KNOWN.items() if name in {"torch", *used})
    arguments = ", ".join(signature.user_inputs)
    head = f"{imports}\n\n\n@torch.inference_mode()\ndef network(weights, {arguments}):"
    return _HEAD.format(inputs=arguments) + "\n".join([head, *body, ""])
