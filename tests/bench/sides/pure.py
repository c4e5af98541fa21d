"""The arithmetic with nothing around it: zero_grad, forward, loss, backward and step on one batch, again and again.

channels_last where the net convolves; torch.optim as constructed by default.
"""

import torch
from pace import Pace
from rows import Row, loss
from torch import nn


def train(row: Row, pace: Pace) -> None:
    """See above."""
    inputs, targets = row.tensors()
    net = row.net().train()
    inputs, targets = tuple(x[: row.batch_size].clone() for x in inputs), targets[: row.batch_size].clone()
    if any(isinstance(module, nn.Conv2d) for module in net.modules()):
        net = net.to(memory_format=torch.channels_last)
        inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
    optimizer = row.torch_optimizer(net)
    while True:
        optimizer.zero_grad()
        loss(net(*inputs), targets).backward()
        optimizer.step()
        pace.step()
