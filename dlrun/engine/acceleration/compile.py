"""`device.compile`: torch.compile's work done before the clock starts, on batches that are thrown away."""

import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import torch

from dlrun.core import errors
from dlrun.core.errors import RequestError
from dlrun.data.batches import Batch, Batches, Pick
from dlrun.engine import trainer
from dlrun.experiment.preflight import memory
from dlrun.experiment.preflight.checks import attributes_restored, untouched

if TYPE_CHECKING:
    from dlrun.experiment.setup import Parts


def compile_model(parts: "Parts") -> None:
    """Compile the model for all the shapes of a run, first and last batches, trained and evaluated; note the seconds.

    The weights, what the model keeps besides, the generators, the scaler and the optimizer are as before. Of several
    processes each must do it, as their gradients are summed up. RequestError where it fails.
    """
    t, began = parts.training, time.perf_counter()
    t.model.compile()  # in place: the keys of the state_dict stay as they are
    try:
        _try_all(parts)
    except Exception as error:  # its many parts raise what they like
        if memory.ran_out(error):
            raise RequestError(memory.sentence(parts.settings, str(parts.runtime.device))) from error
        first = list(errors.chain(error))[-1]
        said = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise RequestError(f"device.compile=true: {said}; type device.compile=false") from error
    t.synchronize()
    parts.compile_seconds = time.perf_counter() - began
    parts.notes.append(f"device.compile: the model was compiled in {parts.compile_seconds:.1f} s")


def _try_all(parts: "Parts") -> None:
    t, scaler = parts.training, parts.training.scaler
    t.scaler = torch.amp.GradScaler(enabled=False)  # the real one counts what it is asked for
    try:
        with untouched(t.model), attributes_restored(t.model):
            t.model.train()
            for batch in _shapes(t.train, t.ranks.cut):
                trainer.backward(t, [batch], [])
            t.optimizer.zero_grad()
            t.model.eval()
            evaluated = [batches for batches in (t.val, parts.test) if batches is not None]
            with torch.inference_mode(), t.autocast():
                for batch in chain.from_iterable(map(_shapes, evaluated)):
                    t.model(*batch[0])
    finally:
        t.scaler = scaler


def _shapes(batches: Batches, pick: Pick = list) -> Iterator[Batch]:
    """The first batch of an epoch, and the last, which may have fewer rows."""
    for start in dict.fromkeys((0, len(batches) - 1)):
        yield next(iter(batches.epoch(1, start, pick)))
