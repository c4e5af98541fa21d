"""Accelerate as its quick tour: the plain loop over a DataLoader, with what `prepare` returns."""

from accelerate import Accelerator
from pace import Pace
from rows import Row, loader, loss


def train(row: Row, pace: Pace) -> None:
    """See above."""
    inputs, targets = row.tensors()
    net = row.net().train()
    accelerator = Accelerator(cpu=True)
    net, optimizer, batches = accelerator.prepare(net, row.torch_optimizer(net), loader(inputs, targets, row))
    while True:
        for *given, wanted in batches:
            optimizer.zero_grad()
            value = loss(net(*given), wanted)
            accelerator.backward(value)
            optimizer.step()
            pace.step()
