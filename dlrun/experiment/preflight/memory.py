"""How much memory a training takes, and what to type when there is not enough."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dlrun.config.settings import Settings
from dlrun.data.batches import measure_free_memory

_NARROW = ("bf16", "fp16")


@dataclass(frozen=True)
class Estimate:
    """Bytes that a step holds at once, about: buffers of the kernels and the data come on top."""

    weights: int
    gradients: int
    optimizer: int

    # Outputs of the layers for one batch.
    activations: int

    @property
    def total(self) -> int:
        """Sum of all four."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(
    model: nn.Module, moments: float, values: int, settings: Settings, world_size: int = 1, rows: int | None = None
) -> Estimate:
    """Estimate the bytes that a training step holds on one device.

    With device.strategy=fsdp2 gradients and optimizer are shared out; the weights are whole in every evaluation.

    moments: numbers that the optimizer keeps for each trained one. values: numbers that the layers put out for one
    sample, each kept for the backward pass, in the precision of the forward pass. rows: of the largest batch, where the
    training rows do not fill data.batch_size.
    """
    weights = count_bytes([*model.parameters(), *model.buffers()])
    trainable_bytes = count_bytes(p for p in model.parameters() if p.requires_grad)

    if settings.device.strategy == "fsdp2":
        trainable_bytes = math.ceil(trainable_bytes / world_size)

    # Activations are kept in the precision of the forward pass, weights and gradients in their own.
    precision = settings.device.precision
    if precision in _NARROW:
        bytes_per_value = 2
    elif precision == "fp64":
        bytes_per_value = 8
    else:
        bytes_per_value = 4

    return Estimate(
        weights=weights,
        gradients=trainable_bytes,
        optimizer=int(trainable_bytes * moments),
        activations=values * (rows or settings.data.keys.batch_size) * bytes_per_value,
    )


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def note_shortage(estimate: Estimate, settings: Settings, device: torch.device) -> list[str]:
    """Return a note if a step may take more memory than the device has left."""
    free = measure_free_memory(device)
    if estimate.total <= free:
        return []
    needed_mb = estimate.total / 2**20
    free_mb = free / 2**20
    return [
        f"a step takes about {needed_mb:,.0f} MB, and {device} has {free_mb:,.0f} MB left; "
        f"if it runs out of memory try {_list_remedies(settings)}"
    ]


def explain_out_of_memory(settings: Settings, device: str) -> str:
    """The message where memory ran out, with what to type."""
    rows = settings.data.keys.batch_size
    return f"out of memory on {device} with data.batch_size={rows}; try {_list_remedies(settings)}"


def _list_remedies(settings: Settings) -> str:
    rows = settings.data.keys.batch_size
    steps = settings.trainer.accumulate_steps

    remedies = []
    if rows > 1:
        remedies.append(f"data.batch_size={rows // 2} trainer.accumulate_steps={2 * steps} (the same steps)")
    if settings.device.precision not in _NARROW:
        remedies.append("device.precision=bf16")
    if settings.hyperparameters.get("data.image_size"):
        remedies.append("a smaller data.image_size")
    return ", ".join([*remedies, "data.loader=workers, or a smaller model"])
