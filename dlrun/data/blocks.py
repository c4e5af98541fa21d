"""The order of an epoch for rows that are best read as they lie, such as shards, of which each process has its own.

Eight runs of shards are read side by side, and every batch takes its share of each. Of N processes each gets an N-th of
a batch (see engine/distributed.py), and so reads runs of its own; the batches are the same for any number of processes.
"""

import torch
from torch import Tensor

# Runs of blocks that are read side by side. Up to as many processes have runs of their own.
LANES = 8

# Rows of a lane that change places, about as in a shuffle buffer of that size.
WINDOW = 4096


def draw_by_block(blocks: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Draw the order of an epoch, int64 (rows,): each row once.

    blocks: int64 (rows,), the block that each row lies in. The blocks are laid end to end in random order and cut into
    `LANES` runs, which differ by a row a batch at most; a block at a cut is in two runs. Then rows change places within
    windows of a run.
    """
    names, block_of_row = torch.unique(blocks, return_inverse=True)
    place_of_block = torch.randperm(len(names), generator=generator)
    # Stable, so that rows of a block stay side by side in their order.
    rows = place_of_block[block_of_row].argsort(stable=True)

    full_batches, rest = divmod(len(rows), batch_size)
    shares = _divide(batch_size)
    shares_of_rest = _divide(rest)
    lengths = [full_batches * share + last for share, last in zip(shares, shares_of_rest, strict=True)]

    columns: list[Tensor] = []
    ends: list[Tensor] = []
    for lane, share in zip(torch.split(rows, lengths), shares, strict=True):
        window = torch.arange(len(lane)) // WINDOW
        noise = torch.rand(len(lane), generator=generator, dtype=torch.float64)
        shuffled = lane[(window + noise).argsort(stable=True)]
        columns.append(shuffled[: full_batches * share].view(full_batches, share))
        ends.append(shuffled[full_batches * share :])

    # The lanes' shares of each batch side by side, those of the last and smaller batch at the end.
    return torch.cat([torch.cat(columns, 1).flatten(), *ends])


def _divide(rows: int) -> list[int]:
    """The shares of a batch, as `Tensor.tensor_split` cuts them for processes."""
    return [len(part) for part in torch.arange(rows).tensor_split(LANES)]
