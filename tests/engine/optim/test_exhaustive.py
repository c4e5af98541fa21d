"""The grid is the one asked for, its best point is numpy's, and finer grids close in on the minimum."""

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.engine.optim.exhaustive import Exhaustive

X = torch.tensor([[1.0], [2.0], [3.0]]).double()
Closure = Callable[[], Tensor]


def fit(slope: float, bias: bool = False, intercept: float = 0.0, **settings: Any) -> tuple[Exhaustive, Closure]:
    """A linear model on slope · x + intercept at 3 points, and what a loop would hand to its optimizer."""
    net = nn.Linear(1, 1, bias=bias).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
    optimizer = Exhaustive(net.parameters(), **settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(X) - slope * X - intercept).square().mean()
        loss.backward()
        return loss

    return optimizer, closure


def values(optimizer: Exhaustive) -> list[float]:
    return [p.item() for p in optimizer.param_groups[0]["params"]]


def test_every_tenth_from_0_to_4_finds_2() -> None:
    optimizer, closure = fit(2.0)
    loss = optimizer.step(closure)
    assert float(loss) == pytest.approx(14 / 3)  # of w = 1, before the search: what a run records
    assert [w for w, _ in optimizer.history] == [k / 10 for k in range(41)]
    np.testing.assert_allclose([e for _, e in optimizer.history], [(k / 10 - 2) ** 2 * 14 / 3 for k in range(41)])
    assert (values(optimizer), optimizer.evaluations) == ([2.0], 42)
    optimizer.step(closure)
    assert (values(optimizer), optimizer.evaluations, len(optimizer.history)) == ([2.0], 43, 41)
    assert optimizer.summary() == "43 evaluations; the best of 41 grid points is 2 with a loss of 0"


def test_two_parameters_against_numpy() -> None:
    optimizer, closure = fit(1.33, True, -0.87, step=0.25, low2=-2.0, high2=1.0)
    optimizer.step(closure)
    w, b = np.arange(17) * 0.25, np.arange(13) * 0.25 - 2
    x = X.numpy()
    surface = np.array([[np.mean((i * x + j - 1.33 * x + 0.87) ** 2) for j in b] for i in w])
    row, column = np.unravel_index(surface.argmin(), surface.shape)
    assert values(optimizer) == [w[row], b[column]]
    assert [tuple(h[:2]) for h in optimizer.history] == list(itertools.product(w.tolist(), b.tolist()))
    np.testing.assert_allclose([h[2] for h in optimizer.history], surface.ravel(), rtol=1e-12)
    assert optimizer.evaluations == 1 + 17 * 13


def test_one_tensor_of_two_numbers() -> None:
    p = nn.Parameter(torch.zeros(1, 2))
    optimizer = Exhaustive([p], step=1.0)
    optimizer.step(lambda: (p - torch.tensor([1.0, 3.0])).square().sum())
    assert p.tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(("losses", "best"), [([3.0, 1.0, 1.0], 1.0), ([math.nan, math.inf, 5.0], 2.0)])
def test_the_first_among_equals_and_never_nan(losses: list[float], best: float) -> None:
    p = nn.Parameter(torch.tensor(9.0))
    optimizer = Exhaustive([p], high=2.0, step=1.0)
    answers = iter([0.0, *losses])  # the start value, though lower, is no point of the grid
    optimizer.step(lambda: torch.tensor(next(answers)))
    assert p.item() == best


def test_coarse_to_fine_reaches_a_thousandth_with_few_evaluations() -> None:
    optimizer, closure = fit(1.23456, step=0.5, refine=4.0)
    for _ in range(6):
        optimizer.step(closure)
    best = values(optimizer)[0]
    assert best == pytest.approx(1.23456, abs=0.5 / 4**5 / 2 + 1e-12)  # half of the last spacing
    assert optimizer.evaluations == 6 * (1 + 9)
    assert optimizer.summary().endswith("; one grid of its finest spacing 0.000488 would have had 8,193 points")
    history = optimizer.history
    optimizer.step(closure)  # fine enough: nothing changes
    assert (values(optimizer), optimizer.history, optimizer.evaluations) == ([best], history, 61)


def test_a_finer_grid_stays_in_the_range_and_covers_the_neighbours() -> None:
    optimizer, closure = fit(7.0, refine=2.0, step=1.0)
    for _ in range(3):
        optimizer.step(closure)
    tried = [w for w, _ in optimizer.history]
    assert tried == [0, 1, 2, 3, 4, 3, 3.5, 4, 3.5, 3.75, 4]
    assert values(optimizer) == [4.0]


@pytest.mark.slow
def test_the_state_dict_carries_all() -> None:
    reference, closure = fit(0.77, True, 0.5, step=0.5, refine=3.0)
    again, other = fit(0.77, True, 0.5, step=0.5, refine=3.0)
    for _ in range(4):
        reference.step(closure)
    for _ in range(2):
        again.step(other)
    file = io.BytesIO()
    torch.save(again.state_dict(), file)
    file.seek(0)
    resumed, last = fit(0.77, True, 0.5, step=0.5, refine=3.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for p, value in zip(resumed.param_groups[0]["params"], values(again), strict=True):
        p.data.fill_(value)  # a checkpoint holds the weights apart
    for _ in range(2):
        resumed.step(last)
    assert resumed.history == reference.history
    assert (values(resumed), resumed.summary()) == (values(reference), reference.summary())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0.0}, "optimizer.step=0.0 must be above 0"),
        ({"finest": -1.0}, "optimizer.finest=-1.0"),
        ({"low": 4.0}, "optimizer.low=4.0 to optimizer.high=4.0 is no range"),
        ({"high": math.inf}, "optimizer.high=inf"),
        ({"step": 5.0}, "no range of optimizer.step=5.0"),
        ({"low2": 9.0}, "optimizer.low2=9.0 to optimizer.high2=4.0"),
        ({"refine": 0.5}, "optimizer.refine=0.5 must be from 1"),
        ({"refine": 21.0}, "half of the 40 steps"),
        ({"step": 0.01}, "a grid of 160,801 points"),
    ],
)
def test_impossible_grids_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        fit(1.0, True, **settings)
    assert message in str(caught.value)


def test_more_than_two_parameters_are_refused() -> None:
    with pytest.raises(RequestError, match=r"at most 2 parameters, and this model has 1,010; type optimizer=sgd"):
        Exhaustive(nn.Linear(100, 10).parameters())
    net = nn.Linear(1, 1)
    with pytest.raises(RequestError, match=r"optimizer\.groups does not fit"):
        Exhaustive([{"params": [net.weight]}, {"params": [net.bias]}])
