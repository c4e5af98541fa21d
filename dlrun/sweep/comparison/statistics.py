"""Statistics of a few repetitions: mean, spread, and confidence interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CONFIDENCE = 0.95
# Fewer seeds than this give no interval worth a verdict: for two it spans 12.7 standard errors each way.
FEWEST = 3

# Quantiles of the t distribution for 1, 2, 3 ... degrees of freedom, which leave (1 - _CONFIDENCE) / 2 above them:
# importing scipy for them takes longer than the statistics of a large sweep.
_QUANTILES = (
    12.706204736174694,
    4.302652729749462,
    3.1824463052837078,
    2.7764451051977934,
    2.5705818356363146,
    2.4469118511449786,
    2.364624251592784,
    2.306004135204166,
    2.262157162798205,
    2.228138851986274,
    2.200985160091639,
    2.1788128296672284,
    2.1603686564627913,
    2.144786687917804,
    2.131449545559776,
    2.1199052992212546,
    2.1098155778333156,
    2.1009220402410382,
    2.0930240544083087,
    2.085963447265864,
)


@dataclass(frozen=True)
class Estimate:
    """Mean of n values, sample standard deviation (n - 1), and 95 % t interval of the mean.

    With one value the deviation and the interval are NaN, with none the mean too.
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

    # The t quantile widens the interval for few values: 12.7 standard errors for two, 2.0 for fifty.
    std = statistics.stdev(values)
    half = _compute_quantile(n - 1) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def _get_order(seed: int | str) -> tuple[int, str]:
    """Seeds by number, folds by name."""
    return (seed, "") if isinstance(seed, int) else (0, seed)


def estimate_difference(a: Mapping[int | str, float], b: Mapping[int | str, float]) -> Estimate:
    """Estimate a - b, paired by seed: pairing cancels what a seed does to both alike.

    a, b: values by seed; seeds that only one of them has are left out.
    """
    # Sorted, so that the sums, which depend on their order, are the same in every report.
    return estimate([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys(), key=_get_order)])


def _compute_quantile(degrees: int) -> float:
    """The quantile of the t distribution that leaves (1 - _CONFIDENCE) / 2 above it."""
    if degrees <= len(_QUANTILES):
        return _QUANTILES[degrees - 1]

    # scipy.stats takes 0.5 s longer to import.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(degrees, (1 + _CONFIDENCE) / 2))
