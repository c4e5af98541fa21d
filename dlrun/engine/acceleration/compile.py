"""`device.compile`: run torch.compile before the clock starts, on batches whose results are discarded."""

import time
from collections.abc import Iterator

import torch

from dlrun.core import errors
from dlrun.core.errors import RequestError
from dlrun.data.batches import Batch, Batches, Shard
from dlrun.engine import trainer
from dlrun.engine.device import is_out_of_memory
from dlrun.engine.preserve import preserve_state, restore_attributes
from dlrun.engine.state import TrainState


def compile_model(state: TrainState, test: Batches | None) -> None:
    """Compile the model for all batch shapes of a run, in training and evaluation, and note the time it took.

    Weights and other state of the model, generators, scaler and optimizer stay as they are. With several ranks each
    must call this, as their gradients are summed up. RequestError if compilation fails; an error for want of memory
    is raised as it is.
    """
    start = time.perf_counter()
    # In place: the keys of the state_dict stay as they are.
    state.model.compile()
    try:
        _run_all_shapes(state, test)
    except Exception as error:
        # The parts of torch.compile raise exceptions of any type.
        if is_out_of_memory(error):
            raise
        root = list(errors.iter_causes(error))[-1]
        reason = (str(root).strip() or type(root).__name__).splitlines()[0]
        raise RequestError(f"device.compile=true: {reason}; type device.compile=false") from error
    state.synchronize()
    state.compile_seconds = time.perf_counter() - start


def _run_all_shapes(state: TrainState, test: Batches | None) -> None:
    # The real scaler counts its calls.
    scaler = state.scaler
    state.scaler = torch.amp.GradScaler(enabled=False)
    try:
        with preserve_state(state.model), restore_attributes(state.model):
            state.model.train()
            for batch in _iterate_shapes(state.train, state.ranks.shard_batch):
                trainer.backward(state, [batch], [])
            # The gradients of trial batches must not reach the first step.
            state.optimizer.zero_grad()

            state.model.eval()
            with torch.inference_mode(), state.autocast():
                for batches in (state.val, test):
                    if batches is None:
                        continue
                    for inputs, _ in _iterate_shapes(batches):
                        state.model(*inputs)
    finally:
        state.scaler = scaler


def _iterate_shapes(batches: Batches, pick: Shard = list) -> Iterator[Batch]:
    """The first batch of an epoch, and the last, which may have fewer rows."""
    for start in dict.fromkeys((0, len(batches) - 1)):
        yield next(iter(batches.epoch(1, start, pick)))
