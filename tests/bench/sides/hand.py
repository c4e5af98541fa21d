"""What a skilled person writes by hand for data that fits in memory.

The whole training part as tensors, a new permutation an epoch, batches gathered by index; images and net in
channels_last where the net convolves; torch.optim as constructed by default; the loss summed up without waiting for it,
and printed once an epoch. Nothing is saved or recorded.
"""

import torch
from pace import Pace
from rows import Row, loss
from torch import nn


def train(row: Row, pace: Pace) -> None:
    """See above."""
    inputs, targets = row.tensors()
    inputs = tuple(x.to(row.device) for x in inputs)
    targets = targets.to(row.device)
    net = row.net().to(row.device).train()
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        net = net.to(memory_format=torch.channels_last)
        inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
    optimizer = row.torch_optimizer(net)
    while True:
        total = torch.zeros((), device=row.device)
        for index in torch.randperm(len(targets), device=row.device).split(row.batch_size):
            optimizer.zero_grad()
            value = loss(net(*(x[index] for x in inputs)), targets[index])
            value.backward()
            optimizer.step()
            total += value.detach() * len(index)
            pace.step()
        print("loss", total.item() / len(targets))
