"""Trainings that a test builds twice: to run alone, and as members of a stack."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import get_rng_state, set_rng_state
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.trainer import StackTrainer
from dlrun.engine.state import StopRules, TrainState
from dlrun.engine.trainer import Trainer

VECTOR = DataSpec("vector", (5,), "multiclass", 3)

# Where the trainings of the running test are built; the fixture `stacks` sets it.
DEVICE = torch.device("cpu")


def build_linear(spec: DataSpec) -> nn.Module:
    return nn.Linear(spec.input_size, spec.output_size)


@dataclass
class Training:
    """What a test says of one training; `build` makes a new state of it each time."""

    net: Callable[[DataSpec], nn.Module] = build_linear
    optimizer: Callable[[Iterable[Any]], Optimizer] = lambda parameters: SGD(parameters, lr=0.1)
    schedule: Callable[[Optimizer], Schedule] = lambda optimizer: Schedule(optimizer, None)
    seed: int = 0
    spec: DataSpec = VECTOR
    rows: int = 22
    batch_size: int = 5
    has_val: bool = True
    drop_last: bool = False
    dtype: torch.dtype = torch.float32
    objective: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list

    def build(self) -> tuple[TrainState, Any]:
        """A state before its first step, and that of the generators."""
        place = Placement(DEVICE, self.dtype, self.spec)
        order = EpochOrder(self.rows, self.batch_size, shuffle=True, drop_last=self.drop_last, seed=self.seed)
        train = MemoryBatches(draw_split(self.spec, self.rows), order, place)
        val = MemoryBatches(draw_split(self.spec, 9, 1), EpochOrder(9, 4), place) if self.has_val else None

        before = get_rng_state()
        torch.manual_seed(self.seed)
        model = self.net(self.spec)
        model = model.to(DEVICE, None if self.dtype == torch.float32 else self.dtype)
        rng = get_rng_state()
        set_rng_state(before)
        optimizer = self.optimizer(model.parameters())
        state = TrainState(
            model=model,
            objective=Objective(self.spec, **self.objective),
            optimizer=optimizer,
            schedule=self.schedule(optimizer),
            scaler=torch.amp.GradScaler(DEVICE.type, enabled=False),
            train=train,
            val=val,
            stop_rules=StopRules(**{"epochs": 3, "log_every_steps": 2} | self.rules),
            monitor="val/loss" if self.has_val else "train/loss",
            mode="min",
            autocast=contextlib.nullcontext,
            synchronize=lambda: None,
        )
        return state, rng

    def build_member(self) -> Member:
        state, rng = self.build()
        recorder = Recorder()
        member = Member(state, rng, [recorder, *self.callbacks()])
        member.recorder = recorder  # type: ignore[attr-defined]
        return member


def draw_split(spec: DataSpec, rows: int, seed: int = 0) -> Split:
    """Random inputs, and targets that depend on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *spec.input_shape, generator=generator)
    weights = torch.randn(spec.input_size, spec.output_size, generator=torch.Generator().manual_seed(7))
    scores = x.flatten(1) @ weights + 0.3 * torch.randn(rows, spec.output_size, generator=generator)
    if spec.task == "regression":
        return Split((x,), scores)
    if spec.task == "binary":
        return Split((x,), (scores[:, 0] > 0).long())
    return Split((x,), scores.argmax(1))


class Recorder(Callback):
    """Keeps the rows of the epochs and the values of the log points."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.logs: list[tuple[int, dict[str, float]]] = []
        self.best: list[bool] = []

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        self.rows.append(dict(row))
        self.best.append(trainer.is_best)

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        self.logs.append((trainer.step, values))


@dataclass
class Ended:
    """What is left of a training that has ended, or failed."""

    status: str
    error: Exception | None
    state: TrainState
    recorder: Recorder
    rng: Any


def train_alone(training: Training) -> Ended:
    state, rng = training.build()
    before = get_rng_state()
    set_rng_state(rng)
    recorder = Recorder()
    error = None
    status = "failed"
    try:
        status = Trainer(state, [recorder, *training.callbacks()], bool).fit()
    except Exception as raised:
        error = raised
    after = get_rng_state()
    set_rng_state(before)
    return Ended(status, error, state, recorder, after)


def train_stacked(trainings: Sequence[Training]) -> list[Ended]:
    members = [training.build_member() for training in trainings]
    before = get_rng_state()
    assert StackTrainer(members).fit()
    # Nothing is drawn from the generators that all share.
    assert torch.equal(before["torch"], get_rng_state()["torch"])
    return [end(member) for member in members]


def end(member: Member) -> Ended:
    return Ended(member.status, member.error, member.state, member.recorder, member.get_rng_state())  # type: ignore[attr-defined]


def assert_same_bits(one: Ended, other: Ended) -> None:
    """Rows, log points, weights, buffers, optimizer, counters and generators."""
    assert one.status == other.status
    assert repr(one.recorder.rows) == repr(other.recorder.rows)
    assert repr(one.recorder.logs) == repr(other.recorder.logs)
    assert str(one.error) == str(other.error)
    if one.error is None:
        first, second = one.state.state_dict(), other.state.state_dict()
        for state in (first, second):
            state["progress"].pop("train_seconds")
        assert_same_values(first, second)
    assert torch.equal(one.rng["torch"], other.rng["torch"])


def assert_same_values(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5)), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_values(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_same_values(first, second, f"{where}[{i}]")
    else:
        assert one == other or (one != one and other != other), where


# Metrics that count rows: one that lies at a threshold may fall to its other side.
COUNTING = ("accuracy", "precision", "recall", "f1", "macro_f1", "auroc", "top5_accuracy")


def assert_equal_to_rounding(alone: Ended, stacked: Ended, rows: int = 9) -> None:
    """To 1e-5 in the first epoch and to 1e-3 until the 20th; the generators to the bit.

    rows: of the smallest split that metrics are computed on.
    """
    assert str(alone.error) == str(stacked.error)
    assert alone.status == stacked.status
    assert len(alone.recorder.rows) == len(stacked.recorder.rows)
    for one, other in zip(alone.recorder.rows, stacked.recorder.rows, strict=True):
        epoch = one["epoch"]
        assert one.keys() == other.keys()
        tolerance = 1e-5 if epoch == 1 else 1e-3
        for name, value in one.items():
            slack = 1.01 / rows if name.split("/")[-1] in COUNTING and epoch > 1 else 1e-7
            assert math.isclose(value, other[name], rel_tol=tolerance, abs_tol=slack), (epoch, name, value, other[name])

    assert [step for step, _ in alone.recorder.logs] == [step for step, _ in stacked.recorder.logs]
    for (step, one), (_, other) in zip(alone.recorder.logs, stacked.recorder.logs, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6), step
    assert alone.recorder.best == stacked.recorder.best

    first, second = alone.state, stacked.state
    assert first.progress.best_epoch == second.progress.best_epoch
    assert first.progress.step == second.progress.step
    assert first.progress.samples == second.progress.samples
    assert_close_states(first.model.state_dict(), second.model.state_dict())
    settings, others = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert str(settings["param_groups"]) == str(others["param_groups"])
    assert settings["state"].keys() == others["state"].keys()
    for number, values in settings["state"].items():
        # torch's SGD without momentum has an entry of None.
        assert_close_states({k: v for k, v in values.items() if v is not None}, others["state"][number])
    for one, other in zip(*(flatten(ended.schedule.state_dict()) for ended in (first, second)), strict=True):
        assert one == (pytest.approx(other, rel=1e-3) if isinstance(other, float) else other)
    for name in ("torch", "numpy", "python"):
        assert_same_values(alone.rng[name], stacked.rng[name])


def flatten(value: Any) -> list[Any]:
    """The plain values in dictionaries and lists, in their order."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return list(itertools.chain.from_iterable(map(flatten, value))) if isinstance(value, list) else [value]


def assert_close_states(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-3) -> None:
    """Relative to the largest value of each tensor."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        scale = float(values.double().abs().max()) if values.numel() else 0.0
        torch.testing.assert_close(
            other[name], values, rtol=tolerance, atol=tolerance * scale + 1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def stacks(device: str) -> SimpleNamespace:
    """What the tests of stacks share: a conftest cannot be imported."""
    global DEVICE
    DEVICE = torch.device(device)
    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("_")})
