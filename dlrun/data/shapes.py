"""Points in a chosen pattern: rows typed in the config, and the flower of two classes."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import MOST_CLASSES, DataSpec, Split, Splits, TaskName

Classes = Literal["binary", "multiclass"]


def points(
    x: list[Any],
    y: list[Any],
    task: Literal["regression", "binary", "multiclass"] = "regression",
    class_names: list[str] | None = None,
    feature_names: list[str] | None = None,
) -> Splits:
    """Rows typed in the config: x and y are lists of numbers, or of lists of numbers for several columns.

    float64 x (N, features); y float64 (N, columns) for regression, else int64 (N,), classes counted from 0;
    no test part. Raises RequestError for no rows, unequal or ragged lists, values that are not finite numbers,
    classes that are not whole numbers from 0, and names that do not match.
    """
    inputs = _to_matrix("x", x)
    values = _to_matrix("y", y)
    if len(inputs) != len(values):
        raise RequestError(f"data.x has {len(inputs)} rows and data.y {len(values)}: type as many of each")
    if task not in ("regression", "binary", "multiclass"):
        raise RequestError(f"data.task={task} is not known: type regression, binary or multiclass")

    features = inputs.shape[1]
    if feature_names is not None and len(feature_names) != features:
        raise RequestError(f"data.feature_names has {len(feature_names)} names, and data.x {features} columns")
    named_features = tuple(feature_names or ())

    if task == "regression":
        if class_names is not None:
            raise RequestError("data.class_names are for classes: type data.task=binary or data.task=multiclass")
        spec = DataSpec("vector", (features,), task, values.shape[1], feature_names=named_features)
        return Splits(Split((inputs,), values), None, None, spec)

    labels = _to_labels(values, task)
    highest = int(labels.max())
    if highest >= MOST_CLASSES:
        raise RequestError(f"data.y holds class {highest}, and classes are counted from 0, up to {MOST_CLASSES - 1:,}")

    # More names than classes are fine for multiclass: rows of a class may be missing.
    classes = 2 if task == "binary" else highest + 1
    names = tuple(class_names or (str(i) for i in range(classes)))
    if len(names) <= highest or (task == "binary" and len(names) != 2):
        raise RequestError(f"data.class_names has {len(names)} names, and data.y {classes} classes")

    output_size = 1 if task == "binary" else len(names)
    spec = DataSpec("vector", (features,), task, output_size, class_names=names, feature_names=named_features)
    return Splits(Split((inputs,), labels), None, None, spec)


def _to_matrix(key: str, rows: list[Any]) -> Tensor:
    """float64 (N, columns) from a list of numbers or of equally long lists of numbers."""
    if not rows:
        raise RequestError(f"data.{key} has no rows; type data.{key}='[1, 2, 3]'")

    lists = [row if isinstance(row, list) else [row] for row in rows]
    if len({len(row) for row in lists}) > 1 or not lists[0]:
        widths = ", ".join(str(len(row)) for row in lists[:8])
        raise RequestError(f"data.{key} has rows of different lengths or none ({widths}): give each as many numbers")

    for i, row in enumerate(lists):
        for value in row:
            # bool is an int in Python.
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value):
                raise RequestError(f"data.{key} holds {value!r} in row {i + 1}, where a number is needed")
    return torch.tensor(lists, dtype=torch.float64)


def _to_labels(values: Tensor, task: TaskName) -> Tensor:
    """int64 (N,) from the single column of classes."""
    if values.shape[1] != 1:
        raise RequestError(f"data.y has {values.shape[1]} columns, and data.task={task} takes one class a row")

    # -1 and 1 are no classes: the losses count from 0.
    column = values[:, 0]
    if (column != column.round()).any() or column.min() < 0 or (task == "binary" and column.max() > 1):
        allowed = "0 and 1" if task == "binary" else "whole numbers from 0"
        raise RequestError(f"data.y={column.tolist()} are no classes: data.task={task} takes {allowed}")
    return column.long()


def flower(
    rows: int = 400,
    petals: int = 4,
    radius: float = 4.0,
    noise: float = 0.2,
    task: Classes = "binary",
    seed: int = 0,
) -> Splits:
    """Two classes on the petals of the rose curve r = radius · sin(petals · θ), `petals` of each class.

    Class 0 has the half turn θ in [0, π), class 1 the rest; Gaussian noise of that std is added to θ and to r.
    float64 x (rows, 2), int64 y, no test part. Raises RequestError for rows < 2, noise < 0, a radius of 0 or
    less, another task, and an odd number of petals, for which both halves trace the same ones.
    """
    if not (rows >= 2 and radius > 0 and noise >= 0):
        raise RequestError(
            f"data.rows={rows} must be at least 2, data.radius={radius} above 0 and data.noise={noise} at least 0"
        )
    # With an odd number r(θ + π) = -r(θ), the same point.
    if petals < 2 or petals % 2:
        raise RequestError(f"data.petals={petals} must be even: with an odd number both classes share their petals")
    if task not in ("multiclass", "binary"):
        raise RequestError(f"data.task={task} does not fit data=flower: type data.task=multiclass or data.task=binary")

    generator = torch.Generator().manual_seed(seed)
    # The second half of the turn is class 1.
    y = (torch.arange(rows) >= rows // 2).long()
    angle = 2 * math.pi * torch.arange(rows, dtype=torch.float64) / rows
    angle += noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    reach = radius * (petals * angle).sin() + noise * torch.randn(rows, generator=generator, dtype=torch.float64)

    # Polar to Cartesian coordinates.
    x = torch.stack([reach * angle.cos(), reach * angle.sin()], 1)
    output_size = 1 if task == "binary" else 2
    spec = DataSpec("vector", (2,), task, output_size, class_names=("0", "1"))
    return Splits(Split((x,), y), None, None, spec)
