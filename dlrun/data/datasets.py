"""Parts of a data set as what a DataLoader reads: rows of it, a part held out, tensors row by row."""

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


class Pairs(Dataset[Any]):
    """A Split as a map-style dataset, for `data.loader=workers`."""

    draws_random_numbers = False

    def __init__(self, split: Split) -> None:
        self.split = split
        self.targets = split.targets
        self.origin = split.origin

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, ...]:
        return (*(x[row] for x in self.split.inputs), self.split.targets[row])

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, ...]:
        index = torch.tensor(rows)
        return tuple(x.index_select(0, index) for x in (*self.split.inputs, self.split.targets))


class SeededDataset(Dataset[Any]):
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
    """Some rows of a map-style dataset (torch's Subset hides `targets`).

    name: what the dataset is called where it does not know where its rows are from.
    """

    def __init__(self, dataset: Dataset[Any], index: Tensor, name: str = "") -> None:
        self.dataset, self.index = dataset, index
        self.origin = get_origin(dataset, name).take(index)
        self.augments = getattr(dataset, "augments", False)
        self.draws_random_numbers = getattr(dataset, "draws_random_numbers", True)
        self.bytes_a_row = getattr(dataset, "bytes_a_row", None)
        targets = get_targets(dataset)
        if targets is not None:
            self.targets = targets[index]

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
        return tuple(default_collate([self[key] for key in keys]))


class Joined(ConcatDataset[Any]):
    """Datasets one after the other, with all their targets where each says them."""

    def __init__(self, datasets: Sequence[Dataset[Any]], origins: Sequence[Origin]) -> None:
        super().__init__(datasets)
        self.origin = Origin.join(origins)
        targets = [get_targets(dataset) for dataset in datasets]
        known = [t for t in targets if t is not None]
        if len(known) == len(datasets):
            self.targets = torch.cat(known)


Part = Split | Dataset[Any]
RowIndices = NDArray[np.int64]
_AT_ONCE = 1024  # rows


def count_rows(part: Part) -> int:
    """How many samples a part holds."""
    return len(cast(Sized, part))


def get_origin(part: Part, name: str = "") -> Origin:
    """Where the rows of a part are from; their positions in `name` where it does not say."""
    origin = getattr(part, "origin", None)
    return origin if isinstance(origin, Origin) else Origin.from_position(name, count_rows(part))


def get_targets(part: Part) -> Tensor | None:
    """All targets that a part states without a sample being read; None where it has none, or no numbers."""
    targets = getattr(part, "targets", None)
    if targets is None:
        return None
    try:
        known = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):  # a dataset of the user's may call anything so
        return None
    return known if len(known.shape) and len(known) == count_rows(part) else None


def take(part: Part, index: Tensor, name: str = "") -> Part:
    """The rows of `part` that `index` names, in its order; name: what the part is called."""
    if isinstance(part, Split):
        return dataclasses.replace(part, origin=get_origin(part, name)).rows(index)
    return Rows(part, index, name)


def join_parts(parts: Mapping[str, Part]) -> Part:
    """The rows of several parts, by name, one after the other."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    origins = [get_origin(part, name) for name, part in parts.items()]
    splits = [part for part in parts.values() if isinstance(part, Split)]
    if len(splits) == len(parts):
        columns = zip(*(split.inputs for split in splits), strict=True)
        inputs = tuple(torch.cat(column) for column in columns)
        return Split(inputs, torch.cat([split.targets for split in splits]), Origin.join(origins))
    return Joined([Pairs(part) if isinstance(part, Split) else part for part in parts.values()], origins)


def hold_out(part: Part, fraction: float, seed: int) -> tuple[Part, Part | None]:
    """Take round(rows * fraction) random rows off as validation part; none when that is 0."""
    rows = count_rows(part)
    held_out = round(rows * fraction)
    if held_out == 0:
        return part, None
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    train = take(part, order[held_out:].sort().values, "train")
    return train, take(part, order[:held_out].sort().values, "train")


def count_bytes(split: Split, dtype: torch.dtype) -> int:
    """What a split takes as tensors of the training precision."""
    tensors = (*split.inputs, split.targets)
    return sum(t.numel() * (dtype.itemsize if t.is_floating_point() else t.itemsize) for t in tensors)


def load_in_memory(part: Part, loader: str, dtype: torch.dtype, room: int) -> Split | None:
    """The part as tensors when it is to be held in memory, of which there are `room` bytes, else null.

    loader: `data.loader`. A dataset that does not say what a row takes as float32 (bytes_a_row) is read as a whole
    only if asked to.
    """
    if isinstance(part, Split):
        fits = loader == "memory" or (loader == "auto" and count_bytes(part, dtype) <= room)
        return part if fits else None
    rows, bytes_a_row = count_rows(part), getattr(part, "bytes_a_row", None)
    fits = loader == "auto" and bytes_a_row is not None and rows * bytes_a_row * dtype.itemsize // 4 <= room
    if not (fits or loader == "memory"):
        return None
    if hasattr(part, "__getitems__"):
        columns = _read(part, rows)
    else:
        samples = zip(*(part[row] for row in range(rows)), strict=True)
        columns = [torch.stack([torch.as_tensor(x) for x in column]) for column in samples]
    return Split(tuple(columns[:-1]), columns[-1], get_origin(part))


def is_list_of_samples(batch: Any) -> bool:
    """Whether a dataset's `__getitems__` gave samples one by one, as torch's Subset does, and not a batch."""
    return isinstance(batch, list) and bool(batch) and isinstance(batch[0], tuple | list)


def _read(part: Any, rows: int) -> list[Tensor]:
    """All rows, some at a time: read in one go they would be there twice."""
    held: list[Tensor] = []
    for start in range(0, rows, _AT_ONCE):
        columns = part.__getitems__(list(range(start, min(start + _AT_ONCE, rows))))
        held = held or [column.new_empty(rows, *column.shape[1:]) for column in columns]
        for whole, piece in zip(held, columns, strict=True):
            whole[start : start + len(piece)] = piece
    return held


def check_fraction(fraction: float) -> None:
    """Raise RequestError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise RequestError(
            f"data.test_fraction={fraction} must be at least 0 and less than 1, as in data.test_fraction=0.2"
        )


def partition(rows: int, fraction: float, seed: int) -> tuple[RowIndices, RowIndices]:
    """Row numbers (train, test), each ascending; at least one row each unless `fraction` is 0.

    Raises RequestError for a fraction outside [0, 1).
    """
    check_fraction(fraction)
    order = np.random.default_rng(seed).permutation(rows)
    held_out = _share(rows, fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def partition_by_class(
    labels: RowIndices, class_names: Sequence[str], fraction: float, seed: int, source: str
) -> tuple[RowIndices, RowIndices]:
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
