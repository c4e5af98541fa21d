"""Stacked optimizers against torch's own, one for each member, on the same gradients."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, Adamax, AdamW, Optimizer, RMSprop

from dlrun.engine.stack.optimizers import describe_kind, find_obstacle, stack_optimizers

Make = Callable[[Iterable[Any], float], Optimizer]

# By name; the number goes from 0 to 1 over the members.
KINDS: dict[str, Make] = {
    "sgd": lambda p, x: SGD(p, lr=0.1 * (1 + x)),
    "sgd decay": lambda p, x: SGD(p, lr=0.1, weight_decay=0.3 * x),
    "momentum": lambda p, x: SGD(p, lr=0.1, momentum=0.5 + 0.4 * x),
    "dampening": lambda p, x: SGD(p, lr=0.1, momentum=0.9, dampening=0.5 * x, weight_decay=0.1),
    "nesterov": lambda p, x: SGD(p, lr=0.1, momentum=0.5 + 0.4 * x, nesterov=True, weight_decay=0.1 * x),
    "adagrad": lambda p, x: Adagrad(p, lr=0.1 + x, lr_decay=0.1 * x, initial_accumulator_value=x, eps=1e-8 + 0.1 * x),
    "adagrad decay": lambda p, x: Adagrad(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p, x: RMSprop(p, lr=0.01 + 0.1 * x, alpha=0.9 + 0.09 * x, eps=1e-8 + 0.1 * x),
    "rmsprop momentum": lambda p, x: RMSprop(p, lr=0.01, momentum=0.5 + 0.4 * x, weight_decay=0.1 * x),
    "adam": lambda p, x: Adam(p, lr=0.01 + 0.1 * x),
    "adam betas": lambda p, x: Adam(p, lr=0.01, betas=(0.8 + 0.1 * x, 0.99 + 0.009 * x), eps=1e-8 + 0.1 * x),
    "adam decay": lambda p, x: Adam(p, lr=0.01, weight_decay=0.1 * x),
    "adam decoupled": lambda p, x: Adam(p, lr=0.01, weight_decay=0.1 * x, decoupled_weight_decay=True),
    "adamw": lambda p, x: AdamW(p, lr=0.01 + 0.1 * x, weight_decay=0.1 + x),
}
MEMBERS = 3
SHAPES = ((2, 3), (3,), ())


def build_all(make: Make, count: int = MEMBERS) -> tuple[list[list[nn.Parameter]], list[Optimizer]]:
    """Parameters of each member, and its optimizer."""
    generator = torch.Generator().manual_seed(3)
    parameters = [[nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES] for _ in range(count)]
    return parameters, [make(own, number / (count - 1)) for number, own in enumerate(parameters)]


def join(parameters: list[list[nn.Parameter]]) -> torch.Tensor:
    return torch.stack([torch.cat([p.detach().flatten() for p in own]) for own in parameters])


def assert_same_state(one: Optimizer, other: Optimizer) -> None:
    """The state dicts, up to rounding and to entries of None."""
    first = one.state_dict()["state"]
    second = other.state_dict()["state"]
    for number, values in first.items():
        own = {name: value for name, value in values.items() if value is not None}
        assert own.keys() == second.get(number, {}).keys()
        for name, value in own.items():
            assert value.dtype == second[number][name].dtype
            torch.testing.assert_close(second[number][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_steps_are_those_of_torch(name: str) -> None:
    """With a rate that moves, and going on from the written state after half of the steps, as one of torch goes on."""
    parameters, optimizers = build_all(KINDS[name])
    others = [[nn.Parameter(p.detach().clone()) for p in own] for own in parameters]
    truth = [KINDS[name](own, number / (MEMBERS - 1)) for number, own in enumerate(others)]

    weights = join(parameters)
    ((part, stacked),) = stack_optimizers(optimizers, weights)
    assert part == slice(0, MEMBERS)
    generator = torch.Generator().manual_seed(4)
    for step in range(8):
        gradient = torch.randn(weights.shape, generator=generator)
        # Some numbers never get a gradient.
        gradient[:, 1] = 0
        for number, (own, optimizer) in enumerate(zip(others, truth, strict=True)):
            pieces = gradient[number].split([p.numel() for p in own])
            for p, piece in zip(own, pieces, strict=True):
                p.grad = piece.view_as(p).clone()
            optimizer.step()
        stacked.step(gradient.clone())
        torch.testing.assert_close(weights, join(others), rtol=1e-5, atol=1e-6)

        for number in range(MEMBERS):
            for optimizer in (optimizers[number], truth[number]):
                optimizer.param_groups[0]["lr"] *= 0.9 if number else 1.0
        if step == 3:
            stacked.write_states()
            for one, other in zip(truth, optimizers, strict=True):
                assert_same_state(one, other)
            fresh = [make_like(optimizer) for optimizer in optimizers]
            ((_, stacked),) = stack_optimizers(fresh, weights)
            stacked.read_states(step + 1)
            optimizers = fresh
    stacked.write_states()
    for one, other in zip(truth, optimizers, strict=True):
        assert_same_state(one, other)


def make_like(optimizer: Optimizer) -> Optimizer:
    """A new optimizer of the same parameters, with the state and settings of the old one."""
    group = optimizer.param_groups[0]
    new = type(optimizer)(group["params"], lr=1.0)
    new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return new


def test_nothing_is_written_before_the_first_step() -> None:
    for name, make in KINDS.items():
        parameters, optimizers = build_all(make)
        untouched = make(parameters[0], 0.0)
        ((_, stacked),) = stack_optimizers(optimizers, join(parameters))
        stacked.write_states()
        assert optimizers[0].state_dict()["state"].keys() == untouched.state_dict()["state"].keys(), name


def test_adagrad_goes_on_from_the_state_it_is_built_with() -> None:
    """torch's Adagrad has sums before its first step."""
    parameters, optimizers = build_all(KINDS["adagrad"])
    ((_, stacked),) = stack_optimizers(optimizers, join(parameters))
    stacked.read_states(0)
    assert stacked.state["sum"][:, 0].tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_neighbours_of_one_kind_are_stepped_together() -> None:
    makes = [KINDS[name] for name in ("sgd", "sgd decay", "momentum", "dampening", "nesterov", "adam", "adamw")]
    optimizers = [make([nn.Parameter(torch.zeros(2))], 1.0) for make in makes]
    parts = [part for part, _ in stack_optimizers(optimizers, torch.zeros(len(optimizers), 2))]
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7)]
    assert len({describe_kind(optimizer) for optimizer in optimizers}) == len(parts)


class OwnSGD(SGD):
    """A class of the user's, which may do anything."""


def add_hook(optimizer: Optimizer) -> Optimizer:
    optimizer.register_step_post_hook(lambda *arguments: None)
    return optimizer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Adamax(p), "Adamax"),
        (lambda p: LBFGS(p), "LBFGS"),
        (lambda p: OwnSGD(p, lr=0.1), "OwnSGD"),
        (lambda p: SGD([{"params": p[:1]}, {"params": p[1:]}], lr=0.1), "optimizer.groups"),
        (lambda p: SGD(p, lr=0.1, maximize=True), "optimizer.maximize=true"),
        (lambda p: Adam(p, amsgrad=True), "optimizer.amsgrad=true"),
        (lambda p: RMSprop(p, centered=True), "optimizer.centered=true"),
        (lambda p: Adam(p, lr=torch.tensor(0.1)), "tensor"),
        (lambda p: Adam(p, betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False), "tensor"),
        (lambda p: add_hook(SGD(p, lr=0.1)), "hook"),
        *((lambda p, make=make: make(p, 0.5), None) for make in KINDS.values()),
    ],
)
def test_obstacles_of_optimizers(make: Any, words: str | None) -> None:
    obstacle = find_obstacle(make([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]))
    if words is None:
        assert obstacle is None
    else:
        assert obstacle is not None
        assert words in obstacle
