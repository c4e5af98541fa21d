"""The order of rows that are read as they lie."""

import torch

from dlrun.data.batches import EpochOrder
from dlrun.data.blocks import LANES

# 12 shards of 25 rows, and one of 5.
BLOCKS = torch.cat([torch.arange(12).repeat_interleave(25), torch.full((5,), 12)])


def make_order(batch_size: int, seed: int = 0) -> EpochOrder:
    return EpochOrder(len(BLOCKS), batch_size, shuffle=True, seed=seed, blocks=BLOCKS)


def test_each_row_comes_once_an_epoch_in_an_order_of_its_own():
    for batch_size in (1, 7, 16, 64, 500):
        order = make_order(batch_size)
        first, again, second = order.permutation(1), make_order(batch_size).permutation(1), order.permutation(2)
        assert torch.equal(first.sort().values, torch.arange(305))
        assert torch.equal(first, again)
        assert not torch.equal(first, second)
        assert not torch.equal(first, make_order(batch_size, seed=1).permutation(1))


def test_each_process_reads_shards_of_its_own_and_as_many_rows():
    batches = make_order(16).batches(1, 0)
    for processes in (2, 4, LANES):
        shares = [[rows.tensor_split(processes)[rank] for rows in batches] for rank in range(processes)]
        assert all(len({len(share[i]) for share in shares}) == 1 for i in range(len(batches) - 1))

        # Runs of shards that lie end to end meet in one shard at most.
        shards = [set(BLOCKS[torch.cat(share)].tolist()) for share in shares]
        assert sum(map(len, shards)) <= 13 + LANES - 1
        assert all(len(own) <= 13 / processes + 3 for own in shards)


def test_an_epoch_is_entered_anywhere():
    order = make_order(16)
    assert all(torch.equal(a, b) for a, b in zip(order.batches(3, 5), order.batches(3, 0)[5:], strict=True))
