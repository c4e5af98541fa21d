"""The metrics of each task, and whether less or more of one is better. No torch, as comparisons of runs import it."""

from collections.abc import Collection, Mapping
from typing import Literal

Direction = Literal["min", "max"]

# By task, in the order in which they are shown.
DIRECTIONS: dict[str, dict[str, Direction]] = {
    "regression": {"loss": "min", "mse": "min", "mae": "min", "r2": "max"},
    "binary": {
        "loss": "min",
        "accuracy": "max",
        "precision": "max",
        "recall": "max",
        "f1": "max",
        "auroc": "max",
    },
    "multiclass": {"loss": "min", "accuracy": "max", "macro_f1": "max", "top5_accuracy": "max"},
    "multilabel": {
        "loss": "min",
        "accuracy": "max",
        "exact_match": "max",
        "macro_f1": "max",
        "micro_f1": "max",
    },
    "tagging": {"loss": "min", "accuracy": "max", "exact_match": "max"},
}

# Computed when task.metrics names them.
_EXTRA_DIRECTIONS: dict[str, Direction] = {"rmse": "min", "macro_precision": "max", "macro_recall": "max"}

# scikit-learn's names say their direction by how they end. These say it without the end, which may be left out.
_ENDS: dict[str, Direction] = {"_score": "max", "_error": "min", "_loss": "min", "_deviance": "min"}
_SCORES = (
    "average_precision", "balanced_accuracy", "cohen_kappa", "d2_absolute_error", "d2_brier", "d2_log_loss",
    "d2_pinball", "d2_tweedie", "explained_variance", "fbeta", "jaccard", "matthews_corrcoef", "roc_auc",
    "top_k_accuracy",
)  # fmt: skip


def find_direction(metric: str) -> Direction | None:
    """Whether less or more of a metric such as "val/accuracy" or "val/ema_loss" is better; None if it is unknown."""
    name = metric.rpartition("/")[2].removeprefix("ema_")
    for directions in (*DIRECTIONS.values(), _EXTRA_DIRECTIONS):
        if name in directions:
            return directions[name]
    if name in _SCORES:
        return "max"
    for end, direction in _ENDS.items():
        if name.endswith(end):
            return direction

    # One of several outputs has its name in front.
    for directions in DIRECTIONS.values():
        for task_metric, direction in directions.items():
            if name.endswith(f"_{task_metric}"):
                return direction
    return None


def get_direction(metric: str) -> Direction:
    """`find_direction`, and "min" if it is unknown."""
    return find_direction(metric) or "min"


def select_metrics(row: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an epoch's row, and what was logged besides: all but counters, learning rates and parameters."""
    metrics = {}
    for name, value in row.items():
        if name not in ("epoch", "step", "lr") and not name.startswith(("lr/", "parameter/")):
            metrics[name] = value
    return metrics


def find_task(metrics: Collection[str]) -> str:
    """The task of a run by the names of its metrics, such as "test/r2"; "" if tasks share all of them."""
    names = {metric.partition("/")[2] for metric in metrics}
    # Multilabel has the metrics of other tasks, and this one besides.
    if "micro_f1" in names:
        return "multilabel"

    tasks = {task: set(directions) for task, directions in DIRECTIONS.items() if task != "multilabel"}
    for task, own_names in tasks.items():
        others = set[str]().union(*(tasks[other] for other in tasks if other != task))
        if names & (own_names - others):
            return task
    return ""
