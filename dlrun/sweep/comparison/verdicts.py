"""What can be said of a ranking, and what cannot: sentences."""

import math
from collections.abc import Sequence

from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting
from dlrun.sweep.comparison.settings import sort_values, is_logarithmic, is_number, format_value
from dlrun.sweep.comparison.statistics import FEWEST, estimate_difference
from dlrun.sweep.comparison.written import format_estimate, format_metric

_MOST_NAMED = 8


def list_verdicts(ranking: Ranking) -> list[str]:
    """The best setting first, then what it is to be taken with."""
    if not ranking.counted:
        return [f"no run came to a finite {ranking.metric}: nothing can be compared"]
    return [*_best(ranking), *_told_apart(ranking), *_baseline(ranking), *_edges(ranking), *_trouble(ranking)]


def summarize(comparison: Comparison) -> str:
    """The answer in one sentence."""
    return list_verdicts(comparison.rankings[0])[0]


def _best(ranking: Ranking) -> list[str]:
    best = ranking.counted[0]
    said = f"best: {best.label}, {ranking.metric} {format_estimate(best.score, ranking)} (n = {best.score.n})"
    if ranking.metric.endswith("/loss") and {"task.loss", "task.reduction"} & set(ranking.keys):
        other = ranking.metric.replace("loss", "<a metric that all have>")
        return [said, f"the settings minimize different losses, which have no order: add checkpoint.monitor={other}"]
    if not ranking.metric.startswith("train/"):
        return [said]
    if any(name.startswith("val/") for run in ranking.runs for name in run.result["metrics"]):
        return [said, f"ranked by {ranking.metric}, which checkpoint.monitor names: it says nothing of new data"]
    what = "the training loss" if ranking.metric == "train/loss" else ranking.metric
    return [said, f"ranked by {what}: there is no validation part (data.val_fraction=0.1 makes one)"]


def _told_apart(ranking: Ranking) -> list[str]:
    """Which settings are, by this evidence, as good as the best."""
    best, *others = ranking.counted
    if not others:
        return []
    differences = [(other, estimate_difference(other.by_seed, best.by_seed)) for other in others]
    few = [other for other, difference in differences if difference.n < FEWEST]
    enough = [(other, difference) for other, difference in differences if difference.n >= FEWEST]
    if not enough:
        seeds = max(len(s.runs) for s in ranking.counted)
        common = max(difference.n for _, difference in differences)
        shown = f"{seeds} seed{'s' if seeds > 1 else ''} a setting" if common == seeds else f"{common} common seeds"
        return [f"with {shown} nothing can be told apart: add 'seed=range(5)'"]
    same = [other for other, difference in enough if difference.contains_zero]
    how = f"paired over {_counts([d.n for _, d in enough])} seeds, 95 % t interval of the difference"
    said = [f"better than {_all_of(len(enough))} ({how} without 0)"]
    if same:
        said = [f"cannot be told apart from the best ({how} contains 0): {_named(same)}"]
    if few:
        said.append(f"fewer than {FEWEST} seeds in common with the best, so not judged: {_named(few)}")
    return said


def _all_of(others: int) -> str:
    return "the other setting" if others == 1 else f"each of the {others} other settings"


def _counts(found: Sequence[int]) -> str:
    low, high = min(found), max(found)
    return str(low) if low == high else f"{low} to {high}"


def _named(settings: Sequence[Setting]) -> str:
    names = ", ".join(setting.label for setting in settings[:_MOST_NAMED])
    more = len(settings) - _MOST_NAMED
    return f"{names} and {more} more" if more > 0 else names


def _baseline(ranking: Ranking) -> list[str]:
    trivial, mean = ranking.baseline(ranking.metric), ranking.counted[0].score.mean
    if not math.isfinite(trivial) or ranking.is_better(mean, trivial):
        return []
    shown = format_metric(trivial, ranking)
    return [f"even the best is no better than the trivial baseline ({ranking.metric} {shown}): nothing was learned"]


def _edges(ranking: Ranking) -> list[str]:
    """Where the best lies at the end of what was tried, and there may be better beyond.

    Settings that failed count as tried. Of two values one is always at the end: that is not worth a word.
    """
    said = []
    for key in ranking.keys:
        tried = [v for v in sort_values(s.values[key] for s in ranking.settings) if is_number(v)]
        value = ranking.counted[0].values[key]
        if len(tried) < 3 or value not in (tried[0], tried[-1]) or not is_number(value):
            continue
        further = _beyond(tried, up=value == tried[-1])
        if further is not None:
            end = "largest" if value == tried[-1] else "smallest"
            said.append(f"the best is at the {end} {key} tried: try {key}={format_value(further)} too")
    return said


def _beyond(tried: Sequence[float], up: bool) -> float | None:
    """The next value of a grid; None where there is none of the kind: below 0, or 1 and more of a share."""
    end, before = (tried[-1], tried[-2]) if up else (tried[0], tried[1])
    whole = all(isinstance(value, int) for value in tried)
    if is_logarithmic(tried):
        further = end * end / before
    else:
        further = 2 * end - before
        if further <= 0 <= end:
            further = end / 2  # most settings of a net end at 0
        elif up and end < 1 <= further and before >= 0:
            return None  # a share
    further = round(further) if whole else float(f"{further:.3g}")
    return None if further in (0, end) else further


def _trouble(ranking: Ranking) -> list[str]:
    """How many runs did not count, and whether the best has lost some."""
    lost = [run for setting in ranking.settings for run in setting.lost]
    if not lost:
        return []
    reasons = [run.trouble.partition(":")[0] for run in lost]
    kinds = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    total = len(ranking.runs)
    said = [f"{len(lost)} of {total} runs do not count: " + ", ".join(f"{n} {why}" for why, n in kinds.items())]
    best = ranking.counted[0]
    if best.lost:
        said.append(f"the best is the mean of {_runs(best.score.n)}; {len(best.lost)} of its seeds did not count")
    return said


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
