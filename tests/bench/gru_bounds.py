"""What bounds the GRU on names, and what lifts it: milliseconds a step of variants, in turn in one process.

python tests/bench/gru_bounds.py [--rounds 7] [--steps 12]     (needs DLRUN_DATA_DIR with the names)

Bidirectional GRU 2 × 100, batch 256, Adam: forward, loss, backward, step on the same batches. `matrix products alone`
are those that the cells cannot do without, on tensors of their shapes: what is left is element-wise arithmetic, copies,
and going through the time steps one by one.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from rows import Row, list_core_rows, loss
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

Batch = tuple[Tensor, Tensor, Tensor]  # codes (B, T), lengths, countries
Forward = Callable[[nn.Module, Tensor, Tensor], Tensor]
HIDDEN, DIRECTIONS, LAYERS = 100, 2, 2


def run_packed(net: nn.Module, codes: Tensor, lengths: Tensor) -> Tensor:
    """As dlrun does: padding never reaches the cells."""
    return net(codes, lengths)


def run_padded(net: nn.Module, codes: Tensor, lengths: Tensor) -> Tensor:
    """Without packing: the cells run over padding too (another result: the state after the padding)."""
    _, state = net.recurrent(net.embedding(codes))
    return net.classifier(torch.cat([state[-2], state[-1]], dim=-1))


def time_major(net: nn.Module, codes: Tensor, lengths: Tensor) -> Tensor:
    """Packed, embedded as (T, B, E)."""
    net.recurrent.batch_first = False
    embedded = net.embedding(codes.t().contiguous())
    _, state = net.recurrent(pack_padded_sequence(embedded, lengths, enforce_sorted=False))
    net.recurrent.batch_first = True
    return net.classifier(torch.cat([state[-2], state[-1]], dim=-1))


def bf16(net: nn.Module, codes: Tensor, lengths: Tensor) -> Tensor:
    """Packed, under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(codes, lengths)


def make_batches(row: Row, steps: int) -> dict[str, list[Batch]]:
    """The same rows in batches of different orders and widths."""
    (codes, lengths), targets = row.tensors()
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))

    def batches(index: Tensor) -> list[Batch]:
        return [(codes[i], lengths[i], targets[i]) for i in index.split(row.batch_size) if len(i) == row.batch_size]

    def cut(parts: list[Batch]) -> list[Batch]:
        return [(c[:, : int(n.max())].contiguous(), n, y) for c, n, y in parts]

    plain = batches(order)[:steps]
    by_length = batches(order[lengths[order].sort(stable=True).indices])
    picked = [by_length[i * len(by_length) // steps] for i in range(steps)]  # short and long ones alike
    sorted_in = [tuple(x[n.sort(descending=True).indices] for x in (c, n, y)) for c, n, y in plain]
    return {"plain": plain, "cut": cut(plain), "by length": cut(picked), "sorted": sorted_in}  # type: ignore[dict-item]


def training(row: Row, batches: list[Batch], forward: Forward) -> Callable[[], None]:
    """One pass over the batches."""
    net = row.net().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)

    def run() -> None:
        for codes, lengths, targets in batches:
            optimizer.zero_grad()
            loss(forward(net, codes, lengths).float(), targets).backward()
            optimizer.step()

    return run


def forward_alone(row: Row, batches: list[Batch]) -> Callable[[], None]:
    """Without gradients."""
    net = row.net()

    def run() -> None:
        with torch.inference_mode():
            for codes, lengths, _ in batches:
                net(codes, lengths)

    return run


def products(batches: list[Batch]) -> Callable[[], None]:
    """The cells' matrix products, forward and backward, over the rows that are there at each time step."""
    weights = {width: torch.randn(3 * HIDDEN, width) for width in (HIDDEN, 2 * HIDDEN)}
    plans = [[int((lengths > t).sum()) for t in range(int(lengths.max()))] for _, lengths, _ in batches]

    def three(rows: int, width: int) -> None:
        """Forward, and what the backward pass makes of it for the input and for the weights."""
        x, gates = torch.empty(rows, width), torch.empty(rows, 3 * HIDDEN)
        x @ weights[width].t()
        gates @ weights[width]
        gates.t() @ x

    def run() -> None:
        for rows_at in plans:
            for layer in range(LAYERS):
                for _ in range(DIRECTIONS):
                    three(sum(rows_at), HIDDEN if layer == 0 else 2 * HIDDEN)
                    for rows in rows_at:
                        three(rows, HIDDEN)

    return run


def main() -> None:
    """Print medians, and times the first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    root = os.environ.get("DLRUN_DATA_DIR")
    if not root:
        print("the GRU: skipped, DLRUN_DATA_DIR is not set")
        return
    row = next(row for row in list_core_rows(str(Path(root).resolve())) if row.name == "gru")
    batches = make_batches(row, options.steps)
    variants = {
        "packed (dlrun)": training(row, batches["plain"], run_packed),
        "packed, rows sorted beforehand": training(row, batches["sorted"], run_packed),
        "packed, cut to the longest of the batch": training(row, batches["cut"], run_packed),
        "packed, time first": training(row, batches["plain"], time_major),
        "packed, bucketed by length": training(row, batches["by length"], run_packed),
        "padded to the longest of all": training(row, batches["plain"], run_padded),
        "padded to the longest of the batch": training(row, batches["cut"], run_padded),
        "padded, bucketed by length": training(row, batches["by length"], run_padded),
        "packed, bf16": training(row, batches["plain"], bf16),
        "packed, forward alone": forward_alone(row, batches["plain"]),
        "matrix products alone": products(batches["plain"]),
    }
    lengths = torch.cat([n for _, n, _ in batches["plain"]]).float()
    print(f"{describe()}; names of {lengths.mean():.1f} letters in the mean, {lengths.max():.0f} at most")
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(-1, options.rounds):
            for name in random.Random(number).sample(list(variants), len(variants)):
                began = time.perf_counter()
                variants[name]()
                if number >= 0:  # the first round warms up
                    seconds[name].append((time.perf_counter() - began) / options.steps)
        first = seconds["packed (dlrun)"]
        for name, took in seconds.items():
            times = statistics.median(a / b for a, b in zip(first, took, strict=True))
            print(f"  {threads} thread(s)  {name:<40} {1e3 * statistics.median(took):7.1f} ms a step  {times:5.2f} ×")


if __name__ == "__main__":
    main()
