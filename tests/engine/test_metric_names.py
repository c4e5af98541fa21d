"""Names and directions of metrics agree with what each task computes."""

import pytest
import torch

from dlrun.data.spec import DataSpec
from dlrun.engine.metric_names import DIRECTIONS, find_task, get_direction
from dlrun.engine.objective import Objective

SPECS = {
    "regression": DataSpec("vector", (2,), "regression", 1),
    "binary": DataSpec("vector", (2,), "binary", 1),
    "multiclass": DataSpec("vector", (2,), "multiclass", 12),
    "multilabel": DataSpec("vector", (2,), "multilabel", 3),
    "tagging": DataSpec("tokens", (3,), "tagging", 4, vocabulary=tuple("abc")),
}


@pytest.mark.parametrize("task", DIRECTIONS)
def test_a_perfect_answer_is_best_in_each_direction(task: str) -> None:
    spec = SPECS[task]
    objective = Objective(spec)
    targets = torch.tensor([[0.0], [1.0], [2.0]]) if task == "regression" else torch.tensor([0, 1, 1])
    if task == "tagging":
        targets = torch.tensor([[0, 1, 2], [3, 2, 1], [0, 0, 1]])
    if task == "multilabel":
        targets = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    if task == "regression":
        right, wrong = targets.clone(), targets.flip(0)
    elif task == "multilabel":
        right = 9.0 * (2 * targets - 1)
        wrong = -right
    elif task == "binary":
        right = 9.0 * (2 * targets[:, None] - 1)
        wrong = -right
    else:
        right = 9.0 * torch.nn.functional.one_hot(targets, spec.output_size)
        wrong = -right

    values = []
    for outputs in (right, wrong):
        totals = objective.new_accumulator()
        totals.add(outputs, targets, objective.compute_loss(outputs, targets))
        values.append(totals.compute_metrics())

    best, worst = values
    assert best.keys() == set(objective.metric_names) <= DIRECTIONS[task].keys()
    for name in best:
        is_less_better = get_direction(f"val/{name}") == "min"
        assert best[name] < worst[name] if is_less_better else best[name] > worst[name], name


def test_averaged_weights_have_the_direction_of_their_metric() -> None:
    assert get_direction("val/ema_accuracy") == "max"
    assert get_direction("val/ema_loss") == "min"
    assert get_direction("val/of_my_own") == "min"


@pytest.mark.parametrize("task", DIRECTIONS)
def test_a_task_is_known_by_its_own_metrics(task: str) -> None:
    assert find_task([f"train/{name}" for name in DIRECTIONS[task]]) == task
    assert find_task(["train/loss", "val/accuracy"]) == ""
