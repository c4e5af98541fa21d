"""Metrics as sums on the device, reduced once at the end: a short last batch counts by its rows."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dlrun.data.spec import PADDING, TaskName

# Scalars and counts that add up over batches; values named `all_*` are concatenated instead.
MetricSums = dict[str, Tensor]


def compute_regression_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Sums for outputs and targets (N, columns)."""
    # (N, columns)
    difference = widen(outputs - targets)
    return {
        "squared": difference.square().sum(0),
        "absolute": difference.abs().sum(0),
        # R² needs the mean of all targets first.
        "all_y": widen(targets),
    }


def compute_regression_metrics(sums: MetricSums) -> dict[str, float]:
    """R² is the mean over target columns of 1 - SS_res / SS_tot; 0 for a constant target."""
    targets = sums["all_y"]
    # (columns,); a constant column is 0 and must not divide.
    spread = (targets - targets.mean(0)).square().sum(0)
    r2 = torch.where(spread > 0, 1 - sums["squared"] / spread.clamp_min(1e-300), torch.zeros_like(spread))
    count = targets.numel()
    return {
        "mse": float(sums["squared"].sum()) / count,
        "mae": float(sums["absolute"].sum()) / count,
        "r2": float(r2.mean()),
    }


def compute_reconstruction_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Sums for outputs and targets (N, values) of an autoencoder, which hold no target: an image has many values."""
    difference = widen(outputs - targets)
    wide = widen(targets)
    return {
        # (values,)
        "squared": difference.square().sum(0),
        "absolute": difference.abs().sum(0),
        "total": wide.sum(0),
        "total_squares": wide.square().sum(0),
        "rows": torch.tensor(len(targets), device=targets.device),
    }


def compute_reconstruction_metrics(sums: MetricSums) -> dict[str, float]:
    """The metrics of a regression; R² is of all values together, the share of their variance that is explained.

    In the mean over values, pixels at the border that hardly ever differ would count as much as all others.
    """
    rows = int(sums["rows"])
    spread = float((sums["total_squares"] - sums["total"].square() / rows).sum())
    squared = float(sums["squared"].sum())
    # For constant inputs the spread is rounding error alone.
    is_constant = spread <= 1e-12 * float(sums["total_squares"].sum())
    count = rows * len(sums["squared"])
    return {
        "mse": squared / count,
        "mae": float(sums["absolute"].sum()) / count,
        "r2": 0.0 if is_constant else 1 - squared / spread,
    }


def compute_binary_sums(outputs: Tensor, predicted: Tensor, targets: Tensor) -> MetricSums:
    """Sums for outputs (N, 1), and predicted and targets (N,) of 0 and 1."""
    # Row-major cells of (target, predicted).
    cells = torch.bincount(targets * 2 + predicted, minlength=4)
    return {"confusion": cells.view(2, 2), "all_scores": outputs.squeeze(-1), "all_targets": targets}


def compute_binary_metrics(sums: MetricSums) -> dict[str, float]:
    """Precision is 0 without a positive prediction, recall without a positive target."""
    (tn, fp), (fn, tp) = sums["confusion"].tolist()
    return {
        "accuracy": (tp + tn) / max(tp + tn + fp + fn, 1),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "auroc": compute_auroc(sums["all_scores"], sums["all_targets"]),
    }


def compute_multiclass_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Sums for outputs (N, classes) and targets (N,)."""
    size = outputs.shape[-1]
    # Row-major cells of (target, predicted).
    cells = torch.bincount(targets * size + outputs.argmax(-1), minlength=size * size)
    sums = {"confusion": cells.view(size, size)}
    if size >= 10:
        # The target is among the top 5 if fewer than 5 classes score higher; cheaper than topk.
        above = (outputs > outputs.gather(-1, targets.unsqueeze(-1))).sum(-1)
        sums["top5"] = (above < 5).sum()
    return sums


def compute_multiclass_metrics(sums: MetricSums) -> dict[str, float]:
    """Macro F1 is the mean over the classes that occur among targets or predictions."""
    confusion = sums["confusion"].double()
    hits = confusion.diagonal()
    # F1 of a class is 2 TP / (targets + predictions).
    occurrences = confusion.sum(0) + confusion.sum(1)
    occurs = occurrences > 0

    values = {
        "accuracy": divide(hits.sum(), confusion.sum()),
        "macro_f1": float((2 * hits[occurs] / occurrences[occurs]).mean()),
    }
    if "top5" in sums:
        values["top5_accuracy"] = divide(sums["top5"], confusion.sum())
    return values


def compute_multilabel_sums(predicted: Tensor, targets: Tensor) -> MetricSums:
    """Sums for predicted and targets (N, labels) of 0 and 1."""
    expects = targets > 0
    predicts = predicted > 0
    is_right = expects == predicts
    return {
        # (labels,)
        "hits": (expects & predicts).sum(0),
        "support": expects.sum(0),
        "predicted": predicts.sum(0),
        "right": is_right.sum(),
        "labels": torch.tensor(is_right.numel(), device=targets.device),
        "exact": is_right.all(-1).sum(),
        "rows": torch.tensor(len(targets), device=targets.device),
    }


def compute_multilabel_metrics(sums: MetricSums) -> dict[str, float]:
    """Accuracy is the share of right labels, exact_match of rows whose labels are all right.

    F1 is 2 TP / (targets + predictions): of each label for macro_f1, which is their mean, and of all labels together
    for micro_f1; 0 for a label that occurs neither among targets nor predictions, as in scikit-learn.
    """
    hits = sums["hits"].double()
    occurrences = (sums["support"] + sums["predicted"]).double()
    return {
        "accuracy": divide(sums["right"], sums["labels"]),
        "exact_match": divide(sums["exact"], sums["rows"]),
        "macro_f1": float((2 * hits / occurrences.clamp(min=1)).mean()),
        "micro_f1": float(2 * hits.sum() / occurrences.sum().clamp(min=1)),
    }


def compute_tagging_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Sums for outputs (N, length, tags) and targets (N, length), PADDING after the end of a sequence."""
    # (N, length)
    is_tag = targets != PADDING
    is_right = (outputs.argmax(-1) == targets) & is_tag
    return {
        "right": is_right.sum(),
        "tags": is_tag.sum(),
        "exact": (is_right | ~is_tag).all(-1).sum(),
        "rows": torch.tensor(len(targets), device=targets.device),
    }


def compute_tagging_metrics(sums: MetricSums) -> dict[str, float]:
    """Accuracy is the share of right tags, exact_match of sequences whose tags are all right."""
    return {
        "accuracy": divide(sums["right"], sums["tags"]),
        "exact_match": divide(sums["exact"], sums["rows"]),
    }


# Binary and multilabel sums need predictions: see Objective.compute_sums.
SUMS: dict[TaskName, Callable[[Tensor, Tensor], MetricSums]] = {
    "regression": compute_regression_sums,
    "multiclass": compute_multiclass_sums,
    "tagging": compute_tagging_sums,
}
METRICS: dict[TaskName, Callable[[MetricSums], dict[str, float]]] = {
    "regression": compute_regression_metrics,
    "binary": compute_binary_metrics,
    "multiclass": compute_multiclass_metrics,
    "multilabel": compute_multilabel_metrics,
    "tagging": compute_tagging_metrics,
}


def widen(x: Tensor) -> Tensor:
    """Convert to float64, in which sums are kept; to float32 on mps, which has no float64."""
    return x.to(get_wide_dtype(x.device))


def get_wide_dtype(device: torch.device) -> torch.dtype:
    """The type in which sums are kept on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def divide(total: Tensor, count: Tensor) -> float:
    """total / count, NaN for a count of 0."""
    return float(total) / float(count) if float(count) else float("nan")


def compute_auroc(scores: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for targets (N,) of 0 and 1; 0.5 if one class is missing.

    Mann and Whitney's U over the number of pairs of a positive and a negative row. NaN if a score is NaN.
    """
    # In NumPy: of a few hundred rows each of ten torch calls takes longer than the work in it. It has no bfloat16.
    values = (scores.float() if scores.itemsize < 4 else scores).cpu().numpy()
    is_positive = targets.cpu().numpy() == 1
    positive = values[is_positive]
    negative = values[~is_positive]
    if len(positive) == 0 or len(negative) == 0:
        return 0.5

    # Two short sorts and a search take less time than one order of all rows.
    positive.sort()
    negative.sort()
    # NaN is sorted behind everything else.
    if np.isnan(positive[-1]) or np.isnan(negative[-1]):
        return float("nan")

    # Twice the number of pairs in which the positive one has the higher score; a tie counts half.
    wins = int(negative.searchsorted(positive, "left").sum())
    wins += int(negative.searchsorted(positive, "right").sum())
    return wins / (2 * len(positive) * len(negative))
