"""What a search improves: a metric at the best epoch of a run, or a number of its result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlrun.core.errors import RequestError
from dlrun.core.suggest import did_you_mean
from dlrun.engine.metric_names import get_direction
from dlrun.runs.record import RunRecord, to_number

# Numbers of result.json besides the metrics.
NUMBERS = ("parameters", "epochs", "steps", "train_seconds", "samples_per_second")


@dataclass(frozen=True)
class Objective:
    """One number to be made small or large."""

    # min | max.
    mode: str
    # "" for the metric that the runs monitor.
    name: str

    @property
    def title(self) -> str:
        """The name as people read it."""
        return self.name or "monitored metric"

    @property
    def is_metric(self) -> bool:
        """Whether every epoch has a value."""
        return self.name not in NUMBERS

    def read(self, run: RunRecord) -> float:
        """The value of a run that has ended; NaN if it has none."""
        if not self.is_metric:
            return to_number(run.result.get(self.name))
        if self.name in ("", run.metric):
            return run.best_value
        rows = [row for row in run.history if row.get("epoch") == run.best_epoch]
        return to_number(rows[-1].get(self.name)) if rows else math.nan

    def get_curve(self, run: RunRecord) -> list[tuple[int, float]]:
        """Epochs with their values, as far as these are finite."""
        points = [(int(row["epoch"]), read_row(self.name or run.metric, row)) for row in run.history]
        return [(epoch, value) for epoch, value in points if math.isfinite(value)]


def read_row(name: str, row: Any) -> float:
    """A metric of an epoch; NaN if there is none."""
    return to_number(row.get(name))


def read_objectives(lines: Sequence[str] | None, checkpoint: dict[str, Any]) -> list[Objective]:
    """Parse sweep.objectives; without any, the monitored metric. RequestError for a line that says nothing."""
    if not lines:
        monitor = checkpoint["monitor"] or ""
        return [Objective(checkpoint["mode"] or get_direction(monitor), monitor)]
    return [_read_objective(line) for line in lines]


def _read_objective(line: str) -> Objective:
    mode, _, name = str(line).strip().partition(" ")
    name = name.strip()
    if mode not in ("min", "max") or not name:
        raise RequestError(
            f"sweep.objectives: {line} must be min or max and a name; type 'sweep.objectives=[min val/loss]'"
        )
    if name.startswith("test/"):
        raise RequestError(
            f"sweep.objectives: {line} would choose by the test split, which then tests nothing; "
            f"type {mode} val/{name.removeprefix('test/')}"
        )
    if "/" not in name and name not in NUMBERS:
        raise RequestError(
            f"sweep.objectives: {name} is no number of a run; {did_you_mean(name, NUMBERS)}type a metric, as in "
            f"{mode} val/loss, or one of {', '.join(NUMBERS)}"
        )
    return Objective(mode, name)
