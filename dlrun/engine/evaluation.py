"""What the model answers on a split, for pictures and diagnoses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batches

if TYPE_CHECKING:
    from dlrun.experiment.setup import Parts

MOST_ROWS = 20_000  # for scatter plots and matrices: more cannot be seen, and would cost memory
_AT_ONCE = 8192  # rows of a grid in one forward pass


def shown_split(parts: "Parts") -> tuple[str, Batches]:
    """The split that pictures show: test, else validation, else training."""
    for name, batches in (("test", parts.test), ("val", parts.training.val)):
        if batches is not None:
            return name, batches
    return "train", parts.training.train


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode while this lasts; afterwards every module is in the mode it was in.

    What torch.compile has made of it is left alone meanwhile: other shapes than those of the batches would have it
    compiled once more, and it cannot be traced.
    """
    modes, compiled = [(module, module.training) for module in model.modules()], model._compiled_call_impl
    model.eval()._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
        for module, mode in modes:
            module.training = mode


@torch.inference_mode()
def outputs_of(parts: "Parts", batches: Batches) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Inputs, outputs and targets on the CPU, of the first MOST_ROWS rows in the order of epoch 1."""
    kept: list[tuple[tuple[Tensor, ...], Tensor, Tensor]] = []
    with evaluating(parts.model):
        for inputs, targets in batches.epoch(1):
            with parts.runtime.autocast():
                outputs = parts.model(*inputs)
            kept.append((tuple(x.cpu() for x in inputs), outputs.float().cpu(), targets.cpu()))
            if sum(len(k[2]) for k in kept) >= MOST_ROWS:
                break
    columns = tuple(torch.cat(column) for column in zip(*(k[0] for k in kept), strict=True))
    return columns, torch.cat([k[1] for k in kept]), torch.cat([k[2] for k in kept])


def rows_of(batches: Batches, most: int = MOST_ROWS) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets where they lie, of the first `most` rows in the order of epoch 1; no model is asked."""
    kept: list[tuple[tuple[Tensor, ...], Tensor]] = []
    for inputs, targets in batches.epoch(1):
        kept.append((inputs, targets))
        if sum(len(k[1]) for k in kept) >= most:
            break
    columns = tuple(torch.cat(column)[:most] for column in zip(*(k[0] for k in kept), strict=True))
    return columns, torch.cat([k[1] for k in kept])[:most]


@torch.inference_mode()
def answers(parts: "Parts", x: Tensor) -> Tensor:
    """Outputs on the CPU for input rows (N, ...) of any float type, on any device; 8,192 rows at a time."""
    found = []
    with evaluating(parts.model), parts.runtime.autocast():
        for rows in torch.split(x.to(parts.runtime.device, parts.runtime.dtype), _AT_ONCE):
            found.append(parts.model(rows).float().cpu())
    return torch.cat(found)
