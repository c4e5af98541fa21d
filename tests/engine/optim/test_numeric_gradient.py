"""Measured slopes are autograd's, and the descent along them is the same."""

import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.engine.optim.numeric_gradient import NumericGradient


def test_slopes_are_autograds_and_a_step_is_sgds() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = torch.randn(5, 2).double(), torch.randn(5, 1).double()
    loss = (net(x) - y).square().mean()
    expected = torch.autograd.grad(loss, list(net.parameters()))
    before = [p.detach().clone() for p in net.parameters()]
    losses: list[float] = []
    optimizer = NumericGradient(net.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = (net(x) - y).square().mean()
        value.backward()
        losses.append(float(value.detach()))
        return value

    assert float(optimizer.step(closure)) == losses[0] == float(loss.detach())  # the first pass is at the start
    assert len(losses) == 1 + 2 * 13
    for p, start, slope in zip(net.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.grad, slope, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(p.detach(), start - 0.1 * p.grad, rtol=0, atol=1e-15)


def test_weights_come_back_to_the_bit() -> None:
    torch.manual_seed(1)
    net = nn.Linear(3, 2, dtype=torch.float64)  # drawn in fp64: fp32 values would survive any shift
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = NumericGradient(net.parameters(), lr=0.0, epsilon=1234.567)  # too large to be undone by adding
    optimizer.step(lambda: net(torch.ones(1, 3).double()).square().sum())
    assert all(torch.equal(p, start) for p, start in zip(net.parameters(), before, strict=True))


def test_the_course_descent() -> None:
    """w ← w − lr · dMSE/dw on y = 2x from 1: 2 − (1 − lr · 28/3)^100 in closed form."""
    x, w = torch.tensor([1.0, 2.0, 3.0]).double(), nn.Parameter(torch.tensor(1.0).double())
    optimizer = NumericGradient([w], lr=0.01)
    for _ in range(100):
        optimizer.step(lambda: (w * x - 2 * x).square().mean())
    assert w.item() == pytest.approx(2 - (1 - 0.28 / 3) ** 100, abs=1e-10)
    assert w.item() == pytest.approx(1.9999444396553, abs=1e-10)


def test_single_precision_needs_a_larger_epsilon() -> None:
    with pytest.raises(RequestError, match=r"epsilon=1e-06 drowns .* type device\.precision=fp64, or"):
        NumericGradient(nn.Linear(1, 1).parameters())
    w = nn.Parameter(torch.tensor(3.0))
    NumericGradient([w], lr=0.1, epsilon=1e-3).step(lambda: w.square())
    assert w.grad is not None
    assert w.grad.item() == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (1, {"lr": -1.0}, r"optimizer\.lr=-1\.0"),
        (1, {"epsilon": 0.0}, r"optimizer\.epsilon=0\.0"),
        (1000, {}, r"at most 1,000 parameters, and this model has 1,001"),
    ],
)
def test_refused(inputs: int, settings: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        NumericGradient(nn.Linear(inputs, 1).double().parameters(), **settings)
