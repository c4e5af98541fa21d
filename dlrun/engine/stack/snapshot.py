"""The weights of all members at the end of an epoch, taken from the stack's tensor in one transfer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dlrun.engine.stack.model import StackedModel


class Part(NamedTuple):
    """One tensor of a model's state, and where its numbers lie in the row of weights."""

    key: str
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    end: int


@dataclass(frozen=True)
class MemberWeights:
    """The weights of one member on the CPU; the training does not change them."""

    # All numbers, (D,): a view of those of all members.
    row: Tensor
    # The same memory as bytes.
    content: memoryview
    # Parts of the state, by sorted key.
    parts: Sequence[Part]


def find_parts(model: StackedModel) -> list[Part] | None:
    """Where the states of the models lie in `weights`; None where a state holds anything else, such as buffers."""
    # Hashes are over little-endian bytes.
    if model.buffers or sys.byteorder != "little":
        return None

    # By their addresses, as a class may give its state other names than its parameters have.
    start = model.weights.data_ptr()
    size = model.weights.element_size()
    state = model.models[0].state_dict()
    parts: list[Part] = []
    for key in sorted(state):
        tensor = state[key]
        if not isinstance(tensor, Tensor) or tensor.dtype != model.weights.dtype or not tensor.is_contiguous():
            return None
        begin = (tensor.data_ptr() - start) // size
        end = begin + tensor.numel()
        if begin < 0 or end > model.weights.shape[1]:
            return None
        parts.append(Part(key, tensor.dtype, tensor.shape, begin, end))

    return parts


def take_snapshot(model: StackedModel, parts: Sequence[Part]) -> list[MemberWeights]:
    """The weights of each member as they are now."""
    rows = model.weights.detach().to("cpu", copy=True)
    # As bytes, since NumPy has no bfloat16.
    contents = rows.view(torch.uint8).numpy()
    return [MemberWeights(row, content.data, parts) for row, content in zip(rows.unbind(), contents, strict=True)]
