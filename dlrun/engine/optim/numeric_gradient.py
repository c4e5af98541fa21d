"""Gradient descent without derivatives: the slope is measured by moving each weight a little."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dlrun.core.errors import RequestError

# Each costs two evaluations of the loss a step.
MOST_PARAMETERS = 1_000

# In fp32: rounding of the loss, about 1e-7, over 2e-3 leaves four digits of the slope.
LEAST_EPSILON = 1e-3


class NumericGradient(Optimizer):
    """p ← p − lr · g with the central difference g = (f(p + ε) − f(p − ε)) / 2ε, one weight at a time.

    The error of g is about ε² f‴ / 6 plus the rounding of f over 2ε. Costs 1 + 2 evaluations for each weight a
    step. Raises RequestError for more than MOST_PARAMETERS weights, and where rounding would drown the slope:
    an epsilon below LEAST_EPSILON in less than double precision.
    """

    def __init__(self, params: ParamsT, lr: float = 0.01, epsilon: float = 1e-6) -> None:
        if not lr >= 0:
            raise RequestError(f"optimizer.lr={lr} must be at least 0, as in optimizer.lr=0.01")
        if not epsilon > 0:
            raise RequestError(f"optimizer.epsilon={epsilon} must be above 0, as in optimizer.epsilon=1e-3")
        super().__init__(params, {"lr": lr, "epsilon": epsilon})

        weights: list[Tensor] = []
        for group in self.param_groups:
            weights += group["params"]
        count = sum(p.numel() for p in weights)
        if count > MOST_PARAMETERS:
            raise RequestError(
                f"optimizer=numeric_gradient evaluates the loss twice for each of at most {MOST_PARAMETERS:,} "
                f"parameters, and this model has {count:,}; type optimizer=manual_sgd, or a smaller model"
            )

        epsilon = min(group["epsilon"] for group in self.param_groups)
        if epsilon < LEAST_EPSILON and any(p.dtype != torch.float64 for p in weights):
            raise RequestError(
                f"optimizer.epsilon={epsilon:g} drowns in the rounding of single precision; "
                f"type device.precision=fp64, or optimizer.epsilon={LEAST_EPSILON:g}"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Make one step of all weights; returns the loss before it. `.grad` then holds the measured slopes."""
        loss = self._evaluate(closure)

        # Measure all slopes before the first weight is moved.
        slopes = []
        for group in self.param_groups:
            for p in group["params"]:
                slopes.append(self._measure_slopes(p, group["epsilon"], closure))

        remaining = iter(slopes)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = next(remaining)
                p.add_(p.grad, alpha=-group["lr"])
        return loss

    def _measure_slopes(self, p: Tensor, epsilon: float, closure: Callable[[], Tensor]) -> Tensor:
        """The central difference for each number of `p`, which is restored to the bit."""
        before = p.clone()
        slopes = []
        for i in range(p.numel()):
            shift = torch.zeros_like(p).flatten()
            shift[i] = epsilon
            p.copy_(before + shift.view(p.shape))
            above = self._evaluate(closure)
            p.copy_(before - shift.view(p.shape))
            below = self._evaluate(closure)
            slopes.append((above - below) / (2 * epsilon))

        # Adding and subtracting epsilon again would not restore every bit.
        p.copy_(before)
        return torch.stack(slopes).to(p.dtype).view(p.shape)

    def _evaluate(self, closure: Callable[[], Tensor]) -> Tensor:
        with torch.enable_grad():
            return closure().detach()
