"""Successive halving of the runs of a stack: at a few epochs the worse ones leave, and the others train on faster.

K. Jamieson and A. Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, AISTATS 2016.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlrun.runs.record import to_number

# One of so many trains on, at epochs 1, 4, 16 ...: as Optuna's SuccessiveHalvingPruner does with runs alone.
FACTOR = 4


@dataclass(frozen=True)
class Halving:
    """Which runs of a stack leave it after an epoch.

    It has no memory: a stack that was killed is halved again at the same epoch, to the same runs.
    """

    # "" for the validation loss, or the training loss where there is none.
    metric: str
    # min | max.
    mode: str
    # By the key of a run; the runs of one trial, which differ in their seeds, leave together.
    trials: Mapping[str, int]

    def choose_worse(self, epoch: int, rows: Mapping[str, Mapping[str, float]]) -> Sequence[str]:
        """The keys of the runs that leave.

        rows: by key, the row of this epoch for each run that has more to train.
        """
        if not is_rung(epoch) or not rows:
            return []

        runs_by_trial: dict[int, list[str]] = defaultdict(list)
        for key in rows:
            runs_by_trial[self.trials[key]].append(key)
        costs = {}
        for trial, keys in runs_by_trial.items():
            costs[trial] = sum(self._compute_cost(rows[key]) for key in keys) / len(keys)

        # The earlier trial wins where two are equal.
        order = sorted(costs, key=lambda trial: (costs[trial], trial))
        leaving = order[max(1, len(order) // FACTOR) :]
        return [key for trial in leaving for key in runs_by_trial[trial]]

    def _compute_cost(self, row: Mapping[str, float]) -> float:
        """The value to minimize; infinite if the metric is not finite."""
        value = read_value(self.metric, row)
        if not math.isfinite(value):
            return math.inf
        return -value if self.mode == "max" else value


def is_rung(epoch: int) -> bool:
    """Whether runs leave after this epoch: a power of the factor."""
    while epoch % FACTOR == 0 and epoch:
        epoch //= FACTOR
    return epoch == 1


def read_value(metric: str, row: Mapping[str, float]) -> float:
    """A metric of an epoch, NaN if there is none.

    metric: "" for the validation loss, or the training loss where there is none.
    """
    return to_number(row.get(metric or ("val/loss" if "val/loss" in row else "train/loss")))
