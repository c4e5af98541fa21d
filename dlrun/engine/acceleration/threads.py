"""`device.num_threads=auto`: the number of CPU threads that is fastest for this model, by a few timed steps."""

import statistics
import time
from dataclasses import replace

import torch
from torch import nn

from dlrun.data.batches import Batch
from dlrun.engine import trainer
from dlrun.engine.object_state import duplicate
from dlrun.engine.preserve import preserve_state
from dlrun.engine.state import TrainState

_WARM_UP_STEPS = 2
_TIMED_STEPS = 5


def choose_fastest(state: TrainState, cores: int) -> str:
    """Train with the number of CPU threads that makes a few steps fastest; returns a note with the times."""
    count, milliseconds = _find_fastest(state, cores)
    torch.set_num_threads(count)
    times = ", ".join(f"{time:.2f} ms with {threads}" for threads, time in milliseconds.items())
    return f"device.num_threads=auto: {count} (a step takes {times})"


def _find_fastest(state: TrainState, cores: int) -> tuple[int, dict[int, float]]:
    """The number of threads with the least median step time, and milliseconds a step by number of threads.

    Tries 1, 2, 4, ... and all cores; of those within 3 % of the best the fewest are taken. The model, the
    generators and the number of threads are restored.
    """
    counts = sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})
    threads_before = torch.get_num_threads()
    milliseconds: dict[int, float] = {}
    batch = next(state.train.epoch(1))

    with preserve_state(state.model), preserve_state(state.objective.loss_module or nn.Module()):
        # A copy with a learning rate of 0: the model and its gradients stay as they are.
        model = duplicate(state.model).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trial = replace(state, model=model, optimizer=optimizer, ema=None)
        try:
            for count in counts:
                torch.set_num_threads(count)
                seconds = [_time_step(trial, batch) for _ in range(_WARM_UP_STEPS + _TIMED_STEPS)]
                milliseconds[count] = 1e3 * statistics.median(seconds[_WARM_UP_STEPS:])
        finally:
            torch.set_num_threads(threads_before)

    limit = 1.03 * min(milliseconds.values())
    fastest = next(count for count in counts if milliseconds[count] <= limit)
    return fastest, milliseconds


def _time_step(trial: TrainState, batch: Batch) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    trainer.backward(trial, [batch], [])
    trial.synchronize()
    return time.perf_counter() - start
