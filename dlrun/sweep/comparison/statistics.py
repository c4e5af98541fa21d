"""What a few repetitions tell: mean, spread, and how sure one can be."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
FEWEST = 3  # seeds below which no interval is worth a verdict


@dataclass(frozen=True)
class Estimate:
    """Of n values: the mean, the sample standard deviation (n - 1), and the 95 % t interval of the mean.

    With one value the spread and the interval are NaN, with none the mean too.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def contains_zero(self) -> bool:
        """Whether 0 lies in the interval (ends included): a difference that may be none."""
        return self.low <= 0 <= self.high


def estimate(values: Sequence[float]) -> Estimate:
    """Student's interval: mean ± t(n - 1) · std / √n (Student 1908, "The probable error of a mean")."""
    n = len(values)
    if not n:
        return Estimate(0, *[math.nan] * 4)
    mean = statistics.fmean(values)
    if n == 1:
        return Estimate(1, mean, *[math.nan] * 3)
    std = statistics.stdev(values)
    half = _t(n - 1) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def estimate_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Of a - b over the seeds that both have: pairing takes out what a seed does to both alike."""
    return estimate([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def _t(degrees: int) -> float:
    """The quantile that leaves (1 - CONFIDENCE) / 2 above it."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy.stats takes 0.5 s longer to import

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))
