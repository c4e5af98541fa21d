"""Exhaustive search: the loss at every point of a grid over one or two parameters, coarse to fine if asked for."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import product

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dlrun.core.errors import RequestError

# Points of one grid: at about 100 µs each they take 10 s, and every checkpoint contains all of them.
MOST_POINTS = 100_000


class Exhaustive(Optimizer):
    """Tries every value instead of following a gradient; for models of one or two trainable numbers.

    The first step evaluates the grid low, low + step, ..., high (in decimals, so that 3 · 0.1 is 0.3; for the
    second number low2 to high2, None: as the first) and sets the parameters to its best point, the first among
    equals. Later steps change nothing, unless refine > 1: then each divides spacing and range by `refine` around
    the best point so far, within the first range, until the spacing is at most `finest`. The search is on the
    batch that the closure evaluates: all rows should be in one.

    Raises RequestError for a model of more numbers, a range without two points, a grid of more than MOST_POINTS,
    or a `refine` so large that a finer grid would not reach the neighbours of the best point.
    """

    def __init__(
        self,
        params: ParamsT,
        low: float = 0.0,
        high: float = 4.0,
        step: float = 0.1,
        low2: float | None = None,
        high2: float | None = None,
        refine: float = 1.0,
        finest: float = 1e-3,
    ) -> None:
        second_low = low if low2 is None else low2
        second_high = high if high2 is None else high2
        ranges = [[low, high], [second_low, second_high]]
        # Schedules and logs expect an lr of any optimizer; nothing here is multiplied by it.
        defaults = {"lr": 0.0, "ranges": ranges, "step": step, "refine": refine, "finest": finest}
        super().__init__(params, defaults)

        # Counters are plain values of the parameter group, for checkpoints.
        self.param_groups[0] |= {"evaluations": 0, "grids": 0, "history": []}
        self._check_parameters()
        self._check_grid()

    def _check_parameters(self) -> None:
        if len(self.param_groups) > 1:
            raise RequestError(
                "optimizer.groups does not fit optimizer=exhaustive; "
                "type optimizer.low2=... and optimizer.high2=... for the range of the second parameter"
            )
        count = sum(p.numel() for p in self.param_groups[0]["params"])
        if count > 2:
            raise RequestError(
                f"optimizer=exhaustive tries every value of at most 2 parameters, and this model has {count:,}; "
                "type optimizer=sgd, or model=linear data=three_points"
            )
        # A model of one parameter has one axis.
        self.param_groups[0]["ranges"] = self.param_groups[0]["ranges"][:count]

    def _check_grid(self) -> None:
        group = self.param_groups[0]
        step = group["step"]
        refine = group["refine"]
        for key, example in (("step", 0.1), ("finest", 0.001)):
            value = group[key]
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"optimizer.{key}={value} must be above 0, as in optimizer.{key}={example}")

        points = 1
        for suffix, (low, high) in zip(("", "2"), group["ranges"], strict=False):
            if not (math.isfinite(low) and math.isfinite(high) and high - low >= step):
                raise RequestError(
                    f"optimizer.low{suffix}={low} to optimizer.high{suffix}={high} is no range of "
                    f"optimizer.step={step}; "
                    f"type optimizer.low{suffix}=0 optimizer.high{suffix}=4 optimizer.step=0.1"
                )
            intervals = _count_intervals(low, high, step)
            points *= intervals + 1
            if not 1 <= refine <= max(intervals / 2, 1):
                raise RequestError(
                    f"optimizer.refine={refine} must be from 1 (no finer grids) to half of the "
                    f"{intervals} steps between low{suffix} and high{suffix}, "
                    "else a finer grid leaves gaps; type optimizer.refine=2 or a smaller optimizer.step"
                )
        if points > MOST_POINTS:
            raise RequestError(
                f"optimizer.step={step} makes a grid of {points:,} points, of at most {MOST_POINTS:,}; "
                "type a larger optimizer.step, and optimizer.refine=4 to get finer around the best point"
            )

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the loss."""
        return int(self.param_groups[0]["evaluations"])

    @property
    def history(self) -> list[list[float]]:
        """[value(s)..., loss] of every grid point, in the order of evaluation."""
        return list(self.param_groups[0]["history"])

    @property
    def best(self) -> list[float]:
        """The row of `history` with the lowest loss, the first among equals; NaN is worse than any."""
        return min(self.param_groups[0]["history"], key=lambda row: (math.isnan(row[-1]), row[-1]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Evaluate the current values, then the next grid if one is due; returns the loss of the current values."""
        # The first evaluation is the training loss of this step.
        loss = self._evaluate(closure)
        if self._is_grid_due():
            points = list(product(*self._compute_axes()))
            losses = []
            for point in points:
                self._set_parameters(point)
                losses.append(self._evaluate(closure))

            # Wait for the device once a grid.
            values = torch.stack(losses).tolist()
            group = self.param_groups[0]
            group["history"] += [[*point, value] for point, value in zip(points, values, strict=True)]
            group["grids"] += 1
            self._set_parameters(self.best[:-1])

        # The gradients of the last grid point mean nothing.
        self.zero_grad()
        return loss

    def _is_grid_due(self) -> bool:
        group = self.param_groups[0]
        if group["grids"] == 0:
            return True
        return group["refine"] > 1 and self._compute_spacing(group["grids"] - 1) > _to_decimal(group["finest"])

    def _evaluate(self, closure: Callable[[], Tensor]) -> Tensor:
        self.param_groups[0]["evaluations"] += 1
        with torch.enable_grad():
            return closure().detach()

    def _set_parameters(self, point: Sequence[float]) -> None:
        """Set the parameters, in their order, to the values of a point."""
        values = iter(point)
        for p in self.param_groups[0]["params"]:
            numbers = [next(values) for _ in range(p.numel())]
            p.copy_(torch.tensor(numbers, dtype=p.dtype).view_as(p))

    def _compute_spacing(self, grid: int) -> Decimal:
        """Distance between the points of grid number `grid`, from 0 on."""
        group = self.param_groups[0]
        return _to_decimal(group["step"]) / _to_decimal(group["refine"]) ** grid

    def _compute_axes(self) -> list[list[float]]:
        """The values of each parameter on the next grid."""
        group = self.param_groups[0]
        spacing = self._compute_spacing(group["grids"])
        axes = []
        for i, (low, high) in enumerate(group["ranges"]):
            intervals = _count_intervals(low, high, group["step"])
            if group["grids"] == 0:
                axes.append([float(_to_decimal(low) + k * spacing) for k in range(intervals + 1)])
                continue

            # As many points as the first grid, around the best one and within the first range.
            half = math.ceil(intervals / 2)
            centre = _to_decimal(self.best[i])
            values = [float(centre + k * spacing) for k in range(-half, half + 1)]
            axes.append([value for value in values if low <= value <= high])
        return axes

    def summary(self) -> str:
        """Best point and number of evaluations, as one sentence."""
        group = self.param_groups[0]
        if not group["history"]:
            return f"{self.evaluations:,} evaluations and no grid yet"

        *values, loss = self.best
        point = ", ".join(f"{value:.6g}" for value in values)
        if len(values) > 1:
            point = f"({point})"
        sentence = (
            f"{self.evaluations:,} evaluations; the best of {len(group['history']):,} grid points is {point}"
            f" with a loss of {loss:.6g}"
        )
        if group["grids"] == 1:
            return sentence

        spacing = self._compute_spacing(group["grids"] - 1)
        points = math.prod(_count_intervals(low, high, spacing) + 1 for low, high in group["ranges"])
        return f"{sentence}; one grid of its finest spacing {float(spacing):.3g} would have had {points:,} points"


def _to_decimal(value: float) -> Decimal:
    """The decimal number as the user wrote it."""
    return Decimal(str(value))


def _count_intervals(low: float, high: float, spacing: float | Decimal) -> int:
    return int((_to_decimal(high) - _to_decimal(low)) / Decimal(str(spacing)))
