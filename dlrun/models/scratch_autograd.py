"""Layers with the backward pass derived and written out by hand, in plain tensor arithmetic.

A backward gets dL/dy and returns dL/dx for each input x by the chain rule; nothing here uses autograd or
torch.nn.functional. The derivatives are those of Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2 and 6.5.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function


def apply_function(function: type[Function], *inputs: Any) -> Tensor:
    """Call `function.apply`, with a type: the output's gradient will come from `function.backward`."""
    return cast(Tensor, function.apply(*inputs))


class Linear(Function):
    """y = x Wᵀ + b: x (..., in), W (out, in), b (out,) or None -> (..., out).

    With G = dL/dy as rows: dL/dx = G W, dL/dW = Gᵀ x, dL/db = the sum of G over rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out)."""
        # The bias is not needed: dL/db is a sum of dL/dy.
        ctx.save_for_backward(x, weight)
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """dL/dx, None if nothing before this layer learns, dL/dW and dL/db."""
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad

        # Under autocast x and grad may be of lower precision than the weights.
        x = x.to(weight.dtype)
        grad = grad.to(weight.dtype)
        rows = grad.reshape(-1, grad.shape[-1])

        grad_x = grad @ weight if needs_x else None
        grad_weight = rows.T @ x.reshape(-1, x.shape[-1])
        grad_bias = rows.sum(0) if needs_bias else None
        return grad_x, grad_weight, grad_bias


class Sigmoid(Function):
    """y = 1 / (1 + exp(-z)), so y' = y (1 - y); exp(-z) may overflow, and y is then the 0 it should be."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Any shape."""
        # The derivative is a function of the output, so the input need not be kept.
        y = _sigmoid(z)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """dL/dz."""
        y: Tensor = ctx.saved_tensors[0]
        return grad * y * (1 - y)


class Tanh(Function):
    """y = (exp(z) - exp(-z)) / (exp(z) + exp(-z)), so y' = 1 - y²."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Any shape."""
        # exp(-2|z|) - 1 neither overflows nor cancels near 0.
        decay = torch.expm1(-2 * z.abs())
        y = z.sign() * -decay / (decay + 2)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """dL/dz."""
        y: Tensor = ctx.saved_tensors[0]
        return grad * (1 - y * y)


class ReLU(Function):
    """y = max(z, 0), so y' = 1 where z > 0, else 0 (at the kink too, as torch has it)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Any shape."""
        ctx.save_for_backward(z)
        return z.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """dL/dz."""
        z: Tensor = ctx.saved_tensors[0]
        return grad * (z > 0)


class ELU(Function):
    """y = z where z > 0, else alpha (exp(z) - 1), so y' = 1 or alpha exp(z) (Clevert et al. 2016)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, alpha: float) -> Tensor:
        """Any shape."""
        ctx.save_for_backward(z)
        ctx.alpha = alpha

        # Where exp(z) overflows z is positive, and the exponential is not used.
        return torch.where(z > 0, z, alpha * torch.expm1(z))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """dL/dz; None for alpha, which does not learn."""
        z: Tensor = ctx.saved_tensors[0]
        return torch.where(z > 0, grad, grad * ctx.alpha * torch.exp(z)), None


def _sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))
