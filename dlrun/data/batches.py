"""Batches of a split: gathers from tensors on the device, or a DataLoader for what does not fit there.

The order of epoch e is a function of (seed, e) alone, so an epoch can be entered at any batch.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dlrun.data.datasets import SeededDataset
from dlrun.data.inspection import BatchCheck
from dlrun.data.spec import DataSpec, Split
from dlrun.data.workers import GuardedDataset, fetch, prepare_worker

Batch = tuple[tuple[Tensor, ...], Tensor]  # what the model is called with, and the targets
Shard = Callable[[list[Tensor]], list[Tensor]]  # one process's part of what every batch's rows are


GATHERED_BYTES = 2**16  # of several batches at once: they stay in a core's cache until they are used


class Batches(Protocol):
    """What the loop sees of the data."""

    rows: int
    order: "EpochOrder"

    def __len__(self) -> int: ...

    def count_rows_before(self, batch: int) -> int:
        """How many samples the first `batch` batches of an epoch hold."""
        ...

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """The batches of epoch `number` (from 1 on), from batch `start` (from 0 on), or what `pick` leaves of them.

        Where it leaves no row of a batch there is one input, as a forward pass takes at least one, and no target.
        """
        ...


@dataclass(frozen=True)
class EpochOrder:
    """Which rows come in which batch of which epoch."""

    rows: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def permutation(self, epoch: int) -> Tensor:
        """int64 (rows,); a splitmix-like product keeps (seed, epoch) pairs apart."""
        if not self.shuffle:
            return torch.arange(self.rows)
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
        return torch.randperm(self.rows, generator=generator)

    def batches(self, epoch: int, start: int) -> list[Tensor]:
        """The rows of each batch from `start` on."""
        rows, size = self.permutation(epoch), self.batch_size
        return [rows[i * size : (i + 1) * size] for i in range(start, len(self))]


class MemoryBatches:
    """Batches gathered from tensors that live on the device: nothing is copied there per step."""

    def __init__(self, split: Split, order: EpochOrder, place: "Placement") -> None:
        self.rows, self.order = order.rows, order
        self.inputs = tuple(place.move_inputs(split.inputs))
        self.targets = place.move_targets(split.targets)
        self.place = place

    def __len__(self) -> int:
        return len(self.order)

    def count_rows_before(self, batch: int) -> int:
        """See Batches."""
        return min(batch * self.order.batch_size, self.rows)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """See Batches; the order is copied to the device once an epoch."""
        host = pick(self.order.batches(number, start))
        filled = [rows if rows.numel() else rows.new_zeros(1) for rows in host]
        together = self._together(len(filled[0])) if host else 1
        groups = [filled[i : i + together] for i in range(0, len(filled), together)]
        sizes = [sum(map(len, group)) for group in groups]
        index = torch.split(torch.cat(filled).to(self.targets.device), sizes) if host else ()
        for first, group, rows in zip(range(0, len(host), together), groups, index, strict=True):
            for batch, (*inputs, targets) in enumerate(self._gathered(rows, group), first):
                yield self.place.view_channels_first(tuple(inputs)), targets if host[batch].numel() else targets[:0]

    def _together(self, rows: int) -> int:
        """How many batches of so many rows to gather at once: amid a step a gather costs about 15 µs, a view of one 1.

        Matrix products round by address: one batch, unless all begin at a multiple of 64 bytes as memory of their own.
        """
        batch = [x[:1].nbytes * rows for x in (*self.inputs, self.targets)]
        return 1 if any(size % 64 for size in batch) else max(1, GATHERED_BYTES // max(sum(batch), 1))

    def _gathered(self, rows: Tensor, group: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Inputs and targets of some batches; `group` has their rows on the host, `rows` all of them on the device."""
        sizes, whole = [len(part) for part in group], []
        for x in (*self.inputs, self.targets):
            part = x.index_select(0, rows if x.device == rows.device else torch.cat(group))
            whole.append((part,) if len(sizes) == 1 else torch.unsafe_split_with_sizes(part, sizes))
        return zip(*whole, strict=True)


class LoaderBatches:
    """The same batches through torch's DataLoader, with worker processes and pinned memory."""

    def __init__(
        self,
        dataset: Dataset[Any],
        order: EpochOrder,
        place: "Placement",
        workers: int,
        check: BatchCheck | None = None,
    ) -> None:
        """check: looks at every batch; None for a dataset that was looked at as a whole."""
        self.rows, self.order, self.dataset, self.place = order.rows, order, dataset, place
        self.workers = workers
        self.check = check

    def __len__(self) -> int:
        return len(self.order)

    def count_rows_before(self, batch: int) -> int:
        """See Batches."""
        return min(batch * self.order.batch_size, self.rows)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """See Batches; a new loader an epoch, because its order starts at any batch."""
        augmented = self.order.shuffle and getattr(self.dataset, "augments", False)
        key = self.order.seed * 1_000_003 + number
        picked = pick(self.order.batches(number, start))
        own = self.workers > 0 and not augmented and getattr(self.dataset, "draws_random_numbers", True)
        dataset = GuardedDataset(SeededDataset(self.dataset, key) if own else self.dataset)
        loader = DataLoader(
            dataset,
            batch_sampler=_Keys(picked, key if augmented else None),
            num_workers=self.workers,
            collate_fn=_as_fetched,
            pin_memory=self.place.device.type == "cuda",
            worker_init_fn=prepare_worker,
            generator=torch.Generator().manual_seed(number),  # else the global generator would be drawn from
        )
        return _ahead(self._moved(picked, fetch(loader)), self.place.device)

    def _moved(self, picked: list[Tensor], fetched: Iterator[Any]) -> Iterator[Batch]:
        for rows, (*inputs, targets) in zip(picked, fetched, strict=True):
            if self.check is not None:
                # A process without a row of a batch has fetched row 0.
                read = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
                inputs, targets = self.check.conform(tuple(inputs), targets, read)
            moved = tuple(self.place.move_inputs(tuple(inputs)))
            yield self.place.view_channels_first(moved), self.place.move_targets(targets[: len(rows)])


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """On a GPU each batch is copied, from pinned memory, while the one before is computed with."""
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied() -> Batch | None:
        with torch.cuda.stream(copying):
            return next(batches, None)

    following = copied()
    while (batch := following) is not None:
        present = torch.cuda.current_stream(device)
        present.wait_stream(copying)
        for tensor in (*batch[0], batch[1]):
            if tensor.is_cuda:
                tensor.record_stream(present)  # its memory is not given to the next copy before it is used
        yield batch
        following = copied()


class _Keys(Sampler[list[Any]]):
    """What each batch asks the dataset for, made when it is its turn: as lists, ten million rows take 400 MB."""

    def __init__(self, batches: list[Tensor], epoch_seed: int | None) -> None:
        self.batches, self.epoch_seed = batches, epoch_seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for rows in self.batches:
            keys = rows.tolist() or [0]
            yield keys if self.epoch_seed is None else [(self.epoch_seed, row) for row in keys]


def _as_fetched(batch: Any) -> Any:
    """The data set has put the batch together itself."""
    return batch


@dataclass(frozen=True)
class Placement:
    """Where tensors go and how they lie there."""

    device: torch.device
    dtype: torch.dtype  # of floating tensors
    spec: DataSpec
    channels_last: bool = False

    def move_inputs(self, inputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Floats in the training precision; pictures with channels last when asked for; lengths stay on the CPU.

        Packing a sequence needs its lengths on the CPU: on the device they would cost a sync every step.
        """
        for i, x in enumerate(inputs):
            if x.is_floating_point():
                x = x.to(self.dtype)
            if self._is_picture(x):
                x = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C), so that a row gather keeps the layout
            yield x if self.spec.kind == "tokens" and i > 0 else x.to(self.device, non_blocking=True)

    def view_channels_first(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Rows as stored to what the model takes: (B, C, H, W) images, whatever the memory layout."""
        return tuple(x.permute(0, 3, 1, 2) if self._is_picture(x) else x for x in inputs)

    def _is_picture(self, x: Tensor) -> bool:
        """Whether an input lies with its channels last: a table beside the pictures, say, has none."""
        return self.channels_last and x.dim() == 4 and x.is_floating_point()

    def move_targets(self, targets: Tensor) -> Tensor:
        """Targets on the device; floats in the training precision."""
        targets = targets.to(self.dtype) if targets.is_floating_point() else targets
        return targets.to(self.device, non_blocking=True)


def measure_free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration):  # Linux counts what its file cache would give back
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 2**32  # Windows does not say without another library
