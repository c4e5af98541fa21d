"""`device.cuda_graph`: record a whole training step once, and replay it with a single launch.

The kernels of a small model take less time on a GPU than Python does to launch them one by one.
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
from dlrun.engine.trainer import StepRecords, backward, requires_closure

# Eager steps of a shape before it is recorded, in which kernels are chosen and the optimizer creates its state.
_WARM_UP_STEPS = 3

# Full batches and the last one of an epoch need two shapes; a model that gets other shapes has no use for graphs.
_MOST_SHAPES = 4

# Optimizers whose fused step can be recorded.
_RECORDABLE_OPTIMIZERS = (SGD, Adam, AdamW)


class GraphRecorder:
    """Records CUDA graphs: torch's notes on them explain the side stream and the shared memory pool."""

    def __init__(self) -> None:
        self._side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def use_side_stream(self) -> Iterator[None]:
        """Run the block on a side stream, ordered with the current one."""
        self._side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side_stream):
            yield
        torch.cuda.current_stream().wait_stream(self._side_stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels of `function` without running them; returns what replays them in the same memory."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


@dataclass
class RecordedStep:
    """A step for one shape of batches."""

    # Memory that its batches are copied into.
    group: list[Batch]
    # Settings of the optimizer, if its step is part of the graph; None if it runs eagerly.
    settings: list[dict[str, Any]] | None
    # Memory of its results.
    records: StepRecords = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    norm: Tensor | None = None
    replay: Callable[[], None] = lambda: None


class CudaGraphStep:
    """Makes the optimizer steps of a training, from a graph where a shape comes again; equal to the bit.

    RNG state advances as in eager mode. A learning rate that changes once an epoch costs a recording (some
    milliseconds); one that changes every step leaves the optimizer's step out of the graph, as do a moving average
    and an optimizer without a fused kernel. A step that cannot be recorded, because it waits for the device for
    example, is reported once, and all steps run eagerly from then on.
    """

    def __init__(self, recorder: GraphRecorder, warn: Callable[[str], None]) -> None:
        self.recorder = recorder
        self.warn = warn
        self.is_usable = True
        self.warm_up_steps: dict[tuple[Any, ...], int] = {}
        self.recorded_steps: dict[tuple[Any, ...], RecordedStep] = {}
        # The step whose gradients the parameters hold.
        self.current: RecordedStep | None = None

    def __call__(self, state: TrainState, group: list[Batch], records: StepRecords) -> bool:
        """Make the step of `group` and fill `records` as `backward` does; returns False if it ran eagerly."""
        shape = _get_shape(group)
        steps = self.warm_up_steps.get(shape, 0)
        if not self.is_usable or (steps == 0 and len(self.warm_up_steps) == _MOST_SHAPES):
            self.current = None
            _step_eagerly(state, group, records)
            return False

        if steps < _WARM_UP_STEPS:
            self.warm_up_steps[shape] = steps + 1
            self.current = None
            with self.recorder.use_side_stream():
                _step_eagerly(state, group, records)
            return True

        recorded = self.recorded_steps.get(shape)
        if recorded is None or recorded.settings != _get_recordable_settings(state):
            recorded = self._record(state, shape, group)
        if recorded is None:
            _step_eagerly(state, group, records)
            return False
        self._replay(state, recorded, group, records)
        return True

    def _record(self, state: TrainState, shape: tuple[Any, ...], group: list[Batch]) -> RecordedStep | None:
        """Record the step for one shape; None if it cannot be recorded."""
        copies = []
        for inputs, targets in group:
            copies.append((tuple(x.clone() for x in inputs), targets.clone()))
        recorded = RecordedStep(copies, _get_recordable_settings(state))

        def make_step() -> None:
            recorded.records.clear()
            backward(state, recorded.group, recorded.records)
            if recorded.settings is not None:
                with _mark_capturable(state):
                    state.optimizer.step()

        # Free the memory of a graph with other settings first.
        self.recorded_steps.pop(shape, None)
        try:
            recorded.replay = self.recorder.record(make_step)
        except Exception as error:
            # A model may do anything that cannot be recorded.
            self.is_usable = False
            self.current = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.warn(f"no CUDA graph: the step cannot be recorded ({reason}); device.cuda_graph=off saves the try")
            return None

        recorded.gradients = [p.grad for p in state.model.parameters()]
        recorded.norm = state.grad_norm
        self.recorded_steps[shape] = recorded
        self.current = recorded
        return recorded

    def _replay(self, state: TrainState, recorded: RecordedStep, group: list[Batch], records: StepRecords) -> None:
        """Copy the batches in, replay the graph, and copy out what the next step would overwrite."""
        for (own_inputs, own_targets), (inputs, targets) in zip(recorded.group, group, strict=True):
            for own, value in zip((*own_inputs, own_targets), (*inputs, targets), strict=True):
                own.copy_(value, non_blocking=True)

        recorded.replay()

        if self.current is not recorded:
            for p, gradient in zip(state.model.parameters(), recorded.gradients, strict=True):
                p.grad = gradient
            self.current = recorded
        if state.stop_rules.grad_clip_norm is not None and recorded.norm is not None:
            state.grad_norm = recorded.norm
        if recorded.settings is None:
            state.optimizer.step()

        # Targets are the batch's own tensors, which no replay overwrites.
        for (outputs, _, loss), (_, targets) in zip(recorded.records, group, strict=True):
            records.append((outputs.clone(), targets, loss.clone()))


def _step_eagerly(state: TrainState, group: list[Batch], records: StepRecords) -> None:
    # The scaler is off: fp16 has no graph.
    backward(state, group, records)
    state.optimizer.step()


def _get_recordable_settings(state: TrainState) -> list[dict[str, Any]] | None:
    """The optimizer's numbers, which a graph contains as constants; None if its step cannot be recorded."""
    schedule = state.schedule
    groups = state.optimizer.param_groups
    is_warming_up = schedule.steps < schedule.warmup_steps
    changes_every_step = schedule.interval == "step" and schedule.scheduler is not None
    is_fused = type(state.optimizer) in _RECORDABLE_OPTIMIZERS and all(group.get("fused") for group in groups)
    if is_warming_up or changes_every_step or not is_fused or state.ema is not None:
        return None

    settings = []
    for group in groups:
        settings.append({key: value for key, value in group.items() if key != "params"})
    return settings


@contextlib.contextmanager
def _mark_capturable(state: TrainState) -> Iterator[None]:
    """Set `capturable`, without which Adam refuses to be recorded; its fused step does not depend on it."""
    groups = [group for group in state.optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _get_shape(group: list[Batch]) -> tuple[Any, ...]:
    """Shapes, types and strides of all tensors of the batches."""
    shape = []
    for inputs, targets in group:
        shape += [(x.shape, x.dtype, x.stride()) for x in (*inputs, targets)]
    return tuple(shape)


def attach_graph(
    state: TrainState, kind: str, compiled: bool, profiled: bool, note: Callable[[str], None]
) -> str | None:
    """Launch the kernels of a step as one CUDA graph from now on; returns the reason where that is not possible.

    note: reports a step that cannot be recorded after all. The other arguments are those of `find_obstacle`.
    """
    reason = find_obstacle(state, kind, compiled, profiled)
    if reason is None:
        state.graph_step = CudaGraphStep(GraphRecorder(), note)
    return reason


def find_obstacle(state: TrainState, kind: str, compiled: bool, profiled: bool) -> str | None:
    """Why a training on a GPU has no graph; None if it can have one.

    kind: of the data, as in DataSpec; compiled, profiled: device.compile and trainer.profile.
    """
    reasons = {
        "packed sequences have another shape each batch": kind == "tokens",
        "several processes send gradients to each other": state.ranks.world_size > 1,
        "fp16 scales its loss by what the last step gave": state.scaler.is_enabled(),
        "a loss that is a module may keep numbers of its own": state.objective.loss_module is not None,
        "the optimizer evaluates the loss itself": requires_closure(state.optimizer),
        "device.compile records steps its own way": compiled,
        "trainer.profile stops the time inside a step": profiled,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
