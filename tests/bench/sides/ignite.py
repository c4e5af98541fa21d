"""PyTorch-Ignite as its quick start: a supervised trainer over a DataLoader, the loss printed every 100 iterations."""

from typing import Any

from ignite.engine import Engine, Events, create_supervised_trainer
from pace import Pace
from rows import Row, loader, loss
from torch import Tensor, nn


class _Spread(nn.Module):
    """A net that takes its inputs as one tuple, as the trainer hands them over."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: list[Tensor]) -> Tensor:
        output: Tensor = self.net(*inputs)
        return output


def prepare(batch: list[Tensor], **_: Any) -> tuple[list[Tensor], Tensor]:
    return batch[:-1], batch[-1]


def train(row: Row, pace: Pace) -> None:
    """See above."""
    inputs, targets = row.tensors()
    net = row.net()
    optimizer = row.torch_optimizer(net)
    if len(inputs) == 1:
        trainer = create_supervised_trainer(net, optimizer, loss, "cpu")
    else:
        trainer = create_supervised_trainer(_Spread(net), optimizer, loss, "cpu", prepare_batch=prepare)

    @trainer.on(Events.ITERATION_COMPLETED(every=100))
    def show(engine: Engine) -> None:
        print(f"epoch {engine.state.epoch}, iteration {engine.state.iteration}, loss {engine.state.output:.4f}")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, pace.step)
    trainer.run(loader(inputs, targets, row), max_epochs=1_000_000)
