"""The step graph against the loop without it, on a stand-in for the GPU that keeps memory as a CUDA graph does."""

import contextlib
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.acceleration import cuda_graph
from dlrun.engine.acceleration.cuda_graph import CudaGraphStep, find_obstacle
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.objective import Objective
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import StopRules, TrainState
from dlrun.engine.trainer import Trainer

SPEC = DataSpec("vector", (5,), "multiclass", 3)
CPU = torch.device("cpu")


class Net(nn.Module):
    """Dropout draws, batch norm keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Log(Callback):
    """Keeps the logged steps and the rows."""

    def __init__(self) -> None:
        self.logged: list[Any] = []

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        self.logged.append((trainer.step, values))

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        self.logged.append((row, trainer.timings))


def prepare(optimizer: Any, schedule: Any = None, ema: float | None = None, **limits: Any) -> TrainState:
    generator = torch.Generator().manual_seed(1)
    data = Split((torch.randn(46, 5, generator=generator),), torch.randint(3, (46,), generator=generator))
    train = MemoryBatches(data, EpochOrder(46, 8, shuffle=True), Placement(CPU, torch.float32, SPEC))
    model = Net()
    own = optimizer(model.parameters())
    average = None if ema is None else ExponentialMovingAverage(model, own, ema)
    kind, per = (None, "epoch") if schedule is None else (schedule[0](own), schedule[1])
    return TrainState(
        model, Objective(SPEC), own, Schedule(own, kind, per), torch.amp.GradScaler("cpu", enabled=False),
        train, None,
        StopRules(epochs=6, log_every_steps=1) if not limits else StopRules(epochs=6, log_every_steps=1, **limits),
        "train/loss", "min", contextlib.nullcontext, lambda: None, average,
    )  # fmt: skip


def train_steps(t: TrainState) -> tuple[list[Any], list[Tensor]]:
    torch.manual_seed(3)
    log = Log()
    Trainer(t, [log], lambda: False).fit()
    logged = [entry[:1] if isinstance(entry[0], dict) else entry for entry in log.logged]
    averaged = [] if t.ema is None else list(t.ema.model.state_dict().values())
    return logged, [*t.model.state_dict().values(), *averaged]


def fuse(kind: Any, **settings: Any) -> Callable[..., Any]:
    return lambda parameters: kind(parameters, fused=True, **settings)


CASES: dict[str, tuple[Any, ...]] = {
    "sgd": (fuse(torch.optim.SGD, lr=0.1, momentum=0.9), None, None, {}),
    "adam": (fuse(torch.optim.Adam, lr=0.01), None, None, {"grad_clip_norm": 0.5}),
    "accumulated": (fuse(torch.optim.AdamW, lr=0.01), None, None, {"accumulate_steps": 2}),
    "a rate an epoch": (fuse(torch.optim.SGD, lr=0.1), (lambda o: ExponentialLR(o, 0.9), "epoch"), None, {}),
    "a rate a step": (fuse(torch.optim.SGD, lr=0.1), (lambda o: ExponentialLR(o, 0.9), "step"), None, {}),
    "cycled momentum": (fuse(torch.optim.Adam, lr=0.01), (lambda o: OneCycleLR(o, 0.1, 36), "step"), None, {}),
    "no fused kernel": (lambda p: torch.optim.RMSprop(p, lr=0.01), None, None, {"grad_clip_norm": 0.1}),
    "averaged": (fuse(torch.optim.SGD, lr=0.1), None, 0.9, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_one_without_a_graph(case: str, pretended: Any) -> None:
    optimizer, schedule, ema, limits = CASES[case]
    wanted, weights = train_steps(prepare(optimizer, schedule, ema, **limits))
    t = prepare(optimizer, schedule, ema, **limits)
    recorder = pretended.Recorder(t)
    t.graph_step = CudaGraphStep(recorder, pytest.fail)
    losses, ours = train_steps(t)
    assert losses == wanted
    assert all(torch.equal(a, b) for a, b in zip(ours, weights, strict=True))
    # Full batches, and the last one of an epoch from its fourth time on; both anew in an epoch with another rate.
    assert recorder.records == (6 + 3 if case == "a rate an epoch" else 2)
    assert recorder.replays == t.progress.step - 6


def test_settings_that_change_are_recorded_anew(pretended: Any) -> None:
    t = prepare(fuse(torch.optim.SGD, lr=0.1, momentum=0.5))
    recorder = pretended.Recorder(t)
    t.graph_step = CudaGraphStep(recorder, pytest.fail)
    train_steps(t)
    t.optimizer.param_groups[0]["momentum"] = 0.9
    t.stop_rules.epochs += 1
    train_steps(t)
    assert recorder.records == 4
    assert t.optimizer.param_groups[0].keys().isdisjoint({"capturable"})
    assert isinstance(t.optimizer.param_groups[0]["lr"], float)


def test_what_cannot_be_recorded_is_said_once_and_trained_all_the_same(pretended: Any) -> None:
    wanted, weights = train_steps(prepare(fuse(torch.optim.SGD, lr=0.1)))
    t, messages = prepare(fuse(torch.optim.SGD, lr=0.1)), []

    class Refusing(pretended.Recorder):
        def record(self, make: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")

    t.graph_step = CudaGraphStep(Refusing(t), messages.append)
    losses, ours = train_steps(t)
    assert losses == wanted
    assert all(torch.equal(a, b) for a, b in zip(ours, weights, strict=True))
    assert messages == [
        "no CUDA graph: the step cannot be recorded (operation not permitted when stream is capturing); "
        "device.cuda_graph=off saves the try"
    ]


def test_only_so_many_shapes_get_a_graph(pretended: Any) -> None:
    t = prepare(fuse(torch.optim.SGD, lr=0.1))
    graph: Any = CudaGraphStep(pretended.Recorder(t), pytest.fail)
    x, y = torch.randn(9, 5), torch.zeros(9, dtype=torch.long)
    is_graphed = [graph(t, [((x[:rows],), y[:rows])], []) for rows in range(2, 9)]
    assert is_graphed == [True] * cuda_graph._MOST_SHAPES + [False] * 3


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"kind": "tokens"}, "packed sequences"),
        ({"compiled": True}, r"device\.compile"),
        ({"profiled": True}, r"trainer\.profile"),
        ({"count": 2}, "several processes"),
        ({"fp16": True}, "fp16"),
        ({"optimizer": torch.optim.LBFGS}, "evaluates the loss itself"),
    ],
)
def test_a_reason_is_given_where_there_is_no_graph(what: dict[str, Any], reason: str) -> None:
    t: Any = prepare(what.pop("optimizer", None) or fuse(torch.optim.SGD))
    fp16 = what.pop("fp16", False)
    t.scaler = SimpleNamespace(is_enabled=lambda: fp16)
    t.ranks = SimpleNamespace(world_size=what.pop("count", 1))
    obstacle = find_obstacle(t, **{"kind": "image", "compiled": False, "profiled": False} | what)
    assert obstacle is not None
    assert re.search(reason, obstacle)


def test_a_plain_training_has_no_reason_against_it() -> None:
    assert find_obstacle(prepare(fuse(torch.optim.SGD)), "image", compiled=False, profiled=False) is None
