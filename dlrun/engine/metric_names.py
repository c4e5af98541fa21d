"""Which metrics each task has, and whether less or more of one is better; without torch, for whoever compares runs."""

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
    "tagging": {"loss": "min", "accuracy": "max", "exact_match": "max"},
}


def get_direction(metric: str) -> Direction:
    """Whether less or more of a metric such as "val/accuracy" or "val/ema_loss" is better; "min" if it is unknown."""
    name = metric.rpartition("/")[2].removeprefix("ema_")
    for directions in DIRECTIONS.values():
        if name in directions:
            return directions[name]
    return "min"


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
    for task, directions in DIRECTIONS.items():
        others = {name for other, names_of_other in DIRECTIONS.items() if other != task for name in names_of_other}
        if names & (set(directions) - others):
            return task
    return ""
