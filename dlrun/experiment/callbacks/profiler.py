"""`trainer.profile`: a trace of a few steps, and where the time of the whole training went."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.optim import Optimizer
from torch.profiler import record_function

from dlrun.data.batches import Batch, Batches
from dlrun.engine.callback import Callback, CallbackList, TrainerView
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import Trainer, compute_outputs_and_loss, requires_closure
from dlrun.runs.reports.console import build_table

PROFILE_FOLDER = "profile"

# Steps, as torch.profiler.schedule takes them.
_TRACED = {"wait": 2, "warmup": 2, "active": 6, "repeat": 1}
_PHASES = ("data", "forward", "backward", "optimizer", "evaluation", "log", "figures", "checkpoint", "other")


class Profiler(Callback):
    """Times the phases of a training. Each change of phase waits for the device, so that the training is slower."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self.steps = 0
        self._synchronize = synchronize
        # Stack of open phases.
        self._open_phases: list[str] = []
        self._trace: Any = None
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
        """Charge the time so far to the enclosing phase; outside of all, to backward if a forward pass came last."""
        if self._open_phases:
            self.charge(self._open_phases[-1])
        elif self._last_phase == "forward":
            self.charge("backward")
        else:
            self.charge("other")

    @contextlib.contextmanager
    def time_phase(self, phase: str) -> Iterator[None]:
        """Charge the block to `phase`, which is its name in the trace too."""
        self.start_phase()
        self._open_phases.append(phase)
        try:
            with record_function(phase):
                yield
        finally:
            self._open_phases.pop()
            self.charge(phase)
            if phase == "forward":
                self._backward_range = record_function("backward")
                self._backward_range.__enter__()

    def wrap(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Return a function that makes the same call as `phase`."""

        def call_timed(*arguments: Any, **keywords: Any) -> Any:
            with self.time_phase(phase):
                return call(*arguments, **keywords)

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

    def on_step_end(self, trainer: TrainerView) -> None:
        """Count the step, and let the trace begin or end with it."""
        self.steps += 1
        self._trace.step()

    @contextlib.contextmanager
    def watch(self, optimizer: Optimizer, folder: Path) -> Iterator[None]:
        """Time the training inside, and trace a few of its steps into `folder`, for Perfetto and TensorBoard."""
        phase = contextlib.ExitStack()

        def begin_step(*_: Any) -> None:
            phase.enter_context(self.time_phase("optimizer"))

        def end_step(*_: Any) -> None:
            phase.close()
            self.charge("optimizer")

        # Hooks of the optimizer, as the scaler calls its step, or skips it.
        handles = [optimizer.register_step_post_hook(end_step)]
        # Steps with a closure compute the loss inside: its phases come first, and what is left is the optimizer's.
        if not requires_closure(optimizer):
            handles.append(optimizer.register_step_pre_hook(begin_step))

        with _trace(folder) as self._trace:
            try:
                yield
            finally:
                self.charge("other")
                for handle in handles:
                    handle.remove()


class _TimedCallbacks(CallbackList):
    """Callbacks whose hooks are charged to their phases."""

    def __init__(self, callbacks: Sequence[Callback], profiler: Profiler) -> None:
        self.profiler = profiler
        super().__init__(callbacks)

    def get_hook(self, callback: Callback, name: str) -> Callable[..., None]:
        """The hook, timed."""
        hook = super().get_hook(callback, name)
        if callback is self.profiler:
            return hook
        return self.profiler.wrap(hook, callback.phase)


class ProfiledTrainer(Trainer):
    """Trains as `Trainer` does, and times what it does."""

    def __init__(
        self,
        state: TrainState,
        callbacks: Sequence[Callback],
        stop_requested: Callable[[], bool],
        user_callbacks: Sequence[Callback],
        profiler: Profiler,
        folder: Path,
    ) -> None:
        """folder: of the trace."""
        self.profiler = profiler
        self.folder = folder
        super().__init__(state, [*callbacks, profiler], stop_requested, user_callbacks)
        # Around the model and its loss: hooks of the model would be compiled with it.
        self.forward = profiler.wrap(compute_outputs_and_loss, "forward")

    def make_callback_list(self, callbacks: Sequence[Callback]) -> CallbackList:
        """The callbacks, with the time of each charged to its phase."""
        return _TimedCallbacks(callbacks, self.profiler)

    def fit(self) -> str:
        """Train to the end, timed."""
        with self.profiler.watch(self.state.optimizer, self.folder):
            return super().fit()

    def load_epoch(self) -> Iterator[Batch]:
        """The batches of the current epoch, each loaded within the phase "data"."""
        batches = super().load_epoch()
        load_next = self.profiler.wrap(lambda: next(batches, None), "data")
        # Only the call that fetches is timed: the body of the loop belongs to the caller.
        batch = load_next()
        while batch is not None:
            yield batch
            batch = load_next()

    def evaluate(self, batches: Batches, split: str) -> dict[str, float]:
        """Metrics of a split, within the phase "evaluation"."""
        with self.profiler.time_phase("evaluation"):
            return super().evaluate(batches, split)


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
