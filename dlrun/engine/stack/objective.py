"""Losses and metrics of all members at once: as `Objective` computes them for one, up to rounding."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dlrun.engine import metrics
from dlrun.engine.objective import Objective

# Tasks whose metrics are computed for all members together.
TASKS = ("regression", "binary", "multiclass")


def find_obstacle(objective: Objective) -> str | None:
    """Why members with this objective cannot be stacked, or None."""
    if objective.spec.task not in TASKS or objective.spec.reconstructs:
        return f"task={'autoencoder' if objective.spec.reconstructs else objective.spec.task}"
    if objective.own_loss is not None:
        return "its loss is your own"
    if str(objective.loss_name).startswith("scratch_"):
        return f"task.loss={objective.loss_name} has a backward pass of its own"
    if objective.class_weights is not None:
        return "task.class_weights"
    if objective.chosen_metrics:
        return "task.metrics has others than the task's own"
    return None


class StackedObjective:
    """Loss and metrics of M members that share an objective, in `TASKS`."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        # The loss of each number of a batch, which each member's mean or sum is taken of.
        self._objective_by_rows = replace(objective, reduction="none")

    def compute_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each member, (M,), for outputs (M, B, ...) and targets (M, B, ...)."""
        losses = self._objective_by_rows.compute_loss(outputs.flatten(0, 1), targets.flatten(0, 1))
        losses = losses.view(len(outputs), -1)
        return losses.sum(1) if self.objective.reduction == "sum" else losses.mean(1)

    def compute_metrics(
        self, outputs: Tensor, targets: Tensor, losses: Tensor, weights: Tensor
    ) -> list[dict[str, float]]:
        """Metrics of each member over all rows, as `Objective.compute_metrics` returns them; waits for the device.

        outputs: (M, N, ...); targets: (M, N, ...), or (1, N, ...) where all members have the same; losses: of each
        batch (M, batches); weights: of each batch, a mean loss counts as often (batches,).
        """
        wide = metrics.widen(losses)
        wide_weights = weights.to(wide)
        if self.objective.reduction != "sum":
            wide = wide * wide_weights
        columns = {"loss": wide.sum(1) / wide_weights.sum()}

        names = self.objective.metric_names
        if len(names) > 1:
            predicted = self.objective.predict(outputs)
            task = self.objective.spec.task
            if task == "regression":
                columns |= _compute_regression_metrics(predicted, targets)
            elif task == "binary":
                columns |= _compute_binary_metrics(outputs.squeeze(-1), predicted, targets)
            else:
                columns |= _compute_multiclass_metrics(outputs, targets)

        # One transfer for all numbers.
        columns_in_order = [name for name in names if name in columns]
        table = torch.stack([metrics.widen(columns[name]) for name in columns_in_order]).cpu().T.tolist()
        return [dict(zip(columns_in_order, row, strict=True)) for row in table]


def _compute_regression_metrics(predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """For predicted (M, N, columns)."""
    wide_targets = metrics.widen(targets)
    difference = metrics.widen(predicted - targets)
    # (M, columns)
    squared = difference.square().sum(1)
    spread = (wide_targets - wide_targets.mean(1, keepdim=True)).square().sum(1)
    r2 = torch.where(spread > 0, 1 - squared / spread.clamp_min(1e-300), torch.zeros_like(squared))
    count = predicted.shape[1] * predicted.shape[2]
    return {"mse": squared.sum(1) / count, "mae": difference.abs().sum((1, 2)) / count, "r2": r2.mean(1)}


def _compute_binary_metrics(scores: Tensor, predicted: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """For scores and predicted (M, N)."""
    confusion = _count_confusion(predicted, targets, 2)
    tn, fp, fn, tp = confusion.flatten(1).unbind(1)
    return {
        "accuracy": (tp + tn) / confusion.sum((1, 2)).clamp(min=1),
        "precision": tp / (tp + fp).clamp(min=1),
        "recall": tp / (tp + fn).clamp(min=1),
        "f1": 2 * tp / (2 * tp + fp + fn).clamp(min=1),
        "auroc": _compute_auroc(scores, targets.expand_as(scores)),
    }


def _compute_multiclass_metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """For outputs (M, N, classes)."""
    classes = outputs.shape[-1]
    confusion = _count_confusion(outputs.argmax(-1), targets, classes)
    hits = confusion.diagonal(dim1=1, dim2=2)
    occurrences = confusion.sum(1) + confusion.sum(2)
    f1 = 2 * hits / occurrences.clamp(min=1)
    total = confusion.sum((1, 2))
    columns = {
        "accuracy": hits.sum(1) / total,
        "macro_f1": f1.sum(1) / (occurrences > 0).sum(1),
    }
    if classes >= 10:
        target_scores = outputs.gather(-1, targets.expand(outputs.shape[:2]).unsqueeze(-1))
        above = (outputs > target_scores).sum(-1)
        columns["top5_accuracy"] = (above < 5).sum(1) / total
    return columns


def _count_confusion(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Counts (M, classes, classes) of targets and predicted classes, as float64."""
    members = len(predicted)
    first = torch.arange(members, device=predicted.device).unsqueeze(1) * classes * classes
    cells = first + targets * classes + predicted
    counts = torch.bincount(cells.flatten(), minlength=members * classes * classes)
    return metrics.widen(counts.view(members, classes, classes))


def _compute_auroc(scores: Tensor, targets: Tensor) -> Tensor:
    """`metrics.compute_auroc` of each member, for scores and targets (M, N)."""
    positives = targets == 1
    n1 = metrics.widen(positives.sum(1))
    n0 = targets.shape[1] - n1

    rank_sums = _sum_ranks(scores, positives)
    u = rank_sums - n1 * (n1 + 1) / 2
    area = u / (n0 * n1).clamp(min=1)
    area = torch.where((n0 == 0) | (n1 == 0), torch.full_like(area, 0.5), area)
    return torch.where(scores.isnan().any(1), torch.full_like(area, torch.nan), area)


def _sum_ranks(scores: Tensor, positives: Tensor) -> Tensor:
    """Sum of the ranks that the positives' scores have in their row, (M,); tied scores share their mean rank.

    scores: (M, N); positives: bool (M, N).
    """
    wide = metrics.get_wide_dtype(scores.device)
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        # The mean rank of tied scores lies half-way between those of the first and the last of them.
        ordered = scores.sort(1).values
        first = torch.searchsorted(ordered, scores.contiguous())
        last = torch.searchsorted(ordered, scores.contiguous(), right=True)
        means = (first + last + 1).to(wide) / 2
        return (means * positives).sum(1)

    # Integers in the same order: NumPy sorts them in a tenth of the time of an argsort of floats. Adding 0
    # makes both zeros one; of negative floats all bits but the sign are turned round.
    bits = (scores.detach() + 0.0).view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() * 2
    # Among tied scores the positives come last, then first: the mean of both sums is that of the mean ranks.
    positives_last = np.sort((keys + positives).numpy(), axis=1) & 1
    positives_first = 1 - (np.sort((keys + ~positives).numpy(), axis=1) & 1)
    ranks = np.arange(1, scores.shape[1] + 1)
    return torch.from_numpy((positives_last + positives_first) @ ranks).to(wide) / 2


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Batches (M, B, ...) one after the other, (M, N, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)
