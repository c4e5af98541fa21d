"""The trials of a search: each a point with a job for every seed, as the ledger names them and their folders show."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrun.config import explain
from dlrun.config.request import PointComposer
from dlrun.core.errors import RequestError
from dlrun.core.format import count_digits, format_folder_name
from dlrun.runs.record import RunRecord
from dlrun.sweep.jobs import Job, compute_identity
from dlrun.sweep.ledger import DONE, Ledger, Trial
from dlrun.sweep.search.objectives import Objective
from dlrun.sweep.search.study import Result, Study


class Trials:
    """Asks a study for points, makes jobs of them, and tells it what became of these."""

    def __init__(
        self, study: Study, composer: PointComposer, ledger: Ledger, seeds: Sequence[int], trials: int
    ) -> None:
        """seeds: of the runs of each trial; trials: how many there are to be."""
        self.study = study
        self.composer = composer
        self.ledger = ledger
        self.seeds = seeds
        self.count = trials
        # By number: the jobs of a trial that has been proposed in this process.
        self.jobs: dict[int, list[Job]] = {}

    @property
    def open(self) -> list[Trial]:
        """The trials of the ledger that the study has no result of."""
        return self.ledger.trials[len(self.study.results) :]

    def replay(self) -> bool:
        """Bring the study to where the ledger ends; returns whether it proposed the same points as then."""
        for trial in self.ledger.trials:
            while len(self.study.results) < trial.told:
                self.tell(self.ledger.trials[len(self.study.results)])
            if self.study.propose() != trial.point:
                return False
        self.tell_ended()
        return True

    def replay_recorded(self) -> None:
        """Bring the study to where the ledger ends by the points in the ledger, whatever it would have proposed."""
        for trial in self.ledger.trials:
            while len(self.study.results) < trial.told:
                self.tell(self.ledger.trials[len(self.study.results)])
            self.study.propose(self.study.parse_point(trial.point))
        self.tell_ended()

    def tell_ended(self) -> None:
        """Tell the study of the newest round, if all of its trials have ended."""
        if all(map(self.has_ended, self.open)):
            for trial in self.open:
                self.tell(trial)

    def has_ended(self, trial: Trial) -> bool:
        """Whether no job of a trial is left to be run."""
        jobs = self.find_jobs(trial)
        if self.study.pruner != "none" and jobs and not self.is_complete(jobs[0]):
            # The others are begun only if they train as one stack with the first.
            jobs = jobs[:1] + [job for job in jobs[1:] if job.key in self.ledger.entries]
        return not self.select_unfinished(jobs)

    def propose(self, count: int) -> list[Trial]:
        """Up to `count` new trials, with their jobs; they are not in the ledger yet."""
        begin = len(self.ledger.trials)
        told = len(self.study.results)
        trials = []
        for number in range(begin, min(begin + count, self.count)):
            point = self.study.propose()
            try:
                keys = [job.key for job in self.make_jobs(number, point)]
                trials.append(Trial(number, told, point, keys))
            except explain.COMPOSITION_ERRORS as error:
                trials.append(Trial(number, told, point, [], str(explain.explain_error(error, point))))
            except RequestError as error:
                trials.append(Trial(number, told, point, [], str(error)))
        return trials

    def make_jobs(self, number: int, point: Sequence[str]) -> list[Job]:
        """A job for each seed of a trial. Hydra's exceptions pass through, and RequestError."""
        jobs = []
        for i, seed in enumerate(self.seeds):
            words = [*point, f"seed={seed}"] if len(self.seeds) > 1 else list(point)
            request = self.composer.compose(point, seed)
            job = Job(number * len(self.seeds) + i, request, " ".join(words), "")
            job.key = compute_identity(job, set(point))

            entry = self.ledger.entries.get(job.key)
            if entry is not None:
                # Perhaps that of an earlier trial at the same point.
                job.number = entry.number
                name = entry.folder
            else:
                digits = count_digits(self.count * len(self.seeds))
                name = f"{job.number:0{digits}}_{format_folder_name(','.join(words))}"
            varied = sorted({re.sub("=.*", "", word).lstrip("+~") for word in words})
            folder = self.ledger.folder
            job.request = replace(request, folder=folder / name, sweep=folder, varied=varied)
            jobs.append(job)
        self.jobs[number] = jobs
        return jobs

    def find_jobs(self, trial: Trial) -> list[Job]:
        """The jobs of a trial, none of one that cannot be composed."""
        if trial.error is not None:
            return []
        return self.jobs.get(trial.number) or self.make_jobs(trial.number, trial.point)

    def select_unfinished(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that have not ended. What has failed stays failed, so that a resumed search goes the same way."""
        unfinished: dict[str, Job] = {}
        for job in jobs:
            entry = self.ledger.entries.get(job.key)
            if entry is None or self.ledger.read_status(entry) not in (*DONE, "failed"):
                unfinished.setdefault(job.key, job)
        return list(unfinished.values())

    def is_complete(self, job: Job) -> bool:
        """Whether a job has finished, neither pruned nor failed."""
        entry = self.ledger.entries.get(job.key)
        return entry is not None and self.ledger.read_status(entry) in ("completed", "early_stopped")

    def count_runs_left(self) -> int:
        """Runs of the trials that have no result yet."""
        return (self.count - len(self.study.results)) * len(self.seeds)

    def tell(self, trial: Trial) -> Result:
        """Tell the study what became of its next trial."""
        result = self.read_result(trial)
        self.study.tell(result)
        return result

    def read_result(self, trial: Trial) -> Result:
        """What a trial gave, by its runs' folders."""
        runs = []
        statuses = []
        for key in trial.keys:
            entry = self.ledger.entries.get(key)
            # Runs of further seeds are not begun where the first is pruned or has failed.
            if entry is not None:
                runs.append(RunRecord(self.ledger.folder / entry.folder))
                statuses.append(self.ledger.read_status(entry))
        attributes = {"runs": [run.folder.name for run in runs]}
        curve = [] if self.study.pruner == "none" or not runs else self.study.objectives[0].get_curve(runs[0])

        if "pruned" in statuses:
            # Runs that left a stack together: what they were judged by.
            return Result("PRUNED", (), _average_curves(self.study.objectives[0], runs), attributes)
        if len(runs) < len(trial.keys) or not runs or not all(status in DONE for status in statuses):
            return Result("FAIL", (), curve, attributes)
        values = [_average(objective, runs) for objective in self.study.objectives]
        for objective, value in zip(self.study.objectives, values, strict=True):
            if not math.isfinite(value):
                return Result("FAIL", (), curve, attributes, f"its {objective.title} is {value}")
        return Result("COMPLETE", values, curve, attributes)

    def list_all_jobs(self) -> list[Job]:
        """The jobs that the ledger has, in their order."""
        jobs: dict[str, Job] = {}
        for trial in self.ledger.trials:
            for job in self.find_jobs(trial):
                if job.key in self.ledger.entries:
                    jobs.setdefault(job.key, job)
        return list(jobs.values())

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.ledger.folder


def _average_curves(objective: Objective, runs: Sequence[RunRecord]) -> list[tuple[int, float]]:
    """The mean of the runs at each epoch that all of them have."""
    curves = [dict(objective.get_curve(run)) for run in runs]
    means = []
    for epoch in curves[0]:
        values = [curve[epoch] for curve in curves if epoch in curve]
        if len(values) == len(curves):
            means.append((epoch, sum(values) / len(values)))
    return means


def _average(objective: Objective, runs: Sequence[RunRecord]) -> float:
    values = [objective.read(run) for run in runs]
    return sum(values) / len(values)
