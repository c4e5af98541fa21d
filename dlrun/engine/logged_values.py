"""Scalars that callbacks and models log while a model trains: the row of an epoch has the mean of each."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from dlrun.core.errors import RunError
from dlrun.engine.distributed import Distributed
from dlrun.engine.metrics import widen

# Longer names do not fit into a table.
_LONGEST_NAME = 100

# Where `log` puts values during a training step; None outside of one.
_receiver: "LoggedValues | None" = None


def log(name: str, value: Tensor | float) -> None:
    """Log a scalar from inside a model's forward pass in training; the row of the epoch has the mean over its batches.

    Outside of a training step, as in an evaluation, nothing is logged. RunError if `value` is not one number.
    """
    if _receiver is not None:
        _receiver.add(name, value)


def set_receiver(values: "LoggedValues | None") -> None:
    """Let `log` put its values there from now on; None: nowhere."""
    global _receiver
    _receiver = values


class LoggedValues:
    """Sum and count of each scalar since the last epoch's end. Tensors stay on their device: nothing waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        # The newest value of each name, for the log points within an epoch.
        self.newest: dict[str, Tensor | float] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add a value; RunError unless it is one number, with a printable name."""
        _check_name(name)
        number = _read_number(name, value)
        self.newest[name] = number
        self.sums[name] = self.sums[name] + number if name in self.sums else number
        self.counts[name] = self.counts.get(name, 0) + 1

    def read_newest(self) -> dict[str, float]:
        """The newest value of each name as <name>_step, for the log. Waits for the device."""
        values = {f"{name}_step": float(value) for name, value in self.newest.items()}
        self.newest = {}
        return values

    def take_means(self, ranks: Distributed) -> dict[str, float]:
        """Return the mean of each name over all values of all ranks, and start anew. Waits for the device."""
        sums = {name: float(value) for name, value in self.sums.items()}
        shares = ranks.gather((sums, self.counts))
        self.sums = {}
        self.counts = {}

        # In the order of rank 0, so that rows of all epochs look alike.
        means: dict[str, float] = {}
        for name in dict.fromkeys(chain.from_iterable(rank_sums for rank_sums, _ in shares)):
            total = sum(rank_sums.get(name, 0.0) for rank_sums, _ in shares)
            count = sum(rank_counts.get(name, 0) for _, rank_counts in shares)
            means[name] = total / count
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, for a checkpoint in the middle of an epoch; empty if nothing has been logged."""
        if not self.counts:
            return {}
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def add_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Add the values of a `state_dict` of this or another process."""
        for name, value in state.get("sums", {}).items():
            number = value.to(device) if isinstance(value, Tensor) else value
            self.sums[name] = self.sums[name] + number if name in self.sums else number
            self.counts[name] = self.counts.get(name, 0) + state["counts"][name]


def _check_name(name: str) -> None:
    """RunError for a name that no table or file can show."""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise RunError(f"log: {name!r} is no name; give text of 1 to {_LONGEST_NAME} printable characters")


def _read_number(name: str, value: Tensor | float) -> Tensor | float:
    """A copy of the value in float64, on its device."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise RunError(f"log({name!r}, ...) takes one number, not a tensor of shape {tuple(value.shape)}")
        if value.is_cuda and torch.cuda.is_current_stream_capturing():
            # A recorded step would repeat the kernels and not the call; the steps run eagerly instead.
            raise RuntimeError(f"the model logs {name!r} in its forward pass")
        # One number made of parameters that are split over the ranks, each of which logs it.
        gather: Callable[[], Tensor] | None = getattr(value, "full_tensor", None)
        if gather is not None:
            value = gather()
        # A copy: whoever logs may change the tensor afterwards.
        return widen(value.detach()).reshape(()).clone()

    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RunError(f"log({name!r}, ...) takes one number, not a {type(value).__name__}") from error
