"""Parts of a data set as what a DataLoader reads: rows of it, a part held out, tensors row by row."""

import random
from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from dlrun.data.spec import Split


class Pairs(Dataset[Any]):
    """A Split as a map-style dataset, for `data.loader=workers`."""

    draws_random_numbers = False

    def __init__(self, split: Split) -> None:
        self.split = split
        self.targets = split.targets

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return (*(x[row] for x in self.split.inputs), self.split.targets[row])

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, ...]:
        index = torch.tensor(rows)
        return tuple(x.index_select(0, index) for x in (*self.split.inputs, self.split.targets))


class Seeded(Dataset[Any]):
    """A dataset in a worker process, whose random numbers are a function of `key` and the row: not of the worker,
    nor of the batch that an epoch is entered at. Costs about 15 µs a row.
    """

    def __init__(self, dataset: Dataset[Any], key: int) -> None:
        self.dataset, self.key = dataset, key

    def __getitem__(self, row: int) -> Any:
        seed = (self.key * 0x9E3779B97F4A7C15 + row) % 2**63
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would look for GPUs as well
        return self.dataset[row]


class Rows(Dataset[Any]):
    """Some rows of a map-style dataset (torch's Subset hides `targets`)."""

    def __init__(self, dataset: Dataset[Any], index: Tensor) -> None:
        self.dataset, self.index = dataset, index
        self.augments = getattr(dataset, "augments", False)
        self.draws_random_numbers = getattr(dataset, "draws_random_numbers", True)
        self.bytes_a_row = getattr(dataset, "bytes_a_row", None)
        targets = getattr(dataset, "targets", None)
        if targets is not None:
            self.targets = torch.as_tensor(targets)[index]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            return self.dataset[(key[0], int(self.index[key[1]]))]
        return self.dataset[int(self.index[key])]

    def __getitems__(self, keys: list[Any]) -> Any:
        """A batch, by one read where the dataset has such."""
        if hasattr(self.dataset, "__getitems__") and not isinstance(keys[0], tuple):
            return self.dataset.__getitems__(self.index[keys].tolist())
        return default_collate([self[key] for key in keys])


Part = Split | Dataset[Any]


def row_count(part: Part) -> int:
    """How many samples a part holds."""
    return len(cast(Sized, part))


def take(part: Part, index: Tensor) -> Part:
    """The rows of `part` that `index` names, in its order."""
    return part.rows(index) if isinstance(part, Split) else Rows(part, index)


def carve(part: Part, fraction: float, seed: int) -> tuple[Part, Part | None]:
    """Take round(rows * fraction) random rows off as validation part; none when that is 0."""
    rows = row_count(part)
    held_out = round(rows * fraction)
    if held_out == 0:
        return part, None
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return take(part, order[held_out:].sort().values), take(part, order[:held_out].sort().values)


def size_in_bytes(split: Split, dtype: torch.dtype) -> int:
    """What a split takes as tensors of the training precision."""
    tensors = (*split.inputs, split.targets)
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.itemsize) for t in tensors)


def in_memory(part: Part, loader: str, dtype: torch.dtype, room: int) -> Split | None:
    """The part as tensors when it is to be held in memory, of which there are `room` bytes, else null.

    loader: `data.loader`. A dataset that does not say what a row takes (bytes_a_row)
    is read as a whole only if asked to.
    """
    if isinstance(part, Split):
        fits = loader == "memory" or (loader == "auto" and size_in_bytes(part, dtype) <= room)
        return part if fits else None
    rows, bytes_a_row = row_count(part), getattr(part, "bytes_a_row", None)
    fits = loader == "auto" and bytes_a_row is not None and rows * bytes_a_row <= room
    if not (fits or loader == "memory"):
        return None
    if hasattr(part, "__getitems__"):
        *inputs, targets = part.__getitems__(list(range(rows)))
        return Split(tuple(inputs), targets)
    columns = zip(*(part[row] for row in range(rows)), strict=True)
    *inputs, targets = (torch.stack([torch.as_tensor(x) for x in column]) for column in columns)
    return Split(tuple(inputs), targets)
