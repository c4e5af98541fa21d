"""Metrics that `task.metrics` names besides the task's own: computed once a split, over all of its rows."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun.core.errors import DlrunError, RunError
from dlrun.core.user_code import add_user_line, get_first_clause
from dlrun.engine.metrics import compute_auroc

# The first argument of a metric: class numbers or values, probabilities, or the outputs of the model.
MetricInput = Literal["predictions", "probabilities", "outputs"]


@dataclass(frozen=True)
class ChosenMetric:
    """A metric over all rows of a split, of a library's or the user's own.

    function: from what `takes` says and the targets, both on the CPU, to one number. Of N rows, or tags that are not
        padding: predictions (N,), for regression with several columns (N, columns), for multilabel (N, labels);
        probabilities (N,) of class 1 for binary, else (N, classes) or (N, labels); outputs (N,) or (N, classes), as
        the model returns them; targets (N,), (N, columns) or (N, labels).
    is_quiet: whether its warnings are left out: a library warns of a class without a row in every epoch.
    """

    name: str
    function: Callable[[Tensor, Tensor], Any]
    takes: MetricInput = "predictions"
    is_quiet: bool = False

    def compute(self, inputs: Tensor, targets: Tensor) -> float:
        """The metric as one number; RunError in a sentence for whatever the function raises."""
        try:
            with warnings.catch_warnings():
                if self.is_quiet:
                    warnings.simplefilter("ignore")
                value = self.function(inputs, targets)
        except Exception as error:
            # It may be the user's own, so anything can come.
            if isinstance(error, DlrunError):
                raise
            message = f"task.metrics: {self.name} cannot be computed: {type(error).__name__}: {get_first_clause(error)}"
            raise RunError(add_user_line(message, error)) from error

        try:
            return float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"{tuple(value.shape)} numbers" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise RunError(
                f"task.metrics: {self.name} gives {kind}, and a metric is one number; return a number, or choose its "
                "average in {_target_: ..., average: macro}"
            ) from error


def compute_macro_auroc(probabilities: Tensor, targets: Tensor) -> float:
    """Mean over the classes that occur, but are not alone, of the AUROC of each against the rest."""
    present = torch.unique(targets)
    if len(present) < 2:
        return 0.5
    values = [compute_auroc(probabilities[:, number], (targets == number).long()) for number in present.tolist()]
    return sum(values) / len(values)


def compute_label_auroc(probabilities: Tensor, targets: Tensor) -> float:
    """Mean AUROC of the labels that some rows have and others lack; 0.5 if there is none."""
    # A single label is a column.
    scores = probabilities.reshape(len(targets), -1)
    labels = targets.reshape(len(targets), -1)
    varying = [number for number in range(labels.shape[1]) if len(torch.unique(labels[:, number])) == 2]
    values = [compute_auroc(scores[:, number], labels[:, number]) for number in varying]
    return sum(values) / len(values) if values else 0.5


def compute_macro_precision(predictions: Tensor, targets: Tensor) -> float:
    """Mean precision of the classes that occur among targets or predictions; 0 for one that is not predicted."""
    return _average_classes(predictions, targets, by=predictions)


def compute_macro_recall(predictions: Tensor, targets: Tensor) -> float:
    """Mean recall of the classes that occur among targets or predictions; 0 for one without a target."""
    return _average_classes(predictions, targets, by=targets)


def _average_classes(predictions: Tensor, targets: Tensor, by: Tensor) -> float:
    """Mean over classes of the share of right rows among those where `by` is the class."""
    shares = []
    for number in torch.unique(torch.cat([predictions, targets])).tolist():
        members = by == number
        hits = (members & (predictions == targets)).sum()
        shares.append(float(hits) / max(int(members.sum()), 1))
    return sum(shares) / max(len(shares), 1)


def compute_rmse(predictions: Tensor, targets: Tensor) -> float:
    """Square root of the mean squared error over all numbers."""
    return float((predictions - targets).double().square().mean().sqrt())


# By task, dlrun's own metrics that are computed when they are named.
EXTRA_METRICS: dict[str, dict[str, tuple[Callable[[Tensor, Tensor], float], MetricInput]]] = {
    "regression": {"rmse": (compute_rmse, "predictions")},
    "multiclass": {
        "auroc": (compute_macro_auroc, "probabilities"),
        "macro_precision": (compute_macro_precision, "predictions"),
        "macro_recall": (compute_macro_recall, "predictions"),
    },
    "multilabel": {"auroc": (compute_label_auroc, "probabilities")},
}
