"""Which rows come when, and where they lie: the same from memory and from workers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.data.batches import Batch, Batches, EpochOrder, LoaderBatches, MemoryBatches, Placement
from dlrun.data.datasets import Pairs, Rows, count_bytes, count_rows, hold_out, take
from dlrun.data.spec import DataSpec, Split

CPU = torch.device("cpu")
IMAGES = DataSpec("image", (2, 4, 3), "multiclass", 5)
TOKENS = DataSpec("tokens", (6,), "multiclass", 5, vocabulary=("", *"abc"))


def split(spec: DataSpec, rows: int = 22) -> Split:
    """Row i holds i everywhere, so that a row can be told."""
    number = torch.arange(rows)
    if spec.kind == "tokens":
        return Split((number.unsqueeze(1).expand(-1, 6).contiguous(), number % 6 + 1), number % 5)
    pixels = torch.arange(24).view(1, 2, 4, 3) / 100
    return Split((number.view(-1, 1, 1, 1) + pixels,), number % 5)


def make_batches(
    workers: int | None, spec: DataSpec, order: EpochOrder, wide: bool = False, dtype: Any = torch.float32
) -> Batches:
    """Batches from memory (workers=None) or through a loader."""
    place = Placement(CPU, dtype, spec, wide)
    if workers is None:
        return MemoryBatches(split(spec, order.rows), order, place)
    return LoaderBatches(Pairs(split(spec, order.rows)), order, place, workers)


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right) > 0
    for (one, y), (two, z) in zip(left, right, strict=True):
        assert torch.equal(y, z)
        assert y.dtype == z.dtype
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b)
            assert (a.dtype, a.stride()) == (b.dtype, b.stride())


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(x) for inputs, _ in batches for x in inputs[0].flatten(1)[:, 0]]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(EpochOrder(50, 8, shuffle=True, seed=seed).permutation(epoch).tolist())
        for seed in (0, 1, 2, 10**12)
        for epoch in (1, 2, 3)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    torch.manual_seed(99)  # whatever the global generator did
    again = EpochOrder(50, 16, shuffle=True, seed=2).permutation(3)
    assert tuple(again.tolist()) == orders[2, 3]
    assert EpochOrder(50, 8).permutation(7).tolist() == list(range(50))


def test_drawing_an_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    order = EpochOrder(22, 5, shuffle=True)
    for workers in (None, 0):
        list(make_batches(workers, IMAGES, order).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [None, 0])
@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_can_be_entered_at_any_batch(workers: int | None, start: int) -> None:
    batches = make_batches(workers, IMAGES, EpochOrder(22, 5, shuffle=True, seed=4))
    full_epoch, tail = list(batches.epoch(3)), list(batches.epoch(3, start=start))
    assert sorted(rows_of(full_epoch)) == list(range(22))
    assert rows_of(tail) == rows_of(full_epoch)[5 * start :]


@pytest.mark.parametrize("spec", [IMAGES, TOKENS], ids=["images", "tokens"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_memory_and_workers_give_the_same_batches(spec: DataSpec, workers: int, drop_last: bool) -> None:
    order = EpochOrder(22, 5, shuffle=True, drop_last=drop_last, seed=1)
    memory, loader = make_batches(None, spec, order), make_batches(workers, spec, order)
    assert_equal(list(memory.epoch(2)), list(loader.epoch(2)))
    assert len(memory) == len(loader) == (4 if drop_last else 5)
    assert [memory.count_rows_before(b) for b in range(6)] == [loader.count_rows_before(b) for b in range(6)]


@pytest.mark.parametrize("workers", [None, 0])
@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 2]), (True, [8])])
def test_the_last_batch_is_ragged_or_dropped(workers: int | None, drop_last: bool, sizes: list[int]) -> None:
    batches = make_batches(workers, IMAGES, EpochOrder(10, 8, drop_last=drop_last))
    assert type(batches) is (MemoryBatches if workers is None else LoaderBatches)
    assert [len(targets) for _, targets in batches.epoch(1)] == sizes
    assert [batches.count_rows_before(b) for b in range(len(sizes) + 1)] == [
        sum(sizes[:b]) for b in range(len(sizes) + 1)
    ]


@pytest.mark.parametrize("workers", [None, 0])
def test_channels_last_changes_the_layout_and_no_value(workers: int | None) -> None:
    order = EpochOrder(22, 5, shuffle=True)
    plain, wide = make_batches(None, IMAGES, order), make_batches(workers, IMAGES, order, wide=True)
    for (one, _), (two, _) in zip(plain.epoch(1), wide.epoch(1), strict=True):
        assert torch.equal(one[0], two[0])
        assert one[0].is_contiguous()
        assert two[0].is_contiguous(memory_format=torch.channels_last)
        assert not two[0].is_contiguous()


def test_floats_take_the_training_precision_and_codes_do_not() -> None:
    order = EpochOrder(4, 2)
    (x,), y = next(make_batches(None, IMAGES, order, dtype=torch.float64).epoch(1))
    assert (x.dtype, y.dtype) == (torch.float64, torch.int64)
    (codes, lengths), _ = next(make_batches(None, TOKENS, order, dtype=torch.float64).epoch(1))
    assert (codes.dtype, lengths.dtype) == (torch.int64, torch.int64)


def test_pinned_batches_are_copied_before_they_are_laid_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    to = torch.Tensor.to

    def copy_or_convert(x: torch.Tensor, target: Any, **words: Any) -> torch.Tensor:
        if not isinstance(target, torch.device):
            return to(x, target, **words)
        copies.append((tuple(x.shape), x.dtype))
        return x

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda x: True)
    monkeypatch.setattr(torch.Tensor, "to", copy_or_convert)
    place = Placement(torch.device("cuda"), torch.float64, IMAGES, channels_last=True)
    (x,) = place.move_inputs((torch.zeros(4, 3, 6, 5),))
    assert (x.shape, x.dtype) == ((4, 6, 5, 3), torch.float64)
    assert place.move_targets(torch.zeros(4, 2)).dtype == torch.float64
    assert copies[0] == ((4, 3, 6, 5), torch.float32)
    assert copies[2] == ((4, 2), torch.float32)


def test_lengths_stay_on_the_cpu() -> None:
    meta = torch.device("meta")  # a device that every machine has
    order = EpochOrder(22, 5, shuffle=True, seed=1)
    place = Placement(meta, torch.float32, TOKENS)
    codes, lengths = place.move_inputs(split(TOKENS).inputs)
    assert (codes.device, lengths.device, place.move_targets(split(TOKENS).targets).device) == (meta, CPU, meta)
    moved = MemoryBatches(split(TOKENS), order, Placement(CPU, torch.float32, TOKENS))
    moved.inputs = (moved.inputs[0].to(meta), moved.inputs[1])
    moved.targets = moved.targets.to(meta)
    wanted = list(make_batches(None, TOKENS, order).epoch(2))
    for ((codes, lengths), targets), ((_, truth), _) in zip(moved.epoch(2), wanted, strict=True):
        assert (codes.device, targets.device) == (meta, meta)
        assert torch.equal(lengths, truth)


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"), [(60_000, 0.083333333, 5_000), (100, 0.1, 10), (7, 0.5, 4), (10, 0.01, 0)]
)
def test_carving_takes_the_rounded_fraction(rows: int, fraction: float, held_out: int) -> None:
    number = torch.arange(rows)
    train, val = hold_out(Split((number.unsqueeze(1),), number), fraction, seed=0)
    assert isinstance(train, Split)
    if held_out == 0:
        assert val is None
        assert torch.equal(train.targets, number)
        return
    assert isinstance(val, Split)
    assert (len(train), len(val)) == (rows - held_out, held_out)
    assert torch.equal(torch.cat([train.targets, val.targets]).sort().values, number)  # disjoint and complete
    assert torch.equal(val.inputs[0].squeeze(1), val.targets)
    assert val.targets.tolist() != number[-held_out:].tolist()


def test_carving_follows_its_seed_and_nothing_else() -> None:
    part = split(IMAGES, 100)

    def choose_test_rows(seed: int) -> list[int]:
        val = hold_out(part, 0.2, seed)[1]
        assert isinstance(val, Split)
        return val.inputs[0][:, 0, 0, 0].tolist()

    first = choose_test_rows(0)
    torch.manual_seed(123)
    assert choose_test_rows(0) == first != choose_test_rows(1)


class Doubled(Dataset[Any]):
    """A dataset of a user's own, whose rows can be told by their target."""

    targets = [10, 20, 30, 40]  # noqa: RUF012

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: Any) -> Any:
        return (key, self.targets[key if isinstance(key, int) else key[1]])


def test_rows_of_a_dataset_keep_its_targets_and_hand_keys_on() -> None:
    part = take(Doubled(), torch.tensor([3, 1]))
    assert isinstance(part, Rows)
    assert count_rows(part) == 2
    assert part.targets.tolist() == [40, 20]
    assert part[0] == (3, 40)
    assert part[(7, 1)] == ((7, 1), 20)  # (epoch's seed, row) for what augments


def test_the_size_counts_floats_in_the_training_precision() -> None:
    part = split(IMAGES, 10)
    assert count_bytes(part, torch.float64) == 10 * 24 * 8 + 10 * 8
    assert count_bytes(part, torch.float32) == 10 * 24 * 4 + 10 * 8


def test_a_batch_is_a_copy_of_the_rows() -> None:
    batches = make_batches(None, IMAGES, EpochOrder(4, 4))
    (x,), _ = next(batches.epoch(1))
    x.zero_()
    (again,), _ = next(batches.epoch(1))
    assert bool(Tensor.any(again))


@pytest.mark.parametrize("start", [0, 3, 67])
@pytest.mark.parametrize("size", [16, 5])  # 5 rows of 3 floats end where no memory of its own would begin
def test_small_batches_gathered_together_are_those_gathered_alone(
    start: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rows = DataSpec("vector", (3,), "multiclass", 5), 1100
    part = Split((torch.arange(3.0 * rows).view(rows, 3),), torch.arange(rows) % 5)
    batches = MemoryBatches(part, EpochOrder(rows, size, shuffle=True, seed=1), Placement(CPU, torch.float32, spec))
    gathers: list[int] = []
    select = Tensor.index_select
    monkeypatch.setattr(Tensor, "index_select", lambda x, *a: gathers.append(1) or select(x, *a))
    together = list(batches.epoch(2, start))
    assert len(gathers) == (2 if size == 16 else 2 * len(together))
    assert all(x.data_ptr() % 64 == 0 for inputs, y in together for x in (*inputs, y))
    monkeypatch.setattr("dlrun.data.batches.GATHER_BYTES", 1)
    assert_equal(together, list(batches.epoch(2, start)))
