"""Losses and metrics of a stack against those of the objective, member by member."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.data.spec import DataSpec, TaskName
from dlrun.engine.losses import LOSSES
from dlrun.engine.objective import Objective
from dlrun.engine.stack.objective import StackedObjective, find_obstacle

MEMBERS = 4
# Rows of each batch: the last one is ragged.
BATCHES = (5, 5, 2)

SPECS = {
    "regression": DataSpec("vector", (2,), "regression", 2),
    "scaled": DataSpec("vector", (2,), "regression", 2, target_mean=(1.0, -2.0), target_std=(3.0, 0.5)),
    "binary": DataSpec("vector", (2,), "binary", 1),
    "multiclass": DataSpec("vector", (2,), "multiclass", 3),
    "eleven": DataSpec("vector", (2,), "multiclass", 11),
}


def draw(spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Outputs (M, N, ...) and targets (M, N, ...), of rows that each member has in an order of its own."""
    generator = torch.Generator().manual_seed(2)
    rows = sum(BATCHES)
    outputs = torch.randn(MEMBERS, rows, spec.output_size, generator=generator)
    if spec.task == "regression":
        return outputs, torch.randn(MEMBERS, rows, spec.output_size, generator=generator)
    return outputs, torch.randint(0, max(spec.output_size, 2), (MEMBERS, rows), generator=generator)


def compute_alone(objective: Objective, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    totals = objective.new_accumulator()
    for part, own in zip(outputs.split(BATCHES), targets.split(BATCHES), strict=True):
        totals.add(part, own, objective.compute_loss(part, own))
    return totals.compute_metrics()


def compute_stacked(objective: Objective, outputs: Tensor, targets: Tensor) -> list[dict[str, float]]:
    """targets: (M, N, ...), or (1, N, ...) for all members."""
    stacked = StackedObjective(objective)
    parts = zip(outputs.split(BATCHES, 1), targets.split(BATCHES, 1), strict=True)
    losses = [stacked.compute_losses(part, own.expand(len(part), *own.shape[1:])) for part, own in parts]
    weights = torch.tensor([part[0].numel() for part in targets.split(BATCHES, 1)])
    return stacked.compute_metrics(outputs, targets, torch.stack(losses, 1), weights)


def assert_equal(objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    for number, values in enumerate(compute_stacked(objective, outputs, targets)):
        alone = compute_alone(objective, outputs[number], targets[number if len(targets) > 1 else 0])
        assert values == pytest.approx(alone, rel=1e-6, abs=1e-7, nan_ok=True)
        assert list(values) == list(alone)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("are_shared", [False, True], ids=["own rows", "shared rows"])
@pytest.mark.parametrize("name", SPECS)
def test_metrics_are_those_of_each_member(name: str, are_shared: bool, reduction: str) -> None:
    outputs, targets = draw(SPECS[name])
    assert_equal(Objective(SPECS[name], reduction=reduction), outputs, targets[:1] if are_shared else targets)


def test_scores_with_ties() -> None:
    """Scores of a few values, and scores that are all the same."""
    outputs, targets = draw(SPECS["binary"])
    outputs = outputs.round()
    outputs[1] = 0.5
    assert len(outputs[0].unique()) < sum(BATCHES)
    assert_equal(Objective(SPECS["binary"]), outputs, targets)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["binary", "multiclass", "eleven"])
def test_targets_of_one_class(name: str, number: int) -> None:
    outputs, targets = draw(SPECS[name])
    assert_equal(Objective(SPECS[name]), outputs, torch.full_like(targets, number))


def test_predictions_of_one_class() -> None:
    for name in ("binary", "multiclass"):
        outputs, targets = draw(SPECS[name])
        outputs[0, :, 0] = 100
        outputs[1, :, 0] = -100
        assert_equal(Objective(SPECS[name]), outputs, targets)


def test_targets_that_are_constant() -> None:
    outputs, targets = draw(SPECS["regression"])
    targets[:, :, 1] = 3.0
    targets[2] = 0.1
    assert_equal(Objective(SPECS["regression"]), outputs, targets)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_those_of_their_member_alone(name: str, value: float) -> None:
    outputs, targets = draw(SPECS[name])
    outputs[1, 3] = value
    assert_equal(Objective(SPECS[name]), outputs, targets)


def list_losses() -> list[tuple[TaskName, str]]:
    tasks: list[TaskName] = ["regression", "binary", "multiclass"]
    return [(task, name) for task in tasks for name in LOSSES[task] if not name.startswith("scratch_")]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("task", "name"), list_losses())
def test_losses_and_their_gradients(task: TaskName, name: str, reduction: str) -> None:
    outputs, targets = draw(SPECS[task])
    if name == "bce":
        outputs = outputs.sigmoid()
    if name == "nll":
        outputs = outputs.log_softmax(-1)
    if name == "poisson_nll":
        targets = targets.abs()
    outputs.requires_grad_()
    objective = Objective(SPECS[task], loss_name=name, reduction=reduction)
    assert find_obstacle(objective) is None
    losses = StackedObjective(objective).compute_losses(outputs, targets)
    alone = torch.stack([objective.compute_loss(x, y) for x, y in zip(outputs, targets, strict=True)])
    torch.testing.assert_close(losses, alone)
    weights = torch.arange(1.0, MEMBERS + 1)
    gradients = [torch.autograd.grad((values * weights).sum(), outputs)[0] for values in (losses, alone)]
    torch.testing.assert_close(*gradients)
    assert_equal(objective, outputs.detach(), targets)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("multiclass", {"loss_args": {"label_smoothing": 0.1}}),
        ("multiclass", {"metrics": ["macro_f1"]}),
        ("binary", {"loss_args": {"pos_weight": 3.0}}),
        ("binary", {"metrics": ["auroc", "accuracy"]}),
        ("regression", {"loss_name": "huber", "loss_args": {"delta": 0.1}}),
        ("regression", {"metrics": []}),
    ],
)
def test_arguments_and_chosen_metrics_of_the_task(name: str, arguments: dict[str, Any]) -> None:
    objective = Objective(SPECS[name], **arguments)
    assert find_obstacle(objective) is None
    assert_equal(objective, *draw(SPECS[name]))


@pytest.mark.parametrize(
    ("spec", "arguments", "words"),
    [
        (DataSpec("vector", (2,), "multilabel", 3), {}, "task=multilabel"),
        (DataSpec("vector", (2,), "regression", 2, reconstructs=True), {}, "task=autoencoder"),
        (SPECS["regression"], {"loss_name": "scratch_mse"}, "backward pass of its own"),
        (SPECS["binary"], {"class_weights": (1.0, 2.0)}, "task.class_weights"),
        (SPECS["multiclass"], {"loss_args": {"weight": [1.0, 2.0, 3.0]}}, "task.class_weights"),
        (SPECS["binary"], {"own_loss": lambda outputs, targets: outputs.mean(), "loss_name": "mine"}, "your own"),
    ],
)
def test_obstacles(spec: DataSpec, arguments: dict[str, Any], words: str) -> None:
    obstacle = find_obstacle(Objective(spec, **arguments))
    assert obstacle is not None
    assert words in obstacle
