"""Losses with the backward pass derived and written out by hand, in plain tensor arithmetic.

A backward gets dL/dL = 1, or what autocast scales it by, and returns dL/doutputs; nothing here asks autograd or
torch.nn.functional. The derivatives are those of Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2.
Half-precision outputs (autocast) are widened where sums are formed; autograd narrows what a backward returns.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from dlrun.core.errors import RequestError

_SMALLEST_LOG = -100.0  # what torch's BCELoss takes for log 0, so that a wrong certainty costs 100 and not infinity
_SMALLEST_SLOPE = 1e-12  # and what it divides by where p (1 - p) vanishes


class MeanSquaredError(Function):
    """L = Σ (y - t)² / n, so dL/dy = 2 (y - t) / n; n = 1 for reduction "sum". Targets get no gradient."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """outputs and targets of one shape -> a scalar."""
        off = _wide(outputs) - targets
        count = ctx.count = _count(off, reduction)
        ctx.save_for_backward(off)
        return (off * off).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """dL/doutputs."""
        off: Tensor = ctx.saved_tensors[0]
        return grad * 2 * off / ctx.count, None, None


class BinaryCrossEntropy(Function):
    """L = -Σ [t log p + (1 - t) log(1 - p)] / n for probabilities p, so dL/dp = (p - t) / (p (1 - p)) / n."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """outputs in [0, 1] and targets of one shape -> a scalar."""
        p = _wide(outputs)
        count = ctx.count = _count(p, reduction)
        ctx.save_for_backward(p, targets)
        yes, no = p.log().clamp(min=_SMALLEST_LOG), torch.log1p(-p).clamp(min=_SMALLEST_LOG)
        return -(targets * yes + (1 - targets) * no).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """dL/dp."""
        p, targets = ctx.saved_tensors
        return grad * (p - targets) / (p * (1 - p)).clamp(min=_SMALLEST_SLOPE) / ctx.count, None, None


class BinaryCrossEntropyWithLogits(Function):
    """The same for p = sigmoid(z): L = Σ [max(z, 0) - z t + log(1 + exp(-|z|))] / n, so dL/dz = (p - t) / n."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Logits and targets of one shape -> a scalar."""
        z = _wide(outputs)
        count = ctx.count = _count(z, reduction)
        ctx.save_for_backward(z, targets)
        return (z.clamp(min=0) - z * targets + torch.log1p(torch.exp(-z.abs()))).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """dL/dz."""
        z, targets = ctx.saved_tensors
        return grad * (_sigmoid(z) - targets) / ctx.count, None, None


class CrossEntropy(Function):
    """L = -Σ log softmax(z)[t] / N, so dL/dz = (softmax(z) - onehot(t)) / N (Bishop 2006, 4.3.4)."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Logits (N, classes), class numbers (N,) -> a scalar; the largest logit is taken off, so nothing overflows."""
        z = _wide(outputs)
        shifted = z - z.amax(1, keepdim=True)
        logs = shifted - shifted.exp().sum(1, keepdim=True).log()
        count = ctx.count = _count(targets, reduction)
        ctx.save_for_backward(logs, targets)
        return -logs.gather(1, targets.unsqueeze(1)).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """dL/dz."""
        logs, targets = ctx.saved_tensors
        onehot = targets.unsqueeze(1) == torch.arange(logs.shape[1], device=logs.device)
        return grad * (logs.exp() - onehot.to(logs.dtype)) / ctx.count, None, None


def mse_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The mean (or sum) of squared errors; ValueError unless outputs and targets have one shape."""
    _check_shapes(outputs, targets)
    return _apply(MeanSquaredError, outputs, targets, reduction)


def bce_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy of probabilities; ValueError on other shapes, RequestError on values outside [0, 1].

    On a CPU, as torch: elsewhere the look at the values would make every step wait for the device.
    """
    _check_shapes(outputs, targets)
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


def _sigmoid(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def _wide(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _count(values: Tensor, reduction: str) -> int:
    """What the sum is divided by."""
    return {"mean": values.numel(), "sum": 1}[reduction]


def _check_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Broadcasting (N, 1) with (N,) would silently compare every row with every target."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
