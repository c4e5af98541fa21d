"""Outputs of a model outside training, on a split or on given rows; the model itself stays as it was."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch, Batches
from dlrun.engine.device import Runtime
from dlrun.engine.state import TrainState

# For scatter plots and matrices: more rows cannot be seen, and would cost memory.
MAX_ROWS = 20_000

# Rows of a grid in one forward pass.
_ROWS_PER_PASS = 8192


def choose_split(state: TrainState, test: Batches | None) -> tuple[str, Batches]:
    """Name and batches of the split that figures show: test, else validation, else training."""
    if test is not None:
        return "test", test
    if state.val is not None:
        return "val", state.val
    return "train", state.train


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; on exit every module is in the mode it was in before.

    Inside, the model runs without torch.compile: it would compile once more for every other batch shape, and a
    compiled model cannot be traced.
    """
    # By module, as parts of a net may be frozen in evaluation mode while the rest is trained.
    modes = [(module, module.training) for module in model.modules()]
    compiled = model._compiled_call_impl
    model.eval()
    model._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
        for module, is_training in modes:
            module.training = is_training


def take_small_batch(batches: Batches, rows: int = 2) -> Batch:
    """The first rows of an epoch, as the model gets them."""
    return take_rows(next(batches.epoch(1)), rows)


def take_rows(batch: Batch, rows: int = 2) -> Batch:
    """The first rows of a batch."""
    inputs, targets = batch
    return tuple(x[:rows] for x in inputs), targets[:rows]


@torch.inference_mode()
def collect_outputs(
    model: nn.Module,
    batches: Batches,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Inputs, outputs and targets on the CPU, of the first MAX_ROWS rows in the order of epoch 1.

    The last batch is taken whole, so that there may be a few rows more.
    """
    input_parts: list[tuple[Tensor, ...]] = []
    output_parts: list[Tensor] = []
    target_parts: list[Tensor] = []
    rows = 0
    with evaluation_mode(model):
        for inputs, targets in batches.epoch(1):
            with autocast():
                outputs = model(*inputs)
            # Moved batch by batch: a split need not fit on the device as a whole.
            input_parts.append(tuple(x.cpu() for x in inputs))
            output_parts.append(outputs.float().cpu())
            target_parts.append(targets.cpu())

            rows += len(targets)
            if rows >= MAX_ROWS:
                break

    columns = tuple(torch.cat(column) for column in zip(*input_parts, strict=True))
    return columns, torch.cat(output_parts), torch.cat(target_parts)


def collect_rows(batches: Batches, max_rows: int = MAX_ROWS) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets on their device, of the first `max_rows` rows in the order of epoch 1."""
    input_parts: list[tuple[Tensor, ...]] = []
    target_parts: list[Tensor] = []
    rows = 0
    for inputs, targets in batches.epoch(1):
        input_parts.append(inputs)
        target_parts.append(targets)
        rows += len(targets)
        if rows >= max_rows:
            break

    columns = tuple(torch.cat(column)[:max_rows] for column in zip(*input_parts, strict=True))
    return columns, torch.cat(target_parts)[:max_rows]


@torch.inference_mode()
def compute_outputs(model: nn.Module, x: Tensor, runtime: Runtime) -> Tensor:
    """Outputs on the CPU for input rows (N, ...) of any float type, on any device; 8,192 rows at a time."""
    parts = []
    with evaluation_mode(model), runtime.autocast():
        for rows in torch.split(x.to(runtime.device, runtime.dtype), _ROWS_PER_PASS):
            parts.append(model(rows).float().cpu())
    return torch.cat(parts)
