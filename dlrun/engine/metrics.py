"""Metrics as sums on the device, reduced once at the end: a short last batch weighs what it holds."""

from collections.abc import Callable

import torch
from torch import Tensor

from dlrun.data.spec import PADDING, TaskName

MetricSums = dict[str, Tensor]

METRIC_NAMES: dict[TaskName, tuple[str, ...]] = {
    "regression": ("loss", "mse", "mae", "r2"),
    "binary": ("loss", "accuracy", "precision", "recall", "f1", "auroc"),
    "multiclass": ("loss", "accuracy", "macro_f1", "top5_accuracy"),
    "tagging": ("loss", "accuracy", "exact_match"),
}


def regression_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Outputs and targets (N, columns)."""
    difference = widen(outputs - targets)
    return {"squared": difference.square().sum(0), "absolute": difference.abs().sum(0), "all_y": widen(targets)}


def regression_metrics(s: MetricSums) -> dict[str, float]:
    """R² is the mean over target columns of 1 - SS_res / SS_tot; 0 for a constant target."""
    spread = (s["all_y"] - s["all_y"].mean(0)).square().sum(0)
    r2 = torch.where(spread > 0, 1 - s["squared"] / spread.clamp_min(1e-300), torch.zeros_like(spread))
    count = s["all_y"].numel()
    return {"mse": float(s["squared"].sum()) / count, "mae": float(s["absolute"].sum()) / count, "r2": float(r2.mean())}


def binary_sums(outputs: Tensor, predicted: Tensor, targets: Tensor) -> MetricSums:
    """Outputs (N, 1), predicted and targets (N,) of 0 and 1."""
    cells = torch.bincount(targets * 2 + predicted, minlength=4)
    return {"confusion": cells.view(2, 2), "all_scores": outputs.squeeze(-1), "all_targets": targets}


def binary_metrics(s: MetricSums) -> dict[str, float]:
    """Precision and recall are 0 where nothing was predicted, or nothing is there."""
    (tn, fp), (fn, tp) = s["confusion"].tolist()
    return {
        "accuracy": (tp + tn) / max(tp + tn + fp + fn, 1),
        "precision": tp / max(tp + fp, 1),
        "recall": tp / max(tp + fn, 1),
        "f1": 2 * tp / max(2 * tp + fp + fn, 1),
        "auroc": compute_auroc(s["all_scores"], s["all_targets"]),
    }


def multiclass_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Outputs (N, classes), targets (N,)."""
    size = outputs.shape[-1]
    cells = torch.bincount(targets * size + outputs.argmax(-1), minlength=size * size)
    sums = {"confusion": cells.view(size, size)}
    if size >= 10:  # the target is among the top 5 when fewer than 5 classes are above it: cheaper than topk
        above = (outputs > outputs.gather(-1, targets.unsqueeze(-1))).sum(-1)
        sums["top5"] = (above < 5).sum()
    return sums


def multiclass_metrics(s: MetricSums) -> dict[str, float]:
    """Macro F1 is the mean over the classes that occur among targets or predictions."""
    table = s["confusion"].double()
    hits, both = table.diagonal(), table.sum(0) + table.sum(1)
    found = {
        "accuracy": divide(hits.sum(), table.sum()),
        "macro_f1": float((2 * hits[both > 0] / both[both > 0]).mean()),
    }
    return found | ({"top5_accuracy": divide(s["top5"], table.sum())} if "top5" in s else {})


def tagging_sums(outputs: Tensor, targets: Tensor) -> MetricSums:
    """Outputs (N, length, tags), targets (N, length), PADDING where a sequence has ended."""
    real = targets != PADDING
    right = (outputs.argmax(-1) == targets) & real
    rows = torch.tensor(len(targets), device=targets.device)
    return {"right": right.sum(), "tags": real.sum(), "exact": (right | ~real).all(-1).sum(), "rows": rows}


def tagging_metrics(s: MetricSums) -> dict[str, float]:
    """Accuracy counts tags, exact_match whole sequences."""
    return {"accuracy": divide(s["right"], s["tags"]), "exact_match": divide(s["exact"], s["rows"])}


SUMS: dict[TaskName, Callable[[Tensor, Tensor], MetricSums]] = {
    "regression": regression_sums,
    "multiclass": multiclass_sums,
    "tagging": tagging_sums,
}
METRICS: dict[TaskName, Callable[[MetricSums], dict[str, float]]] = {
    "regression": regression_metrics,
    "binary": binary_metrics,
    "multiclass": multiclass_metrics,
    "tagging": tagging_metrics,
}


def widen(x: Tensor) -> Tensor:
    """Sums are kept in float64, which mps does not have."""
    return x.float() if x.device.type == "mps" else x.double()


def divide(a: Tensor, b: Tensor) -> float:
    """a / b, NaN for an empty sum."""
    return float(a) / float(b) if float(b) else float("nan")


def compute_auroc(scores: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for targets (N,) of 0 and 1; 0.5 when one class is missing.

    Mann and Whitney's U over n0 * n1, with the mean rank for ties. NaN when a score is NaN.
    """
    positives = targets == 1
    n1 = int(positives.sum())
    n0 = len(targets) - n1
    if n0 == 0 or n1 == 0:
        return 0.5
    if bool(scores.isnan().any()):
        return float("nan")
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean_rank = last - (counts - 1).double() / 2
    u = mean_rank[place][positives].sum() - n1 * (n1 + 1) / 2
    return float(u / (n0 * n1))
