"""The course's first recurrent nets: one-hot letters in, the hidden state itself out."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlrun.core.errors import MisfitError
from dlrun.data.spec import DataSpec


class OneHotRNN(nn.Module):
    """One recurrent layer (Elman 1990) whose hidden size is the number of tags: its states are the logits.

    (B, T) codes and (B,) lengths -> (B, T, output_size), for task "tagging" only. Being tanh outputs the logits
    lie within (-1, 1), so with n tags no probability exceeds e² / (e² + n - 1), 71 % for 4. The cross-entropy
    cannot get near 0, and a state must serve as output and as memory at once: hard to learn.
    Raises MisfitError on data without a vocabulary.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    tasks: ClassVar[tuple[str, ...]] = ("tagging",)
    note: ClassVar[str] = (
        "its logits are tanh outputs within (-1, 1), which keeps every probability far from 1: hard to learn"
    )

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        if len(spec.vocabulary) < 2:
            raise MisfitError(
                "A one-hot net needs to know how many codes there are, but the spec of this data has no "
                "vocabulary: fill DataSpec.vocabulary."
            )

        # Without the padding.
        self.letters = len(spec.vocabulary) - 1
        self.recurrent = self._build_recurrent(self.letters, spec.output_size)

    def _build_recurrent(self, inputs: int, outputs: int) -> nn.Module:
        return nn.RNN(inputs, outputs, batch_first=True)

    def encode_one_hot(self, codes: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, letters), each with a single 1; padding, code 0, has none."""
        dtype = next(self.parameters()).dtype
        return functional.one_hot(codes, self.letters + 1)[..., 1:].to(dtype)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) and (B,) int64 -> (B, T, output_size); padding comes last, so no earlier state sees it."""
        states: Tensor = self.recurrent(self.encode_one_hot(codes))[0]
        return states


class OneHotRNNCell(OneHotRNN):
    """The same net with the loop over time written out around one cell."""

    def _build_recurrent(self, inputs: int, outputs: int) -> nn.Module:
        return nn.RNNCell(inputs, outputs)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) and (B,) int64 -> (B, T, output_size); the first state is 0."""
        state = None
        states = []

        # (B, letters) per time step.
        for letters in self.encode_one_hot(codes).unbind(1):
            state = self.recurrent(letters, state)
            states.append(state)
        return torch.stack(states, 1)
