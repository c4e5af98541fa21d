"""The learning rate of every step of whole trainings, for each shipped schedule, against closed forms written here."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from dlrun.config import compose, schema
from dlrun.config.settings import Settings, read_settings
from dlrun.data.batches import Batches
from dlrun.engine.device import Runtime
from dlrun.engine.optim.schedule import Schedule
from dlrun.experiment.builder import build

CPU = Runtime(torch.device("cpu"), "fp32", None, False, "cpu")
LR = 0.1
SHIPPED = sorted(path.stem for path in (schema.CONFIG_DIR / "scheduler").glob("*.yaml"))


@dataclass(frozen=True)
class Length:
    """A training on 100 rows in batches of 8, so 13 batches an epoch, the last of 4 rows."""

    trainer: dict[str, int]
    epoch_ends: tuple[int, ...]  # the step that ends each epoch


LENGTHS = {
    "whole epochs": Length({"epochs": 6}, (13, 26, 39, 52, 65, 78)),
    "max_steps in an epoch": Length({"epochs": 6, "max_steps": 45}, (13, 26, 39, 45)),
    "accumulation": Length({"epochs": 5, "accumulate_steps": 2}, (7, 14, 21, 28, 35)),
    "one epoch": Length({"epochs": 1}, (13,)),
}


@functools.cache
def compose_settings(scheduler: str) -> Settings:
    """Composing costs 0.1 s: once for each schedule."""
    words = ["data=regression", "data.batch_size=8", "model=linear", "optimizer=sgd", f"optimizer.lr={LR}"]
    config = compose.resolve(compose.compose_config([*words, f"scheduler={scheduler}"]))
    return read_settings(config, {"scheduler": scheduler})


def settings(scheduler: str, interval: str, warmup: int, trainer: dict[str, int]) -> Settings:
    chosen = compose_settings(scheduler)
    return dataclasses.replace(
        chosen,
        trainer=dataclasses.replace(chosen.trainer, **trainer),  # type: ignore[arg-type]
        scheduler=dataclasses.replace(chosen.scheduler, keys=schema.SchedulerKeys(interval, warmup)),
    )


@functools.cache
def train_batches() -> Batches:
    chosen = compose_settings("none")
    train = build.build_batches(chosen, build.build_data(chosen, None), nn.Linear(1, 1), CPU)[0]
    assert train is not None
    assert len(train) == 13
    return train


def build_schedule(chosen: Settings) -> tuple[Optimizer, Schedule]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    return optimizer, build.build_schedule(chosen, optimizer, train_batches(), "min", None)


def walk(optimizer: Optimizer, schedule: Schedule, ends: tuple[int, ...], first: int, last: int) -> list[float]:
    """The rate that each of the steps `first` to `last` is made with; the monitored metric never improves."""
    used = []
    for step in range(first, last + 1):
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.advance_step()
        if step in ends:
            schedule.advance_epoch(1.0)
    return used


# The rate after `moves` moves of a scheduler that makes `total` of them in its training, from LR on.
CLOSED_FORMS: dict[str, Callable[[int, int], float]] = {
    "none": lambda moves, total: LR,
    "cosine": lambda moves, total: LR * (1 + math.cos(math.pi * moves / total)) / 2,
    "exponential": lambda moves, total: LR * 0.95**moves,
    "step": lambda moves, total: LR * 0.1 ** (moves // 10),
    "multistep": lambda moves, total: LR * 0.1 ** sum(moves >= milestone for milestone in (10, 15)),
    # The first move is the first value and so the best, the next five are waited for, and the sixth falls.
    "plateau": lambda moves, total: LR * 0.1 ** ((moves - 1) // 6 if moves else 0),
}


def one_cycle(moves: int, total: int) -> float:
    """Half a cosine from 10 LR / 25 up to 10 LR over 30 % of the steps, then down to a ten thousandth of the start."""
    low, high, end = 10 * LR / 25, 10 * LR, 10 * LR / 25 / 1e4
    top = 0.3 * total - 1
    if moves <= top:
        start, stop, share = low, high, moves / top
    else:
        start, stop, share = high, end, (moves - top) / (total - 1 - top)
    return stop + (start - stop) * (1 + math.cos(math.pi * share)) / 2


CLOSED_FORMS["one_cycle"] = one_cycle


def compute_rates(scheduler: str, interval: str, warmup: int, ends: tuple[int, ...]) -> list[float]:
    """By counting: a scheduler moves after each step, or each epoch, that ends after the warm-up."""
    steps = ends[-1]
    all_ends = range(1, steps + 1) if interval == "step" else ends
    moving = [end for end in all_ends if end > warmup]
    rate = functools.partial(CLOSED_FORMS[scheduler], total=len(moving))
    climbing = [rate(0) * step / warmup for step in range(1, warmup + 1)]
    return climbing + [rate(sum(end < step for end in moving)) for step in range(warmup + 1, steps + 1)]


CASES = [
    (scheduler, interval, warmup, length)
    for scheduler, interval, warmup, length in itertools.product(SHIPPED, ("epoch", "step"), (0, 5, 14, 21), LENGTHS)
    if not (scheduler == "plateau" and interval == "step")  # refused: a metric comes once an epoch
    and warmup < LENGTHS[length].epoch_ends[-1]
    and not (scheduler == "one_cycle" and interval == "epoch" and length == "one epoch")  # a cycle of one value
]


@pytest.mark.parametrize(("scheduler", "interval", "warmup", "length"), CASES)
def test_every_step_has_the_rate_of_the_closed_form(scheduler: str, interval: str, warmup: int, length: str) -> None:
    ends = LENGTHS[length].epoch_ends
    chosen = settings(scheduler, interval, warmup, LENGTHS[length].trainer)
    optimizer, schedule = build_schedule(chosen)
    wanted = compute_rates(scheduler, interval, warmup, ends)
    assert walk(optimizer, schedule, ends, 1, ends[-1]) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    if scheduler == "cosine":
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)

    # Stopped inside of the warm-up, or early where there is none, and resumed from what a checkpoint holds.
    stop = max(warmup // 2, 3)
    before = build_schedule(chosen)
    begun = walk(*before, ends, 1, stop)
    after = build_schedule(chosen)
    after[0].load_state_dict(before[0].state_dict())
    after[1].load_state_dict(before[1].state_dict())
    assert begun + walk(*after, ends, stop + 1, ends[-1]) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_length_left_open_of_another_schedule_of_torchs_is_filled_as_well(interval: str) -> None:
    chosen = settings("none", interval, 26, LENGTHS["whole epochs"].trainer)
    arguments = {"total_iters": None}
    block = dataclasses.replace(
        chosen.scheduler, target="torch.optim.lr_scheduler.PolynomialLR", choice="own", arguments=arguments
    )
    optimizer, schedule = build_schedule(dataclasses.replace(chosen, scheduler=block))
    assert walk(optimizer, schedule, LENGTHS["whole epochs"].epoch_ends, 1, 78)[-1] > 0
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_warm_up_as_long_as_the_training_only_climbs() -> None:
    optimizer, schedule = build_schedule(settings("cosine", "epoch", 26, {"epochs": 2}))
    used = walk(optimizer, schedule, (13, 26), 1, 26)
    assert used == pytest.approx([LR * step / 26 for step in range(1, 27)])


@pytest.mark.slow
def test_a_run_by_epoch_with_a_warm_up_logs_the_rates_of_the_closed_form(dlrun: Callable) -> None:
    words = ("data=blobs", "data.batch_size=512", "optimizer.lr=0.1", "scheduler=cosine", "trainer.epochs=5",
             "tracking.graph=false", "figures=false", "tracking.diagnose=false")  # fmt: skip
    first = dlrun(*words)
    per_epoch = int(first.rows[0]["step"])
    outcome = dlrun(*words, f"scheduler.warmup_steps={2 * per_epoch}")
    climbed = [LR, LR, LR]  # two epochs climb to it, the third has it
    falling = [LR * (1 + math.cos(math.pi * moves / 3)) / 2 for moves in (1, 2)]
    assert [row["lr"] for row in outcome.rows] == pytest.approx(climbed + falling)
