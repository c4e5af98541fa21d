"""Optimizers and schedules built from settings: their lengths, and what is refused before training."""

import functools
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dlrun.config import compose
from dlrun.config.settings import Settings, read_settings
from dlrun.core.errors import RequestError
from dlrun.engine.device import Runtime
from dlrun.experiment.builder import build

CPU = Runtime(torch.device("cpu"), "fp32", None, False, "cpu")


@functools.cache
def compose_plain(groups: tuple[str, ...]) -> DictConfig:
    """Composing costs 0.1 s: once for each choice of options."""
    return compose.compose_config(list(groups))


def settings(*words: str) -> Settings:
    choices = {"data": "digits", "model": "mlp", "optimizer": "adam", "scheduler": "none"}
    choices |= {key: value for key, _, value in (word.partition("=") for word in words) if key in choices}
    base = compose_plain(tuple(f"{key}={value}" for key, value in choices.items())).copy()
    OmegaConf.set_struct(base, False)
    keys = [word for word in words if word.partition("=")[0] not in choices]
    return read_settings(compose.resolve(OmegaConf.merge(base, OmegaConf.from_dotlist(keys))), choices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizer.lr=-1",), "optimizer.lr=-1: Invalid learning rate: -1"),
        (("optimizer.betas=[0.9]",), "optimizer"),
        (("optimizer.betas=[0.9,1.5]",), "optimizer.betas=[0.9, 1.5]"),
        (("optimizer.lr=fast",), "optimizer.lr='fast' must be a number"),
        (("optimizer=lbfgs", "device.precision=fp16"), "optimizer=lbfgs evaluates the loss itself; type"),
        (("optimizer=exhaustive",), "at most 2 parameters, and this model has 3"),
        (("optimizer=numeric_gradient",), "type device.precision=fp64"),
        (("optimizer.groups=[{match: nothing}]",), "optimizer.groups[0]: no parameter is left"),
        (("optimizer.groups=[{match: weight, lr: -2}]",), "optimizer.groups[0]"),
        (("optimizer.groups=[{match: weight, lr: fast}]",), "optimizer.groups[0]"),
        (("optimizer.groups=[{match: weight, lrr: 0.1}]",), "did you mean optimizer.lr"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_a_sentence(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        build.build_optimizer(settings(*words), nn.Linear(2, 1), None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def schedule(*words: str) -> Any:
    """The schedule of 100 rows in batches of 8: 13 batches an epoch."""
    chosen = settings("data=regression", "data.batch_size=8", "trainer.epochs=6", "optimizer=sgd", *words)
    splits = build.build_data(chosen, None)
    net = nn.Linear(1, 1)
    train = build.build_batches(chosen, splits, net, CPU)[0]
    assert train is not None
    return build.build_schedule(chosen, build.build_optimizer(chosen, net, None), train, "max", None)


@pytest.mark.parametrize(
    ("words", "attribute", "value"),
    [
        (("scheduler=cosine",), "T_max", 6),
        (("scheduler=cosine", "scheduler.interval=step"), "T_max", 78),
        (("scheduler=cosine", "scheduler.T_max=3"), "T_max", 3),
        (("scheduler=cosine", "trainer.max_steps=20"), "T_max", 2),
        (("scheduler=one_cycle",), "total_steps", 78),
        (("scheduler=one_cycle", "trainer.accumulate_steps=2"), "total_steps", 42),
        (("scheduler=one_cycle", "trainer.max_steps=20"), "total_steps", 20),
        (("scheduler=one_cycle", "scheduler.warmup_steps=8"), "total_steps", 70),
        (("scheduler=plateau",), "mode", "max"),
        (("scheduler=step", "scheduler.step_size=4"), "step_size", 4),
    ],
)
def test_lengths_left_open_are_those_of_the_training(words: tuple[str, ...], attribute: str, value: Any) -> None:
    assert getattr(schedule(*words).scheduler, attribute) == value


def test_one_cycle_climbs_to_ten_times_the_learning_rate() -> None:
    one_cycle = schedule("scheduler=one_cycle", "optimizer.lr=0.02")
    assert one_cycle.optimizer.param_groups[0]["max_lr"] == pytest.approx(0.2)
    assert schedule("scheduler=none").scheduler is None


def test_the_rate_of_the_whole_counts_and_not_that_of_the_first_group() -> None:
    own_rate = "optimizer.groups=[{match: bias, lr: 5.0}]"
    one_cycle = schedule("scheduler=one_cycle", "optimizer.lr=0.02", own_rate)
    assert one_cycle.optimizer.param_groups[0]["max_lr"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("words", "spans"),
    [
        (("scheduler=cosine",), True),
        (("scheduler=one_cycle",), True),
        (("scheduler=cosine", "scheduler.T_max=3"), False),
        (("scheduler=one_cycle", "scheduler.total_steps=78"), False),
        (("scheduler=step",), False),
        (("scheduler=none",), False),
    ],
)
def test_a_schedule_with_an_open_length_spans_the_training(words: tuple[str, ...], spans: bool) -> None:
    assert schedule(*words).spans_training is spans


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("scheduler=one_cycle", "scheduler.total_steps=70"),
            "scheduler.total_steps=70 is shorter than the training; type scheduler.total_steps=78",
        ),
        (("scheduler=plateau", "scheduler.interval=step"), "scheduler.interval=step"),
        (("scheduler=step", "scheduler.step_size=often"), "scheduler.step_size='often' must be a whole number"),
        (("scheduler=plateau", "scheduler.factor=2"), "scheduler"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_training(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        schedule(*words)
    assert message in str(caught.value)
