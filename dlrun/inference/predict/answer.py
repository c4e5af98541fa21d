"""What is answered to one input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.engine.objective import Objective

Choice = tuple[str, float]  # a class, or a sequence of tags, and its probability


@dataclass(frozen=True)
class Answer:
    """A prediction, or why there is none.

    choices: classes with their probabilities, the likeliest first; for tags one, their sequence with the product of
    their probabilities. values: of a regression, one a target column. Both are empty where there is an error.
    """

    input: str
    choices: tuple[Choice, ...] = ()
    values: tuple[float, ...] = ()
    label: str | None = None  # what the input itself says is true
    note: str = ""  # what was done to the input
    error: str = ""
    where: str = ""  # file and line of an input that is called by its text


def rank_classes(task: Objective, outputs: Tensor, names: Sequence[str], top: int) -> list[tuple[Choice, ...]]:
    """Of each row of outputs (N, ...): the `top` likeliest classes."""
    probabilities = task.probabilities(outputs.float())
    if task.spec.task == "binary":
        probabilities = torch.stack([1 - probabilities, probabilities], dim=1)
    values, indices = probabilities.sort(dim=1, descending=True, stable=True)
    rows = zip(indices[:, :top].tolist(), values[:, :top].tolist(), strict=True)
    return [tuple((names[i], p) for i, p in zip(*row, strict=True)) for row in rows]


def join_tags(task: Objective, outputs: Tensor, lengths: Tensor, names: Sequence[str]) -> list[tuple[Choice, ...]]:
    """Of each row of outputs (N, length, tags): its tags, letters as a word, longer names with spaces between."""
    sure, tags = task.probabilities(outputs.float()).max(-1)
    between = "" if all(len(name) == 1 for name in names) else " "
    found: list[tuple[Choice, ...]] = []
    for row, p, length in zip(tags, sure, lengths.tolist(), strict=True):
        said = between.join(names[tag] for tag in row[:length].tolist())
        found.append(((said, float(p[:length].prod())),))
    return found
