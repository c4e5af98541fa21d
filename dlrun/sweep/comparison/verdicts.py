"""Verdicts on a ranking, and their limits, in sentences."""

import math
from collections.abc import Sequence

from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting
from dlrun.sweep.comparison.settings import format_value, is_finite_number, is_logarithmic, sort_values
from dlrun.sweep.comparison.statistics import FEWEST, estimate_difference
from dlrun.sweep.comparison.table import format_estimate, format_metric

_MOST_NAMED = 8


def list_verdicts(ranking: Ranking) -> list[str]:
    """Sentences on the best setting, then on how far it can be trusted."""
    if not ranking.usable_settings:
        return [f"no run has a finite {ranking.metric}: nothing can be compared"]
    return [
        *_name_best(ranking),
        *_judge_differences(ranking),
        *_judge_baseline(ranking),
        *_find_edges(ranking),
        *_count_unusable(ranking),
    ]


def summarize(comparison: Comparison) -> str:
    """The verdict on the largest ranking in one sentence."""
    return list_verdicts(comparison.rankings[0])[0]


def _name_best(ranking: Ranking) -> list[str]:
    best = ranking.usable_settings[0]
    metric = ranking.metric
    verdict = f"best: {best.label}, {metric} {format_estimate(best.score, ranking)} (n = {best.score.n})"

    # A mean squared error below a cross entropy means nothing.
    if metric.endswith("/loss") and {"task.loss", "task.reduction"} & set(ranking.keys):
        other = metric.replace("loss", "<a metric that all have>")
        return [verdict, f"the settings minimize different losses, which have no order: add checkpoint.monitor={other}"]
    # A training metric tells how well a setting fits, not how it generalizes: say why it was used.
    if not metric.startswith("train/"):
        return [verdict]

    names = set[str]()
    for run in ranking.runs:
        names.update(run.result["metrics"])
    if any(name.startswith("val/") for name in names):
        return [verdict, f"ranked by {metric}, which checkpoint.monitor names: it says nothing of new data"]
    name = "the training loss" if metric == "train/loss" else metric
    return [verdict, f"ranked by {name}: there is no validation part (data.val_fraction=0.1 makes one)"]


def _judge_differences(ranking: Ranking) -> list[str]:
    """Which settings are significantly worse than the best, by a paired t interval, and which are not."""
    best, *others = ranking.usable_settings
    if not others:
        return []

    differences = [(other, estimate_difference(other.by_seed, best.by_seed)) for other in others]
    # Over fewer than three pairs the interval is too wide to tell anything.
    few = [other for other, difference in differences if difference.n < FEWEST]
    enough = [(other, difference) for other, difference in differences if difference.n >= FEWEST]
    if not enough:
        seeds = max(len(setting.runs) for setting in ranking.usable_settings)
        common = max(difference.n for _, difference in differences)
        evidence = f"{common} common seeds"
        if common == seeds:
            evidence = f"{seeds} seed{'s' if seeds > 1 else ''} a setting"
        is_search = any((run.config.get("sweep") or {}).get("search") for run in best.runs)
        advice = "begin a search with sweep.seeds=5" if is_search else "add 'seed=range(5)'"
        return [f"with {evidence} nothing can be told apart: {advice}"]

    ties = [other for other, difference in enough if difference.contains_zero]
    seeds_text = _format_counts([difference.n for _, difference in enough])
    # Folds are repetitions as seeds are, by other names.
    repetitions = "folds" if any(isinstance(name, str) for name in best.by_seed) else "seeds"
    method = f"paired over {seeds_text} {repetitions}, 95 % t interval of the difference"
    if ties:
        verdicts = [f"cannot be told apart from the best ({method} contains 0): {_join_labels(ties)}"]
    else:
        verdicts = [f"better than {_format_others(len(enough))} ({method} without 0)"]
    if few:
        verdicts.append(f"fewer than {FEWEST} seeds in common with the best, so not judged: {_join_labels(few)}")
    return verdicts


def _format_others(count: int) -> str:
    return "the other setting" if count == 1 else f"each of the {count} other settings"


def _format_counts(counts: Sequence[int]) -> str:
    low = min(counts)
    high = max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _join_labels(settings: Sequence[Setting]) -> str:
    names = ", ".join(setting.label for setting in settings[:_MOST_NAMED])
    more = len(settings) - _MOST_NAMED
    return f"{names} and {more} more" if more > 0 else names


def _judge_baseline(ranking: Ranking) -> list[str]:
    trivial = ranking.get_baseline(ranking.metric)
    mean = ranking.usable_settings[0].score.mean
    if not math.isfinite(trivial) or ranking.is_better(mean, trivial):
        return []
    value = format_metric(trivial, ranking)
    return [f"even the best is no better than the trivial baseline ({ranking.metric} {value}): nothing was learned"]


def _find_edges(ranking: Ranking) -> list[str]:
    """A hint for each key of which the best value is the smallest or the largest tried.

    Settings that failed count as tried. Of two values one is always at the end, which is no news.
    """
    hints = []
    for key in ranking.keys:
        values = sort_values(setting.values[key] for setting in ranking.settings)
        numbers = [value for value in values if is_finite_number(value)]
        best = ranking.usable_settings[0].values[key]
        if len(numbers) < 3 or best not in (numbers[0], numbers[-1]) or not is_finite_number(best):
            continue

        further = _extrapolate(numbers, up=best == numbers[-1])
        if further is not None:
            end = "largest" if best == numbers[-1] else "smallest"
            hints.append(f"the best is at the {end} {key} tried: try {key}={format_value(further)} too")
    return hints


def _extrapolate(numbers: Sequence[float], up: bool) -> float | None:
    """The next value of a grid; None if there is no sensible one, as for a share that would reach 1."""
    end = numbers[-1] if up else numbers[0]
    before = numbers[-2] if up else numbers[1]

    # The next step of a geometric grid, else of an arithmetic one.
    if is_logarithmic(numbers):
        further = end * end / before
    else:
        further = 2 * end - before
        if further <= 0 <= end:
            # Most settings of a net are positive.
            further = end / 2
        elif up and end < 1 <= further and before >= 0:
            # Values below 1 are taken for shares.
            return None

    # Steps of ratios leave long decimals: three digits are enough to try.
    is_integer = all(isinstance(value, int) for value in numbers)
    further = round(further) if is_integer else float(f"{further:.3g}")
    return None if further in (0, end) else further


def _count_unusable(ranking: Ranking) -> list[str]:
    """How many runs do not count and why, and whether the best setting has any of them."""
    unusable = []
    for setting in ranking.settings:
        unusable += setting.unusable
    if not unusable:
        return []

    reasons = [run.reason_unusable.partition(":")[0] for run in unusable]
    counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
    sentences = [f"{len(unusable)} of {len(ranking.runs)} runs do not count: {counts}"]

    # A best setting that diverges on some seeds is not to be trusted blindly.
    best = ranking.usable_settings[0]
    if best.unusable:
        runs = "1 run" if best.score.n == 1 else f"{best.score.n} runs"
        sentences.append(f"the best is the mean of {runs}; {len(best.unusable)} of its seeds did not count")
    return sentences
