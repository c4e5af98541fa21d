"""Outputs of a model outside training: on a split, for rows of any kind, with nothing of the model changed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch, Batches
from dlrun.engine.device import Runtime
from dlrun.engine.state import TrainState

MAX_ROWS = 20_000  # for scatter plots and matrices: more cannot be seen, and would cost memory
_AT_ONCE = 8192  # rows of a grid in one forward pass


def choose_split(training: TrainState, test: Batches | None) -> tuple[str, Batches]:
    """The split that pictures show: test, else validation, else training."""
    for name, batches in (("test", test), ("val", training.val)):
        if batches is not None:
            return name, batches
    return "train", training.train


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
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


def take_small_batch(batches: Batches, rows: int = 2) -> Batch:
    """The first rows of an epoch, as the model gets them."""
    return take_rows(next(batches.epoch(1)), rows)


def take_rows(batch: Batch, rows: int = 2) -> Batch:
    """The first rows of a batch."""
    inputs, targets = batch
    return tuple(x[:rows] for x in inputs), targets[:rows]


@torch.inference_mode()
def collect_outputs(
    model: nn.Module, batches: Batches, autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Inputs, outputs and targets on the CPU, of the first MOST_ROWS rows in the order of epoch 1."""
    kept: list[tuple[tuple[Tensor, ...], Tensor, Tensor]] = []
    with evaluation_mode(model):
        for inputs, targets in batches.epoch(1):
            with autocast():
                outputs = model(*inputs)
            kept.append((tuple(x.cpu() for x in inputs), outputs.float().cpu(), targets.cpu()))
            if sum(len(k[2]) for k in kept) >= MAX_ROWS:
                break
    columns = tuple(torch.cat(column) for column in zip(*(k[0] for k in kept), strict=True))
    return columns, torch.cat([k[1] for k in kept]), torch.cat([k[2] for k in kept])


def collect_rows(batches: Batches, most: int = MAX_ROWS) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets where they lie, of the first `most` rows in the order of epoch 1; no model is asked."""
    kept: list[tuple[tuple[Tensor, ...], Tensor]] = []
    for inputs, targets in batches.epoch(1):
        kept.append((inputs, targets))
        if sum(len(k[1]) for k in kept) >= most:
            break
    columns = tuple(torch.cat(column)[:most] for column in zip(*(k[0] for k in kept), strict=True))
    return columns, torch.cat([k[1] for k in kept])[:most]


@torch.inference_mode()
def compute_outputs(model: nn.Module, x: Tensor, runtime: Runtime) -> Tensor:
    """Outputs on the CPU for input rows (N, ...) of any float type, on any device; 8,192 rows at a time."""
    found = []
    with evaluation_mode(model), runtime.autocast():
        for rows in torch.split(x.to(runtime.device, runtime.dtype), _AT_ONCE):
            found.append(model(rows).float().cpu())
    return torch.cat(found)
