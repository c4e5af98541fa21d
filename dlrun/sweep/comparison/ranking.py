"""RunRecord runs side by side: settings, each repeated over seeds, ranked by what they monitored."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dlrun.core.errors import RequestError
from dlrun.runs.record import RESULT, RunRecord, to_number
from dlrun.sweep.comparison.settings import group_runs, shorten_keys, format_value, get_value, find_varying_keys
from dlrun.sweep.comparison.statistics import Estimate, estimate

_UP = ("accuracy", "f1", "auroc", "r2", "precision", "recall", "exact_match")  # metrics that grow; the others fall
_PRESETS = ("lesson", "experiment", "debug")
_MARKS = {"r2": "regression", "auroc": "binary", "macro_f1": "multiclass", "exact_match": "tagging"}


@dataclass(frozen=True)
class Setting:
    """The runs that differ in nothing but their seed."""

    values: dict[str, Any]  # by key, of the keys that vary
    runs: list[RunRecord]  # those that count, by seed
    lost: list[RunRecord]  # failed, interrupted, or not finite

    @property
    def label(self) -> str:
        """The values with short names, "optimizer=sgd lr=0.1"."""
        names = shorten_keys(list(self.values))
        return (
            " ".join(f"{names[key]}={format_value(value)}" for key, value in self.values.items()) or "the only setting"
        )

    @cached_property
    def by_seed(self) -> dict[int, float]:
        """The monitored metric at each run's best epoch."""
        return {run.seed: run.value for run in self.runs}

    @cached_property
    def score(self) -> Estimate:
        """The same over the seeds."""
        return estimate(list(self.by_seed.values()))

    @property
    def best_epochs(self) -> list[int]:
        """Of each run, in the order of the seeds."""
        return [run.best_epoch for run in self.runs if run.best_epoch is not None]

    @property
    def seconds(self) -> float:
        """Of training, a run on average."""
        return _mean([to_number(run.result.get("train_seconds")) for run in self.runs])

    def average_metric(self, name: str) -> float:
        """A metric of the last epoch, or of the test split (by the weights of the best epoch), over the seeds."""
        return _mean([run.metric_value(name) for run in self.runs])


@dataclass(frozen=True)
class Ranking:
    """Settings that can be ranked together: of the same data, task, and monitored metric; best first."""

    metric: str
    mode: str  # min | max
    data: str  # the choices of data, "digits"
    keys: list[str]  # those that vary
    settings: list[Setting]

    @property
    def runs(self) -> list[RunRecord]:
        """All of them, by setting and seed."""
        return [run for setting in self.settings for run in sorted([*setting.runs, *setting.lost], key=_by_seed)]

    @property
    def counted(self) -> list[Setting]:
        """The settings with at least one run that counts."""
        return [setting for setting in self.settings if setting.runs]

    @cached_property
    def tests(self) -> list[str]:
        """What is shown of the test split, and never ranks: the monitored metric, and accuracy or R² besides."""
        same = "test/" + self.metric.partition("/")[2]
        there = {name for run in self.runs for name in run.result["metrics"]}
        return [name for name in dict.fromkeys((same, "test/accuracy", "test/r2")) if name in there]

    def baseline(self, name: str) -> float:
        """The trivial answer's metric (majority class or mean), over the runs; NaN where there is none."""
        found = (to_number(run.result["baseline"].get(name)) for run in self.runs)
        return _mean([value for value in found if math.isfinite(value)])

    def is_better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.mode == "max" else a < b


@dataclass(frozen=True)
class Comparison:
    """The answer of a sweep, or of any runs put side by side."""

    rankings: list[Ranking]  # the largest first
    failures: list[tuple[str, str]] = field(default_factory=list)  # what left no usable result: a name, and why
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[RunRecord]:
        """All that were compared."""
        return [run for ranking in self.rankings for run in ranking.runs]


def compare(runs: Sequence[RunRecord], failures: Sequence[tuple[str, str]] = ()) -> Comparison:
    """Group the runs over their seeds, and rank the settings by the monitored metric at the best epoch.

    failures: the name and the error of what left no usable result. RequestError where a run monitors the test
    split: what is chosen by it has no honest test result.
    """
    kept, notes = _newest(runs)
    for run in kept:
        if run.metric.startswith("test/"):
            raise RequestError(
                f"{run.folder} monitors {run.metric}, and the test split must not choose; "
                f"run it again with checkpoint.monitor=val/{run.metric.removeprefix('test/')}"
            )
    rankings = [_ranking(group) for group in _alike(kept)]
    rankings.sort(key=lambda r: -len(r.runs))
    if len(rankings) > 1:
        named = ", ".join(f"{r.metric} on {r.data}" for r in rankings)
        notes.append(f"{len(rankings)} tables: what is not of the same data, task and metric has no order ({named})")
    return Comparison(rankings, list(failures), notes + _changed_code(kept) + _damage(kept))


def _newest(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Of runs of the same experiment the newest that counts, else the newest; and a note where there were several."""
    same_as: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in runs:
        presets = [f"{preset}={run.choices.get(preset)}" for preset in _PRESETS]
        devices = sorted(word for word in run.overrides if word.lstrip("+").startswith("device"))
        same_as.setdefault((run.result["config_hash"], *presets, *devices), []).append(run)
    kept = [max(same, key=_by_worth) if len(same) > 1 else same[0] for same in same_as.values()]
    more = len(runs) - len(kept)
    said = f"{more} {'runs repeat' if more > 1 else 'run repeats'} another (same config_hash); the newest counts"
    return kept, [said] if more else []


def _by_worth(run: RunRecord) -> tuple[bool, int]:
    return not run.trouble, (run.folder / RESULT).stat().st_mtime_ns


def _alike(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """The runs of the same data, task, metric and direction.

    A run that failed before it knew its task goes with the first of its metric and data.
    """
    places: dict[tuple[str, ...], dict[str, list[RunRecord]]] = {}
    for run in runs:
        kinds = places.setdefault((run.metric, _mode(run), run.target("data")), {})
        kinds.setdefault(_task(run), []).append(run)
    for kinds in places.values():
        if "" in kinds and len(kinds) > 1:
            unknown = kinds.pop("")
            next(iter(kinds.values())).extend(unknown)
    return [group for kinds in places.values() for group in kinds.values()]


def _mode(run: RunRecord) -> str:
    asked = (run.config.get("checkpoint") or {}).get("mode")
    return str(asked) if asked else "max" if run.metric.endswith(_UP) else "min"


def _task(run: RunRecord) -> str:
    """The task that a run's metrics tell of; "" where it has none."""
    names = {key.partition("/")[2] for key in (*run.result["metrics"], *run.result["baseline"])}
    return next((task for name, task in _MARKS.items() if name in names), "")


def _ranking(runs: list[RunRecord]) -> Ranking:
    keys = find_varying_keys(runs)
    settings = [_setting(group, keys) for group in group_runs(runs, keys)]
    mode = _mode(runs[0])
    sign = -1 if mode == "max" else 1
    settings.sort(key=lambda s: sign * s.score.mean if s.runs else math.inf)  # stable: ties stay as they came
    data = dict.fromkeys(run.choices.get("data", run.target("data")) for run in runs)
    return Ranking(runs[0].metric, mode, "+".join(data), keys, settings)


def _setting(runs: Sequence[RunRecord], keys: Sequence[str]) -> Setting:
    inside = sorted(runs, key=_by_seed)
    values = {key: get_value(runs[0], key) for key in keys}
    return Setting(values, [run for run in inside if not run.trouble], [run for run in inside if run.trouble])


def _by_seed(run: RunRecord) -> int:
    return run.seed


def _changed_code(runs: Sequence[RunRecord]) -> list[str]:
    """A warning for each model and data whose source was not the same in all runs."""
    hashes: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        place = (run.target("model"), run.target("data"))
        hashes.setdefault(place, set()).add(str(run.result.get("code_hash")))
    return [
        f"the code of {model} or {data} was changed between the runs (their code_hash differs): "
        "what differs may come from that"
        for (model, data), found in hashes.items()
        if len(found) > 1
    ]


def _damage(runs: Sequence[RunRecord]) -> list[str]:
    """What is damaged of runs that are compared all the same: their curves, or what they were made on."""
    for run in runs:
        for name in ("environment", "rows"):
            getattr(run, name)
    return [damage for run in runs for damage in run.damage]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan
