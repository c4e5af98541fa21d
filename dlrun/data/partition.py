"""Which rows train and which test, drawn by the data seed alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError, RequestError

Rows = NDArray[np.int64]


def check_fraction(fraction: float) -> None:
    """Raise RequestError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise RequestError(
            f"data.test_fraction={fraction} must be at least 0 and less than 1, as in data.test_fraction=0.2"
        )


def partition(rows: int, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Row numbers (train, test), each ascending; at least one row each unless `fraction` is 0.

    Raises RequestError for a fraction outside [0, 1).
    """
    check_fraction(fraction)
    order = np.random.default_rng(seed).permutation(rows)
    held_out = _share(rows, fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def stratified_partition(
    labels: Rows, class_names: Sequence[str], fraction: float, seed: int, source: str
) -> tuple[Rows, Rows]:
    """As `partition`, class by class, so that both parts have the same mix of classes.

    labels: (N,) indices into class_names. Raises DataError, naming `source`, for a class of one row.
    """
    check_fraction(fraction)
    generator = np.random.default_rng(seed)
    train, test = [], []
    for label, name in enumerate(class_names):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) == 1 and fraction > 0:
            raise DataError(
                f"{source}: class '{name}' has one row only, which cannot be both in the training "
                "and in the test part; add rows or remove it, type data.test_fraction=0 for no test part, "
                "or data.task=regression for a table whose target is a quantity"
            )
        held_out = _share(len(rows), fraction)
        train.append(rows[held_out:])
        test.append(rows[:held_out])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _share(rows: int, fraction: float) -> int:
    """How many of `rows` test: the nearest whole number that leaves neither part empty."""
    return min(max(round(rows * fraction), 1), rows - 1) if fraction > 0 else 0
