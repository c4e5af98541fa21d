"""How much memory a training takes, and what to say when there is not enough."""

from dataclasses import dataclass

import torch
from torch import nn

from dlrun.config.schema import Settings
from dlrun.data.batches import measure_free_memory

_NARROW = ("bf16", "fp16")


@dataclass(frozen=True)
class Estimate:
    """Bytes that a step holds at once, about: buffers of the kernels and the data come on top."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of one batch

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(model: nn.Module, moments: float, values: int, settings: Settings) -> Estimate:
    """What training `model` takes.

    moments: numbers that the optimizer keeps for each trained one; values: numbers that the layers put out for one
    sample, each kept for the backward pass, in the precision of the forward pass.
    """
    held = [*model.parameters(), *model.buffers()]
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    precision = settings.rest.device.precision
    wide = 2 if precision in _NARROW else 8 if precision == "fp64" else 4
    return Estimate(
        weights=sum(t.numel() * t.element_size() for t in held),
        gradients=trained,
        optimizer=int(trained * moments),
        activations=values * settings.data_keys.batch_size * wide,
    )


def note_shortage(needed: Estimate, settings: Settings, device: torch.device) -> list[str]:
    """A note when a step may take more than the device has left."""
    free = measure_free_memory(device)
    if needed.total <= free:
        return []
    return [
        f"a step takes about {needed.total / 2**20:,.0f} MB, and {device} has {free / 2**20:,.0f} MB left; "
        f"if it runs out of memory try {_smaller(settings)}"
    ]


def explain_out_of_memory(settings: Settings, device: str) -> str:
    """What to type where memory ran out."""
    return f"out of memory on {device} with data.batch_size={settings.data_keys.batch_size}; try {_smaller(settings)}"


def _smaller(settings: Settings) -> str:
    rows, steps = settings.data_keys.batch_size, settings.rest.trainer.accumulate_steps
    words = [f"data.batch_size={rows // 2} trainer.accumulate_steps={2 * steps} (the same steps)"] if rows > 1 else []
    words += [] if settings.rest.device.precision in _NARROW else ["device.precision=bf16"]
    words += ["a smaller data.image_size"] if settings.data.arguments.get("image_size") else []
    return ", ".join([*words, "data.loader=workers, or a smaller model"])
