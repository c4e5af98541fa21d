"""Members of a stack against the same trainings alone: metrics, weights, optimizers, random numbers."""

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from dlrun.core.errors import RunError
from dlrun.data.batches import LoaderBatches
from dlrun.data.spec import DataSpec
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.stack.trainer import StackTrainer, find_obstacle
from dlrun.models.cnn import CNN
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd decay": lambda p: SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, dampening=0.1),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adagrad": lambda p: Adagrad(p, lr=0.05, lr_decay=0.01),
    "rmsprop": lambda p: RMSprop(p, lr=0.01),
    "rmsprop momentum": lambda p: RMSprop(p, lr=0.005, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "adam decay": lambda p: Adam(p, lr=0.02, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.02, weight_decay=0.1),
}
SCHEDULES: dict[str, Callable[[Optimizer], Schedule]] = {
    "none": lambda o: Schedule(o, None),
    "cosine": lambda o: Schedule(o, CosineAnnealingLR(o, 4)),
    "cosine by step": lambda o: Schedule(o, CosineAnnealingLR(o, 18), "step"),
    "warm-up": lambda o: Schedule(o, None, warmup_steps=7),
    "cosine after warm-up": lambda o: Schedule(o, CosineAnnealingLR(o, 18), "step", warmup_steps=3),
    "plateau": lambda o: Schedule(o, ReduceLROnPlateau(o, factor=0.5, patience=0)),
}
VECTOR = DataSpec("vector", (5,), "multiclass", 3)
TASKS = {
    "multiclass": VECTOR,
    "many classes": DataSpec("vector", (5,), "multiclass", 11),
    "binary": DataSpec("vector", (5,), "binary", 1),
    "regression": DataSpec("vector", (5,), "regression", 2),
    "scaled regression": DataSpec("vector", (5,), "regression", 2, target_mean=(1.0, 2.0), target_std=(3.0, 0.5)),
}
IMAGE = DataSpec("image", (1, 12, 12), "multiclass", 3)


def build_mlp(dropout: float = 0.0) -> Callable[[DataSpec], nn.Module]:
    return lambda spec: MLP(spec, [6], dropout=dropout)


def check(stacks: SimpleNamespace, trainings: list[Any]) -> None:
    """Train all alone and as a stack, and compare."""
    alone = [stacks.train_alone(training) for training in trainings]
    for one, other in zip(alone, stacks.train_stacked(trainings), strict=True):
        stacks.assert_equal_to_rounding(one, other)


@pytest.mark.slow
def test_optimizers_schedules_and_dropout_train_in_one_stack(stacks: SimpleNamespace) -> None:
    schedules = itertools.cycle(SCHEDULES.values())
    rates = itertools.cycle([0.1, 0.5, 0.9])
    trainings = [
        stacks.Training(net=build_mlp(rate), optimizer=optimizer, schedule=schedule, seed=seed)
        for seed, (optimizer, schedule, rate) in enumerate(zip(OPTIMIZERS.values(), schedules, rates, strict=False))
    ]
    check(stacks, trainings)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_tasks(stacks: SimpleNamespace, task: str, reduction: str) -> None:
    build = lambda p: SGD(p, lr=0.01)  # noqa: E731
    training = stacks.Training(
        net=build_mlp(), spec=TASKS[task], optimizer=build, objective={"reduction": reduction}, rules={"epochs": 2}
    )
    check(stacks, [replace(training, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize("rules", [{"accumulate_steps": 2}, {"accumulate_steps": 3, "grad_clip_norm": 0.3}])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulation_with_a_ragged_rest_and_clipping(
    stacks: SimpleNamespace, rules: dict[str, Any], reduction: str
) -> None:
    training = stacks.Training(net=build_mlp(), objective={"reduction": reduction}, rules=rules | {"epochs": 2})
    check(stacks, [replace(training, seed=seed) for seed in (1, 2)])


def test_members_are_clipped_at_norms_of_their_own(stacks: SimpleNamespace) -> None:
    limits = (None, 0.05, 0.5)
    check(stacks, [stacks.Training(net=build_mlp(), rules={"grad_clip_norm": limit}) for limit in limits])


@pytest.mark.slow
def test_members_leave_when_their_patience_ends(stacks: SimpleNamespace) -> None:
    """Rates so large that most members stop early, at epochs of their own, among optimizers of several kinds."""
    makes = [
        lambda p: SGD(p, lr=0.05),
        lambda p: SGD(p, lr=2.0, momentum=0.9),
        lambda p: Adam(p, lr=0.5),
        lambda p: SGD(p, lr=2.5),
        lambda p: Adam(p, lr=0.001),
    ]
    trainings = [
        stacks.Training(net=build_mlp(0.2), optimizer=make, seed=seed, rules={"epochs": 9, "patience": 1 + seed % 2})
        for seed, make in enumerate(makes)
    ]
    alone = [stacks.train_alone(training) for training in trainings]
    lengths = [len(ended.recorder.rows) for ended in alone]
    assert len(set(lengths)) > 2
    assert max(lengths) == 9
    left: list[list[int]] = []
    members = [training.build_member() for training in trainings]
    trainer = StackTrainer(members, on_members_end=lambda leaving: left.append([m.epoch for m in leaving]))
    assert trainer.fit()
    for one, member in zip(alone, members, strict=True):
        stacks.assert_equal_to_rounding(one, stacks.end(member))
    # Each is handed over at its own end, with tensors of its own.
    assert sorted(itertools.chain.from_iterable(left)) == sorted(lengths)
    assert all(p.untyped_storage().nbytes() == p.nbytes for member in members for p in member.model.parameters())


@pytest.mark.parametrize(
    "settings",
    [{"has_val": False}, {"drop_last": True}, {"dtype": torch.float64}, {"batch_size": 22}, {"batch_size": 100}],
    ids=str,
)
def test_kinds_of_data(stacks: SimpleNamespace, settings: dict[str, Any]) -> None:
    training = stacks.Training(net=build_mlp(0.3), **settings)
    check(stacks, [replace(training, seed=seed) for seed in (1, 2)])


NETS: dict[str, tuple[DataSpec, Callable[[DataSpec], nn.Module]]] = {
    "linear": (TASKS["regression"], lambda spec: nn.Linear(5, 2)),
    "deep": (VECTOR, lambda spec: MLP(spec, [4, 4, 4], activation="tanh", dropout=0.1)),
    "no bias": (VECTOR, lambda spec: MLP(spec, [4], activation="elu", bias=False)),
    "batch norm": (VECTOR, lambda spec: nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))),
    "layer norm": (VECTOR, lambda spec: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3), nn.LayerNorm(3))),
    "cnn": (IMAGE, lambda spec: CNN(spec, [2, 3], 3)),
    "images": (
        IMAGE,
        lambda spec: nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, groups=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2, bias=False),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16, 3),
        ),
    ),
    "resnet": (IMAGE, lambda spec: ResNet(spec, [2])),
    "residual with dropout": (VECTOR, lambda spec: Residual()),
}


class Residual(nn.Module):
    """Not a chain: torch.func stacks it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.drop = nn.Dropout(0.4)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return self.last(x + self.drop(self.norm(self.first(x))))


@pytest.mark.parametrize("name", NETS)
def test_nets(stacks: SimpleNamespace, name: str) -> None:
    spec, build = NETS[name]
    training = stacks.Training(net=build, spec=spec, rules={"epochs": 2}, optimizer=lambda p: SGD(p, lr=0.05))
    check(stacks, [replace(training, seed=seed) for seed in (1, 2, 3)])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rules", [{}, {"accumulate_steps": 2, "grad_clip_norm": 0.5}], ids=str)
def test_each_optimizer_with_each_schedule(stacks: SimpleNamespace, optimizer: str, rules: dict[str, Any]) -> None:
    """Every second member with dropout, two of three with a patience; as long as the schedules by step."""
    trainings = [
        stacks.Training(
            net=build_mlp(0.3 * (seed % 2)),
            optimizer=OPTIMIZERS[optimizer],
            schedule=schedule,
            seed=seed,
            rules={"epochs": 7, "patience": (None, 1, 3)[seed % 3]} | rules,
        )
        for seed, schedule in enumerate(SCHEDULES.values())
    ]
    # Members of a stack have one structure: a rate of 0 leaves the layer out.
    for part in (trainings[::2], trainings[1::2]):
        check(stacks, part)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_nets_over_twenty_epochs(stacks: SimpleNamespace, name: str) -> None:
    spec, build = NETS[name]
    # A bias in front of a batch norm has a gradient of rounding alone, by whose sign Adam steps in single precision.
    has_batch_norm = any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in build(spec).modules())
    training = stacks.Training(
        net=build,
        spec=spec,
        rules={"epochs": 20},
        dtype=torch.float64 if has_batch_norm else torch.float32,
    )
    optimizers = (OPTIMIZERS["momentum"], OPTIMIZERS["adam"])
    check(stacks, [replace(training, seed=seed, optimizer=make) for seed, make in enumerate(optimizers, 1)])


# A stack that stops at any step.


class Stopping(Callback):
    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            trainer.stop()


MAKES = (
    lambda p: SGD(p, lr=0.05),
    lambda p: SGD(p, lr=3.0, momentum=0.9),
    lambda p: Adam(p, lr=0.01),
    lambda p: Adam(p, lr=3.0),
)


def build_mixed(stacks: SimpleNamespace, net: Callable[[DataSpec], nn.Module]) -> list[Any]:
    """Members of three kinds, of which some leave early; 3 optimizer steps an epoch, the last with a ragged rest."""
    rules = {"epochs": 5, "patience": 1, "accumulate_steps": 2, "grad_clip_norm": 2.0}
    schedules = (SCHEDULES["plateau"], SCHEDULES["cosine by step"], SCHEDULES["warm-up"], SCHEDULES["none"])
    trainings = [
        stacks.Training(net=net, optimizer=make, schedule=schedule, seed=seed, rules=rules)
        for seed, (make, schedule) in enumerate(zip(MAKES, schedules, strict=True))
    ]
    trainings[1] = replace(trainings[1], callbacks=lambda: [Stopping()])
    return trainings


def run_in_parts(stacks: SimpleNamespace, trainings: list[Any], stops: set[int]) -> list[Any]:
    """Train with a stop after each of these steps; each time all objects are built anew, and load the state."""
    ended: dict[int, Any] = {}
    remaining = list(range(len(trainings)))
    recorders = {number: stacks.Recorder() for number in remaining}
    saved = None
    step = 0
    while True:
        members = []
        for number in remaining:
            member = trainings[number].build_member()
            vars(member.recorder).update(vars(recorders[number]))
            member.number = number
            members.append(member)
        trainer = StackTrainer(members)
        if saved is not None:
            trainer.load_state_dict(saved)
        begin = step
        trainer.stop_requested = lambda: trainer.step in stops and trainer.step > begin  # noqa: B023
        trainer.on_members_end = lambda leaving: ended.update({m.number: stacks.end(m) for m in leaving})
        if trainer.fit():
            return [ended[number] for number in range(len(trainings))]
        step = trainer.step
        saved = torch_roundtrip(trainer.state_dict())
        remaining = [member.number for member in trainer.members]


def torch_roundtrip(state: dict[str, Any]) -> Any:
    """As a file holds it: plain values and tensors, which share nothing with the trainer."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("net", [build_mlp(0.3), lambda spec: Residual()], ids=["chain", "torch.func"])
def test_a_stack_that_stops_at_every_step_ends_as_if_it_had_not(
    stacks: SimpleNamespace, net: Callable[[DataSpec], nn.Module]
) -> None:
    trainings = build_mixed(stacks, net)
    unbroken = run_in_parts(stacks, trainings, set())
    lengths = [len(ended.recorder.rows) for ended in unbroken]
    assert (min(lengths), max(lengths)) == (2, 5)
    for one, other in zip(unbroken, run_in_parts(stacks, trainings, set(range(1, 16))), strict=True):
        stacks.assert_same_bits(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 8, 14])
def test_a_stack_that_stops_once(stacks: SimpleNamespace, step: int) -> None:
    trainings = build_mixed(stacks, build_mlp(0.3))
    unbroken = run_in_parts(stacks, trainings, set())
    for one, other in zip(unbroken, run_in_parts(stacks, trainings, {step}), strict=True):
        stacks.assert_same_bits(one, other)


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_each_optimizer_goes_on(stacks: SimpleNamespace, build: Callable[[Any], Optimizer]) -> None:
    trainings = [stacks.Training(optimizer=build, seed=seed, rules={"epochs": 2}) for seed in (1, 2)]
    unbroken = run_in_parts(stacks, trainings, set())
    for one, other in zip(unbroken, run_in_parts(stacks, trainings, {2, 5}), strict=True):
        stacks.assert_same_bits(one, other)


# Members that fail.


class Raising(Callback):
    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise RunError("enough")


def test_a_member_whose_loss_is_not_finite_fails_alone(stacks: SimpleNamespace) -> None:
    good = [stacks.Training(net=build_mlp(0.3), seed=seed) for seed in (1, 2)]
    # In one it overflows, in the other the first loss is NaN.
    bad = [
        stacks.Training(spec=VECTOR, net=build_mlp(0.3), optimizer=lambda p: SGD(p, lr=1e30), seed=3),
        stacks.Training(spec=VECTOR, net=spoil, seed=4),
    ]
    ended = stacks.train_stacked([good[0], bad[0], bad[1], good[1]])
    for one, other in zip(stacks.train_stacked(good), (ended[0], ended[3]), strict=True):
        stacks.assert_same_bits(one, other)
    for training, member in zip(bad, ended[1:3], strict=True):
        alone = stacks.train_alone(training)
        assert alone.status == member.status == "failed"
        assert "the loss is nan at step" in str(alone.error)
        assert str(member.error) == str(alone.error)
        assert type(member.error) is type(alone.error)
        assert member.recorder.rows == alone.recorder.rows == []


def spoil(spec: DataSpec) -> nn.Module:
    net = MLP(spec, [6], dropout=0.3)
    with torch.no_grad():
        next(net.parameters())[0, 0] = math.nan
    return net


def test_a_callback_that_raises_ends_its_member_alone(stacks: SimpleNamespace) -> None:
    good = [stacks.Training(net=build_mlp(0.3), seed=seed) for seed in (1, 2)]
    bad = stacks.Training(net=build_mlp(0.3), seed=3, callbacks=lambda: [Raising()])
    ended = stacks.train_stacked([bad, *good])
    for one, other in zip(stacks.train_stacked(good), ended[1:], strict=True):
        stacks.assert_same_bits(one, other)
    assert ended[0].status == "failed"
    assert str(ended[0].error) == "enough"
    assert len(ended[0].recorder.rows) == 2


def test_a_callback_may_end_its_member(stacks: SimpleNamespace) -> None:
    trainings = [stacks.Training(callbacks=lambda: [Stopping()]), stacks.Training(seed=1)]
    ended = stacks.train_stacked(trainings)
    assert [len(member.recorder.rows) for member in ended] == [2, 3]
    assert [member.status for member in ended] == ["early_stopped", "completed"]


def test_the_time_of_an_epoch_is_shared(stacks: SimpleNamespace) -> None:
    ended = stacks.train_stacked([stacks.Training(seed=seed) for seed in (1, 2)])
    first, second = (member.state.progress for member in ended)
    assert first.train_seconds == second.train_seconds > 0
    assert first.samples == second.samples == 66


# What cannot be stacked.


def change(**values: Any) -> Callable[[Any], Any]:
    def apply(state: Any) -> Any:
        for name, value in values.items():
            setattr(state, name, value)
        return state

    return apply


def load_from_disk(state: Any) -> Any:
    state.train = LoaderBatches(None, state.train.order, state.train.place, 0)  # type: ignore[arg-type]
    return state


def average(state: Any) -> Any:
    state.ema = ExponentialMovingAverage(state.model, state.optimizer, 0.9)
    return state


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda state: state, None),
        (load_from_disk, "read from the disk"),
        (average, "trainer.ema_decay"),
        (change(mixing=object()), "data.augment"),
        (change(callbacks={"mine": object()}), "callbacks of your own"),
        (change(autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)), "device.precision"),
        (change(ranks=SimpleNamespace(world_size=2)), "several processes"),
        (change(compute_model_metrics=dict), "logs values"),
        (change(compute_auxiliary_loss=lambda: torch.zeros(())), "adds to the loss"),
        (change(optimizer=SGD([nn.Parameter(torch.zeros(1))], lr=0.1)), "other parameters"),
        (change(optimizer=torch.optim.Adamax([nn.Parameter(torch.zeros(1))])), "other parameters"),
    ],
)
def test_obstacles_of_a_state(stacks: SimpleNamespace, alter: Callable[[Any], Any], words: str | None) -> None:
    obstacle = find_obstacle(alter(stacks.Training().build()[0]))
    if words is None:
        assert obstacle is None
    else:
        assert obstacle is not None
        assert words in obstacle


@pytest.mark.parametrize(
    ("steps", "accumulate", "is_obstacle"), [(10, 1, False), (7, 1, True), (6, 2, False), (5, 2, True), (99, 1, True)]
)
def test_max_steps_must_end_an_epoch(stacks: SimpleNamespace, steps: int, accumulate: int, is_obstacle: bool) -> None:
    training = stacks.Training(rules={"max_steps": steps, "accumulate_steps": accumulate, "epochs": 30})
    assert (find_obstacle(training.build()[0]) is not None) == is_obstacle
    if not is_obstacle:
        check(stacks, [replace(training, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({}, None),
        ({"loss_name": "multi_margin", "metrics": ["accuracy"]}, None),
        ({"class_weights": (1.0, 2.0, 3.0)}, "task.class_weights"),
        ({"own_loss": lambda outputs, targets: outputs.sum(), "loss_name": "mine"}, "its loss is your own"),
        ({"loss_name": "scratch_cross_entropy"}, "scratch_cross_entropy"),
    ],
)
def test_obstacles_of_an_objective(stacks: SimpleNamespace, objective: dict[str, Any], words: str | None) -> None:
    obstacle = find_obstacle(stacks.Training(objective=objective).build()[0])
    assert (obstacle is None) if words is None else (obstacle is not None and words in obstacle)
