"""The state of a run: half of it saved and loaded ends in the bits of a run that was never stopped."""

import contextlib
import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from dlrun.core.errors import CheckpointError, RunError
from dlrun.data.batches import EpochOrder, MemoryBatches, Placement
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.device import get_rng_state, set_rng_state
from dlrun.engine.objective import Objective
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import Progress, StopRules, TrainState
from dlrun.engine.trainer import Trainer

CPU = torch.device("cpu")
SPEC = DataSpec("vector", (5,), "multiclass", 3)
EPOCHS, PER_EPOCH = 3, 6


class Rows(Callback):
    """Keeps the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        self.rows.append(row)


def batches(rows: int, **order: Any) -> MemoryBatches:
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.randn(rows, 5, generator=generator), torch.randint(0, 3, (rows,), generator=generator)
    return MemoryBatches(Split((x,), y), EpochOrder(rows, 4, **order), Placement(CPU, torch.float32, SPEC))


def make_state(scheduler: str = "one_cycle", mode: str = "min", **limits: Any) -> TrainState:
    """A run with everything that has a state: dropout, batch norm, Adam, a scheduler, a validation part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3))
    optimizer: Optimizer = Adam(model.parameters(), lr=0.01)
    if scheduler == "one_cycle":
        schedule = Schedule(optimizer, OneCycleLR(optimizer, 0.1, EPOCHS * PER_EPOCH), "step", warmup_steps=4)
    else:
        schedule = Schedule(optimizer, ReduceLROnPlateau(optimizer, patience=0, threshold=0.5))
    return TrainState(
        model=model,
        objective=Objective(SPEC),
        optimizer=optimizer,
        schedule=schedule,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        train=batches(22, shuffle=True),
        val=batches(9),
        stop_rules=StopRules(**{"epochs": EPOCHS, "patience": 2} | limits),
        monitor="val/loss",
        mode=mode,
        autocast=contextlib.nullcontext,
        synchronize=lambda: None,
    )


def save_and_load(state: dict[str, Any]) -> Any:
    """As a checkpoint does it: plain values and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fit(training: TrainState, stop_at: int = 10**9) -> list[dict[str, float]]:
    rows = Rows()
    Trainer(training, [rows], lambda: training.progress.step >= stop_at).fit()
    return rows.rows


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scheduler", ["one_cycle", "plateau"])
@pytest.mark.parametrize("stop_at", [1, 5, 6, 8, 15])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(stop_at: int, scheduler: str, accumulate: int) -> None:
    settings: dict[str, Any] = {"scheduler": scheduler, "accumulate_steps": accumulate}
    reference = make_state(**settings)
    rows = fit(reference)
    first = make_state(**settings)
    begun = fit(first, stop_at)
    state = save_and_load(first.state_dict() | {"rng": get_rng_state()})
    second = make_state(**settings)
    fit(make_state(**settings))  # whatever other runs did to the generators meanwhile
    second.load_state_dict(state, CPU)
    set_rng_state(state["rng"])
    assert begun + fit(second) == rows
    for name, tensor in reference.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name
    left, right = second.optimizer.state_dict(), reference.optimizer.state_dict()
    assert left["param_groups"] == right["param_groups"]
    assert all(torch.equal(left["state"][i][k], v) for i, s in right["state"].items() for k, v in s.items())
    one, two = second.progress, reference.progress
    one.train_seconds = two.train_seconds = 0.0
    assert one == two


@pytest.mark.parametrize("missing", ["model", "optimizer", "scheduler", "progress", "totals", "rng"])
def test_every_part_of_the_state_is_needed(missing: str) -> None:
    """Were one of them left out, the test above would see it."""
    reference, first, second = make_state(), make_state(), make_state()
    rows = fit(reference)
    begun = fit(first, 8)
    state = first.state_dict() | {"rng": get_rng_state()}
    fresh = make_state().state_dict() | {"rng": get_rng_state()}
    state[missing] = fresh[missing]
    second.load_state_dict(save_and_load(state), CPU)
    set_rng_state(state["rng"])
    assert begun + fit(second) != rows


class Keeping(Rows):
    """Keeps the state that a run out of steps leaves."""

    state: Any = None

    def on_interrupt(self, trainer: TrainerView) -> None:
        self.rows.append({"end": 1.0})
        self.state = save_and_load(trainer.state.state_dict() | {"rng": get_rng_state()})


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("steps", [1, 5, 8])
def test_a_run_out_of_steps_goes_on_in_the_middle_of_the_epoch(steps: int, accumulate: int) -> None:
    reference, keeper = make_state("plateau", accumulate_steps=accumulate), Keeping()
    rows = fit(reference)
    short = make_state("plateau", accumulate_steps=accumulate, max_steps=steps)
    Trainer(short, [keeper], lambda: False).fit()
    second = make_state("plateau", accumulate_steps=accumulate)
    end = keeper.rows.index({"end": 1.0})
    assert keeper.rows[end + 1]["step"] == steps
    second.load_state_dict(keeper.state, CPU)
    set_rng_state(keeper.state["rng"])
    assert keeper.rows[:end] + fit(second) == rows
    assert all(torch.equal(v, second.model.state_dict()[k]) for k, v in reference.model.state_dict().items())
    assert second.progress.best_value == reference.progress.best_value


def test_the_first_and_the_last_finite_loss_are_part_of_the_state() -> None:
    reference, state = make_state(), {}
    fit(reference)
    first, second = make_state(), make_state()

    class Saves(Callback):
        def on_step_end(self, trainer: TrainerView) -> None:
            if trainer.step == 2:  # before anybody has looked at a loss
                state.update(save_and_load(trainer.state.state_dict()))

    Trainer(first, [Saves()], lambda: first.progress.step >= 2).fit()
    second.load_state_dict(state, CPU)
    assert second.progress.first_loss == reference.progress.first_loss
    assert math.isfinite(second.progress.last_finite_loss)


def test_no_state_is_given_after_a_loss_that_is_not_finite() -> None:
    training = make_state()
    fit(training, 2)
    training.recent_losses.append((3, torch.tensor(math.nan)))
    with pytest.raises(RunError, match=r"the loss is nan at step 3 .*; the last finite loss was \d"):
        training.state_dict()


@pytest.mark.parametrize("lost", ["model", "optimizer", "scheduler", "scaler", "progress", "early_stopping", "totals"])
def test_a_state_that_lacks_something_is_refused(lost: str) -> None:
    state = make_state().state_dict()
    del state[lost]
    with pytest.raises(CheckpointError, match=f"the checkpoint lacks '{lost}'"):
        make_state().load_state_dict(state, CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"0.weight": torch.ones(1)}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("progress", {"epochs_of_the_future": 3}),
        ("totals", {"waiting": [1], "sums": {}}),
        ("scheduler", None),
    ],
)
def test_a_state_of_something_else_is_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match="does not fit this model, optimizer and dlrun"):
        make_state().load_state_dict(make_state().state_dict() | {key: value}, CPU)


def test_a_loaded_state_shares_nothing_with_the_run_it_is_of() -> None:
    first, second = make_state(), make_state()
    fit(first, 3)
    second.load_state_dict(save_and_load(first.state_dict()), CPU)
    fit(second)
    assert (first.progress.step, second.progress.step) == (3, EPOCHS * PER_EPOCH)


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "best"),
    [
        ("min", 0.0, [3.0, 2.0, 2.0, 1.0], [True, True, False, True]),
        ("max", 0.0, [3.0, 2.0, 4.0, 4.0], [True, False, True, False]),
        ("min", 0.5, [3.0, 2.6, 2.4, 2.0], [True, False, True, False]),
        ("max", 0.5, [-3.0, -2.6, -2.4, -2.0], [True, False, True, False]),
        ("min", 0.0, [math.nan, 5.0, math.nan, 4.0], [False, True, False, True]),
        ("max", 0.0, [math.nan, -5.0, math.inf, 4.0], [False, True, True, False]),
    ],
)
def test_what_counts_as_better(mode: str, min_delta: float, values: list[float], best: list[bool]) -> None:
    training = make_state(mode=mode, min_delta=min_delta)
    are_better, waited = [], []
    for epoch, value in enumerate(values, start=1):
        training.progress.epoch, training.progress.step = epoch, 10 * epoch
        are_better.append(training.update_best(value))
        waited.append(training.progress.epochs_without_improvement)
    assert are_better == best
    last = max(i for i, better in enumerate(best) if better)
    assert training.progress.best_value == values[last]
    assert (training.progress.best_epoch, training.progress.best_step) == (last + 1, 10 * (last + 1))
    assert waited == [next((k for k in range(i + 1) if best[i - k]), i + 1) for i in range(len(best))]


@pytest.mark.parametrize(
    ("progress", "limits", "done", "tired"),
    [
        (Progress(epoch=2), {"epochs": 3}, False, False),
        (Progress(epoch=3), {"epochs": 3}, True, False),
        (Progress(epoch=1, step=7), {"epochs": 3, "max_steps": 7}, True, False),
        (Progress(epoch=1, step=6), {"epochs": 3, "max_steps": 7}, False, False),
        (Progress(epochs_without_improvement=2), {"patience": 2}, False, True),
        (Progress(epochs_without_improvement=1), {"patience": 2}, False, False),
        (Progress(epochs_without_improvement=99), {"patience": None}, False, False),
    ],
)
def test_when_training_ends(progress: Progress, limits: dict[str, Any], done: bool, tired: bool) -> None:
    training = make_state(**limits)
    training.progress = progress
    assert (training.is_done, training.is_out_of_patience) == (done, tired)


def test_samples_and_seconds_add_up_over_interruptions() -> None:
    train, progress = batches(22), Progress(batch=2)
    assert progress.add_epoch_time(0.5, train, 0) == {"epoch_seconds": 0.5, "samples_per_second": 16.0}
    progress.batch = 6
    assert progress.add_epoch_time(0.25, train, 2) == {"epoch_seconds": 0.25, "samples_per_second": 56.0}
    assert (progress.samples, progress.train_seconds) == (22, 0.75)
