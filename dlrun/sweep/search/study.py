"""Optuna's study: which point to try next, and what the earlier ones gave.

The study is in memory. What it holds follows from the sweep's ledger and the folders of its runs: a search that is
resumed proposes and is told everything again, each trial with a sampler of its own whose seed is that of the search
and the trial's number, and so arrives in the same state. The file for other programs is written from that.
"""

import contextlib
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.schema import SweepConfig
from dlrun.config.search_space import Parameter, SearchSpace, Value
from dlrun.core.errors import RequestError
from dlrun.core.user_code import get_first_clause
from dlrun.experiment.callbacks.pruning import Pruner
from dlrun.experiment.stack.halving import read_value
from dlrun.sweep.search.objectives import Objective

if TYPE_CHECKING:
    import optuna

# The trials, for optuna-dashboard and for scripts.
JOURNAL = "optuna.journal"
# Of every study, as its name is part of hyperband's dealing.
_NAME = "dlrun"


@dataclass(frozen=True)
class Result:
    """What a trial gave: a value for each objective, or why there is none."""

    # COMPLETE | PRUNED | FAIL.
    state: str
    values: Sequence[float] = ()
    # Epochs of the first run with the objective's values, if a pruner looks at them.
    curve: Sequence[tuple[int, float]] = ()
    # For whoever looks at the study in another program.
    attributes: Mapping[str, Any] = field(default_factory=dict)
    # Why there is no value, if no run says it.
    reason: str = ""


def import_optuna(search: str) -> Any:
    """Optuna, silent; RequestError where it, or what one of its samplers needs, is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import optuna

            if search == "cmaes":
                import cmaes  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"sweep.search={search} cannot import Optuna ({get_first_clause(error)}); type pip install 'dlrun[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """A search in memory: proposes points, and learns their results."""

    def __init__(
        self, space: SearchSpace, settings: SweepConfig, objectives: Sequence[Objective], seed: int, epochs: int | None
    ) -> None:
        """epochs: length of a run, where all have the same. RequestError for settings that do not go together."""
        assert settings.search is not None
        self.optuna = import_optuna(settings.search)
        self.space = space
        self.search = settings.search
        self.pruner = settings.pruner
        self.objectives = objectives
        self.seed = seed
        self.epochs = epochs
        self._refuse()

        self.distributions = {parameter.name: self._make_distribution(parameter) for parameter in space.parameters}
        self.grid = self._list_grid() if self.search == "grid" else iter(())
        # Those that have been proposed, by number.
        self.trials: list[optuna.Trial] = []
        self.points: list[list[str]] = []
        # Those that have a result, as other processes and programs get them.
        self.results: list[optuna.trial.FrozenTrial] = []
        self._copy: optuna.Study | None = None
        with self._quiet():
            self.study = self._create()

    @property
    def grid_size(self) -> int | None:
        """Number of points of a grid; None for other searches."""
        return math.prod(len(parameter.words) for parameter in self.space.parameters) if self.search == "grid" else None

    @property
    def is_independent(self) -> bool:
        """Whether what the trials give has no influence on the points."""
        return self.search in ("random", "grid", "qmc")

    def name_monitor(self, name: str) -> None:
        """Call the monitored metric by its name, where that was left open."""
        self.objectives = [
            objective if objective.name else replace(objective, name=name) for objective in self.objectives
        ]
        with self._quiet():
            self.study.set_metric_names([objective.title for objective in self.objectives])

    def propose(self, fixed: Mapping[str, Any] | None = None) -> list[str]:
        """The words of the next point.

        fixed: parameters that are known from elsewhere; the sampler is not asked for them.
        """
        number = len(self.trials)
        if self.search == "grid":
            point = next(self.grid)
            fixed = fixed or point
        with self._quiet():
            self.study.sampler = self._make_sampler(number)
            if fixed is not None:
                self.study.enqueue_trial(dict(fixed))
            trial = self.study.ask(self.distributions)
        self.trials.append(trial)
        values = {parameter.name: self._read_value(parameter, trial) for parameter in self.space.parameters}
        self.points.append(self.space.make_point(values))
        return self.points[-1]

    def tell(self, result: Result) -> None:
        """What the earliest trial without a result gave."""
        trial = self.trials[len(self.results)]
        with self._quiet():
            for name, value in result.attributes.items():
                trial.set_user_attr(name, value)
            for epoch, value in result.curve:
                trial.report(value, epoch)
                if self.pruner != "none":
                    # Halving and hyperband note how far the trial came.
                    trial.should_prune()
            values = list(result.values) if result.state == "COMPLETE" else None
            self.results.append(self._strip(self.study.tell(trial, values, self.optuna.trial.TrialState[result.state])))

    def make_pruner(self, number: int) -> "StudyPruner | None":
        """What ends a run of a trial early, by the trials that have a result now; None without pruning."""
        if self.pruner == "none":
            return None
        objective = self.objectives[0]
        results = tuple(self.results)
        return StudyPruner(self.search, self.pruner, objective.mode, self.epochs, objective.name, results, number)

    def parse_point(self, point: Sequence[str]) -> dict[str, Any]:
        """The parameters that the words of a point stand for."""
        parameters: dict[str, Any] = {}
        for parameter, word in zip(self.space.parameters, point, strict=True):
            text = word.partition("=")[2]
            if parameter.is_choice:
                parameters[parameter.name] = text
            else:
                parameters[parameter.name] = int(text) if parameter.is_integer else float(text)
        return parameters

    def write_journal(self, folder: Path) -> None:
        """Bring the file for other programs up to date with the trials that have a result."""
        path = folder / JOURNAL
        try:
            self._append_to_journal(path)
        except Exception:
            # A killed process may have left half a line, or an older search another study: nothing depends on it.
            path.unlink(missing_ok=True)
            self._copy = None
            self._append_to_journal(path)

    def _append_to_journal(self, path: Path) -> None:
        with self._quiet():
            if self._copy is None or not path.exists():
                self._copy = self._open_journal(path)
            count = len(self._copy.get_trials(deepcopy=False))
            if count > len(self.results):
                raise ValueError("the file has more trials than the search")
            self._copy.add_trials(self.results[count:])

    def _open_journal(self, path: Path) -> "optuna.Study":
        """The copy of the study in a file, a new one if there is none."""
        # Left by a killed process; the sweep's own lock keeps others away.
        Path(f"{path}.lock").unlink(missing_ok=True)
        backend = self.optuna.storages.journal.JournalFileBackend(str(path))
        storage = self.optuna.storages.JournalStorage(backend)
        if self.optuna.get_all_study_names(storage):
            return self.optuna.load_study(study_name=_NAME, storage=storage)  # type: ignore[no-any-return]
        return self._create(storage)

    def _create(self, storage: Any = None) -> "optuna.Study":
        pruner = make_pruner(self.optuna, self.pruner, self.epochs)
        directions = ["maximize" if objective.mode == "max" else "minimize" for objective in self.objectives]
        study = self.optuna.create_study(storage=storage, study_name=_NAME, directions=directions, pruner=pruner)
        study.set_metric_names([objective.title for objective in self.objectives])
        return study  # type: ignore[no-any-return]

    def _strip(self, trial: "optuna.trial.FrozenTrial") -> "optuna.trial.FrozenTrial":
        """A copy without the state of CMA-ES, which is pickled and belongs to this process."""
        attributes = {key: value for key, value in trial.system_attrs.items() if not key.startswith("cma:")}
        return self.optuna.trial.create_trial(  # type: ignore[no-any-return]
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=attributes,
            intermediate_values=trial.intermediate_values,
        )

    def _refuse(self) -> None:
        """RequestError for a sampler or a pruner that cannot do what is asked of it."""
        numbers = [parameter for parameter in self.space.parameters if not parameter.is_choice]
        endless = [parameter for parameter in self.space.parameters if not parameter.words]
        if self.search == "grid" and endless:
            key = endless[0].key
            raise RequestError(
                f"sweep.search=grid takes no interval; type '{key}=range(<from>,<to>,<step>)' or {key}=a,b"
            )
        if self.search == "cmaes" and len(numbers) < 2:
            raise RequestError("sweep.search=cmaes moves through two numbers or more; type sweep.search=tpe")
        if self.search == "cmaes" and len(self.objectives) > 1:
            raise RequestError(
                "sweep.search=cmaes has one objective; type sweep.search=tpe, or one of sweep.objectives"
            )

        if self.pruner != "none" and len(self.objectives) > 1:
            raise RequestError(
                f"sweep.pruner={self.pruner} judges by one objective; type sweep.pruner=none, or one objective"
            )
        if self.pruner != "none" and not self.objectives[0].is_metric:
            name = self.objectives[0].name
            raise RequestError(f"sweep.pruner={self.pruner}: {name} is no metric of an epoch; type sweep.pruner=none")

    def _make_distribution(self, parameter: Parameter) -> Any:
        distributions = self.optuna.distributions
        if parameter.is_choice:
            return distributions.CategoricalDistribution([word.partition("=")[2] for word in parameter.words])
        if parameter.is_integer:
            step = int(parameter.step or 1)
            return distributions.IntDistribution(int(parameter.low), int(parameter.high), parameter.is_log, step)
        return distributions.FloatDistribution(parameter.low, parameter.high, parameter.is_log, parameter.step)

    def _read_value(self, parameter: Parameter, trial: "optuna.Trial") -> Value:
        value = trial.params[parameter.name]
        if parameter.is_choice:
            return [word.partition("=")[2] for word in parameter.words].index(value)
        return value  # type: ignore[no-any-return]

    def _list_grid(self) -> Iterator[dict[str, Any]]:
        """All points, the last word varies fastest."""
        for words in itertools.product(*(parameter.words for parameter in self.space.parameters)):
            yield self.parse_point(words)

    def _make_sampler(self, number: int) -> Any:
        """A new sampler for a trial: its state is a function of the seed and the number."""
        samplers = self.optuna.samplers
        seed = derive_seed(self.seed, number)
        if self.search == "tpe":
            return samplers.TPESampler(seed=seed)
        if self.search == "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if self.search == "qmc":
            # One sequence, which continues from trial to trial.
            return samplers.QMCSampler(
                scramble=True,
                seed=derive_seed(self.seed, 0),
                independent_sampler=samplers.RandomSampler(seed),
                warn_independent_sampling=False,
            )
        return samplers.RandomSampler(seed)

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without Optuna's warnings, which are on what is experimental or will be renamed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def derive_seed(seed: int, number: int) -> int:
    """A seed of 32 bits for one trial."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def make_pruner(optuna: Any, name: str, epochs: int | None) -> Any:
    """Optuna's pruner of this name; epochs: length of a run, where all have the same."""
    if name == "median":
        # The first epoch says little, and of a long run the first tenth.
        return optuna.pruners.MedianPruner(n_warmup_steps=1 + math.ceil((epochs or 1) / 10))
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs or "auto")
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1)
    return optuna.pruners.NopPruner()


class StudyPruner(Pruner):
    """Judges a run by the trials that had a result when it was proposed, in whatever process it trains.

    Runs beside it have no say, so that it does not matter which of them is faster.
    """

    def __init__(
        self,
        search: str,
        pruner: str,
        mode: str,
        epochs: int | None,
        metric: str,
        trials: "Sequence[optuna.trial.FrozenTrial]",
        number: int,
    ) -> None:
        """metric: "" for the monitored one; trials: those before, of which some have no result yet."""
        self.search = search
        self.pruner = pruner
        self.mode = mode
        self.epochs = epochs
        self.metric = metric
        self.trials = trials
        self.number = number
        self._trial: optuna.Trial | None = None

    def judge(self, row: Mapping[str, float]) -> bool:
        """Report the row, and ask."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._trial is None:
                self._trial = self._make_trial()
            value = read_value(self.metric, row)
            if math.isfinite(value):
                self._trial.report(value, int(row["epoch"]))
            return bool(self._trial.should_prune())

    def _make_trial(self) -> "optuna.Trial":
        """The trial of this run, in a copy of the study as it was."""
        optuna = import_optuna(self.search)
        study = optuna.create_study(
            study_name=_NAME,
            direction="maximize" if self.mode == "max" else "minimize",
            pruner=make_pruner(optuna, self.pruner, self.epochs),
        )
        study.add_trials(self.trials)
        # Hyperband deals by number.
        while len(study.get_trials(deepcopy=False)) < self.number:
            study.ask()
        return study.ask()  # type: ignore[no-any-return]
