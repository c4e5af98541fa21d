"""Which rows of a table are trained on, validated on and tested on."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlrun.core.errors import DataError, RequestError
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.datasets import RowIndices, check_fraction, partition

SPLITS = ("random", "time", "group")


@dataclass(frozen=True)
class SplitPlan:
    """How rows are drawn.

    labels: class numbers (rows,), of which each part gets the same mix; None for regression. order: values (rows,)
    whose last rows are tested on, for split=time; groups: (rows,), which stay together, for split=group.
    """

    split: str
    seed: int
    labels: RowIndices | None = None
    order: Any = None
    groups: RowIndices | None = None
    source: str = ""


@dataclass(frozen=True)
class RowParts:
    """Row numbers of each part, ascending."""

    train: RowIndices
    val: RowIndices
    test: RowIndices
    notes: tuple[str, ...] = ()


def check_split(split: str, split_column: str | int | None, folds: int | None, fold: int) -> None:
    """Raise RequestError for settings that do not go together."""
    if split not in SPLITS:
        hint = did_you_mean(str(split), SPLITS)
        raise RequestError(f"data.split={split} is no way to split; {hint}type one of {', '.join(SPLITS)}")
    if split != "random" and split_column is None:
        raise RequestError(f"data.split={split} needs a column; type data.split_column=<its name>")
    if split == "random" and split_column is not None:
        raise RequestError(f"data.split_column={split_column} is for data.split=time or group; type one of them")
    if folds is not None and folds < 2:
        raise RequestError(f"data.folds={folds} must be at least 2, or null for no cross-validation")
    if folds is not None and not 0 <= fold < folds:
        raise RequestError(f"data.fold={fold} must be a number from 0 to {folds - 1}, as data.folds={folds}")
    if folds is None and fold:
        raise RequestError(f"data.fold={fold} is for cross-validation; type data.folds=5 too")


def draw_parts(
    rows: int, plan: SplitPlan, test_fraction: float, val_fraction: float, folds: int | None, fold: int
) -> RowParts:
    """Draw the test part, and from the others the validation part; empty where a fraction is 0.

    folds: the test part is the fold with the number `fold`, as of scikit-learn's StratifiedKFold, KFold, GroupKFold
    or TimeSeriesSplit.
    """
    check_fraction(test_fraction)
    notes: list[str] = []
    if folds is not None:
        train, test = _draw_fold(rows, plan, folds, fold)
    else:
        train, test = _draw(np.arange(rows), plan, test_fraction, "test", notes)

    # The builder's rule: a part that rounds to no row is none.
    val = train[:0]
    if round(len(train) * val_fraction) > 0:
        train, val = _draw(train, plan, val_fraction, "validation", notes)
    return RowParts(train, val, test, tuple(dict.fromkeys(notes)))


def _draw(
    rows: RowIndices, plan: SplitPlan, fraction: float, part: str, notes: list[str]
) -> tuple[RowIndices, RowIndices]:
    """The rows in two parts, the second with about `fraction` of them; at least one row each unless that is 0."""
    if fraction == 0 or len(rows) < 2:
        return rows, rows[:0]
    if plan.split == "time":
        held_out = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        # Stable, so that rows of the same moment keep the order of the file.
        by_time = rows[np.argsort(plan.order[rows], kind="stable")]
        return np.sort(by_time[:-held_out]), np.sort(by_time[-held_out:])

    if plan.split == "group":
        return _draw_groups(rows, plan, fraction)
    if plan.labels is None:
        first, second = partition(len(rows), fraction, plan.seed)
        return rows[first], rows[second]
    return _draw_classes(rows, plan.labels, plan.seed, fraction, part, notes)


def _draw_groups(rows: RowIndices, plan: SplitPlan, fraction: float) -> tuple[RowIndices, RowIndices]:
    from sklearn.model_selection import GroupShuffleSplit

    assert plan.groups is not None
    # Whole groups go to one part, so its share of the rows is only about the one asked for.
    groups = plan.groups[rows]
    if len(np.unique(groups)) < 2:
        raise DataError(f"{plan.source}: data.split_column has one group only; name another column, or split=random")
    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=plan.seed)
    first, second = next(splitter.split(rows, groups=groups))
    return rows[np.sort(first)], rows[np.sort(second)]


def _draw_classes(
    rows: RowIndices, labels: RowIndices, seed: int, fraction: float, part: str, notes: list[str]
) -> tuple[RowIndices, RowIndices]:
    """Draw so that both parts have the same mix of classes; a class of one row is trained on."""
    part_labels = labels[rows]
    counts = np.bincount(part_labels)
    held_out = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    classes = int((counts > 0).sum())
    single = counts[part_labels] == 1
    if held_out >= classes and len(rows) - held_out >= classes and not single.all():
        from sklearn.model_selection import train_test_split

        # A class of one row cannot be in both parts, and training without it would be blind to it.
        several = rows[~single]
        size = min(held_out, len(several) - classes)
        if size >= len(np.unique(labels[several])):
            first, second = train_test_split(several, test_size=size, stratify=labels[several], random_state=seed)
            if single.any():
                count = int(single.sum())
                which = "1 class has one row" if count == 1 else f"{count} classes have one row each"
                notes.append(f"{which}, which is trained on and not held out.")
            return np.sort(np.concatenate([first, rows[single]])), np.sort(second)

    # Too few rows for all classes: what is held out leaves each class at least one row to train on.
    left = counts.copy()
    chosen: list[int] = []
    for position in np.random.default_rng(seed).permutation(len(rows)):
        if len(chosen) == held_out:
            break
        if left[part_labels[position]] > 1:
            left[part_labels[position]] -= 1
            chosen.append(int(position))

    # As a mask, both parts come out in the order of the rows.
    mask = np.zeros(len(rows), dtype=bool)
    mask[chosen] = True
    notes.append(
        f"{classes} classes in {len(rows)} rows are too many for a {part} part of {format_count(len(chosen), 'row')} "
        "with the same mix of classes: it was drawn at random."
    )
    return rows[~mask], rows[mask]


def _draw_fold(rows: int, plan: SplitPlan, folds: int, fold: int) -> tuple[RowIndices, RowIndices]:
    from sklearn import model_selection

    every = np.arange(rows)
    splitter: Any
    try:
        with warnings.catch_warnings():
            # Classes with fewer rows than folds: those folds have none of them.
            warnings.simplefilter("ignore")
            if plan.split == "time":
                order = np.argsort(plan.order, kind="stable")
                pairs = list(model_selection.TimeSeriesSplit(folds).split(every))
                train, test = pairs[fold]
                return np.sort(order[train]), np.sort(order[test])

            if plan.split == "group":
                splitter = model_selection.GroupKFold(folds)
            elif plan.labels is not None:
                splitter = model_selection.StratifiedKFold(folds, shuffle=True, random_state=plan.seed)
            else:
                splitter = model_selection.KFold(folds, shuffle=True, random_state=plan.seed)

            train, test = list(splitter.split(every, plan.labels, plan.groups))[fold]
    except ValueError as error:
        raise RequestError(
            f"{plan.source}: data.folds={folds} is too many: {str(error).rstrip('.')}; type a smaller number"
        ) from error

    return train, test


def describe_small_classes(test_labels: Sequence[int] | RowIndices, names: Sequence[str]) -> str:
    """A note on the classes that the test part has no row of; "" if there is none."""
    counts = np.bincount(np.asarray(test_labels, dtype=np.int64), minlength=len(names))
    # Nothing is measured of these, although metrics seem to speak for all classes.
    empty_parts = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if not empty_parts:
        return ""
    names_shown = ", ".join(empty_parts[:5]) + (", …" if len(empty_parts) > 5 else "")
    return f"the test part has no row of {len(empty_parts)} of {len(names)} classes: {names_shown}."
