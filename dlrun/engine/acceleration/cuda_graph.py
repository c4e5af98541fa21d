"""`device.cuda_graph`: a whole training step recorded once and started as one.

The kernels of a small net take less time on a GPU than Python does to start them one by one.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from dlrun.data.batches import Batch
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import backward, requires_closure

Seen = list[tuple[Tensor, Tensor, Tensor]]  # outputs, targets and loss of each batch of a step
_WARM_STEPS = 3  # are made as ever, while the kernels are chosen and the optimizer makes its state
_MOST_SHAPES = 4  # that get a graph of their own: full batches, the last one of an epoch
_WHOLE = (SGD, Adam, AdamW)  # whose fused step can be recorded


class GraphRecorder:
    """The GPU: see torch's notes on CUDA graphs for why a stream aside warms up, and one pool serves all graphs."""

    def __init__(self) -> None:
        self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What runs inside runs on another stream, between what is before and what is behind it."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            yield
        torch.cuda.current_stream().wait_stream(self._aside)

    def record(self, make: Callable[[], None]) -> Callable[[], None]:
        """What does again what `make` does, with the same memory; nothing is computed while it is recorded."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            make()
        return graph.replay


@dataclass
class RecordedStep:
    """A step for one shape of batches: memory for what goes in, and what comes out."""

    group: list[Batch]
    settings: list[dict[str, Any]] | None  # of the optimizer, where its step is part of what is recorded
    seen: Seen = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    norm: Tensor | None = None
    replay: Callable[[], None] = lambda: None


class CudaGraphStep:
    """Makes a training's steps where their shapes come again, as without it to the bit.

    A call answers whether it made the step; the loop makes those that it leaves. Generators go on as ever. A learning
    rate that changes once an epoch costs a recording (some milliseconds); one that changes every step leaves the
    optimizer's step out of the graph, as do a moving average and an optimizer without a fused kernel. What cannot be
    recorded (it waits for the device, say) is said once, and all goes on without a graph.
    """

    def __init__(self, recorder: GraphRecorder, say: Callable[[str], None]) -> None:
        self.recorder, self.say, self.usable = recorder, say, True
        self.warmed: dict[tuple[Any, ...], int] = {}
        self.recorded: dict[tuple[Any, ...], RecordedStep] = {}
        self.current: RecordedStep | None = None  # whose gradients the parameters hold

    def __call__(self, t: TrainState, group: list[Batch], seen: Seen) -> bool:
        """Make the step of `group`, if it can be made here; `seen` as `loop.backward` fills it."""
        shape = _shape(group)
        made = self.warmed.get(shape, 0)
        if not self.usable or (made == 0 and len(self.warmed) == _MOST_SHAPES):
            self.current = None
            return False
        if made < _WARM_STEPS:
            self.warmed[shape], self.current = made + 1, None
            with self.recorder.aside():
                backward(t, group, seen)
                t.optimizer.step()
            return True
        found = self.recorded.get(shape)
        if found is None or found.settings != _settings(t):
            found = self._record(t, shape, group)
        if found is None:
            return False
        self._make(t, found, group, seen)
        return True

    def _record(self, t: TrainState, shape: tuple[Any, ...], group: list[Batch]) -> RecordedStep | None:
        copies = [(tuple(x.clone() for x in inputs), targets.clone()) for inputs, targets in group]
        made = RecordedStep(copies, _settings(t))

        def step() -> None:
            made.seen.clear()
            backward(t, made.group, made.seen)
            if made.settings is not None:
                with _recordable(t):
                    t.optimizer.step()

        self.recorded.pop(shape, None)
        try:
            made.replay = self.recorder.record(step)
        except Exception as error:  # whatever a model does that cannot be recorded
            self.usable, self.current = False, None
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.say(f"no CUDA graph: the step cannot be recorded ({said}); device.cuda_graph=off saves the try")
            return None
        made.gradients, made.norm = [p.grad for p in t.model.parameters()], t.grad_norm
        self.recorded[shape] = self.current = made
        return made

    def _make(self, t: TrainState, made: RecordedStep, group: list[Batch], seen: Seen) -> None:
        """Fill the memory, start the graph, and keep what the next step would write over."""
        for (inputs, targets), (x, y) in zip(made.group, group, strict=True):
            for place, value in zip((*inputs, targets), (*x, y), strict=True):
                place.copy_(value, non_blocking=True)
        made.replay()
        if self.current is not made:
            for p, gradient in zip(t.model.parameters(), made.gradients, strict=True):
                p.grad = gradient
            self.current = made
        if t.stop_rules.grad_clip_norm is not None and made.norm is not None:
            t.grad_norm = made.norm
        if made.settings is None:
            t.optimizer.step()
        seen += [(o.clone(), y, loss.clone()) for (o, _, loss), (_, y) in zip(made.seen, group, strict=True)]


def _settings(t: TrainState) -> list[dict[str, Any]] | None:
    """The optimizer's numbers, which a graph holds as they are; null where its step cannot be part of one."""
    groups, schedule = t.optimizer.param_groups, t.schedule
    by_step = schedule.steps < schedule.warmup_steps or (schedule.interval == "step" and schedule.scheduler is not None)
    fused = type(t.optimizer) in _WHOLE and all(group.get("fused") for group in groups)
    if by_step or not fused or t.ema is not None:
        return None
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


@contextlib.contextmanager
def _recordable(t: TrainState) -> Iterator[None]:
    """Adam asks for the word before its step is recorded; fused, it has all that it takes."""
    asked = [group for group in t.optimizer.param_groups if group.get("capturable") is False]
    for group in asked:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in asked:
            group["capturable"] = False


def _shape(group: list[Batch]) -> tuple[Any, ...]:
    return tuple((x.shape, x.dtype, x.stride()) for inputs, targets in group for x in (*inputs, targets))


def find_obstacle(t: TrainState, kind: str, compiled: bool, profiled: bool) -> str | None:
    """Why a training on a GPU has no graph; null where it can have one.

    kind: of the data, as in DataSpec; compiled, profiled: device.compile and trainer.profile.
    """
    reasons = {
        "packed sequences have another shape each batch": kind == "tokens",
        "several processes send gradients to each other": t.ranks.world_size > 1,
        "fp16 scales its loss by what the last step gave": t.scaler.is_enabled(),
        "the optimizer evaluates the loss itself": requires_closure(t.optimizer),
        "device.compile records steps its own way": compiled,
        "trainer.profile stops the time inside a step": profiled,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
