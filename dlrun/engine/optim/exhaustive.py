"""Exhaustive search: the loss at every point of a grid over one or two parameters, coarse to fine when asked for."""

import math
from collections.abc import Callable
from decimal import Decimal
from itertools import product

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from dlrun.core.errors import RequestError

MOST_POINTS = 100_000  # of one grid: at about 100 µs each this takes 10 s, and all are kept in each checkpoint


class Exhaustive(Optimizer):
    """Tries every value instead of following a gradient; for models of one or two trainable numbers.

    The first step evaluates the grid low, low + step, ..., high (in decimals, so that 3 · 0.1 is 0.3; for the
    second number low2 to high2, null: as the first) and sets the parameters to its best point, the first among
    equals. Later steps change nothing, unless refine > 1: then each divides spacing and range by `refine` around
    the best point so far, within the first range, until the spacing is at most `finest`. The search is of the
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
        ranges = [[low, high], [low if low2 is None else low2, high if high2 is None else high2]]
        # lr: schedules and logs expect one of any optimizer; nothing here is multiplied by it.
        super().__init__(params, {"lr": 0.0, "ranges": ranges, "step": step, "refine": refine, "finest": finest})
        self.param_groups[0] |= {"evaluations": 0, "grids": 0, "history": []}  # plain, as checkpoints need them
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
        self.param_groups[0]["ranges"] = self.param_groups[0]["ranges"][:count]

    def _check_grid(self) -> None:
        group = self.param_groups[0]
        step, refine, finest = (group[key] for key in ("step", "refine", "finest"))
        for key, value, instead in (("step", step, 0.1), ("finest", finest, 0.001)):
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"optimizer.{key}={value} must be above 0, as in optimizer.{key}={instead}")
        points = 1
        for end, (low, high) in zip(("", "2"), group["ranges"], strict=False):
            if not (math.isfinite(low) and math.isfinite(high) and high - low >= step):
                raise RequestError(
                    f"optimizer.low{end}={low} to optimizer.high{end}={high} is no range of optimizer.step={step}; "
                    f"type optimizer.low{end}=0 optimizer.high{end}=4 optimizer.step=0.1"
                )
            points *= _intervals(low, high, step) + 1
            if not 1 <= refine <= max(_intervals(low, high, step) / 2, 1):
                raise RequestError(
                    f"optimizer.refine={refine} must be from 1 (no finer grids) to half of the "
                    f"{_intervals(low, high, step)} steps between low{end} and high{end}, "
                    "else a finer grid leaves gaps; type optimizer.refine=2 or a smaller optimizer.step"
                )
        if points > MOST_POINTS:
            raise RequestError(
                f"optimizer.step={step} makes a grid of {points:,} points, of at most {MOST_POINTS:,}; "
                "type a larger optimizer.step, and optimizer.refine=4 to get finer around the best point"
            )

    @property
    def evaluations(self) -> int:
        """How often the loss was evaluated."""
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
        """Evaluate the current values, then the grid that is due; returns the loss of the current values."""
        group = self.param_groups[0]
        loss = self._evaluate(closure)
        if group["grids"] == 0 or (group["refine"] > 1 and self._spacing(group["grids"] - 1) > _exact(group["finest"])):
            points, losses = list(product(*self._axes())), []
            for point in points:
                self._move(point)
                losses.append(self._evaluate(closure))
            found = torch.stack(losses).tolist()  # one wait for the device
            group["history"] += [[*point, value] for point, value in zip(points, found, strict=True)]
            group["grids"] += 1
            self._move(self.best[:-1])
        self.zero_grad()  # those of the last grid point, which say nothing
        return loss

    def _evaluate(self, closure: Callable[[], Tensor]) -> Tensor:
        self.param_groups[0]["evaluations"] += 1
        with torch.enable_grad():
            return closure().detach()

    def _move(self, point: tuple[float, ...] | list[float]) -> None:
        """Set the parameters, in their order, to the values of a point."""
        values = iter(point)
        for p in self.param_groups[0]["params"]:
            p.copy_(torch.tensor([next(values) for _ in range(p.numel())], dtype=p.dtype).view_as(p))

    def _spacing(self, grid: int) -> Decimal:
        """Between the points of grid number `grid`, from 0 on."""
        return _exact(self.param_groups[0]["step"]) / _exact(self.param_groups[0]["refine"]) ** grid

    def _axes(self) -> list[list[float]]:
        """The values of each parameter on the grid that comes next."""
        group = self.param_groups[0]
        spacing, axes = self._spacing(group["grids"]), []
        for i, (low, high) in enumerate(group["ranges"]):
            intervals = _intervals(low, high, group["step"])
            if group["grids"] == 0:
                axes.append([float(_exact(low) + k * spacing) for k in range(intervals + 1)])
                continue
            half, centre = math.ceil(intervals / 2), _exact(self.best[i])
            values = (float(centre + k * spacing) for k in range(-half, half + 1))
            axes.append([value for value in values if low <= value <= high])
        return axes

    def summary(self) -> str:
        """What was found, for how many evaluations, as one sentence."""
        group = self.param_groups[0]
        if not group["history"]:
            return f"{self.evaluations:,} evaluations and no grid yet"
        *values, loss = self.best
        where = ", ".join(f"{v:.6g}" for v in values)
        point = f"({where})" if len(values) > 1 else where
        said = f"{self.evaluations:,} evaluations; the best of {len(group['history']):,} grid points is {point}"
        said += f" with a loss of {loss:.6g}"
        if group["grids"] == 1:
            return said
        spacing = self._spacing(group["grids"] - 1)
        whole = math.prod(_intervals(low, high, spacing) + 1 for low, high in group["ranges"])
        return f"{said}; one grid of its finest spacing {float(spacing):.3g} would have had {whole:,} points"


def _exact(value: float) -> Decimal:
    """The decimal number as the user wrote it."""
    return Decimal(str(value))


def _intervals(low: float, high: float, spacing: float | Decimal) -> int:
    return int((_exact(high) - _exact(low)) / Decimal(str(spacing)))
