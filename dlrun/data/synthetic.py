"""Data drawn from a formula: in milliseconds, without files, the same for the same data seed."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec, Split, Splits

# What the noise of a parabola is multiplied by, unless data.noise_scale is given.
NOISE_SCALES = {"uniform": 0.2, "normal": 0.1}


def line(rows: int = 500, slope: float = 3.0, intercept: float = 0.8, noise: float = 0.0, seed: int = 0) -> Splits:
    """Points on y = slope * x + intercept, x uniform in [0, 1), with Gaussian noise of std `noise` added to y.

    float64 x and y of shape (rows, 1), no test part. Raises RequestError for rows < 1 or noise < 0.
    """
    _check_at_least("rows", rows, 1)
    _check_at_least("noise", noise, 0)

    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    y = slope * x + intercept + noise * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return _build_splits(x, y, lambda x: slope * x + intercept)


def regression(rows: int = 100, features: int = 1, noise: float = 10.0, bias: float = 14.5, seed: int = 0) -> Splits:
    """A random linear function with Gaussian noise of std `noise`, by scikit-learn's make_regression.

    float64 x (rows, features) and y (rows, 1), no test part. Raises RequestError for a count < 1, noise < 0.
    """
    # scikit-learn takes a second to import.
    from sklearn.datasets import make_regression

    _check_at_least("rows", rows, 1)
    _check_at_least("features", features, 1)
    _check_at_least("noise", noise, 0)

    x, y, coefficients = make_regression(
        n_samples=rows, n_features=features, noise=noise, bias=bias, coef=True, random_state=seed
    )
    inputs = torch.from_numpy(x)
    targets = torch.from_numpy(y).unsqueeze(1)

    # With a single feature scikit-learn returns a scalar.
    weight = torch.as_tensor(coefficients).view(features, 1)
    return _build_splits(inputs, targets, lambda x: x @ weight.to(x.dtype) + bias)


def parabola(
    rows: int = 100,
    noise: Literal["uniform", "normal"] = "uniform",
    noise_scale: float | None = None,
    seed: int = 0,
) -> Splits:
    """y = x² + noise_scale * U(0, 1) (default scale 0.2) or N(0, 1) (0.1), x evenly spaced over [-1, 1].

    float64 x and y of shape (rows, 1), no test part. Raises RequestError for rows < 1 or an unknown noise.
    """
    _check_at_least("rows", rows, 1)
    if noise not in NOISE_SCALES:
        raise RequestError(f"data.noise={noise} is not known: type data.noise=uniform or data.noise=normal")

    draw = torch.rand if noise == "uniform" else torch.randn
    scale = NOISE_SCALES[noise]
    if noise_scale is not None:
        _check_at_least("noise_scale", noise_scale, 0)
        scale = noise_scale

    x = torch.linspace(-1, 1, rows, dtype=torch.float64).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    y = x**2 + scale * draw(rows, 1, generator=generator, dtype=torch.float64)
    return _build_splits(x, y, lambda x: x**2)


def blobs(
    rows_per_class: int = 100,
    spread: float = 1.0,
    task: Literal["multiclass", "binary"] = "multiclass",
    seed: int = 0,
) -> Splits:
    """Two Gaussian clouds of std `spread` in the plane: class 0 around (2, 2), class 1 around (-2, -2).

    float64 x (2 * rows_per_class, 2), int64 y, no test part. Raises RequestError for rows_per_class < 1,
    spread < 0 or another task.
    """
    _check_at_least("rows_per_class", rows_per_class, 1)
    _check_at_least("spread", spread, 0)
    if task not in ("multiclass", "binary"):
        raise RequestError(f"data.task={task} does not fit data=blobs: type data.task=multiclass or data.task=binary")

    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(2 * rows_per_class, 2, generator=generator, dtype=torch.float64)
    # The first half of the rows is class 0.
    x[:rows_per_class] += 2
    x[rows_per_class:] -= 2
    y = torch.arange(2).repeat_interleave(rows_per_class)

    output_size = 1 if task == "binary" else 2
    spec = DataSpec("vector", (2,), task, output_size, class_names=("0", "1"))
    return Splits(Split((x,), y), None, None, spec)


def _build_splits(x: Tensor, y: Tensor, truth: Callable[[Tensor], Tensor]) -> Splits:
    spec = DataSpec("vector", (x.shape[1],), "regression", y.shape[1])
    return Splits(Split((x,), y), None, None, spec, truth=truth)


def _check_at_least(key: str, value: float, minimum: int) -> None:
    # `not >=` in place of `<`, so that NaN is refused as well.
    if not value >= minimum:
        raise RequestError(f"data.{key}={value} must be at least {minimum}")
