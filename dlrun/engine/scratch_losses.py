"""Losses with the backward pass derived and written out by hand, in plain tensor arithmetic.

A backward gets dL/dL = 1, or what autocast scales it by, and returns dL/doutputs; nothing here calls autograd or
torch.nn.functional. The derivatives are those of Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2.
Half-precision outputs (autocast) are widened where sums are formed; autograd narrows what a backward returns.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from dlrun.core.errors import RequestError

# torch's BCELoss takes this for log 0, so that a wrong certainty costs 100 and not infinity ...
_MIN_LOG = -100.0
# ... and divides by this where p (1 - p) vanishes.
_MIN_SLOPE = 1e-12


class MeanSquaredError(Function):
    """L = Σ (y - t)² / n, so dL/dy = 2 (y - t) / n; n = 1 for reduction "sum". Targets get no gradient."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Compute the scalar loss of outputs and targets of one shape."""
        difference = _widen(outputs) - targets
        count = _get_divisor(difference, reduction)

        ctx.count = count
        ctx.save_for_backward(difference)
        return (difference * difference).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute dL/doutputs."""
        difference: Tensor = ctx.saved_tensors[0]
        return grad * 2 * difference / ctx.count, None, None


class BinaryCrossEntropy(Function):
    """L = -Σ [t log p + (1 - t) log(1 - p)] / n for probabilities p, so dL/dp = (p - t) / (p (1 - p)) / n."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Compute the scalar loss of outputs in [0, 1] and targets of one shape."""
        p = _widen(outputs)
        count = _get_divisor(p, reduction)

        ctx.count = count
        ctx.save_for_backward(p, targets)
        log_p = p.log().clamp(min=_MIN_LOG)
        log_not_p = torch.log1p(-p).clamp(min=_MIN_LOG)
        return -(targets * log_p + (1 - targets) * log_not_p).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute dL/dp."""
        p, targets = ctx.saved_tensors
        slope = (p * (1 - p)).clamp(min=_MIN_SLOPE)
        return grad * (p - targets) / slope / ctx.count, None, None


class BinaryCrossEntropyWithLogits(Function):
    """The same for p = sigmoid(z): L = Σ [max(z, 0) - z t + log(1 + exp(-|z|))] / n, so dL/dz = (p - t) / n."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Compute the scalar loss of logits and targets of one shape."""
        z = _widen(outputs)
        count = _get_divisor(z, reduction)

        ctx.count = count
        ctx.save_for_backward(z, targets)
        return (z.clamp(min=0) - z * targets + torch.log1p(torch.exp(-z.abs()))).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute dL/dz."""
        z, targets = ctx.saved_tensors
        p = 1 / (1 + torch.exp(-z))
        return grad * (p - targets) / ctx.count, None, None


class CrossEntropy(Function):
    """L = -Σ log softmax(z)[t] / N, so dL/dz = (softmax(z) - onehot(t)) / N (Bishop 2006, 4.3.4)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Compute the scalar loss of logits (N, classes) and class numbers (N,)."""
        z = _widen(outputs)
        # Subtracting the largest logit prevents overflow.
        shifted = z - z.amax(1, keepdim=True)
        log_probabilities = shifted - shifted.exp().sum(1, keepdim=True).log()
        count = _get_divisor(targets, reduction)

        ctx.count = count
        ctx.save_for_backward(log_probabilities, targets)
        return -log_probabilities.gather(1, targets.unsqueeze(1)).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Compute dL/dz."""
        log_probabilities, targets = ctx.saved_tensors
        classes = torch.arange(log_probabilities.shape[1], device=log_probabilities.device)
        onehot = targets.unsqueeze(1) == classes
        return grad * (log_probabilities.exp() - onehot.to(log_probabilities.dtype)) / ctx.count, None, None


def mse_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The mean (or sum) of squared errors; ValueError unless outputs and targets have one shape."""
    _check_shapes(outputs, targets)
    return _apply(MeanSquaredError, outputs, targets, reduction)


def bce_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of probabilities; ValueError on other shapes, RequestError on values outside [0, 1]."""
    _check_shapes(outputs, targets)
    # As torch, only on a CPU: elsewhere looking at the values would make every step wait for the device.
    if outputs.device.type == "cpu" and ((outputs < 0) | (outputs > 1)).any():
        raise RequestError(
            "task.loss=scratch_bce takes probabilities, and the model's outputs are not all from 0 to 1: "
            "type model.output_activation=sigmoid or task.loss=scratch_bce_with_logits."
        )
    return _apply(BinaryCrossEntropy, outputs, targets, reduction)


def bce_with_logits_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of logits; ValueError unless outputs and targets have one shape."""
    _check_shapes(outputs, targets)
    return _apply(BinaryCrossEntropyWithLogits, outputs, targets, reduction)


def cross_entropy_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits (N, classes) and class numbers (N,)."""
    return _apply(CrossEntropy, outputs, targets, reduction)


def _apply(loss: type[Function], outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """`loss.apply` with a type."""
    return cast(Tensor, loss.apply(outputs, targets, reduction))


def _widen(x: Tensor) -> Tensor:
    """Convert to fp32, unless it is wider already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _get_divisor(values: Tensor, reduction: str) -> int:
    """Number that the sum of losses is divided by."""
    return {"mean": values.numel(), "sum": 1}[reduction]


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    # Broadcasting (N, 1) with (N,) would silently compare every row with every target.
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
