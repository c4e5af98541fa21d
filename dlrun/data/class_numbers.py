"""Classes that data name by number or by text, as the numbers 0, 1, … of the net's outputs; and values."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import DataError, ErrorList, RequestError, join_names
from dlrun.data.datasets import RowIndices, partition, partition_by_class
from dlrun.data.spec import MOST_CLASSES

_MOST_MISTAKES = 10

# The classes of the rows of a part, and the names of the rows, for sentences.
Labels = tuple[Sequence[Any], Sequence[str]]

PictureTask = Literal["multiclass", "binary", "regression"]


def number_classes(
    labels: Mapping[str, Labels], class_names: Sequence[str] | None, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The classes of each part, int64 (N,), and the names of all.

    labels: by part, train first: whole numbers counted from 0, or texts. class_names: names of the numbers, or the
    texts in their order; without it texts are sorted, and a number is its own name. where: the key that names the
    classes. Raises DataError for up to ten rows whose class is neither, or is not among those of training.
    """
    is_text = isinstance(labels["train"][0][0], str)
    # A name is put together where it is needed, and rows of a class are judged by their first.
    first_rows = {part: _find_first_rows(values) for part, (values, _) in labels.items()}
    mistakes = ErrorList(_MOST_MISTAKES)
    for part, row_of_value in first_rows.items():
        for value, row in row_of_value.items():
            problem = _find_problem(value, is_text)
            if problem:
                mistakes.add(DataError(f"{labels[part][1][row]}: {where} is {value!r}, {problem}"))
    mistakes.raise_if_any()

    if class_names is not None:
        classes = [str(name) for name in class_names]
        if len(set(classes)) < len(classes):
            raise RequestError(f"data.class_names={classes} has a name twice; name each class once")
    elif is_text:
        classes = sorted(first_rows["train"])
    else:
        classes = [str(number) for number in range(max(first_rows["train"]) + 1)]

    code_of: dict[Any, int] = {name if is_text else code: code for code, name in enumerate(classes)}
    lacks = "data.class_names lacks; name each" if class_names is not None else "no training row has"
    for part, row_of_value in first_rows.items():
        for value, row in row_of_value.items():
            if value not in code_of:
                name = labels[part][1][row]
                mistakes.add(
                    DataError(f"{name}: {where} is {value!r}, a class that {lacks} (there are {join_names(classes)})")
                )
    mistakes.raise_if_any()
    numbered = {part: torch.tensor([code_of[value] for value in values]) for part, (values, _) in labels.items()}
    return numbered, classes


def _find_first_rows(values: Sequence[Any]) -> dict[Any, int]:
    """The first row of each value."""
    rows: dict[Any, int] = {}
    for row, value in enumerate(values):
        # A list, of several classes, cannot be looked up.
        rows.setdefault(value if isinstance(value, Hashable) else repr(value), row)
    return rows


def _find_problem(value: Any, is_text: bool) -> str:
    """What keeps a value from being a class; "" for nothing."""
    if isinstance(value, bool | int) and not is_text:
        if value < 0:
            return "and classes are counted from 0; number them anew, or write their names"
        return "" if value < MOST_CLASSES else f"and there are less than {MOST_CLASSES:,} classes; number them anew"
    if isinstance(value, str) and is_text:
        return "" if value else "which is empty; write the name of a class"
    if isinstance(value, float):
        return "and classes are whole numbers or texts; write such"
    return f"and the first one is {'a text' if is_text else 'a whole number'}; write all alike"


def refuse_many_classes(task: str | None, classes: Sequence[str], path: str) -> None:
    """RequestError for a binary task with more than two classes."""
    if task == "binary" and len(classes) > 2:
        raise RequestError(f"data.task=binary: {path} holds {len(classes)} classes; type data.task=multiclass")


@dataclass(frozen=True)
class Answers:
    """What a net is to learn of single rows, such as pictures.

    targets: of each part, int64 (N,) classes, or float32 (N, 1) values of a regression, which has no class_names.
    """

    targets: Mapping[str, Tensor]
    task: PictureTask
    class_names: Sequence[str] = ()
    notes: tuple[str, ...] = ()
    nothing_to_learn: str = ""

    def choose_rows(self, test_fraction: float, seed: int, path: str) -> dict[str, tuple[str, RowIndices]]:
        """Of each part the one that its rows are in, and the rows; a missing test part is drawn from training."""
        rows = {part: (part, np.arange(len(targets))) for part, targets in self.targets.items()}
        if "test" in rows or self.nothing_to_learn:
            return rows

        train = self.targets["train"]
        if self.task == "regression":
            first, second = partition(len(train), test_fraction, seed)
        else:
            first, second = partition_by_class(train.numpy(), self.class_names, test_fraction, seed, path)
        rows["train"] = ("train", first)
        return rows | ({"test": ("train", second)} if len(second) else {})


def read_labels(
    labels: Mapping[str, Labels], class_names: Sequence[str] | None, where: str, task: str | None, path: str
) -> Answers:
    """The classes or values of each part; arguments as in `number_classes`.

    task: None for values if the first is a fraction or another float, else classes. path: what the rows are of, for
    sentences. Raises DataError as `number_classes` does, RequestError for a task that a single answer cannot have.
    """
    if task not in (None, *get_args(PictureTask)):
        raise RequestError(f"data.task={task} is not for pictures; type multiclass, binary or regression")
    if task == "regression" or (task is None and isinstance(labels["train"][0][0], float)):
        values = {part: _read_values(where, *rows) for part, rows in labels.items()}
        note = () if task else (f"{where} was taken for regression; data.task=multiclass says otherwise.",)
        return Answers(values, "regression", notes=note)

    numbered, classes = number_classes(labels, class_names, where)
    refuse_many_classes(task, classes, path)
    train = numbered["train"]
    nothing_to_learn = ""
    if bool((train == train[0]).all()):
        nothing_to_learn = f"{path} holds only the class '{classes[int(train[0])]}', so there is nothing to tell apart"
    return Answers(numbered, "binary" if task == "binary" else "multiclass", classes, (), nothing_to_learn)


def _read_values(where: str, values: Sequence[Any], names: Sequence[str]) -> Tensor:
    """float32 (N, 1); DataError for up to ten that are no finite numbers."""
    mistakes = ErrorList(_MOST_MISTAKES)
    for row, value in enumerate(values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            mistakes.add(DataError(f"{names[row]}: {where} is {value!r}, which is no finite number; write one"))
    mistakes.raise_if_any()
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)
