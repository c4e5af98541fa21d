"""Learning rates against numbers by hand, and against torch's schedulers without dlrun."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from dlrun.engine.optim.schedule import Schedule

STEPS, EPOCHS = 4, 6  # steps an epoch
LOSSES = [3.0, 2.0, 2.5, 2.6, 2.7, 2.4]
Make = Callable[[Optimizer], LRScheduler]
SCHEDULERS: dict[str, tuple[str, Make]] = {
    "step": ("epoch", lambda o: StepLR(o, 2, 0.5)),
    "multistep": ("epoch", lambda o: MultiStepLR(o, [1, 4], 0.1)),
    "exponential": ("epoch", lambda o: ExponentialLR(o, 0.9)),
    "cosine": ("epoch", lambda o: CosineAnnealingLR(o, EPOCHS)),
    "cosine by step": ("step", lambda o: CosineAnnealingLR(o, EPOCHS * STEPS)),
    "one_cycle": ("step", lambda o: OneCycleLR(o, 1.0, EPOCHS * STEPS)),
    "plateau": ("epoch", lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1)),
}


def optimizer(*rates: float, adam: bool = False) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr, "name": f"g{i}"} for i, lr in enumerate(rates)]
    return torch.optim.Adam(groups) if adam else torch.optim.SGD(groups)


def step(own_optimizer: Optimizer) -> None:
    for group in own_optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    own_optimizer.step()


def rates(own_optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in own_optimizer.param_groups]


def walk(own_optimizer: Optimizer, schedule: Schedule, start: int = 0, end: int = EPOCHS * STEPS) -> list[list[float]]:
    """The learning rates that each step was made with."""
    used = []
    for i in range(start, end):
        used.append(rates(own_optimizer))
        step(own_optimizer)
        schedule.advance_step()
        if (i + 1) % STEPS == 0:
            schedule.advance_epoch(LOSSES[i // STEPS])
    return used


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_moves_as_in_plain_torch(name: str) -> None:
    interval, make = SCHEDULERS[name]
    ours, plain = optimizer(0.1, 0.02, adam=True), optimizer(0.1, 0.02, adam=True)
    schedule, scheduler = Schedule(ours, make(ours), interval), make(plain)
    used = walk(ours, schedule)
    wanted = []
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            wanted.append(rates(plain))
            step(plain)
            if interval == "step":
                scheduler.step()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(LOSSES[epoch])
        elif interval == "epoch":
            scheduler.step()
    assert used == wanted
    assert len({tuple(pair) for pair in used}) > 1


def test_the_warm_up_climbs_in_a_straight_line() -> None:
    own_optimizer = optimizer(0.8, 0.4)
    used = walk(own_optimizer, Schedule(own_optimizer, None, warmup_steps=4), end=7)
    assert [pair[0] for pair in used] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])
    assert [pair[1] for pair in used] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


def test_the_scheduler_begins_after_the_warm_up() -> None:
    own_optimizer = optimizer(1.0)
    used = walk(own_optimizer, Schedule(own_optimizer, StepLR(own_optimizer, 1, 0.5), "step", warmup_steps=3), end=6)
    assert [pair[0] for pair in used] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0, 0.5, 0.25])


def test_an_epoch_that_ends_within_the_warm_up_does_not_move_the_scheduler() -> None:
    own_optimizer = optimizer(1.0)
    used = walk(own_optimizer, Schedule(own_optimizer, StepLR(own_optimizer, 1, 0.5), "epoch", warmup_steps=6), end=12)
    climbing = [k / 6 for k in range(1, 7)]
    assert [pair[0] for pair in used] == pytest.approx([*climbing, 1.0, 1.0, *[0.5] * 4])


def test_a_warmed_up_one_cycle_starts_where_the_cycle_starts() -> None:
    own_optimizer, plain = optimizer(0.1), optimizer(0.1)
    used = walk(
        own_optimizer, Schedule(own_optimizer, OneCycleLR(own_optimizer, 1.0, 20), "step", warmup_steps=2), end=12
    )
    cycle = OneCycleLR(plain, 1.0, 20)
    wanted = []
    for _ in range(10):
        wanted.append(rates(plain)[0])
        step(plain)
        cycle.step()
    assert [pair[0] for pair in used] == pytest.approx([wanted[0] / 2, wanted[0], *wanted])


@pytest.mark.parametrize("stop", [1, 4, 7, 13])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_restored_schedule_goes_on_as_if_nothing_had_been(name: str, warmup: int, stop: int) -> None:
    interval, make = SCHEDULERS[name]
    end = EPOCHS * STEPS

    def fresh() -> tuple[Optimizer, Schedule]:
        own_optimizer = optimizer(0.1, 0.02)
        return own_optimizer, Schedule(own_optimizer, make(own_optimizer), interval, warmup)

    reference = walk(*fresh(), end=end)
    first = fresh()
    begun = walk(*first, end=stop)
    states: tuple[Any, Any] = (first[0].state_dict(), first[1].state_dict())
    second = fresh()
    second[0].load_state_dict(states[0])
    second[1].load_state_dict(states[1])
    assert begun + walk(*second, start=stop, end=end) == reference


def test_learning_rates_are_named_after_their_groups() -> None:
    assert Schedule(optimizer(0.1), None).get_learning_rates() == {"lr": 0.1}
    assert Schedule(optimizer(0.1, 0.2), None).get_learning_rates() == {"lr/g0": 0.1, "lr/g1": 0.2}
