"""Runs side by side: settings, each repeated over seeds, ranked by the metric that they monitored."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dlrun.config.compose import PRESETS
from dlrun.core.errors import RequestError
from dlrun.engine.metric_names import find_task
from dlrun.runs.record import RESULT, RunRecord, to_number
from dlrun.sweep.comparison.settings import find_varying_keys, format_value, get_value, group_runs, shorten_keys
from dlrun.sweep.comparison.statistics import Estimate, estimate


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed, or their fold of the data, only."""

    # Values by varying key.
    values: dict[str, Any]
    # Runs that count, in the order of their seeds.
    runs: list[RunRecord]
    # Runs that failed, were interrupted, or have no finite value.
    unusable: list[RunRecord]

    @property
    def label(self) -> str:
        """The values with short names, "optimizer=sgd lr=0.1"."""
        names = shorten_keys(list(self.values))
        words = [f"{names[key]}={format_value(value)}" for key, value in self.values.items()]
        return " ".join(words) or "the only setting"

    @cached_property
    def by_seed(self) -> dict[int | str, float]:
        """The monitored metric at each run's best epoch, by seed; of folds by both."""
        return {_name_repetition(run): run.best_value for run in self.runs}

    @cached_property
    def score(self) -> Estimate:
        """Mean and spread over seeds of the monitored metric at the best epoch."""
        return estimate(list(self.by_seed.values()))

    @property
    def best_epochs(self) -> list[int]:
        """Best epoch of each run, by seed."""
        return [run.best_epoch for run in self.runs if run.best_epoch is not None]

    @property
    def seconds(self) -> float:
        """Mean training time of a run."""
        return _mean([to_number(run.result.get("train_seconds")) for run in self.runs])

    @property
    def all_runs(self) -> list[RunRecord]:
        """Usable and unusable runs, by seed."""
        return sorted([*self.runs, *self.unusable], key=_get_seed)

    def average_metric(self, name: str) -> float:
        """Mean over seeds of a metric of the last epoch, or of the test split (with the best epoch's weights)."""
        return _mean([run.get_metric(name) for run in self.runs])


@dataclass(frozen=True)
class Ranking:
    """Settings of the same data, task and monitored metric, best first."""

    metric: str
    # min | max.
    mode: str
    # The choices of data, as in "digits".
    data: str
    # Varying keys.
    keys: list[str]
    settings: list[Setting]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, by setting and seed."""
        runs = []
        for setting in self.settings:
            runs += setting.all_runs
        return runs

    @property
    def usable_settings(self) -> list[Setting]:
        """The settings with at least one usable run."""
        return [setting for setting in self.settings if setting.runs]

    def find_best_run(self) -> RunRecord | None:
        """Find the run with the best value among those of the best setting; None without a usable run."""
        if not self.settings or not self.settings[0].runs:
            return None
        runs = self.settings[0].runs
        return max(runs, key=_get_best_value) if self.mode == "max" else min(runs, key=_get_best_value)

    @cached_property
    def test_metrics(self) -> list[str]:
        """Test metrics to show, which never rank: the monitored one, accuracy and R², as far as runs have them.

        Of runs that choose their metrics by task.metrics, all of these.
        """
        test_metric = "test/" + self.metric.partition("/")[2]
        names = set[str]()
        columns = [test_metric, "test/accuracy", "test/r2"]
        for run in self.runs:
            metrics = run.result["metrics"]
            names.update(metrics)
            if (run.config.get("task") or {}).get("metrics") is not None:
                columns += [name for name in metrics if name.startswith("test/") and name != "test/loss"]

        return [name for name in dict.fromkeys(columns) if name in names]

    def get_baseline(self, name: str) -> float:
        """A metric of the trivial answer (majority class or mean), averaged over runs; NaN if no run has it."""
        values = [to_number(run.result["baseline"].get(name)) for run in self.runs]
        return _mean([value for value in values if math.isfinite(value)])

    def is_better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.mode == "max" else a < b


@dataclass(frozen=True)
class Comparison:
    """The result of a sweep, or of any runs put side by side."""

    # The largest first.
    rankings: list[Ranking]
    # Names and errors of runs without a usable result.
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs that are compared."""
        runs = []
        for ranking in self.rankings:
            runs += ranking.runs
        return runs


def compare(runs: Sequence[RunRecord], failures: Sequence[tuple[str, str]] = ()) -> Comparison:
    """Group runs over their seeds, and rank the settings by the monitored metric at the best epoch.

    failures: name and error of each run without a usable result. RequestError if a run monitors the test split: a
    model that is selected on it has no honest test result.
    """
    newest, notes = _select_newest(runs)
    for run in newest:
        if run.metric.startswith("test/"):
            raise RequestError(
                f"{run.folder} monitors {run.metric}, and the test split must not choose; "
                f"run it again with checkpoint.monitor=val/{run.metric.removeprefix('test/')}"
            )

    rankings = [_rank(group) for group in _group_comparable(newest)]
    # The headline is the verdict on the largest ranking.
    rankings.sort(key=lambda ranking: -len(ranking.runs))
    if len(rankings) > 1:
        names = ", ".join(f"{ranking.metric} on {ranking.data}" for ranking in rankings)
        notes.append(f"{len(rankings)} tables: what is not of the same data, task and metric has no order ({names})")

    notes += [*_list_stacked(newest), *_list_code_changes(newest), *_list_damage(newest)]
    return Comparison(rankings, list(failures), notes)


def _select_newest(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Select the newest usable run of each experiment, or its newest one if none is usable; and note repetitions."""
    repeats: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        presets = [f"{preset}={run.choices.get(preset)}" for preset in PRESETS]
        # config_hash leaves presets and the device out, though a sweep may vary them.
        devices = sorted(word for word in run.overrides if word.lstrip("+").startswith("device"))
        repeats.setdefault((run.result["config_hash"], *presets, *devices), []).append(run)

    newest = []
    for group in repeats.values():
        # A usable run counts before a newer one that failed: a repetition must not lose a result.
        newest.append(max(group, key=_rate_run) if len(group) > 1 else group[0])

    more = len(runs) - len(newest)
    if not more:
        return newest, []
    repeat = "runs repeat" if more > 1 else "run repeats"
    return newest, [f"{more} {repeat} another (same config_hash); the newest counts"]


def _rate_run(run: RunRecord) -> tuple[bool, int]:
    return not run.reason_unusable, (run.folder / RESULT).stat().st_mtime_ns


def _group_comparable(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Group runs by metric, direction, data and task.

    A run that failed before its task was known joins the first task of its metric and data.
    """
    groups: dict[tuple[str, ...], dict[str, list[RunRecord]]] = {}
    for run in runs:
        by_task = groups.setdefault((run.metric, run.get_mode(run.metric), run.get_target("data")), {})
        by_task.setdefault(find_task([*run.result["metrics"], *run.result["baseline"]]), []).append(run)

    comparable = list[list[RunRecord]]()
    for by_task in groups.values():
        # Its failure belongs to a setting of that table, where it counts as unusable.
        if "" in by_task and len(by_task) > 1:
            unknown = by_task.pop("")
            next(iter(by_task.values())).extend(unknown)
        comparable += by_task.values()

    return comparable


def _rank(runs: list[RunRecord]) -> Ranking:
    keys = find_varying_keys(runs)
    settings = [_make_setting(group, keys) for group in group_runs(runs, keys)]

    # The sort is stable: equal settings stay in the order of their runs.
    mode = runs[0].get_mode(runs[0].metric)
    sign = -1 if mode == "max" else 1
    settings.sort(key=lambda setting: sign * setting.score.mean if setting.runs else math.inf)

    data = dict.fromkeys(run.choices.get("data", run.get_target("data")) for run in runs)
    return Ranking(runs[0].metric, mode, "+".join(data), keys, settings)


def _make_setting(runs: Sequence[RunRecord], keys: Sequence[str]) -> Setting:
    by_seed = sorted(runs, key=_get_seed)
    return Setting(
        values={key: get_value(runs[0], key) for key in keys},
        runs=[run for run in by_seed if not run.reason_unusable],
        unusable=[run for run in by_seed if run.reason_unusable],
    )


def _get_best_value(run: RunRecord) -> float:
    return run.best_value


def _get_seed(run: RunRecord) -> tuple[int, int]:
    fold = _get_fold(run)
    return run.seed, -1 if fold is None else fold


def _get_fold(run: RunRecord) -> int | None:
    """The fold that the run leaves out of its training, where the data are split into folds."""
    data = run.config.get("data")
    fold = data.get("fold") if isinstance(data, dict) and data.get("folds") else None
    return fold if isinstance(fold, int) else None


def _name_repetition(run: RunRecord) -> int | str:
    """What tells a run from others of its setting: the seed, or the seed with the fold."""
    fold = _get_fold(run)
    return run.seed if fold is None else f"{run.seed}, fold {fold}"


def is_stacked(run: RunRecord) -> bool:
    """Whether a run trained as one net with others, so that it equals the run alone up to rounding only."""
    return bool(run.result.get("stacked"))


def _list_stacked(runs: Sequence[RunRecord]) -> list[str]:
    """Which runs were stacked, if any."""
    count = sum(map(is_stacked, runs))
    if not count:
        return []
    number_of_runs = f"all {count} runs" if count == len(runs) else f"{count} of {len(runs)} runs"
    return [
        f"{number_of_runs} trained stacked, as one net, and equal runs alone up to rounding "
        "(sweep.stack=off: to the bit)"
    ]


def _list_code_changes(runs: Sequence[RunRecord]) -> list[str]:
    """A warning for each model and data whose source differs between runs."""
    hashes: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        targets = (run.get_target("model"), run.get_target("data"))
        hashes.setdefault(targets, set()).add(str(run.result.get("code_hash")))

    return [
        f"the code of {model} or {data} was changed between the runs (their code_hash differs): "
        "what differs may come from that"
        for (model, data), code_hashes in hashes.items()
        if len(code_hashes) > 1
    ]


def _list_damage(runs: Sequence[RunRecord]) -> list[str]:
    """Damage of optional files, which does not keep a run from being compared."""
    damage = []
    for run in runs:
        run.read_files("environment", "rows")
        damage += run.damage
    return damage


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
