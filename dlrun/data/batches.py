"""Batches of a split: gathered from tensors on the device, or read by a DataLoader if they do not fit there.

The order of epoch e is a function of (seed, e) alone, so an epoch can be entered at any batch.
"""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dlrun.data.blocks import draw_by_block
from dlrun.data.datasets import SeededDataset
from dlrun.data.inspection import BatchCheck
from dlrun.data.spec import DataSpec, Split
from dlrun.data.workers import GuardedDataset, fetch, prepare_worker

# The arguments of the model, and the targets.
Batch = tuple[tuple[Tensor, ...], Tensor]

# Maps the rows of every batch to those of one process.
Shard = Callable[[list[Tensor]], list[Tensor]]

# torch.multinomial takes no more categories.
MOST_DRAWN_ROWS = 2**24

# Size of a gather of several batches: they stay in a core's cache until they are used.
GATHER_BYTES = 2**16


class Batches(Protocol):
    """The data as the trainer sees it."""

    rows: int
    order: "EpochOrder"

    def __len__(self) -> int: ...

    def count_rows_before(self, batch: int) -> int:
        """Number of samples in the first `batch` batches of an epoch."""
        ...

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """Yield the batches of epoch `number` (from 1) from batch `start` (from 0) on, each reduced by `pick`.

        A batch of which `pick` leaves no row has one input, as a forward pass takes at least one, and no target.
        """
        ...


class SplitBatches(NamedTuple):
    """The batches of each split; None for one that the data do not have."""

    train: Batches
    val: Batches | None
    test: Batches | None


@dataclass(frozen=True)
class EpochOrder:
    """Assignment of rows to the batches of each epoch."""

    rows: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0

    # float64 (rows,): rows are drawn with replacement, in proportion to these.
    weights: Tensor | None = field(default=None, compare=False, repr=False)

    # int64 (rows,): rows of a block lie side by side, and are read so.
    blocks: Tensor | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return self.rows // self.batch_size if self.drop_last else math.ceil(self.rows / self.batch_size)

    def permutation(self, epoch: int) -> Tensor:
        """Order of all rows in an epoch, int64 (rows,); with weights, those drawn for it, some of them repeatedly."""
        if not self.shuffle:
            return torch.arange(self.rows)

        # A splitmix-like product keeps (seed, epoch) pairs apart.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + epoch) % 2**63)
        if self.weights is not None:
            # As torch's WeightedRandomSampler draws.
            return torch.multinomial(self.weights, self.rows, replacement=True, generator=generator)
        if self.blocks is not None:
            return draw_by_block(self.blocks, self.batch_size, generator)
        return torch.randperm(self.rows, generator=generator)

    def batches(self, epoch: int, start: int) -> list[Tensor]:
        """The rows of each batch from `start` on."""
        rows = self.permutation(epoch)
        size = self.batch_size
        return [rows[i * size : (i + 1) * size] for i in range(start, len(self))]


class MemoryBatches:
    """Batches gathered from tensors that live on the device: no copy to the device per step."""

    def __init__(self, split: Split, order: EpochOrder, place: "Placement") -> None:
        self.rows = order.rows
        self.order = order
        self.inputs = tuple(place.move_inputs(split.inputs))
        self.targets = place.move_targets(split.targets)
        self.place = place

    def __len__(self) -> int:
        return len(self.order)

    def count_rows_before(self, batch: int) -> int:
        """Number of samples in the first `batch` batches of an epoch."""
        return min(batch * self.order.batch_size, self.rows)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """Yield the batches of an epoch; its order is copied to the device once."""
        batches = pick(self.order.batches(number, start))
        if not batches:
            return

        # An empty batch gathers row 0, as the model takes at least one.
        filled = [rows if rows.numel() else rows.new_zeros(1) for rows in batches]
        group_size = self._count_batches_per_gather(len(filled[0]))
        groups = [filled[i : i + group_size] for i in range(0, len(filled), group_size)]
        sizes = [sum(map(len, group)) for group in groups]
        index = torch.split(torch.cat(filled).to(self.targets.device), sizes)

        remaining = iter(batches)
        for group, rows in zip(groups, index, strict=True):
            for *inputs, targets in self._gather(rows, group):
                is_empty = not next(remaining).numel()
                viewed = self.place.view_channels_first(tuple(inputs))
                targets = self.place.choose_targets(viewed, targets)
                yield viewed, targets[:0] if is_empty else targets

    def _count_batches_per_gather(self, rows: int) -> int:
        """Number of batches of `rows` rows per gather. A gather costs 15 µs per call, a view 1 µs."""
        sizes = [column[:1].nbytes * rows for column in (*self.inputs, self.targets)]

        # Matrix products round by address: views must begin at a multiple of 64 bytes as memory of their own does.
        if any(size % 64 for size in sizes):
            return 1
        return max(1, GATHER_BYTES // max(sum(sizes), 1))

    def _gather(self, rows: Tensor, group: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Inputs and targets of the batches in `group` (rows on the host); `rows`: all of them on the device."""
        sizes = [len(part) for part in group]
        columns = []
        for column in (*self.inputs, self.targets):
            # Lengths of sequences stay on the host.
            index = rows if column.device == rows.device else torch.cat(group)
            values = column.index_select(0, index)
            columns.append((values,) if len(sizes) == 1 else torch.unsafe_split_with_sizes(values, sizes))
        return zip(*columns, strict=True)


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
        """check: inspects every batch; None for a dataset that was inspected in full."""
        self.rows = order.rows
        self.order = order
        self.dataset = dataset
        self.place = place
        self.workers = workers
        self.check = check

    def __len__(self) -> int:
        return len(self.order)

    def count_rows_before(self, batch: int) -> int:
        """Number of samples in the first `batch` batches of an epoch."""
        return min(batch * self.order.batch_size, self.rows)

    def epoch(self, number: int, start: int = 0, pick: Shard = list) -> Iterator[Batch]:
        """Yield the batches of an epoch, by a new loader, because its order starts at any batch."""
        augments = self.order.shuffle and getattr(self.dataset, "augments", False)
        key = self.order.seed * 1_000_003 + number
        batches = pick(self.order.batches(number, start))

        # A dataset that augments is given the epoch's seed with each row; others are seeded from outside.
        draws = getattr(self.dataset, "draws_random_numbers", True)
        needs_seed = self.workers > 0 and not augments and draws
        dataset = GuardedDataset(SeededDataset(self.dataset, key) if needs_seed else self.dataset)
        loader = DataLoader(
            dataset,
            batch_sampler=_KeySampler(batches, key if augments else None, start, self.order.weights is not None),
            num_workers=self.workers,
            collate_fn=_return_collated,
            pin_memory=self.place.device.type == "cuda",
            worker_init_fn=prepare_worker,
            # Without its own the loader would draw from the global generator.
            generator=torch.Generator().manual_seed(number),
        )
        return _prefetch(self._move(batches, fetch(loader)), self.place.device)

    def _move(self, batches: list[Tensor], fetched: Iterator[Any]) -> Iterator[Batch]:
        for rows, (*inputs, targets) in zip(batches, fetched, strict=True):
            if self.check is not None:
                # A process without a row of a batch has fetched row 0.
                fetched_rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
                inputs, targets = self.check.conform(tuple(inputs), targets, fetched_rows)
            viewed = self.place.view_channels_first(tuple(self.place.move_inputs(tuple(inputs))))
            targets = self.place.choose_targets(viewed, targets)
            yield viewed, self.place.move_targets(targets[: len(rows)])


def _prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """On a GPU, copy each batch from pinned memory during the computation on the one before."""
    if device.type != "cuda":
        yield from batches
        return
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_next() -> Batch | None:
        with torch.cuda.stream(copy_stream):
            return next(batches, None)

    batch = copy_next()
    while batch is not None:
        current_stream = torch.cuda.current_stream(device)
        current_stream.wait_stream(copy_stream)
        for tensor in (*batch[0], batch[1]):
            if tensor.is_cuda:
                # Its memory is not reused for the next copy before this stream is done with it.
                tensor.record_stream(current_stream)
        yield batch
        batch = copy_next()


class _KeySampler(Sampler[list[Any]]):
    """The dataset keys of each batch, made one batch at a time: as lists, ten million rows take 400 MB.

    epoch_seed: goes with each row; None for a dataset that takes rows alone. first: number of the first batch in its
    epoch. repeats: a row may come several times in an epoch, each time with another seed.
    """

    def __init__(self, batches: list[Tensor], epoch_seed: int | None, first: int = 0, repeats: bool = False) -> None:
        self.batches = batches
        self.epoch_seed = epoch_seed
        self.first = first
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for number, rows in enumerate(self.batches, self.first):
            keys: list[Any] = rows.tolist() or [0]
            if self.epoch_seed is not None and self.repeats:
                keys = [(seed, row) for seed, row in zip(self._seed_repeats(number, keys), keys, strict=True)]
            elif self.epoch_seed is not None:
                keys = [(self.epoch_seed, row) for row in keys]
            yield keys

    def _seed_repeats(self, number: int, rows: list[int]) -> Iterator[int]:
        """A seed for each row of a batch, by the number of the batch and of times that the row was in it before."""
        assert self.epoch_seed is not None
        times: Counter[int] = Counter()
        for row in rows:
            yield (self.epoch_seed * 1_000_003 + number) * 1_000_003 + times[row]
            times[row] += 1


def _return_collated(batch: Any) -> Any:
    # GuardedDataset has collated the batch already.
    return batch


@dataclass(frozen=True)
class Placement:
    """Device, precision and memory layout of the tensors."""

    device: torch.device

    # Of floating-point tensors; integers keep theirs.
    dtype: torch.dtype
    spec: DataSpec
    channels_last: bool = False

    def move_inputs(self, inputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
        """Yield inputs on the device: floats in the training precision, images channels last if asked for.

        Lengths of sequences stay on the CPU: packing needs them there, and would cost a sync every step.
        """
        for i, x in enumerate(inputs):
            is_length = self.spec.kind == "tokens" and i > 0
            # What is made from pinned memory is not pinned itself, and the host would wait for its copy.
            if not is_length and self._is_pinned(x):
                x = x.to(self.device, non_blocking=True)

            if x.is_floating_point():
                x = x.to(self.dtype)
            if self._is_image(x):
                # (B, H, W, C), so that a gather of rows keeps the layout.
                x = x.permute(0, 2, 3, 1).contiguous()
            yield x if is_length else x.to(self.device, non_blocking=True)

    def view_channels_first(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """View stored rows as the model takes them: images (B, C, H, W), whatever the memory layout."""
        return tuple(x.permute(0, 3, 1, 2) if self._is_image(x) else x for x in inputs)

    def _is_pinned(self, x: Tensor) -> bool:
        """Whether a tensor lies in memory that a GPU reads by itself."""
        return self.device.type == "cuda" and x.is_pinned()

    def _is_image(self, x: Tensor) -> bool:
        """Whether an input is stored channels last; other inputs beside the images have no channels."""
        return self.channels_last and x.dim() == 4 and x.is_floating_point()

    def choose_targets(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The targets of a batch, for an autoencoder its first input (N, values); inputs: as the model takes them."""
        return inputs[0].flatten(1) if self.spec.reconstructs else targets

    def move_targets(self, targets: Tensor) -> Tensor:
        """Targets on the device, floats in the training precision."""
        if self._is_pinned(targets):
            targets = targets.to(self.device, non_blocking=True)
        if targets.is_floating_point():
            targets = targets.to(self.dtype)
        return targets.to(self.device, non_blocking=True)


def measure_free_memory(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])

    # On Linux MemAvailable counts what the file cache would give back.
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024

    # macOS tells only its total; Windows needs another library for either.
    with contextlib.suppress(AttributeError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 2**32
