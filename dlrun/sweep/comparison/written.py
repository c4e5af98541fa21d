"""How the numbers of a ranking are written: with the digits that the spread over seeds leaves meaning to."""

import math
from typing import TYPE_CHECKING

from dlrun.sweep.comparison.statistics import Estimate

if TYPE_CHECKING:
    from dlrun.sweep.comparison.ranking import Ranking

_WIDE = 1e5  # from here on powers of ten


def count_decimals(ranking: "Ranking") -> int:
    """So many that the best setting's spread has two digits; four digits of its mean where there is no spread."""
    score = ranking.counted[0].score if ranking.counted else Estimate(0, *[math.nan] * 4)
    digits, of = (2, score.std) if score.std > 0 else (4, abs(score.mean))
    if not math.isfinite(of) or of == 0:
        return 4
    return min(max(digits - 1 - math.floor(math.log10(of)), 0), 6)


def format_metric(value: float, ranking: "Ranking") -> str:
    """One value of the monitored metric; "–" for NaN."""
    if not math.isfinite(value):
        return "–"
    places = count_decimals(ranking)
    if abs(value) >= _WIDE or 0 < abs(value) < 0.5 * 10.0**-places:
        return f"{value:.2e}"
    return f"{value:.{places}f}"


def format_estimate(score: Estimate, ranking: "Ranking") -> str:
    """The mean, with the standard deviation where there is one."""
    mean = format_metric(score.mean, ranking)
    return mean if math.isnan(score.std) else f"{mean} ± {format_metric(score.std, ranking)}"
