"""Classes of unequal size: the weights that draw them equally often, and the note on them."""

import torch
from torch import Tensor

from dlrun.config.settings import Settings
from dlrun.core.errors import RequestError
from dlrun.data.batches import MOST_DRAWN_ROWS
from dlrun.data.datasets import Part, count_rows
from dlrun.data.inspection import count_classes, get_valid_targets
from dlrun.data.spec import DataSpec, Splits
from dlrun.data.targets import FILE_TARGETS

# Classes are called unequal if the largest has this many times the rows of the smallest.
UNEQUAL = 5

_MOST_NAMES = 6


def compute_row_weights(settings: Settings, part: Part, spec: DataSpec) -> Tensor | None:
    """The probability of each row by `data.sampler`, float64 (rows,), up to a factor; None without a sampler.

    RequestError for data that have no classes to balance.
    """
    if settings.data.keys.sampler is None:
        return None

    key = f"data.sampler={settings.data.keys.sampler}"
    if spec.task not in ("binary", "multiclass"):
        raise RequestError(f"{key} is for rows of one class each, and this task is {spec.task}; leave it out")
    if not settings.data.keys.shuffle:
        raise RequestError(
            f"{key} draws rows at random, and data.shuffle=false keeps their order; leave out one of them"
        )
    rows = count_rows(part)
    if rows > MOST_DRAWN_ROWS:
        raise RequestError(f"{key} draws from at most {MOST_DRAWN_ROWS:,} rows, and there are {rows:,}; leave it out")

    targets = get_valid_targets(part, spec)
    if targets is None:
        raise RequestError(
            f"{key} needs the class of every row before the first is read: give the dataset the attribute targets, "
            "int64 (rows,)"
        )
    counts = torch.bincount(targets, minlength=count_classes(spec)).double()
    return (1 / counts)[targets]


def find_balance_notes(settings: Settings, splits: Splits) -> list[str]:
    """The note on classes of the user's own data of which the largest is many times the smallest."""
    spec = splits.spec
    is_weighted = settings.data.keys.sampler is not None or settings.task.class_weights is not None
    # Data of the user's own may surprise; the published sets are known.
    is_own = settings.data.target in FILE_TARGETS or not str(settings.data.target).startswith("dlrun.")
    if is_weighted or not is_own or spec.task not in ("binary", "multiclass"):
        return []

    targets = get_valid_targets(splits.train, spec)
    if targets is None:
        return []
    counts = torch.bincount(targets, minlength=count_classes(spec))
    present = counts[counts > 0]
    if len(present) < 2 or int(present.max()) < UNEQUAL * int(present.min()):
        return []

    names = spec.class_names or tuple(str(number) for number in range(len(counts)))
    order = counts.argsort(descending=True, stable=True).tolist()
    classes = order if len(order) <= _MOST_NAMES else [*order[: _MOST_NAMES // 2], *order[-_MOST_NAMES // 2 :]]
    listed = [f"{names[i]} {int(counts[i]):,}" for i in classes]
    if len(classes) < len(order):
        listed.insert(_MOST_NAMES // 2, "…")
    return [
        f"the classes differ in size, in training rows: {', '.join(listed)}; data.sampler=balanced draws all equally "
        "often, task.class_weights=balanced weights the loss."
    ]
