"""The losses that `task.loss` can name, by task; the first of each task is its default."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from dlrun.data.spec import TaskName
from dlrun.engine import scratch_losses


def perceptron_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """(step(z) - y) z for logits z (N,) and targets y of 0 or 1, where step(z) is 1 if z > 0, else 0.

    The step counts as a constant, so the gradient for z = w·x is (step(z) - y) x: the perceptron's update rule, at
    z = 0 too (Rosenblatt 1958).
    """
    losses = ((outputs > 0).to(targets.dtype) - targets) * outputs
    return losses.mean() if reduction == "mean" else losses.sum()


LOSSES: dict[TaskName, dict[str, Callable[..., Tensor]]] = {
    "regression": {
        "mse": F.mse_loss,
        "mae": F.l1_loss,
        "huber": F.huber_loss,
        "smooth_l1": F.smooth_l1_loss,
        "scratch_mse": scratch_losses.mse_loss,
    },
    "binary": {
        "bce_with_logits": F.binary_cross_entropy_with_logits,
        "bce": F.binary_cross_entropy,
        "scratch_bce": scratch_losses.bce_loss,
        "scratch_bce_with_logits": scratch_losses.bce_with_logits_loss,
        "perceptron": perceptron_loss,
    },
    "multiclass": {
        "cross_entropy": F.cross_entropy,
        "nll": F.nll_loss,
        "multi_margin": F.multi_margin_loss,
        "scratch_cross_entropy": scratch_losses.cross_entropy_loss,
    },
    "tagging": {"cross_entropy": F.cross_entropy, "nll": F.nll_loss},
}
