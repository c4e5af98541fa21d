"""The features of vector data as an axis shows them: by name, in the units they were measured in."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlrun.data.spec import DataSpec


def label(spec: DataSpec, column: int = 0) -> str:
    """The feature's name, else x, or x1, x2, ... where there are several."""
    if spec.feature_names:
        return spec.feature_names[column]
    return "x" if spec.input_size == 1 else f"x{column + 1}"


def measured(x: Tensor, spec: DataSpec) -> NDArray[np.float64]:
    """Rows (N, features) with their normalization undone."""
    flat = x.detach().flatten(1).double().cpu()
    if spec.mean:
        flat = flat * torch.tensor(spec.std, dtype=torch.float64) + torch.tensor(spec.mean, dtype=torch.float64)
    return flat.numpy()


def even(x: Tensor, points: int, margin: float = 0.0) -> Tensor:
    """`points` evenly spaced values (points,) float64 over the range of x, wider by `margin` ranges at each end."""
    low, high = float(x.min()), float(x.max())
    extra = margin * (high - low) if high > low else 1.0
    return torch.linspace(low - extra, high + extra, points, dtype=torch.float64)
