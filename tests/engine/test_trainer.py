"""The loop against plain torch: the same weights, steps and errors, and no wait for the device."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from dlrun.core.errors import RunError
from dlrun.data.batches import Batches, EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split, TaskName
from dlrun.engine import trainer
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import StopRules, TrainState
from dlrun.engine.trainer import Trainer

ROWS, FEATURES, CLASSES = 22, 5, 3
Make = Callable[[Iterable[Any]], Optimizer]


class GraphRecorder(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.rows: list[dict[str, float]] = []
        self.best: list[bool] = []
        self.saved: list[tuple[str, int]] = []

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        self.steps[trainer.step] = values

    def on_step_end(self, trainer: TrainerView) -> None:
        self.saved.append(("step", trainer.step))

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.best.append(trainer.is_best)
        self.saved.append(("epoch", trainer.step))

    def on_interrupt(self, trainer: TrainerView) -> None:
        self.saved.append(("interrupted", trainer.step))


class Watched(SGD):
    """Keeps the gradients that each step is made with."""

    seen: list[list[Tensor]]

    def step(self, closure: Any = None) -> Any:
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        self.seen = [*getattr(self, "seen", []), grads]
        return super().step(closure)


def draw(task: TaskName = "multiclass", rows: int = ROWS) -> Split:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, FEATURES, generator=generator)
    if task == "regression":
        return Split((x,), torch.randn(rows, CLASSES, generator=generator))
    if task == "tagging":
        x = torch.randn(rows, 4, FEATURES, generator=generator)
        tags = torch.randint(0, CLASSES, (rows, 4), generator=generator)
        lengths = torch.randint(1, 5, (rows, 1), generator=generator)
        return Split((x,), tags.masked_fill(torch.arange(4) >= lengths, -100))
    return Split((x,), torch.randint(0, CLASSES, (rows,), generator=generator))


def batches(split: Split, size: int, task: TaskName = "multiclass", dtype: Any = None, **order: Any) -> Batches:
    place = Placement(torch.device("cpu"), dtype or torch.float32, DataSpec("vector", (FEATURES,), task, CLASSES))
    return MemoryBatches(split, EpochOrder(len(split), size, **order), place)


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES))


def prepare(model: nn.Module, optimizer: Optimizer, train: Batches, **settings: Any) -> TrainState:
    """settings: the fields of Limits, or val, task, reduction, monitor, mode."""
    limits = {k: settings.pop(k) for k in list(settings) if k in StopRules.__dataclass_fields__}
    spec = DataSpec("vector", (FEATURES,), settings.get("task", "multiclass"), CLASSES)
    task = Objective(spec, reduction=settings.get("reduction", "mean"))
    schedule, scaler = Schedule(optimizer, None), torch.amp.GradScaler("cpu", enabled=False)
    monitor, mode, val = settings.get("monitor", "train/loss"), settings.get("mode", "min"), settings.get("val")
    ends, plain = StopRules(**{"log_every_steps": 1} | limits), contextlib.nullcontext
    return TrainState(
        model, task, optimizer, schedule, scaler, train, val, ends, monitor, mode, plain, synchronize=lambda: None
    )


def sgd(train: Batches, lr: float = 0.1, **settings: Any) -> TrainState:
    model = net()
    return prepare(model, SGD(model.parameters(), lr=lr), train, **settings)


def fit(training: TrainState, stop: Callable[[], bool] = lambda: False) -> tuple[str, GraphRecorder]:
    recorder = GraphRecorder()
    return Trainer(training, [recorder], stop).fit(), recorder


def train_by_hand(make: Make, epochs: int, size: int, clip: float | None = None) -> tuple[nn.Module, list[float]]:
    """The loop as a textbook writes it; returns the trained net and the losses of its steps."""
    model, losses, data = net(), [], draw()
    optimizer = make(model.parameters())
    for epoch in range(1, epochs + 1):
        order = EpochOrder(ROWS, size, shuffle=True).permutation(epoch)
        for start in range(0, ROWS, size):
            chosen = order[start : start + size]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.inputs[0][chosen]), data.targets[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            losses.append(loss.item())
    return model, losses


def assert_equal(one: nn.Module, two: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.01)], ids=["momentum", "adam"]
)
def test_fit_is_bit_for_bit_a_plain_torch_loop(make: Make, clip: float | None) -> None:
    model, train = net(), batches(draw(), 5, shuffle=True)
    status, recorder = fit(prepare(model, make(model.parameters()), train, epochs=3, grad_clip_norm=clip))
    truth, losses = train_by_hand(make, 3, 5, clip)
    assert status == "completed"
    assert_equal(model, truth)
    assert [v["train/loss_step"] for v in recorder.steps.values()] == pytest.approx(losses, rel=1e-12)
    assert list(recorder.steps) == list(range(1, 16))


def test_lbfgs_is_plain_torch_and_counts_a_step_a_batch() -> None:
    def lbfgs(parameters: Iterable[Any]) -> Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=4)

    model, truth, data = net(), net(), draw()
    _, recorder = fit(prepare(model, lbfgs(model.parameters()), batches(data, 11), epochs=2))
    optimizer = lbfgs(truth.parameters())
    for start in (0, 11) * 2:
        part = data.rows(torch.arange(start, start + 11))  # a copy, as the loop has it: views round otherwise

        def closure(part: Split = part) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(truth(part.inputs[0]), part.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
    assert_equal(model, truth)
    assert recorder.rows[-1]["step"] == 4
    assert recorder.rows[1]["train/loss"] < recorder.rows[0]["train/loss"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("task", ["multiclass", "regression", "tagging"])
@pytest.mark.parametrize(("accumulate", "sizes"), [(1, [*[4] * 5, 2]), (2, [8, 8, 6]), (3, [12, 10]), (4, [16, 6])])
def test_accumulated_gradients_are_those_of_one_large_batch(
    accumulate: int, sizes: list[int], task: TaskName, reduction: str
) -> None:
    data, model, truth = draw(task), net().double(), net().double()
    optimizer, train = Watched(model.parameters(), lr=0.0), batches(data, 4, task, torch.float64)
    training = prepare(model, optimizer, train, task=task, reduction=reduction, accumulate_steps=accumulate)
    _, recorder = fit(training)
    assert training.progress.step == len(sizes) == len(optimizer.seen)
    x, y = data.inputs[0].double(), data.targets
    y = y.double() if y.is_floating_point() else y
    for i, (rows, targets) in enumerate(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)):
        loss = training.objective.compute_loss(truth(rows), targets)
        wanted = torch.autograd.grad(loss, list(truth.parameters()))
        for actual, right in zip(optimizer.seen[i], wanted, strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-10, atol=1e-12)
        shown = loss.item() / (1 if reduction == "mean" else int(training.objective.count_targets(targets)))
        assert recorder.steps[i + 1]["train/loss_step"] == pytest.approx(shown)
        norm = torch.cat([g.flatten() for g in wanted]).norm()
        assert recorder.steps[i + 1]["train/grad_norm"] == pytest.approx(float(norm))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 2]), (True, [8])])
def test_ten_rows_in_batches_of_eight_are_two_steps_or_one(drop_last: bool, sizes: list[int]) -> None:
    training = sgd(batches(draw(rows=10), 8, drop_last=drop_last), epochs=3)
    fit(training)
    assert (training.progress.step, training.progress.samples) == (3 * len(sizes), 3 * sum(sizes))


@pytest.mark.parametrize(("most", "steps", "epochs"), [(7, 7, 2), (5, 5, 1), (99, 15, 3)])
def test_training_ends_after_max_steps(most: int, steps: int, epochs: int) -> None:
    training = sgd(batches(draw(), 5), epochs=3, max_steps=most)
    status, recorder = fit(training)
    assert (status, training.progress.step, len(recorder.rows)) == ("completed", steps, epochs)


def test_half_an_epoch_is_saved_before_its_row_which_is_of_the_end() -> None:
    training = sgd(batches(draw(), 5), epochs=3, max_steps=7)
    _, recorder = fit(training)
    kinds = [event for event in recorder.saved if event[0] != "step"]
    assert kinds == [("epoch", 5), ("interrupted", 7), ("epoch", 7)]
    assert [(row["epoch"], row["step"]) for row in recorder.rows] == [(1, 5), (2, 7)]
    reference = sgd(batches(draw(), 5), epochs=3, max_steps=10)
    assert ("end", -1) not in fit(reference)[1].saved


def test_half_an_epoch_that_is_out_of_steps_gets_its_row_without_another_step() -> None:
    """A run that was killed between its last step and its result."""
    training = sgd(batches(draw(), 5), epochs=3, max_steps=7)
    wanted = fit(training)[1].rows[-1]
    killed = sgd(batches(draw(), 5), epochs=3, max_steps=7)
    fit(killed, lambda: killed.progress.step >= 6)
    assert Trainer(killed, [], lambda: False).train_epoch()
    assert (killed.progress.step, killed.progress.batch) == (7, 2)
    status, recorder = fit(killed)
    assert (status, recorder.rows) == ("completed", [wanted])
    assert killed.progress.step == 7


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (3, 4), (9, 6)])
def test_training_stops_early_when_nothing_improves(patience: int, epochs: int) -> None:
    training = sgd(batches(draw(), 5), lr=0.0, epochs=6, patience=patience)
    status, recorder = fit(training)
    assert (status, len(recorder.rows)) == ("completed" if epochs == 6 else "early_stopped", epochs)


@pytest.mark.parametrize("size", [5, 22, 100])
def test_evaluation_weighs_every_row_the_same(size: int) -> None:
    model, data = net(dropout=0.5), draw()
    training = prepare(model, SGD(model.parameters(), lr=0.1), batches(data, size))
    metrics = trainer.evaluate(model, training.train, training.objective, contextlib.nullcontext)
    with torch.no_grad():
        outputs = model.eval()(data.inputs[0])
    assert metrics["loss"] == pytest.approx(float(F.cross_entropy(outputs, data.targets)), rel=1e-6)
    assert metrics["accuracy"] == float((outputs.argmax(1) == data.targets).double().mean())


@pytest.mark.parametrize(("mode", "pick"), [("min", min), ("max", max)])
@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy"])
def test_the_best_epoch_is_the_first_of_the_best_values(monitor: str, mode: str, pick: Any) -> None:
    val = batches(draw(rows=40), 7)
    training = sgd(batches(draw(), 5), lr=1.5, epochs=8, val=val, monitor=monitor, mode=mode)
    _, recorder = fit(training)
    values = [row[monitor] for row in recorder.rows]
    assert training.progress.best_value == pick(values)
    assert training.progress.best_epoch == values.index(pick(values)) + 1
    assert training.progress.best_step == 5 * (values.index(pick(values)) + 1)
    assert recorder.best == [v == pick(values[: i + 1]) and v not in values[:i] for i, v in enumerate(values)]
    assert len(set(values)) > 2


@pytest.mark.parametrize("log_every", [1, 2, 1000])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("bad", [1, 2, 3, 5, 6, 7])  # of the batches 0..7, so that groups of three end ragged
def test_a_loss_that_is_not_finite_names_its_step(bad: int, accumulate: int, log_every: int) -> None:
    data, order = draw(), EpochOrder(ROWS, 3, shuffle=True).permutation(1)
    data.inputs[0][order[3 * bad], 2] = math.nan
    train = batches(data, 3, shuffle=True)
    training = sgd(train, accumulate_steps=accumulate, log_every_steps=log_every, epochs=2)
    with pytest.raises(RunError) as caught:
        fit(training)
    assert f"the loss is nan at step {bad // accumulate + 1} (epoch 1);" in str(caught.value)
    if accumulate == 1:
        _, losses = train_by_hand(lambda p: SGD(p, lr=0.1), 1, 3)
        assert f"the last finite loss was {losses[bad - 1]:.6g};" in str(caught.value)


@pytest.mark.parametrize("stop_at", [2, 5, 7, 10])
def test_a_stop_ends_the_run_after_the_step_unless_it_was_the_last(stop_at: int) -> None:
    training = sgd(batches(draw(), 5), epochs=2)
    status, recorder = fit(training, lambda: training.progress.step >= stop_at)
    assert (status, training.progress.step) == ("completed" if stop_at == 10 else "interrupted", stop_at)
    assert len(recorder.rows) == training.progress.epoch == stop_at // 5
    assert training.progress.batch == stop_at % 5
    assert recorder.saved[-1] == ("epoch" if stop_at == 10 else "interrupted", stop_at)


def count_calls(name: str, calls: list[str]) -> Any:
    """Tensor's method of that name, which adds to `calls`."""
    before = getattr(Tensor, name)

    def method(self: Tensor, *args: Any) -> Any:
        calls.append(name)
        return before(self, *args)

    return method


WAITS = ("item", "tolist", "__float__", "__bool__", "__int__", "__index__", "cpu", "numpy", "nonzero")


@pytest.mark.parametrize("task", ["multiclass", "regression", "tagging"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_does_not_wait_for_the_device(
    task: TaskName, clip: float | None, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in WAITS:
        monkeypatch.setattr(Tensor, name, count_calls(name, calls))

    def waits(rows: int, log_every: int) -> list[str]:
        settings: dict[str, Any] = {"task": task, "grad_clip_norm": clip, "accumulate_steps": accumulate}
        train = batches(draw(task, rows), 2, task, shuffle=True)
        training = sgd(train, log_every_steps=log_every, **settings)
        recorder = GraphRecorder()
        calls.clear()
        assert Trainer(training, [recorder], lambda: False).train_epoch()
        return list(calls)

    assert waits(rows=6, log_every=1000) == waits(rows=60, log_every=1000) == ["tolist"]  # the look at the end
    assert len(waits(rows=60, log_every=5)) > 5
