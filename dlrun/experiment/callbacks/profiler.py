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
from dlrun.engine.callback import find_overriding
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer
from dlrun.runs.reports.console import table

FOLDER = "profile"
_TRACED = {"wait": 2, "warmup": 2, "active": 6, "repeat": 1}  # steps
_PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "log", "figures", "checkpoint", "other")


class Profile:
    """Stops the time between the things that a training does. Each stop waits for the device, so it is slower."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self.steps = 0
        self._synchronize = synchronize
        self._within: list[str] = []  # what is stopped around what is stopped
        self._range: Any = None  # the backward pass, in the trace: it has no call of its own to be around
        self._last = ("other", time.perf_counter())

    def charge(self, phase: str) -> None:
        """What has passed since the last mark was spent on `phase`."""
        self._synchronize()
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        now = time.perf_counter()
        self.seconds[phase] += now - self._last[1]
        self._last = (phase, now)

    def start_phase(self) -> None:
        """Something begins: what has passed was what is around it, else the backward pass, after a forward one."""
        around = self._within[-1] if self._within else "backward" if self._last[0] == "forward" else "other"
        self.charge(around)

    @contextlib.contextmanager
    def time_phase(self, phase: str) -> Iterator[None]:
        """What is done inside is `phase`, and called so in the trace."""
        self.start_phase()
        self._within.append(phase)
        try:
            with record_function(phase):
                yield
        finally:
            self._within.pop()
            self.charge(phase)
            if phase == "forward":
                self._range = record_function("backward")
                self._range.__enter__()

    def wrap(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The same call, stopped."""

        def stopped(*arguments: Any, **named: Any) -> Any:
            with self.time_phase(phase):
                return call(*arguments, **named)

        return stopped

    def make_table(self) -> Table:
        """Seconds, share, and microseconds a step of each phase."""
        whole = sum(self.seconds.values())
        rows = [
            (phase, f"{took:.3f}", f"{100 * took / whole:.1f} %", f"{1e6 * took / max(self.steps, 1):,.0f}")
            for phase, took in self.seconds.items()
        ]
        rows.append(("total", f"{whole:.3f}", "", f"{1e6 * whole / max(self.steps, 1):,.0f}"))
        return table(("where the time went", "s", "share", "µs a step"), rows)


class _Timed:
    """Batches that are stopped as they come."""

    def __init__(self, batches: Batches, profile: Profile, phase: str) -> None:
        self.batches, self.profile, self.phase = batches, profile, phase
        self.rows, self.order = batches.rows, batches.order

    def __len__(self) -> int:
        return len(self.batches)

    def count_rows_before(self, batch: int) -> int:
        """See Batches."""
        return self.batches.count_rows_before(batch)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """See Batches."""
        batches = iter(self.batches.epoch(number, start, pick))
        following = self.profile.wrap(lambda: next(batches, None), self.phase)
        while (batch := following()) is not None:
            yield batch


@contextlib.contextmanager
def profile_training(trainer: Trainer, folder: Path) -> Iterator[Profile]:
    """Time a training, and trace a few of its steps into `folder`/profile, for Perfetto and TensorBoard."""
    t = trainer.state
    profile, before = Profile(t.synchronize), (t.train, t.val, t.autocast)
    t.train, t.val = _Timed(t.train, profile, "data"), t.val and _Timed(t.val, profile, "evaluation")
    t.autocast = partial(_forward, t, profile, t.autocast)  # around the model and its loss; hooks would be compiled
    hooks = [t.optimizer.register_step_post_hook(lambda *_: profile.charge("optimizer"))]  # one with a closure alone
    t.scaler.step = profile.wrap(t.scaler.step, "optimizer")  # type: ignore[method-assign]
    for name in trainer.hooks:
        timed = find_overriding(trainer.callbacks, name)
        trainer.hooks[name] = [profile.wrap(getattr(callback, name), callback.phase) for callback in timed]
    with _traced(folder / FOLDER) as trace:

        def count(*_: Any) -> None:
            profile.steps += 1
            trace.step()

        hooks.append(t.optimizer.register_step_post_hook(count))
        try:
            yield profile
        finally:
            profile.charge("other")
            t.train, t.val, t.autocast = before
            del t.scaler.step  # its class's comes through again
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _forward(t: TrainState, profile: Profile, autocast: Callable[[], Any]) -> Iterator[None]:
    """What a forward pass is made in, stopped."""
    with profile.time_phase("forward" if t.model.training else "evaluation"), autocast():
        yield


def _traced(folder: Path) -> Any:
    """torch's profiler over a few steps; it writes one *.pt.trace.json."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells of a missing GPU on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(**_TRACED),
        on_trace_ready=torch.profiler.tensorboard_trace_handler(str(folder)),
    )
