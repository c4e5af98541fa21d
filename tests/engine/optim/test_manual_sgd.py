"""The written-out step is torch's SGD, to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.core.errors import RequestError
from dlrun.engine.optim.manual_sgd import ManualSGD


def train(make: Any, dtype: torch.dtype, closure: bool) -> list[Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 1)).to(dtype)
    x, y = torch.randn(16, 7, dtype=dtype), torch.randn(16, 1, dtype=dtype)
    optimizer: Optimizer = make(net.parameters(), lr=0.037)

    def backward() -> Tensor:
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(20):
        if closure:
            assert optimizer.step(backward) is not None  # type: ignore[arg-type]
        else:
            backward()
            optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("closure", [True, False])
def test_equals_torchs(dtype: torch.dtype, closure: bool) -> None:
    ours = train(ManualSGD, dtype, closure)
    theirs = train(lambda p, lr: torch.optim.SGD(p, lr, foreach=False), dtype, closure)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_parameters_without_gradient_stay_and_groups_have_their_own_rate() -> None:
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = ManualSGD([{"params": [a, c]}, {"params": [b], "lr": 0.5}], lr=0.25)
    (a + b).sum().backward()
    assert optimizer.step() is None
    assert (a.item(), b.item(), c.item()) == (0.75, 0.5, 1.0)


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(RequestError, match=r"optimizer\.lr=-0\.1"):
        ManualSGD([nn.Parameter(torch.ones(1))], lr=-0.1)
