"""Keras on torch: the same net in a TorchModuleWrapper, compile with accuracy, fit on arrays, all else by default."""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
from pace import Pace
from rows import Row
from torch import nn


class Net(keras.Model):
    """A torch module as a Keras model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = keras.layers.TorchModuleWrapper(net)

    def call(self, inputs: Any) -> Any:
        """One input, or a list of them."""
        return self.net(*inputs) if isinstance(inputs, list | tuple) else self.net(inputs)


class Counted(keras.callbacks.Callback):
    """Counts steps."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """One more."""
        self.pace.step()


def train(row: Row, pace: Pace) -> None:
    """See above."""
    inputs, targets = row.tensors()
    arrays = [x.numpy() for x in inputs]
    binary = row.spec.task == "binary"
    kind = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    optimizers = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}
    rates = {"learning_rate" if k == "lr" else k: v for k, v in row.rates.items()}
    model = Net(row.net())
    model.compile(optimizers[row.optimizer](**rates), kind(from_logits=True), metrics=["accuracy"])
    model.fit(
        arrays[0] if len(arrays) == 1 else arrays,
        targets.numpy()[:, None] if binary else targets.numpy(),
        batch_size=row.batch_size,
        epochs=1_000_000,
        callbacks=[Counted(pace)],
    )
