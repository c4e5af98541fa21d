"""A search from start to end: check what it may propose, run the trials round by round, compare all runs."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dlrun.config.request import Request
from dlrun.config.schema import SweepConfig
from dlrun.config.settings import Settings, read_settings
from dlrun.core.errors import RequestError, UnreadableError
from dlrun.core.lock import Lock
from dlrun.engine.device import count_cores
from dlrun.experiment.builder import data_cache
from dlrun.experiment.callbacks.pruning import PrunedBefore
from dlrun.experiment.context import RunContext
from dlrun.experiment.preflight import checks
from dlrun.experiment.setup import may_log
from dlrun.experiment.stack.halving import Halving
from dlrun.runs.reports.console import Console, format_facts
from dlrun.sweep import clusters, runner
from dlrun.sweep.continuation import choose_folder, has_chosen_folder, prepare_job, refuse_other_search
from dlrun.sweep.engines import Engine, Outcome, Serial
from dlrun.sweep.jobs import Job, has_own_code
from dlrun.sweep.ledger import Trial
from dlrun.sweep.plan import check_in_process, check_jobs
from dlrun.sweep.process_engine import Adaptive, Parallel
from dlrun.sweep.search import answer
from dlrun.sweep.search.objectives import Objective, read_objectives
from dlrun.sweep.search.study import Study
from dlrun.sweep.search.trials import Trials
from dlrun.sweep.stacks import PreparedJobs, Unit, find_begun_stacks

_DEFAULT_TRIALS = 20
# Of a search on a cluster, whose trials are to learn from earlier ones.
_FEWEST_ROUNDS = 4


@dataclass
class Search:
    """What the rounds of a search share."""

    console: Console
    settings: SweepConfig
    trials: Trials
    engine: Engine
    watcher: runner.LedgerWatcher
    # Trials that are proposed at once.
    round_size: int
    # Whether a cluster runs the trials: its machines prepare the jobs, each time anew.
    is_remote: bool = False
    # Lines on stacks, which are shown once.
    notes: set[str] = field(default_factory=set)

    def run(self, words: Sequence[str]) -> int:
        """Run all trials; returns 0, or the exit code of an interruption. words: the command."""
        trials = self.trials
        while not self.watcher.is_stopping:
            if not trials.open:
                new = trials.propose(self.round_size)
                if not new:
                    break
                trials.ledger.add(self.list_first_jobs(new), words, new)
                # Later lines belong to the same command.
                words = trials.ledger.words

            round_ = list(trials.open)
            code = self.run_first_jobs(round_)
            if code or self.watcher.is_stopping:
                return code
            if self.settings.pruner != "none":
                more = self.list_further_jobs(round_)
                trials.ledger.add(more, None)
                code = self.run_jobs(more, [])
                if code or self.watcher.is_stopping:
                    return code

            for trial in round_:
                self.tell(trial)
            # Further seeds of a pruned trial are not begun, and points that were proposed before are not run again.
            self.watcher.display.total = len(self.watcher.display.results) + trials.count_runs_left()
            trials.study.write_journal(trials.folder)
        return 0

    def tell(self, trial: Trial) -> None:
        """Tell the study of a trial whose jobs have ended."""
        result = self.trials.tell(trial)
        if trial.error is not None or result.reason:
            self.console.say(f"trial {trial.number}, {' '.join(trial.point)}: FAILED: {trial.error or result.reason}")

    def list_first_jobs(self, trials: Sequence[Trial]) -> list[Job]:
        """The jobs that trials begin with: all, or with a pruner the first of each, which it judges."""
        jobs = []
        for trial in trials:
            of_trial = self.trials.find_jobs(trial)
            if self.settings.pruner == "none":
                jobs += of_trial
            elif of_trial:
                jobs.append(replace(of_trial[0], pruner=self.trials.study.make_pruner(trial.number)))
        return jobs

    def list_further_jobs(self, trials: Sequence[Trial]) -> list[Job]:
        """The jobs of the further seeds, of trials whose first run has finished."""
        jobs = []
        for trial in trials:
            of_trial = self.trials.find_jobs(trial)
            if of_trial and self.trials.is_complete(of_trial[0]):
                jobs += of_trial[1:]
        return jobs

    def run_first_jobs(self, trials: Sequence[Trial]) -> int:
        """Run the jobs that trials begin with; returns 0, or the exit code of an interruption."""
        jobs = self.list_first_jobs(trials)
        if self.settings.pruner == "none":
            return self.run_jobs(jobs, self.find_stacks(jobs))
        if self.settings.pruner != "halving":
            return self.run_jobs(jobs, [])

        # In a stack all seeds of a trial train at the same time, so that their mean is judged.
        first_jobs = {job.key: job for job in jobs}
        trial_by_key: dict[str, int] = {}
        of_all_seeds: list[Job] = []
        for trial in trials:
            for job in self.trials.find_jobs(trial):
                trial_by_key.setdefault(job.key, trial.number)
                of_all_seeds.append(first_jobs.get(job.key, job))

        # The stack trains on only once they are whole: until then its file has them.
        unfinished = {job.key for job in self.trials.select_unfinished(of_all_seeds)}
        begun, _ = find_begun_stacks(self.trials.folder, self.trials.list_all_jobs(), unfinished)
        left = list_half_written(begun)
        code = self.run_jobs(left, [])
        if code or self.watcher.is_stopping:
            return code

        objective = self.trials.study.objectives[0]
        halving = Halving(objective.name, objective.mode, trial_by_key)
        stacks = [replace(unit, halving=halving) for unit in self.find_stacks(of_all_seeds)]
        stacked_keys = {job.key for unit in stacks for job in unit.jobs}
        # Those in the ledger were in a stack that has failed since.
        to_run = stacked_keys | first_jobs.keys() | self.trials.ledger.entries.keys()
        jobs = [job for job in of_all_seeds if job.key in to_run]
        alone_count = len(first_jobs.keys() - stacked_keys)
        if alone_count > 1 and self.settings.stack == "on" and not self.settings.round:
            self.watcher.note(
                f"{alone_count} runs are in no stack, and none of them is pruned: they began at the same time; "
                "sweep.round=1 judges each by those before it"
            )
        self.trials.ledger.add(jobs, None)
        return self.run_jobs(jobs, stacks)

    def find_stacks(self, jobs: Sequence[Job]) -> list[Unit]:
        """Those of the jobs that train together, and the stacks that an earlier process has begun."""
        notes: list[str] = []
        unfinished = self.trials.select_unfinished(jobs)
        stacks = runner.find_stacks(
            self.trials.folder,
            self.trials.list_all_jobs(),
            unfinished,
            (),
            self.settings.stack,
            PreparedJobs(),
            notes,
        )
        for note in notes:
            if note not in self.notes:
                self.watcher.note(note)
            self.notes.add(note)
        return stacks

    def run_jobs(self, jobs: Sequence[Job], stacks: Sequence[Unit]) -> int:
        """Run those jobs that have not ended, each alone or in its stack; returns 0, or an interruption's exit code."""
        queue = []
        for job in self.trials.select_unfinished(jobs):
            try:
                queue.append(job if self.is_remote else prepare_job(job))
            except (UnreadableError, OSError) as error:
                # A damaged run folder costs its own job only.
                self.watcher.on_job_start(job)
                self.watcher.on_job_end(job, Outcome(1, str(error)))
        return self.engine.run(runner.form_units(queue, stacks), self.watcher)


def run(requests: Sequence[Request]) -> int:
    """Check, run and compare the trials of a search; returns the exit code.

    RequestError for anything that is wrong with the requests, before a file is written.
    """
    console = Console()
    first = requests[0]
    composer = first.search
    assert composer is not None
    settings = read_settings(first.config, first.choices)
    sweep = settings.sweep
    at_once = runner.read_job_count(first.config["sweep"]["jobs"])
    is_remote = clusters.is_remote(first.config["sweep"])
    if is_remote:
        # What a stack gains is measured on this machine, and says nothing of the cluster's.
        at_once, sweep = 1, replace(sweep, stack="off")
    folder, ledger = choose_folder(requests)
    refuse_other_search(ledger, first.words)

    # Optuna's part, which refuses what does not go together.
    study = make_study(first, settings)
    count = count_trials(sweep, study)
    seeds = range(settings.seed, settings.seed + sweep.seeds)
    if count * sweep.seeds > sweep.max_jobs:
        raise RequestError(
            f"the search has {count * sweep.seeds:,} runs and sweep.max_jobs={sweep.max_jobs}; type "
            f"sweep.max_jobs={count * sweep.seeds}"
        )
    trials = Trials(study, composer, ledger, seeds, count)
    notes = [note for note in first.notes if all(note in request.notes for request in requests)]
    notes += [trap for parameter in composer.space.parameters if (trap := parameter.describe_trap()) is not None]
    if not trials.replay():
        notes.append(
            "the points in the ledger are not those that this Optuna proposes from the same results, so those that "
            "follow may differ from those of an unbroken search"
        )
        study = make_study(first, settings)
        trials = Trials(study, composer, ledger, seeds, count)
        trials.replay_recorded()

    is_done = len(study.results) >= count
    with data_cache.share_data(), contextlib.ExitStack() as resources:
        engine: Engine = Serial()
        if not is_done:
            engine = check_corners(requests, at_once, trials, notes, is_remote)
        if not has_chosen_folder(first) and folder.exists():
            # Another sweep that started in the same second has taken the folder since.
            folder, ledger = choose_folder(requests)
            trials.ledger = ledger

        place = f"on {first.config['sweep']['engine'].capitalize()}" if is_remote else ""
        if is_remote and not is_done and not sweep.dry_run:
            cluster = clusters.open_cluster(first.config["sweep"], folder)
            engine = resources.enter_context(contextlib.closing(cluster))
            at_once, place = cluster.count_at_once(trials.count_runs_left()), cluster.describe()

        if not sweep.dry_run:
            runner.claim_folder(resources.enter_context(Lock()), ledger, [], first.words)
        print_plan(console, sweep, trials, folder, place or describe_pace(at_once), notes)
        if sweep.dry_run:
            return 0

        if sweep.jobs == "auto" and isinstance(engine, Serial) and count_cores() > 1:
            engine = Adaptive(engine, count_cores())
        watcher = runner.LedgerWatcher(console, ledger, (), at_once, sweep.fail_fast)
        watcher.display.total = trials.count_runs_left()
        with watcher.display.show_live():
            round_size = choose_round_size(sweep, study, count, at_once, is_remote)
            code = Search(console, sweep, trials, engine, watcher, round_size, is_remote).run(first.words)
        watcher.print_summary()

        is_as_expected = False
        jobs = trials.list_all_jobs()
        with watcher.disk_problems.tolerate("the comparison", again=False):
            runs_here = isinstance(engine, Serial | Adaptive)
            extras = answer.Answer(trials, settings)
            is_as_expected = bool(code) or runner.conclude(console, ledger, jobs, watcher, runs_here, extras)

    if code:
        console.say(f"resume it: {runner.format_resume_command(folder, jobs)}")
        return code
    has_failed = watcher.display.failure_count > 0 or bool(watcher.disk_problems.summary())
    return int(has_failed or (settings.strict and not is_as_expected))


def make_study(request: Request, settings: Settings) -> Study:
    """An empty study of the search that a request describes; RequestError for what does not go together."""
    assert request.search is not None
    objectives = read_objectives(settings.sweep.objectives, request.config["checkpoint"])
    space = request.search.space
    is_swept = any(parameter.name.startswith("trainer.") for parameter in space.parameters)
    return Study(space, settings.sweep, objectives, settings.seed, None if is_swept else settings.trainer.epochs)


def count_trials(sweep: SweepConfig, study: Study) -> int:
    """How many trials there are to be."""
    if study.grid_size is not None:
        return min(sweep.trials or study.grid_size, study.grid_size)
    return sweep.trials or _DEFAULT_TRIALS


def choose_round_size(sweep: SweepConfig, study: Study, trials: int, at_once: int, is_remote: bool) -> int:
    """How many trials are proposed at once.

    trials: how many there are to be; at_once: runs at a time; is_remote: whether a cluster runs them.
    """
    if sweep.round:
        return sweep.round
    # Halving compares the trials of a stack, other pruners those that have ended.
    is_joint = sweep.pruner == "none" or (sweep.pruner == "halving" and sweep.stack == "on")
    if study.is_independent and is_joint:
        return trials
    # A cluster may take all at once, and then none would learn from another.
    most = trials // _FEWEST_ROUNDS if is_remote else at_once
    return max(1, min(at_once, most))


def check_corners(
    requests: Sequence[Request], at_once: int, trials: Trials, notes: list[str], is_remote: bool
) -> Engine:
    """Build the points at the corners of the space, and choose the engine; RequestError lists all that is wrong.

    is_remote: whether a cluster runs the trials, whose machines may have other devices.
    """
    jobs = []
    for number, request in enumerate(requests):
        label = " ".join(word for word in request.overrides if not word.startswith("sweep."))
        job = Job(number, replace(request, search=None), label, str(number))
        jobs.append(clusters.choose_any_device(job) if is_remote else job)

    if not any(map(has_own_code, jobs)):
        engine: Engine = Serial() if at_once == 1 else Parallel(at_once)
        if isinstance(engine, Parallel):
            engine.warm_up()
        monitors = set[str]()

        def check_objectives(_: Job, context: RunContext) -> None:
            monitors.add(context.state.monitor)
            refuse_missing_metrics(trials.study.objectives, context)

        check_jobs(jobs, on_end=check_objectives)
        if len(monitors) == 1:
            trials.study.name_monitor(monitors.pop())
        return engine

    # The user's own code may end the process that runs it, so it is not checked in this one.
    parallel = Parallel(at_once)
    parallel.warm_up()
    check = check_in_process(jobs, parallel)
    if check.death is not None:
        notes.append(f"{check.death}; each run has a process of its own, and is checked when it begins")
        return parallel
    was_killed = any(entry.status == "running" for entry in trials.ledger.entries.values())
    return Serial() if at_once == 1 and not was_killed else parallel


def list_half_written(stacks: Sequence[Unit]) -> list[Job]:
    """The jobs that had left their stack when the process that wrote their folders was killed.

    They end as they left it: one that has trained to its end is completed, and any other was pruned.
    """
    jobs = []
    for unit in stacks:
        for job in unit.open_jobs:
            # Not last.pt, which is linked after that. Of a member that has failed only the best weights are saved.
            if any(job.folder.glob("checkpoints/step_*.pt")):
                jobs.append(replace(job, pruner=PrunedBefore()))
    return jobs


def refuse_missing_metrics(objectives: Sequence[Objective], context: RunContext) -> None:
    """RequestError for an objective that a run does not measure."""
    for objective in objectives:
        if objective.name and objective.is_metric:
            checks.resolve_monitor(
                objective.name,
                objective.mode,
                context.objective,
                context.state.val is not None,
                context.state.ema is not None,
                may_log(context.settings),
                f"sweep.objectives: {objective.mode} ",
            )


def describe_pace(at_once: int) -> str:
    """How many runs train at a time on this machine."""
    return "one at a time" if at_once == 1 else f"{at_once} at a time"


def print_plan(
    console: Console, sweep: SweepConfig, trials: Trials, folder: Path, pace: str, notes: Sequence[str]
) -> None:
    """Print what is searched, how, where and at which pace, and the notes."""
    study = trials.study
    text = f"{trials.count} trials by {sweep.search}"
    if sweep.seeds > 1:
        text += f" × {sweep.seeds} seeds"
    if sweep.pruner != "none":
        text += f", {sweep.pruner} pruning"
    before = len(study.results)
    if before:
        text += f", {before} of them finished before"
    if before >= trials.count:
        pace = "nothing is left to do"

    goals = ", ".join(f"{objective.mode} {objective.title}" for objective in study.objectives)
    over = ", ".join(parameter.name for parameter in study.space.parameters)
    console.say(
        format_facts([("search", f"{text}; {pace}"), ("over", f"{over}: {goals}"), ("sweep folder", str(folder))])
    )
    for note in notes:
        console.say(f"note: {note}")
    console.say()
