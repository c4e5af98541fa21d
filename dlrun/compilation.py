"""`device.compile`: torch.compile's work done before the clock starts, on batches that are thrown away."""

import time

import torch

from dlrun import loop
from dlrun.data.batches import Batch, Batches
from dlrun.preflight import untouched
from dlrun.training import Training


def warm_up(t: Training, evaluated: Batches | None) -> float:
    """Have all shapes compiled that an epoch has: full and last batches, trained and evaluated. Returns the seconds.

    The weights, what the model keeps besides, the generators and the optimizer are as before.
    """
    began = time.perf_counter()
    with untouched(t.model):
        t.model.train()
        for batch in _shapes(t.train):
            loop.backward(t, [batch], [])
        t.optimizer.zero_grad()
        t.model.eval()
        with torch.inference_mode(), t.autocast():
            for batch in _shapes(evaluated) if evaluated is not None else ():
                t.model(*batch[0])
    t.synchronize()
    return time.perf_counter() - began


def _shapes(batches: Batches) -> list[Batch]:
    """A full batch, and one of as many rows as the last, if those are fewer."""
    full = next(iter(batches.epoch(1)))
    rows = batches.rows_before(len(batches)) - batches.rows_before(len(batches) - 1)
    short: Batch = (tuple(x[:rows].clone() for x in full[0]), full[1][:rows])
    return [full] if rows == len(full[1]) else [full, short]
