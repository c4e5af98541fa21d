"""`device.compile`: torch.compile's work done before the clock starts, on batches that are thrown away."""

import time
from collections.abc import Iterator
from itertools import chain

import torch

from dlrun.core import errors
from dlrun.core.errors import RequestError
from dlrun.data.batches import Batch, Batches, Shard
from dlrun.engine import trainer
from dlrun.engine.device import is_out_of_memory
from dlrun.engine.state import TrainState
from dlrun.engine.untouched import preserve_state, restore_attributes


def compile_model(t: TrainState, test: Batches | None) -> float:
    """Compile the model for all the shapes of a run, first and last batches, trained and evaluated; returns seconds.

    The weights, what the model keeps besides, the generators, the scaler and the optimizer are as before. Of several
    processes each must do it, as their gradients are summed up. RequestError where it fails,
    and the error itself where memory runs out.
    """
    began = time.perf_counter()
    t.model.compile()  # in place: the keys of the state_dict stay as they are
    try:
        _try_all(t, test)
    except Exception as error:  # its many parts raise what they like
        if is_out_of_memory(error):
            raise
        first = list(errors.iter_causes(error))[-1]
        said = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise RequestError(f"device.compile=true: {said}; type device.compile=false") from error
    t.synchronize()
    return time.perf_counter() - began


def _try_all(t: TrainState, test: Batches | None) -> None:
    scaler = t.scaler
    t.scaler = torch.amp.GradScaler(enabled=False)  # the real one counts what it is asked for
    try:
        with preserve_state(t.model), restore_attributes(t.model):
            t.model.train()
            for batch in _shapes(t.train, t.ranks.shard_batch):
                trainer.backward(t, [batch], [])
            t.optimizer.zero_grad()
            t.model.eval()
            evaluated = [batches for batches in (t.val, test) if batches is not None]
            with torch.inference_mode(), t.autocast():
                for batch in chain.from_iterable(map(_shapes, evaluated)):
                    t.model(*batch[0])
    finally:
        t.scaler = scaler


def _shapes(batches: Batches, pick: Shard = list) -> Iterator[Batch]:
    """The first batch of an epoch, and the last, which may have fewer rows."""
    for start in dict.fromkeys((0, len(batches) - 1)):
        yield next(iter(batches.epoch(1, start, pick)))
