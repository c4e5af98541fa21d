"""`device.num_threads=auto`: how many CPU threads are fastest for this model, by a few timed steps."""

import statistics
import time
from dataclasses import replace

import torch

from dlrun.data.batches import Batch
from dlrun.engine import trainer
from dlrun.engine.object_state import duplicate
from dlrun.engine.state import TrainState
from dlrun.engine.untouched import preserve_state

_TIMED, _WARM = 5, 2  # steps


def find_fastest(training: TrainState, cores: int) -> tuple[int, dict[int, float]]:
    """The number of threads with the least median time of a step, and milliseconds a step by number of threads.

    Tried are 1, 2, 4, ... and all cores; of those within 3 % of the best the fewest are taken. The model, the
    generators and the number of threads are as before afterwards.
    """
    counts = sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    before, times = torch.get_num_threads(), dict[int, float]()
    batch = next(training.train.epoch(1))
    with preserve_state(training.model):
        model = duplicate(training.model).train()
        trial = replace(training, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), ema=None)
        try:
            for count in counts:
                torch.set_num_threads(count)
                seconds = [_step(trial, batch) for _ in range(_WARM + _TIMED)]
                times[count] = 1e3 * statistics.median(seconds[_WARM:])
        finally:
            torch.set_num_threads(before)
    least = min(times.values())
    return next(count for count, took in times.items() if took <= 1.03 * least), times


def _step(trial: TrainState, batch: Batch) -> float:
    """Seconds of a forward and a backward pass."""
    began = time.perf_counter()
    trainer.backward(trial, [batch], [])
    trial.synchronize()
    return time.perf_counter() - began
