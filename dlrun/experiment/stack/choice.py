"""Which runs can train as one stack, and whether that is faster than one after the other."""

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import MemoryBatches, measure_free_memory
from dlrun.engine.device import preserve_rng_state
from dlrun.engine.stack import trainer
from dlrun.engine.stack.model import StackedModel, describe_structure
from dlrun.engine.stack.objective import StackedObjective
from dlrun.experiment.context import RunContext
from dlrun.experiment.stack.member import StackedRun

# Parts of a config in which runs of one stack may differ.
_OWN_SECTIONS = ("seed", "optimizer", "scheduler", "run", "expect", "probes", "strict", "init_from", "init_map", "user")
_OWN_KEYS = {
    "model": ("dropout",),
    "trainer": ("early_stopping", "grad_clip_norm"),
    "checkpoint": ("monitor", "mode", "format"),
}

# Models of a trial: more of them take longer and show the same.
_MOST_IN_TRIAL = 32
_TRIAL_STEPS = 3
# A stack must be faster by this factor, as its time was measured in a few steps only.
_LEAST_SPEEDUP = 1.15
# Share of the free memory that a stack may take.
_MEMORY_SHARE = 0.5


def make_group_key(config: dict[str, Any]) -> str:
    """Text that is equal for runs which share data, net, batch size, length and loss."""
    shared: dict[str, Any] = {}
    for section, values in config.items():
        if section in _OWN_SECTIONS or section in ("sweep", "paths"):
            continue
        own_keys = _OWN_KEYS.get(section, ())
        shared[section] = {key: value for key, value in values.items() if key not in own_keys} if own_keys else values
    # Lines of one sweep may name keys in any order.
    return json.dumps(shared, sort_keys=True, default=str)


def find_obstacle(context: RunContext) -> str | None:
    """Why a run cannot be part of a stack, in words that follow "not stacked:", or None."""
    settings = context.settings
    for is_on, name in (
        (settings.trainer.profile, "trainer.profile"),
        (settings.device.compile, "device.compile"),
        (settings.tracking.weight_histograms, "tracking.weight_histograms"),
        (bool(settings.tracking.evolution_every_epochs), "tracking.evolution_every_epochs"),
        (settings.checkpoint.every_steps is not None, "checkpoint.every_steps"),
        (settings.device.num_threads == "auto", "device.num_threads=auto"),
        (settings.device.precision in ("bf16", "fp16"), f"device.precision={settings.device.precision}"),
    ):
        if is_on:
            return f"{name} is for a run alone"

    return trainer.find_obstacle(context.state)


def find_difference(runs: Sequence[StackedRun], run: StackedRun) -> str | None:
    """Why a run cannot share a stack with others that do, or None."""
    if not runs:
        return None
    first = runs[0].context
    other = run.context
    if other.splits is not first.splits and other.splits.train is not first.splits.train:
        return "its data are others"
    if other.objective != first.objective:
        return "its loss or its metrics are others"
    if describe_structure(other.state.model) != describe_structure(first.state.model):
        return "its net is another"
    if len(other.state.train) != len(first.state.train) or (other.state.val is None) != (first.state.val is None):
        return "its batches are others"
    return None


def count_fitting(context: RunContext) -> int:
    """The most runs of a stack whose steps fit into the memory."""
    estimate = context.preflight.memory
    if estimate is None:
        return 1
    free = measure_free_memory(context.runtime.device)
    return max(1, int(_MEMORY_SHARE * free / max(estimate.total, 1)))


@dataclass(frozen=True)
class Trial:
    """Seconds of a step of several runs, stacked and one after the other."""

    runs: int
    stacked_seconds: float
    alone_seconds: float

    @property
    def pays(self) -> bool:
        """Whether the stack is faster beyond doubt."""
        return self.alone_seconds > _LEAST_SPEEDUP * self.stacked_seconds

    def estimate_training(self, context: RunContext) -> float:
        """Seconds of all steps of the stack, if none of its runs ends early."""
        rules = context.state.stop_rules
        steps = len(context.state.train) * rules.epochs
        most = rules.max_steps
        return self.stacked_seconds * (steps if most is None else min(steps, most))

    def describe(self) -> str:
        """Describe both times in words."""
        return (
            f"a step of all takes {_format_milliseconds(self.stacked_seconds)} as one, "
            f"{_format_milliseconds(self.alone_seconds)} one after the other"
        )


def _format_milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, with two digits if they are few."""
    return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has batch norm: a bias in front of it has a gradient of rounding alone, which Adam magnifies."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def time_steps(context: RunContext, runs: int) -> Trial:
    """Time forward and backward passes of `runs` copies of a model, stacked and one after the other.

    The model itself is left as it was. Of the costs of a step the stack also saves most of the optimizer's.
    """
    state = context.state
    data = state.train
    assert isinstance(data, MemoryBatches)
    # Fewer copies than runs tell enough, and take less memory.
    count = min(runs, _MOST_IN_TRIAL)
    inputs, targets = next(iter(data.epoch(1)))
    # Copies: a pass in training mode moves the running statistics of batch norm.
    models = [copy.deepcopy(state.model).train() for _ in range(count)]
    parameters = [list(model.parameters()) for model in models]
    device = targets.device

    def step_alone() -> None:
        for model, model_parameters in zip(models, parameters, strict=True):
            loss = context.objective.compute_loss(model(*inputs), targets)
            torch.autograd.grad(loss, model_parameters, allow_unused=True)

    with preserve_rng_state():
        seconds_alone = _time(step_alone, state.synchronize)
        generators = [torch.Generator(device) for _ in models]
        stacked_model = StackedModel(models, generators)
        stacked_model.train()
        objective = StackedObjective(context.objective)
        # As in training, where a gather makes a contiguous batch for each member.
        stacked_inputs: list[Tensor] = [x.expand(count, *x.shape).contiguous() for x in inputs]
        stacked_targets = targets.expand(count, *targets.shape).contiguous()

        def step_stacked() -> None:
            outputs = stacked_model(*stacked_inputs)
            stacked_model.compute_gradient(objective.compute_losses(outputs, stacked_targets))

        seconds_stacked = _time(step_stacked, state.synchronize)

    # Both times grow with the number of runs.
    scale = runs / count
    return Trial(runs, seconds_stacked * scale, seconds_alone * scale)


def _time(step: Callable[[], None], synchronize: Callable[[], None]) -> float:
    """Seconds of the fastest of a few steps, after one that does not count."""
    # The fastest, as other processes only ever make a step slower.
    best = float("inf")
    for _ in range(1 + _TRIAL_STEPS):
        synchronize()
        begin = time.perf_counter()
        step()
        synchronize()
        best = min(best, time.perf_counter() - begin)

    return best
