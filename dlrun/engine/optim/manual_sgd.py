"""Stochastic gradient descent, written out."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dlrun.core.errors import RequestError


class ManualSGD(Optimizer):
    """p ← p − lr · grad for every parameter, to the bit what torch.optim.SGD does without momentum.

    Raises RequestError for an lr below 0.
    """

    def __init__(self, params: ParamsT, lr: float = 0.01) -> None:
        if not lr >= 0:
            raise RequestError(f"optimizer.lr={lr} must be at least 0, as in optimizer.lr=0.01")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Make one step; `closure`, which computes loss and gradients anew, is optional."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    # Rounded once; p -= lr * grad would round twice.
                    p.add_(p.grad, alpha=-group["lr"])
        return loss
