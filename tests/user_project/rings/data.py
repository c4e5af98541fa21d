"""Points on three rings around one center."""

import torch

from dlrun.data.spec import DataSpec, Split, Splits


def rings(rows: int = 240, noise: float = 0.15, seed: int = 0) -> Splits:
    """Draw the points; rows: of the training part, of which validation and test have half as many each."""
    generator = torch.Generator().manual_seed(seed)
    spec = DataSpec("vector", (2,), "multiclass", 3, class_names=("inner", "middle", "outer"))
    train, val, test = (_draw(count, noise, generator) for count in (rows, rows // 2, rows // 2))
    return Splits(train, val, test, spec)


def _draw(rows: int, noise: float, generator: torch.Generator) -> Split:
    targets = torch.arange(rows) % 3
    radius = 1.0 + targets + noise * torch.randn(rows, generator=generator)
    angle = 2 * torch.pi * torch.rand(rows, generator=generator)
    return Split((torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1),), targets)
