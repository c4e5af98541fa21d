"""`trainer.profile`: a trace of a few steps, and where the time of the whole training went."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from dlrun.console import table
from dlrun.data.batches import Batch, Batches, Pick
from dlrun.saver import Saver
from dlrun.tracking import FileTracker
from dlrun.training import Training

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
        self._last = ("other", time.perf_counter())

    def mark(self, phase: str) -> None:
        """What has passed since the last mark was spent on `phase`."""
        self._synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._last[1]
        self._last = (phase, now)

    def begin(self) -> None:
        """Something begins: what has passed was what is around it, else the backward pass, after a forward one."""
        around = self._within[-1] if self._within else "backward" if self._last[0] == "forward" else "other"
        self.mark(around)

    def wrapped(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The same call, stopped."""

        def stopped(*arguments: Any, **named: Any) -> Any:
            self.begin()
            self._within.append(phase)
            try:
                return call(*arguments, **named)
            finally:
                self._within.pop()
                self.mark(phase)

        return stopped

    def shown(self) -> Table:
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

    def __init__(self, batches: Batches, profile: Profile) -> None:
        self.batches, self.profile, self.rows = batches, profile, batches.rows

    def __len__(self) -> int:
        return len(self.batches)

    def rows_before(self, batch: int) -> int:
        """See Batches."""
        return self.batches.rows_before(batch)

    def epoch(self, number: int, start: int = 0, pick: Pick = list) -> Iterator[Batch]:
        """See Batches."""
        batches = iter(self.batches.epoch(number, start, pick))
        following = self.profile.wrapped(lambda: next(batches, None), "data")
        while (batch := following()) is not None:
            yield batch


@contextlib.contextmanager
def profiled(t: Training, tracker: FileTracker, saver: Saver, folder: Path) -> Iterator[Profile]:
    """Inside it `t` is stopped, and a few of its steps traced into `folder`/profile, for Perfetto and TensorBoard."""
    profile, before = Profile(t.synchronize), t.train
    t.train = _Timed(before, profile)
    hooks = [
        t.model.register_forward_pre_hook(lambda *_: profile.begin()),
        t.model.register_forward_hook(lambda *_: profile.mark("forward" if t.model.training else "evaluation")),
        t.optimizer.register_step_pre_hook(lambda *_: profile.mark("backward")),
        t.optimizer.register_step_post_hook(lambda *_: profile.mark("optimizer")),
    ]
    for thing, names, phase in (
        (tracker, ("log_step", "log_epoch"), "log"),
        (saver, ("after_step", "after_epoch", "interrupted"), "checkpoint"),
    ):
        for name in names:
            setattr(thing, name, profile.wrapped(getattr(thing, name), phase))
    tracker.each_epoch[:] = [profile.wrapped(call, getattr(call, "phase", "log")) for call in tracker.each_epoch]
    with _traced(folder / FOLDER) as trace:

        def count(*_: Any) -> None:
            profile.steps += 1
            trace.step()

        hooks.append(t.optimizer.register_step_post_hook(count))
        try:
            yield profile
        finally:
            profile.mark("other")
            t.train = before
            for hook in hooks:
                hook.remove()


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
