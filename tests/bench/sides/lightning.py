"""Lightning as its guide begins: a LightningModule that logs its loss, a DataLoader, a Trainer with its defaults.

That is TensorBoard logs, a checkpoint an epoch, and a progress bar (here into a file, not a terminal).
"""

from typing import Any

import lightning
import torch
from pace import Pace
from rows import Row, loader, loss
from torch import Tensor, nn


class Net(lightning.LightningModule):
    """The net with its loss and optimizer."""

    def __init__(self, row: Row, net: nn.Module) -> None:
        super().__init__()
        self.row, self.net = row, net

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        """Loss of a batch."""
        *inputs, targets = batch
        value = loss(self.net(*inputs), targets)
        self.log("train_loss", value)
        return value

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The row's."""
        return self.row.torch_optimizer(self.net)


class Counted(lightning.Callback):
    """Counts steps."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_train_batch_end(self, *_: Any) -> None:
        """One more."""
        self.pace.step()


def _fit(row: Row, net: type[Net], trainer: lightning.Trainer) -> None:
    inputs, targets = row.tensors()
    trainer.fit(net(row, row.net()), loader(inputs, targets, row))


def train(row: Row, pace: Pace) -> None:
    """See above."""
    _fit(row, Net, lightning.Trainer(accelerator=row.device, devices=1, max_epochs=-1, callbacks=[Counted(pace)]))


def train_bare(row: Row, pace: Pace) -> None:
    """Trainer(barebones=True): no logger, checkpoint, progress bar or summary, nor callbacks."""

    class Counting(Net):
        def log(self, *_: Any, **__: Any) -> None:
            """Nothing: barebones would warn."""

        def on_train_batch_end(self, *_: Any) -> None:
            pace.step()

    _fit(row, Counting, lightning.Trainer(accelerator=row.device, devices=1, max_epochs=-1, barebones=True))
