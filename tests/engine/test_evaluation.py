"""What the model answers, and that it is left as it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine import evaluation
from dlrun.engine.device import Runtime

CPU = torch.device("cpu")
SPEC = DataSpec("vector", (2,), "regression", 1)


class Doubled(nn.Module):
    """2 x, and what it was asked: rows and type; half of the values are dropped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.calls: list[tuple[int, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((len(x), x.dtype))
        doubled: Tensor = 2 * self.dropout(self.frozen(x))
        return doubled


def rows(count: int, size: int) -> MemoryBatches:
    x = torch.arange(2.0 * count).view(count, 2)
    return MemoryBatches(Split((x,), x[:, :1]), EpochOrder(count, size), Placement(CPU, torch.float32, SPEC))


@pytest.fixture
def parts() -> Any:
    train, val, test = (rows(10, 4) for _ in range(3))
    training = SimpleNamespace(train=train, val=val)
    return SimpleNamespace(model=Doubled(), runtime=Runtime(CPU, "fp32", None, False, ""), training=training, test=test)


def test_every_module_goes_back_to_its_own_mode(parts: Any) -> None:
    with evaluation.evaluation_mode(parts.model):
        assert not any(module.training for module in parts.model.modules())
    assert (parts.model.training, parts.model.dropout.training, parts.model.frozen.training) == (True, True, False)


def test_outputs_are_those_of_evaluation(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(20.0).view(10, 2)
    (inputs,), answers, targets = evaluation.collect_outputs(parts.model, parts.test, parts.runtime.autocast)
    assert torch.equal(inputs, x)
    assert torch.equal(answers, 2 * x)
    assert torch.equal(targets, x[:, :1])
    assert parts.model.dropout.training
    monkeypatch.setattr(evaluation, "MAX_ROWS", 5)
    assert (
        len(evaluation.collect_outputs(parts.model, parts.test, parts.runtime.autocast)[1]) == 8
    )  # whole batches, until there are enough


def test_rows_are_given_without_asking_the_model(parts: Any) -> None:
    (x,), targets = evaluation.collect_rows(parts.training.train, 5)
    assert torch.equal(x, torch.arange(10.0).view(5, 2))
    assert torch.equal(targets, x[:, :1])
    assert parts.model.calls == []


def test_answers_come_in_pieces_and_in_the_models_precision(parts: Any) -> None:
    x = torch.rand(10_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    answers = evaluation.compute_outputs(parts.model, x, parts.runtime)
    assert parts.model.calls == [(8192, torch.float32), (1808, torch.float32)]
    assert answers.dtype == torch.float32
    assert torch.equal(answers, 2 * x.float())
    assert parts.model.training


def test_the_test_split_is_shown_before_the_others(parts: Any) -> None:
    assert evaluation.choose_split(parts.training, parts.test) == ("test", parts.test)
    parts.test = None
    assert evaluation.choose_split(parts.training, parts.test) == ("val", parts.training.val)
    parts.training.val = None
    assert evaluation.choose_split(parts.training, parts.test) == ("train", parts.training.train)
