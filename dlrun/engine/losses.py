"""The losses that `task.loss` can name, by task; the first of each task is its default."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun.data.spec import TaskName
from dlrun.engine import scratch_losses

# The power of a smaller number has no finite slope.
_TINY = 1e-12


def perceptron_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """(step(z) - y) z for logits z (N,) and targets y of 0 or 1, where step(z) is 1 if z > 0, else 0.

    The step counts as a constant, so the gradient for z = w·x is (step(z) - y) x: the perceptron's update rule, at
    z = 0 too (Rosenblatt 1958).
    """
    return _reduce(((outputs > 0).to(targets.dtype) - targets) * outputs, reduction)


def binary_focal_loss(
    outputs: Tensor, targets: Tensor, reduction: str = "mean", gamma: float = 2.0, alpha: float | None = None
) -> Tensor:
    """-a (1 - p)^gamma log p for logits and targets of 0 or 1, p being the probability of the true class.

    Outputs and targets are (N,), or (N, labels).
    a is 1, or with `alpha` from 0 to 1: alpha for class 1 and 1 - alpha for class 0.
    Source: Lin et al. 2017, "Focal loss for dense object detection", equation 5.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    # The logit of the wrong class: its sigmoid is 1 - p, without the cancellation.
    wrong = outputs * (1 - 2 * targets)
    losses = wrong.sigmoid().clamp(min=_TINY) ** gamma * cross_entropy
    if alpha is not None:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return _reduce(losses, reduction)


def focal_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean", gamma: float = 2.0) -> Tensor:
    """-(1 - p)^gamma log p for logits (N, classes) and class numbers (N,), p being the probability of the true class.

    Source: Lin et al. 2017, "Focal loss for dense object detection", equation 4, with a softmax.
    """
    cross_entropy = F.cross_entropy(outputs, targets, reduction="none")
    return _reduce((-(-cross_entropy).expm1()).clamp(min=_TINY) ** gamma * cross_entropy, reduction)


def hinge_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """max(0, 1 - s z) for outputs z (N,) and targets of 0 or 1, where s is -1 or 1: the support vector machine's."""
    return _reduce((1 - (2 * targets - 1) * outputs).clamp(min=0), reduction)


def soft_margin_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """torch's soft_margin_loss, log(1 + exp(-s z)), for targets of 0 or 1 in place of s = -1 or 1."""
    return F.soft_margin_loss(outputs, 2 * targets - 1, reduction=reduction)


def quantile_loss(outputs: Tensor, targets: Tensor, reduction: str = "mean", quantile: float = 0.5) -> Tensor:
    """max(q e, (q - 1) e) for the error e = target - output: the output learns the quantile q of the targets.

    Source: Koenker and Bassett 1978, "Regression quantiles".
    """
    error = targets - outputs
    return _reduce((quantile * error).maximum((quantile - 1) * error), reduction)


def bce_with_logits_loss(
    outputs: Tensor, targets: Tensor, reduction: str = "mean", pos_weight: float | None = None
) -> Tensor:
    """torch's loss of the same name, with the weight of class 1 as a number."""
    weight = None
    if pos_weight is not None:
        weight = make_tensor((pos_weight,), torch.promote_types(outputs.dtype, torch.float32), outputs.device)
    return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight, reduction=reduction)


@functools.lru_cache(maxsize=64)
def make_tensor(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers, copied to its device once."""
    # A tensor of inference mode could take no part in training.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


LOSSES: dict[TaskName, dict[str, Callable[..., Tensor]]] = {
    "regression": {
        "mse": F.mse_loss,
        "mae": F.l1_loss,
        "huber": F.huber_loss,
        "smooth_l1": F.smooth_l1_loss,
        "poisson_nll": F.poisson_nll_loss,
        "quantile": quantile_loss,
        "scratch_mse": scratch_losses.mse_loss,
    },
    "binary": {
        "bce_with_logits": bce_with_logits_loss,
        "bce": F.binary_cross_entropy,
        "focal": binary_focal_loss,
        "hinge": hinge_loss,
        "soft_margin": soft_margin_loss,
        "scratch_bce": scratch_losses.bce_loss,
        "scratch_bce_with_logits": scratch_losses.bce_with_logits_loss,
        "perceptron": perceptron_loss,
    },
    "multiclass": {
        "cross_entropy": F.cross_entropy,
        "nll": F.nll_loss,
        "multi_margin": F.multi_margin_loss,
        "focal": focal_loss,
        "scratch_cross_entropy": scratch_losses.cross_entropy_loss,
    },
    "multilabel": {
        "bce_with_logits": bce_with_logits_loss,
        "bce": F.binary_cross_entropy,
        "focal": binary_focal_loss,
        "soft_margin": soft_margin_loss,
    },
    "tagging": {"cross_entropy": F.cross_entropy, "nll": F.nll_loss},
}

# Besides those of regression, for inputs of 0 to 1 that an autoencoder gives back.
RECONSTRUCTION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": F.binary_cross_entropy,
    "bce_with_logits": bce_with_logits_loss,
}

# The same losses by other names: those of torch.nn's classes, and short ones.
ALIASES = {
    "MSELoss": "mse",
    "L1Loss": "mae",
    "l1": "mae",
    "HuberLoss": "huber",
    "SmoothL1Loss": "smooth_l1",
    "PoissonNLLLoss": "poisson_nll",
    "poisson": "poisson_nll",
    "BCEWithLogitsLoss": "bce_with_logits",
    "BCELoss": "bce",
    "SoftMarginLoss": "soft_margin",
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll",
    "MultiMarginLoss": "multi_margin",
}

# What `task.loss_args` may hold, by name and then by argument: the least and the largest number, "bool", or "weights",
# a positive number for each class. Arguments of torch that change how rows are counted are left out.
LossArgument = tuple[float, float] | str
_POSITIVE = (1e-12, float("inf"))
_NOT_NEGATIVE = (0.0, float("inf"))
ARGUMENTS: dict[str, dict[str, LossArgument]] = {
    "huber": {"delta": _POSITIVE},
    "smooth_l1": {"beta": _NOT_NEGATIVE},
    "poisson_nll": {"log_input": "bool", "full": "bool", "eps": _POSITIVE},
    "quantile": {"quantile": (0.0, 1.0)},
    "bce_with_logits": {"pos_weight": _POSITIVE},
    "focal": {"gamma": _NOT_NEGATIVE, "alpha": (0.0, 1.0)},
    "cross_entropy": {"label_smoothing": (0.0, 1.0), "weight": "weights"},
    "nll": {"weight": "weights"},
    "multi_margin": {"p": (1, 2), "margin": _POSITIVE},
}

# Losses that take weights of classes themselves, and those that give a loss of each row, which is weighted then.
TAKES_WEIGHT = ("cross_entropy", "nll")
GIVES_ROWS = ("bce_with_logits", "bce", "focal", "hinge", "soft_margin", "multi_margin", "perceptron")


def list_arguments(task: TaskName, name: str) -> dict[str, LossArgument]:
    """The arguments of a loss of dlrun's own that `task.loss_args` may set."""
    arguments = dict(ARGUMENTS.get(name, {}))
    if task not in ("binary", "multilabel"):
        # Weights of more than two classes are task.class_weights.
        arguments.pop("alpha", None)
    return arguments
