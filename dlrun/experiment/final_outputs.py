"""Outputs of the final weights: one forward pass over a split serves metrics, notes and figures."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dlrun.data.batches import Batches
from dlrun.engine import evaluation
from dlrun.experiment.context import RunContext


@dataclass
class SplitOutputs:
    """Inputs, outputs and targets of the first rows of a split, on the CPU, in the order of epoch 1 of its batches."""

    split: str
    batches: Batches
    inputs: tuple[Tensor, ...]
    outputs: Tensor
    targets: Tensor


@dataclass
class OutputRecorder:
    """Records batches on the CPU while the test split is evaluated, up to evaluation.MAX_ROWS rows."""

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    rows: int = 0

    def add(self, inputs: tuple[Tensor, ...], outputs: Tensor, targets: Tensor) -> None:
        """Record one batch, unless there are enough rows."""
        if self.rows >= evaluation.MAX_ROWS:
            return
        # On the CPU: the memory of the device is for the model.
        self.inputs.append(tuple(x.cpu() for x in inputs))
        self.outputs.append(outputs.float().cpu())
        self.targets.append(targets.cpu())
        self.rows += len(targets)

    def concatenate(self, batches: Batches) -> SplitOutputs:
        """The recorded rows of the test split."""
        columns = tuple(torch.cat(column) for column in zip(*self.inputs, strict=True))
        return SplitOutputs("test", batches, columns, torch.cat(self.outputs), torch.cat(self.targets))


def make_recorder(context: RunContext) -> OutputRecorder | None:
    """A recorder for the evaluation of the test split; None if its outputs are not needed, or would not be right.

    With several ranks each evaluates a part of the rows; a compiled model may round differently.
    """
    # Without diagnostics and figures nothing reads the outputs.
    is_used = context.settings.tracking.diagnose or context.settings.figures
    if context.batches.test is None or not is_used:
        return None
    if context.runtime.ranks.world_size > 1 or context.runtime.compile:
        return None
    return OutputRecorder()


class FinalOutputs:
    """The outputs that the evaluation has recorded, or else those of one forward pass, made when they are needed."""

    def __init__(self, context: RunContext, recorded: SplitOutputs | None) -> None:
        self._context = context
        self._outputs = recorded

    def get(self) -> SplitOutputs:
        """The outputs, with the name of their split."""
        if self._outputs is None:
            state = self._context.state
            split, batches = evaluation.choose_split(state, self._context.batches.test)
            inputs, outputs, targets = evaluation.collect_outputs(state.model, batches, self._context.runtime.autocast)
            self._outputs = SplitOutputs(split, batches, inputs, outputs, targets)
        return self._outputs
