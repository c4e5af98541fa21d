"""Parts of a data set: their rows, targets and origins; drawing, joining and holding them in memory."""

import dataclasses
import random
from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, default_collate

from dlrun.core.errors import DataError, RequestError
from dlrun.data.origin import Origin
from dlrun.data.spec import Split

Part = Split | Dataset[Any]
RowIndices = NDArray[np.int64]
_ROWS_PER_READ = 1024


class Pairs(Dataset[Any]):
    """A Split as a map-style dataset, for `data.loader=workers`."""

    # Its workers need no seed.
    draws_random_numbers = False

    def __init__(self, split: Split) -> None:
        self.split = split
        self.targets = split.targets
        self.origin = split.origin

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return (*(column[row] for column in self.split.inputs), self.split.targets[row])

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, ...]:
        # One gather per column is much faster than collating single rows.
        index = torch.tensor(rows)
        columns = (*self.split.inputs, self.split.targets)
        return tuple(column.index_select(0, index) for column in columns)


class SeededDataset(Dataset[Any]):
    """A dataset in a worker process that seeds the generators before each row, from `key` and the row alone.

    Random numbers then depend neither on the worker nor on the batch at which an epoch is entered. Costs about
    15 µs per row.
    """

    def __init__(self, dataset: Dataset[Any], key: int) -> None:
        self.dataset = dataset
        self.key = key

    def __getitem__(self, row: int) -> Any:
        # A splitmix-like product keeps (key, row) pairs apart.
        seed = (self.key * 0x9E3779B97F4A7C15 + row) % 2**63
        random.seed(seed)
        np.random.seed(seed % 2**32)

        # torch.manual_seed would look for GPUs as well.
        torch.default_generator.manual_seed(seed)
        return self.dataset[row]


class Rows(Dataset[Any]):
    """Selected rows of a map-style dataset; unlike torch's Subset it keeps `targets`.

    name: label of the rows of a dataset that does not know its origin.
    """

    def __init__(self, dataset: Dataset[Any], index: Tensor, name: str = "") -> None:
        self.dataset = dataset
        self.index = index
        self.origin = get_origin(dataset, name).take(index)
        self.augments = getattr(dataset, "augments", False)
        self.draws_random_numbers = getattr(dataset, "draws_random_numbers", True)
        self.bytes_a_row = getattr(dataset, "bytes_a_row", None)

        targets = get_targets(dataset)
        if targets is not None:
            self.targets = targets[index]
        blocks = getattr(dataset, "blocks", None)
        self.blocks = None if blocks is None else blocks[index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> Any:
        # (epoch seed, row) asks for the row's augmentation in that epoch.
        if isinstance(key, tuple):
            return self.dataset[(key[0], int(self.index[key[1]]))]
        return self.dataset[int(self.index[key])]

    def __getitems__(self, keys: list[Any]) -> Any:
        """Fetch a batch, in one read where the dataset supports it."""
        if not hasattr(self.dataset, "__getitems__"):
            return tuple(default_collate([self[key] for key in keys]))
        if isinstance(keys[0], tuple):
            return self.dataset.__getitems__([(seed, int(self.index[row])) for seed, row in keys])
        return self.dataset.__getitems__(self.index[keys].tolist())


class Joined(ConcatDataset[Any]):
    """Concatenated datasets, with all targets if each dataset states its own."""

    def __init__(self, datasets: Sequence[Dataset[Any]], origins: Sequence[Origin]) -> None:
        super().__init__(datasets)
        self.origin = Origin.join(origins)

        stated = [get_targets(dataset) for dataset in datasets]
        targets = [tensor for tensor in stated if tensor is not None]
        if len(targets) == len(datasets):
            self.targets = torch.cat(targets)


def count_rows(part: Part) -> int:
    """Number of samples in a part."""
    return len(cast(Sized, part))


def get_origin(part: Part, name: str = "") -> Origin:
    """The origin of a part's rows; positions in `name` if the part does not state one."""
    origin = getattr(part, "origin", None)
    if isinstance(origin, Origin):
        return origin
    return Origin.from_position(name, count_rows(part))


def get_targets(part: Part) -> Tensor | None:
    """All targets that a part states without a sample being read; None if it states none, or not one a row."""
    stated = getattr(part, "targets", None)
    if stated is None:
        return None

    try:
        targets = torch.as_tensor(stated)
    except (TypeError, ValueError, RuntimeError):
        # In a user's dataset anything may be called `targets`.
        return None
    return targets if len(targets.shape) and len(targets) == count_rows(part) else None


def take(part: Part, index: Tensor, name: str = "") -> Part:
    """Select rows of `part` by `index`, in its order; name: of the part, for the labels of its rows."""
    if isinstance(part, Split):
        return dataclasses.replace(part, origin=get_origin(part, name)).rows(index)
    return Rows(part, index, name)


def join_parts(parts: Mapping[str, Part]) -> Part:
    """Concatenate the rows of several parts, given by name."""
    if len(parts) == 1:
        return next(iter(parts.values()))

    origins = [get_origin(part, name) for name, part in parts.items()]
    # Tensors are joined to tensors; with one dataset among the parts all are read as datasets.
    splits = [part for part in parts.values() if isinstance(part, Split)]
    if len(splits) == len(parts):
        columns = zip(*(split.inputs for split in splits), strict=True)
        inputs = tuple(torch.cat(column) for column in columns)
        targets = torch.cat([split.targets for split in splits])
        return Split(inputs, targets, Origin.join(origins))

    datasets = [Pairs(part) if isinstance(part, Split) else part for part in parts.values()]
    return Joined(datasets, origins)


def hold_out(part: Part, fraction: float, seed: int) -> tuple[Part, Part | None]:
    """Split off round(rows * fraction) random rows for validation; None if that is 0."""
    rows = count_rows(part)
    held_out = round(rows * fraction)
    if held_out == 0:
        return part, None

    # A generator of its own: the global one must not depend on whether a part is held out.
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))

    # Ascending, so that both parts keep the order of the file.
    train = take(part, order[held_out:].sort().values, "train")
    return train, take(part, order[:held_out].sort().values, "train")


def count_bytes(split: Split, dtype: torch.dtype) -> int:
    """Memory in bytes that a split takes as tensors of the training precision."""
    size = 0
    for tensor in (*split.inputs, split.targets):
        itemsize = dtype.itemsize if tensor.is_floating_point() else tensor.itemsize
        size += tensor.numel() * itemsize
    return size


def load_in_memory(part: Part, loader: str, dtype: torch.dtype, room: int) -> Split | None:
    """The part as tensors if it is to be held in memory, of which `room` bytes are free, else None.

    loader: `data.loader`. A dataset that does not state the size of a row as float32 (bytes_a_row) is loaded
    only on request, by loader="memory".
    """
    if isinstance(part, Split):
        fits = loader == "memory" or (loader == "auto" and count_bytes(part, dtype) <= room)
        return part if fits else None

    rows = count_rows(part)
    bytes_a_row = getattr(part, "bytes_a_row", None)
    # float32 takes 4 bytes a value, other precisions in proportion.
    fits = loader == "auto" and bytes_a_row is not None and rows * bytes_a_row * dtype.itemsize // 4 <= room
    if not (fits or loader == "memory"):
        return None

    if hasattr(part, "__getitems__"):
        columns = _read_columns(part, rows)
    else:
        columns = []
        for values in zip(*(part[row] for row in range(rows)), strict=True):
            columns.append(torch.stack([torch.as_tensor(value) for value in values]))
    return Split(tuple(columns[:-1]), columns[-1], get_origin(part))


def is_list_of_samples(batch: Any) -> bool:
    """Whether a dataset's `__getitems__` returned samples one by one, as torch's Subset does, and not a batch."""
    return isinstance(batch, list) and bool(batch) and isinstance(batch[0], tuple | list)


def _read_columns(part: Any, rows: int) -> list[Tensor]:
    # One read of all rows would hold them in memory twice.
    columns: list[Tensor] = []
    for start in range(0, rows, _ROWS_PER_READ):
        block = part.__getitems__(list(range(start, min(start + _ROWS_PER_READ, rows))))
        if not columns:
            columns = [values.new_empty(rows, *values.shape[1:]) for values in block]
        for column, values in zip(columns, block, strict=True):
            column[start : start + len(values)] = values
    return columns


def check_fraction(fraction: float) -> None:
    """Raise RequestError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise RequestError(
            f"data.test_fraction={fraction} must be at least 0 and less than 1, as in data.test_fraction=0.2"
        )


def partition(rows: int, fraction: float, seed: int) -> tuple[RowIndices, RowIndices]:
    """Draw row numbers (train, test), each ascending; at least one row each unless `fraction` is 0.

    The draw depends on the data seed alone. Raises RequestError for a fraction outside [0, 1).
    """
    check_fraction(fraction)
    # Test rows are drawn first: a larger fraction keeps the rows of a smaller one.
    order = np.random.default_rng(seed).permutation(rows)
    is_test = np.zeros(rows, dtype=bool)
    is_test[order[: _count_test_rows(rows, fraction)]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def partition_by_class(
    labels: RowIndices, class_names: Sequence[str], fraction: float, seed: int, source: str
) -> tuple[RowIndices, RowIndices]:
    """Draw as `partition` does, class by class, so that both parts have the same mix of classes.

    labels: (N,) indices into class_names. Raises DataError, naming `source`, for a class with a single row.
    """
    check_fraction(fraction)
    generator = np.random.default_rng(seed)

    train = []
    test = []
    for label, name in enumerate(class_names):
        # One generator for all classes: the draw of a class depends on those before it.
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) == 1 and fraction > 0:
            raise DataError(
                f"{source}: class '{name}' has one row only, which cannot be both in the training "
                "and in the test part; add rows or remove it, type data.test_fraction=0 for no test part, "
                "or data.task=regression for a table whose target is a quantity"
            )
        held_out = _count_test_rows(len(rows), fraction)
        train.append(rows[held_out:])
        test.append(rows[:held_out])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _count_test_rows(rows: int, fraction: float) -> int:
    # Rounded, but neither part may be empty.
    return min(max(round(rows * fraction), 1), rows - 1) if fraction > 0 else 0
