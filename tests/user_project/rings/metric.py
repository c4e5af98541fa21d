"""A metric for classes that all matter."""

import torch
from torch import Tensor


def worst_recall(predictions: Tensor, targets: Tensor) -> float:
    """The recall of the class that is recognized worst."""
    recalls = []
    for label in targets.unique():
        is_label = targets == label
        recalls.append((predictions[is_label] == label).double().mean())
    return float(torch.stack(recalls).min())
