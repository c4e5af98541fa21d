"""Every size of batch that an epoch holds is tried before the first step, and trying leaves no trace."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.batches import EpochOrder
from dlrun.data.spec import DataSpec
from dlrun.engine.device import get_rng_state
from dlrun.engine.objective import Objective
from dlrun.experiment.preflight import checks
from dlrun.experiment.preflight.checks import BatchSize, list_batch_sizes

QUIET = ("tracking.graph=false", "figures=false")
NORMED = ("model=sequential", "model.layers=[{Linear:[in,8]},{BatchNorm1d:8},ReLU,{Linear:[8,out]}]")


@pytest.mark.parametrize(
    ("order", "processes", "most_batches", "wanted"),
    [
        (EpochOrder(64, 16), 1, None, [BatchSize(16, 16, False)]),
        (EpochOrder(65, 16), 1, None, [BatchSize(16, 16, False), BatchSize(1, 1, True)]),
        (EpochOrder(65, 16, drop_last=True), 1, None, [BatchSize(16, 16, False)]),
        (EpochOrder(65, 16), 1, 4, [BatchSize(16, 16, False)]),  # the training ends before the last batch
        (EpochOrder(65, 16), 1, 5, [BatchSize(16, 16, False), BatchSize(1, 1, True)]),
        (EpochOrder(5, 16), 1, None, [BatchSize(5, 5, False)]),
        (EpochOrder(35, 16), 2, None, [BatchSize(8, 16, False), BatchSize(2, 3, True), BatchSize(1, 3, True)]),
        (EpochOrder(33, 16), 2, None, [BatchSize(8, 16, False), BatchSize(1, 1, True), BatchSize(1, 1, True)]),
    ],
)
def test_the_sizes_that_an_epoch_holds(
    order: EpochOrder, processes: int, most_batches: int | None, wanted: list[BatchSize]
) -> None:
    assert list_batch_sizes(order, processes, most_batches) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("command", [("check",), ()])
def test_a_last_batch_of_one_row_under_batch_norm(dlrun: Callable, tmp_path: Any, command: tuple[str, ...]) -> None:
    words = ("data=blobs", "data.rows_per_class=33", "data.batch_size=13", *NORMED, "trainer.epochs=1", *QUIET)
    outcome = dlrun(*command, *words)
    assert outcome.code == 2
    message = (
        "the last batch of an epoch has 1 row (66 training rows in batches of 13), and layer layers.1 (BatchNorm1d)"
    )
    assert message in " ".join(outcome.err.split())
    assert "does not take 1 row in training: Expected more than 1 value per channel" in " ".join(outcome.err.split())
    assert "type data.drop_last=true" in outcome.err
    assert not (tmp_path / "outputs").exists()
    if not command:
        assert dlrun(*words, "data.drop_last=true").code == 0  # the advice works when it is taken
        assert dlrun(*words, "trainer.max_steps=5").code == 0  # the last batch is never reached


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=blobs", "data.batch_size=1"), "a batch has 1 row, and layer layers.1 (BatchNorm1d)"),
        (
            ("data=points", "data.x=[1]", "data.y=[2]"),
            "there is one training row only, and layer layers.1 (BatchNorm1d)",
        ),
    ],
)
def test_batches_of_one_row_under_batch_norm(dlrun: Callable, words: tuple[str, ...], message: str) -> None:
    outcome = dlrun("check", *words, *NORMED)
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())
    assert "drop_last" not in outcome.err


@pytest.mark.slow
def test_batch_norm_over_several_places_takes_one_row(dlrun: Callable) -> None:
    one = ("data.limit_batches=1", "data.batch_size=1")
    assert dlrun("check", "data=digits", "model=resnet", *one, "data.image_size=16").code == 0
    layers = "model.layers=[{Conv2d:[1,4,8]},{BatchNorm2d:4},Flatten,{Linear:[4,out]}]"  # maps of 1×1
    refused = dlrun("check", "data=digits", "model=sequential", layers, *one, "data.image_size=8")
    assert "there is one training row only, and layer layers.1 (BatchNorm2d)" in " ".join(refused.err.split())


class Net(nn.Module):
    """Keeps all sorts of things, and does in training what a test asks for."""

    def __init__(self, in_training: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
        self.frozen = nn.BatchNorm1d(4).eval()
        self.in_training = in_training
        self.calls = 0
        self.seen: list[int] = []
        self.memory = {"last": deque([0], maxlen=3), "mean": torch.zeros(4)}
        self.array = np.zeros(2)
        self.plain = torch.zeros(1)
        self.register_buffer("grown", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.memory["last"].append(len(x))
        self.memory["mean"] += 1
        self.array += 1
        self.plain += 1
        self.grown = torch.cat([self.grown, x.detach().flatten()])
        self.hidden = x
        self.register_buffer("late", x.detach(), persistent=False)
        y: Tensor = self.frozen(self.layer(x)) * torch.rand(()) * np.random.rand()
        return self.in_training(y) if self.training else y


def list_state(model: Net) -> list[Any]:
    own = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    modes = [module.training for module in model.modules()]
    return [
        str(own),
        str(dict(model.named_buffers())),
        str(dict(model.named_parameters())),
        modes,
        str(get_rng_state()),
    ]


def look(model: nn.Module, sizes: list[BatchSize], order: EpochOrder, work: int = 1) -> None:
    batch = ((torch.rand(8, 4),), torch.rand(8, 4))
    task = Objective(DataSpec("vector", (4,), "regression", 4))
    checks.check_batch_sizes(model, batch, task, contextlib.nullcontext, sizes, order, work)


def test_all_that_a_module_keeps_is_put_back() -> None:
    model, order = Net(), EpochOrder(11, 8)
    before = list_state(model)
    look(model, list_batch_sizes(order), order)
    assert list_state(model) == before
    model(torch.rand(3, 4))
    assert list_state(model) != before


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda y: y.view(8, 4),
            "the last batch of an epoch has 3 rows (11 training rows in batches of 8), and the mo",
        ),
        (lambda y: y.squeeze(0)[:, :3], r"with 8 rows in training the model's output has the shape (8, 3)"),
        (lambda y: (y, y), "with 8 rows in training the model must return a tensor, not tuple"),
    ],
)
def test_what_training_alone_shows_of_a_net(answer: Callable[[Tensor], Any], message: str) -> None:
    order = EpochOrder(11, 8)
    model = Net(answer)
    before = list_state(model)
    with pytest.raises(RequestError) as caught:
        look(model, list_batch_sizes(order), order)
    assert message in str(caught.value)
    assert list_state(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_large_net_is_shown_fewer_rows() -> None:
    rows: list[int] = []

    def note(y: Tensor) -> Tensor:
        rows.append(len(y))
        return y

    order = EpochOrder(9, 8)
    with pytest.raises(RequestError, match="BatchNorm1d"):
        look(Net(note), list_batch_sizes(order), order, work=10**12)
    assert rows == [2]
