"""What a search says at its end, besides the comparison of its runs: the front, what pruning saved, Optuna's plots."""

import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.config.settings import Settings
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import format_number
from dlrun.runs.reports.plots import canvas
from dlrun.sweep.comparison import plots
from dlrun.sweep.comparison.ranking import Comparison
from dlrun.sweep.search.study import JOURNAL
from dlrun.sweep.search.trials import Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Optuna draws into axes of its own making, at this size in inches.
_SIZE = (9.0, 5.5)
# Fewer trials show nothing about which key matters.
_FEWEST = 4


class Answer:
    """Adds to the comparison of a search what only a search has."""

    def __init__(self, trials: Trials, settings: Settings) -> None:
        self.trials = trials
        self.settings = settings

    def list_notes(self, comparison: Comparison) -> list[str]:
        """Sentences on the front of several objectives, on pruning, and on how to be sure of the best."""
        notes = [*self._describe_front(), *self._describe_pruning()]
        best = comparison.rankings[0].find_best_run() if comparison.rankings else None
        if best is not None and len(self.trials.study.objectives) == 1:
            seeds = self.trials.seeds
            words = [word for word in best.overrides if not word.startswith(("seed=", "sweep."))]
            first = seeds[-1] + 1
            command = shlex.join(["dlrun", "-m", *words, f"seed=range({first},{first + 5})"])
            count = len(self.trials.study.results)
            notes.append(f"the best of {count} looks better than it is; with seeds that did not choose it: {command}")
        notes.append(f"optuna-dashboard {shlex.quote(str(self.trials.folder / JOURNAL))} shows the trials too")
        return notes

    def draw(self, comparison: Comparison, folder: Path) -> list[Path]:
        """Save dlrun's curves and Optuna's plots in `folder`; returns the paths."""
        paths = plots.draw_all(comparison, folder, curves_only=True)
        for name, figure in self._make_figures():
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"search_{name}.png")
            canvas.save_png(canvas.render_pixels(figure), paths[-1])
        return paths

    def _describe_front(self) -> list[str]:
        study = self.trials.study
        if len(study.objectives) == 1:
            return []
        points = []
        for trial in study.study.best_trials:
            numbers = ", ".join(
                f"{objective.name} {format_number(value)}"
                for objective, value in zip(study.objectives, trial.values, strict=True)
            )
            points.append(f"{' '.join(study.points[trial.number])} ({numbers})")
        return [f"none is better in every objective than {'; '.join(points)}"] if points else []

    def _describe_pruning(self) -> list[str]:
        """How many epochs were not trained."""
        if self.trials.study.pruner == "none":
            return []
        trained = 0
        planned = 0
        pruned = 0
        counted = set[str]()
        for trial in self.trials.ledger.trials:
            # A point that was proposed twice was trained once.
            jobs = [job for job in self.trials.find_jobs(trial) if job.key not in counted]
            counted.update(job.key for job in jobs)
            runs = [RunRecord(job.folder) for job in jobs]
            trained += sum(run.epochs for run in runs)
            is_pruned = any(run.result.get("status") == "pruned" for run in runs)
            pruned += is_pruned
            for job, run in zip(jobs, runs, strict=True):
                # Of a pruned trial all seeds were planned, whether they were begun or not.
                epochs = job.request.config["trainer"]["epochs"] if is_pruned else None
                planned += epochs or run.epochs
        if not pruned:
            return ["no trial was pruned"]
        share = 100 * (1 - trained / planned)
        return [
            f"{pruned} of {len(self.trials.study.results)} trials were pruned, which saved {share:.0f} % of the "
            f"epochs ({trained:,} of {planned:,} trained); dlrun resume <run> trains one to its end"
        ]

    def _make_figures(self) -> "Iterator[tuple[str, Figure]]":
        """Optuna's plots, as far as it can draw them from these trials."""
        import optuna.visualization.matplotlib as pictures

        study = self.trials.study
        complete = [result for result in study.results if result.state.name == "COMPLETE"]
        if len(complete) < _FEWEST:
            return
        if len(study.objectives) == 1:
            yield from self._draw("history", pictures.plot_optimization_history)
        elif len(study.objectives) < _FEWEST:
            yield from self._draw("front", pictures.plot_pareto_front)

        for number, objective in enumerate(study.objectives):
            name = f"_{number}" if len(study.objectives) > 1 else ""

            def target(trial: Any, number: int = number) -> float:
                return float(trial.values[number])

            choice = {"target": target, "target_name": objective.title}
            yield from self._draw(f"parallel{name}", pictures.plot_parallel_coordinate, **choice)
            yield from self._draw(f"slice{name}", pictures.plot_slice, **choice)
            if len(study.space.parameters) > 1:
                yield from self._draw(f"importances{name}", pictures.plot_param_importances, **choice)

    def _draw(self, name: str, plot: Any, **choice: Any) -> "Iterator[tuple[str, Figure]]":
        import matplotlib
        from matplotlib import pyplot

        # Optuna draws with pyplot, which would look for a screen, and changes the style of all pictures.
        pyplot.switch_backend("agg")
        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.simplefilter("ignore")
            try:
                axes = plot(self.trials.study.study, **choice)
            except Exception:
                # Optuna's, such as one on values that are all equal: a page without that picture.
                pyplot.close("all")
                return
        figure = _get_figure(axes)
        figure.set_size_inches(*_SIZE)
        yield name, figure
        pyplot.close(figure)


def _get_figure(axes: "Any | Sequence[Any]") -> "Figure":
    """The figure of one pair of axes, or of an array of them."""
    first: Any = axes
    while not hasattr(first, "figure"):
        first = first[0]
    figure: Figure = first.figure
    return figure
