"""`trainer.profile`: a trace of a few steps, and where the time of the whole training went."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.profiler import record_function

from dlrun.data.batches import Batch, Batches, Shard
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer
from dlrun.runs.reports.console import build_table

FOLDER = "profile"

# Steps, as torch.profiler.schedule takes them.
_TRACED = {"wait": 2, "warmup": 2, "active": 6, "repeat": 1}
_PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "log", "figures", "checkpoint", "other")


class Profile:
    """Seconds of each phase of a training. Each change of phase waits for the device, so that it is slower."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self.steps = 0
        self._synchronize = synchronize
        # Stack of open phases.
        self._open: list[str] = []
        # The backward pass has no call that a range of the trace could be put around: it is open until the next phase.
        self._backward_range: Any = None
        self._last_phase = "other"
        self._last_time = time.perf_counter()

    def charge(self, phase: str) -> None:
        """Charge the time since the last charge to `phase`."""
        self._synchronize()
        if self._backward_range is not None:
            self._backward_range.__exit__(None, None, None)
            self._backward_range = None

        now = time.perf_counter()
        self.seconds[phase] += now - self._last_time
        self._last_phase = phase
        self._last_time = now

    def start_phase(self) -> None:
        """Charge the time so far to the enclosing phase; outside of all, to the backward pass after a forward one."""
        if self._open:
            self.charge(self._open[-1])
        elif self._last_phase == "forward":
            self.charge("backward")
        else:
            self.charge("other")

    @contextlib.contextmanager
    def time_phase(self, phase: str) -> Iterator[None]:
        """Charge the block to `phase`, which is its name in the trace too."""
        self.start_phase()
        self._open.append(phase)
        try:
            with record_function(phase):
                yield
        finally:
            self._open.pop()
            self.charge(phase)
            if phase == "forward":
                self._backward_range = record_function("backward")
                self._backward_range.__enter__()

    def wrap(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Return a function that makes the same call as `phase`."""

        def call_timed(*arguments: Any, **named: Any) -> Any:
            with self.time_phase(phase):
                return call(*arguments, **named)

        return call_timed

    def make_table(self) -> Table:
        """Return seconds, share, and microseconds a step of each phase."""
        total = sum(self.seconds.values())
        steps = max(self.steps, 1)
        rows = [
            (phase, f"{seconds:.3f}", f"{100 * seconds / total:.1f} %", f"{1e6 * seconds / steps:,.0f}")
            for phase, seconds in self.seconds.items()
        ]
        rows.append(("total", f"{total:.3f}", "", f"{1e6 * total / steps:,.0f}"))
        return build_table(("where the time went", "s", "share", "µs a step"), rows)


class _TimedBatches:
    """Batches whose loading is charged to a phase."""

    def __init__(self, batches: Batches, profile: Profile, phase: str) -> None:
        self.batches = batches
        self.profile = profile
        self.phase = phase
        self.rows = batches.rows
        self.order = batches.order

    def __len__(self) -> int:
        return len(self.batches)

    def count_rows_before(self, batch: int) -> int:
        """Rows of an epoch before a batch."""
        return self.batches.count_rows_before(batch)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """Yield the batches of an epoch, each loaded within the phase."""
        batches = iter(self.batches.epoch(number, start, pick))
        load_next = self.profile.wrap(lambda: next(batches, None), self.phase)
        batch = load_next()
        while batch is not None:
            yield batch
            batch = load_next()


@contextlib.contextmanager
def profile_training(trainer: Trainer, folder: Path) -> Iterator[Profile]:
    """Time the training inside, and trace a few of its steps into `folder`/profile, for Perfetto and TensorBoard."""
    state = trainer.state
    profile = Profile(state.synchronize)

    train = state.train
    val = state.val
    autocast = state.autocast
    state.train = _TimedBatches(train, profile, "data")
    state.val = val and _TimedBatches(val, profile, "evaluation")
    # Around the model and its loss: hooks of the model would be compiled with it.
    state.autocast = partial(_time_forward, state, profile, autocast)

    # A step with a closure does not pass through the scaler.
    closure_hook = state.optimizer.register_step_post_hook(lambda *_: profile.charge("optimizer"))
    state.scaler.step = profile.wrap(state.scaler.step, "optimizer")  # type: ignore[method-assign]

    trainer.callbacks.wrap_hooks(profile.wrap)

    with _trace(folder / FOLDER) as trace:

        def count_step(*_: Any) -> None:
            profile.steps += 1
            trace.step()

        step_hook = state.optimizer.register_step_post_hook(count_step)
        try:
            yield profile
        finally:
            profile.charge("other")
            state.train = train
            state.val = val
            state.autocast = autocast
            # Uncovers the method of the scaler's class.
            del state.scaler.step
            closure_hook.remove()
            step_hook.remove()


@contextlib.contextmanager
def _time_forward(state: TrainState, profile: Profile, autocast: Callable[[], Any]) -> Iterator[None]:
    """Autocast whose block is charged to the forward pass, or to evaluation."""
    with profile.time_phase("forward" if state.model.training else "evaluation"), autocast():
        yield


def _trace(folder: Path) -> Any:
    """Run torch's profiler over a few steps; it writes one *.pt.trace.json."""
    # Kineto reports a missing GPU on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(**_TRACED),
        on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder)),
    )
