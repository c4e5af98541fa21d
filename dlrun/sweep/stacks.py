"""Which jobs of a sweep train together as a stack, and which alone."""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrun.core.errors import CheckpointError, DlrunError
from dlrun.engine.device import get_rng_state
from dlrun.engine.stack.model import has_chain
from dlrun.experiment.context import RunContext
from dlrun.experiment.stack import choice
from dlrun.experiment.stack.halving import Halving
from dlrun.experiment.stack.stack import PreparedRun, can_fork, prepare_run, read_keys
from dlrun.sweep.jobs import Job, has_own_code

# Fewer jobs are trained alone by sweep.stack=auto: they would hardly end sooner, and are equal to the bit that way.
FEWEST = 4

# A stack that takes so long is worth the fork of a process, and is split among as many as there are cores, with so many
# runs in each: on two cores 64 small nets gained nothing in 3 seconds, and a third in 13. The folder of a run takes a
# while, too.
_FEWEST_SECONDS = 4.0
_FEWEST_IN_PROCESS = 8
_FOLDER_SECONDS = 0.02

# The nets of all jobs that are kept from their check until they train have at most so many parameters.
_MOST_PARAMETERS = 10_000_000

# Files of unfinished stacks in the sweep's folder.
_FILES = "stack_*.pt"


@dataclass(frozen=True)
class Unit:
    """What an engine runs at once: one job, or jobs that train as a stack."""

    jobs: tuple[Job, ...]
    # From which a killed stack continues; None for one job.
    file: Path | None = None
    # Keys of jobs that are finished, and train along so that the others do as before.
    finished: frozenset[str] = frozenset()
    # Of a search, ends the worse runs of a stack between two epochs.
    halving: Halving | None = None
    # Whether it takes long enough, and may, train in a process forked from that of the sweep, beside other stacks.
    forks: bool = False

    @property
    def open_jobs(self) -> list[Job]:
        """The jobs that are to be run."""
        return [job for job in self.jobs if job.key not in self.finished]


class PreparedJobs:
    """Jobs that were built to check them, for stacks that need not build them again."""

    def __init__(self) -> None:
        self.by_key: dict[str, PreparedRun] = {}
        self._parameters = 0

    def add(self, job: Job, context: RunContext) -> None:
        """Keep a job whose net is small; what large ones take is better left to those that train."""
        self._parameters += sum(parameter.numel() for parameter in context.state.model.parameters())
        if self._parameters <= _MOST_PARAMETERS:
            self.by_key[job.key] = PreparedRun(context, get_rng_state())

    def take(self, job: Job) -> PreparedRun | None:
        """Hand a job over, if it was kept."""
        return self.by_key.pop(job.key, None)


def find_begun_stacks(folder: Path, jobs: Sequence[Job], unfinished: Collection[str]) -> tuple[list[Unit], list[str]]:
    """The stacks that an earlier process of the sweep has left unfinished, and notes on those that cannot be read.

    jobs: all of the sweep; unfinished: keys of those that are to be run.
    """
    # A stack's file names its runs by their keys, which do not depend on the order of the points.
    by_key = {job.key: job for job in jobs}
    units: list[Unit] = []
    notes: list[str] = []
    for file in sorted(folder.glob(_FILES)):
        try:
            keys = read_keys(file)
        except CheckpointError as error:
            notes.append(f"{error}; the runs of that stack begin anew")
            continue
        finished = frozenset(key for key in keys if key not in unfinished)
        if len(finished) < len(keys) and all(key in by_key for key in keys):
            units.append(Unit(tuple(by_key[key] for key in keys), file, finished))

    return units, notes


def allow_fork(unit: Unit, processes: int) -> bool:
    """Whether a stack that an earlier process of the sweep has begun may train in a forked process.

    processes: how many train at a time.
    """
    job = unit.open_jobs[0]
    try:
        return _can_train_in_fork(job, prepare_run(job.request).context, processes * len(unit.jobs))
    except DlrunError:
        # The stack will say what is wrong with the job.
        return False


def _can_train_in_fork(job: Job, context: RunContext, count: int) -> bool:
    """Whether runs like a job may train in forked processes, `count` of them at a time."""
    # Forked processes compute in one thread each: torch's others stay behind, and would be waited for.
    if job.request.config["device"]["num_threads"] not in (None, 1):
        return False
    return choice.count_fitting(context) >= count and can_fork(job.request, context)


def plan_stacks(
    jobs: Sequence[Job], mode: str, folder: Path, prepared: PreparedJobs, processes: int = 1
) -> tuple[list[Unit], list[str]]:
    """The stacks among new jobs, and what was chosen and why, a line for each group that could be one.

    mode: sweep.stack; processes: how many may train at a time. Jobs that are in no stack train alone.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.request.continues:
            # A run with a checkpoint of its own is in the middle of an epoch that others are not in.
            groups.setdefault(choice.make_group_key(job.request.config), []).append(job)

    units: list[Unit] = []
    notes: list[str] = []
    for group in groups.values():
        if mode == "off" or len(group) < (FEWEST if mode == "auto" else 2):
            continue
        plan = _plan_stack(group, mode, prepared, processes)
        notes.append(plan.reason)
        for begin in range(0, len(group) if plan.size > 1 else 0, plan.size):
            members = group[begin : begin + plan.size]
            if len(members) > 1:
                units.append(Unit(tuple(members), folder / _name_file(members), forks=plan.forks))

    return units, notes


def _name_file(jobs: Sequence[Job]) -> str:
    # The same jobs have the same file when the sweep is resumed.
    digest = hashlib.sha256("".join(job.key for job in jobs).encode()).hexdigest()
    return _FILES.replace("*", digest[:12])


@dataclass(frozen=True)
class _Plan:
    """How many jobs of a group train together, 1 for none, and a line that says why."""

    size: int
    reason: str
    # Whether its stacks train in forked processes.
    forks: bool = False


def _plan_stack(group: Sequence[Job], mode: str, prepared: PreparedJobs, processes: int) -> _Plan:
    """Choose what stacks a group of jobs becomes."""
    count = len(group)
    if has_own_code(group[0]):
        # That code may end its process, which is the process of the whole sweep.
        if mode == "auto":
            return _Plan(1, "not stacked: code of your own takes part (sweep.stack=on stacks it nevertheless)")
        return _Plan(count, f"{count} runs train as one stack, as sweep.stack=on asks")

    try:
        prepared_job = prepared.by_key.get(group[0].key)
        context = prepare_run(group[0].request).context if prepared_job is None else prepared_job.context
        obstacle = choice.find_obstacle(context)
        if obstacle is not None:
            return _Plan(1, f"not stacked: {obstacle}")
        # What does not fit into the memory at once becomes several stacks.
        size = min(count, choice.count_fitting(context))
        if mode == "on":
            return _Plan(size, f"{count} runs train as one stack, as sweep.stack=on asks")
        if not has_chain(context.state.model):
            return _Plan(
                1,
                f"not stacked: {type(context.state.model).__name__} is no chain of layers that are known to be "
                "faster that way (sweep.stack=on tries)",
            )
        if choice.has_batch_norm(context.state.model):
            return _Plan(1, "not stacked: batch norm magnifies rounding (sweep.stack=on stacks it nevertheless)")
        trial = choice.time_steps(context, size)
    except DlrunError as error:
        return _Plan(1, f"not stacked: {error}")

    if not trial.pays:
        return _Plan(1, f"not stacked: {trial.describe()}")

    is_long = trial.estimate_training(context) + count * _FOLDER_SECONDS >= _FEWEST_SECONDS
    forks = processes > 1 and is_long and _can_train_in_fork(group[0], context, processes * count)
    parts = max(1, min(processes, count // _FEWEST_IN_PROCESS)) if forks else 1
    shape = "one stack" if parts == 1 else f"{parts} stacks at a time"
    if parts > 1:
        size = math.ceil(count / parts)
    reason = f"{count} runs train as {shape}: {trial.describe()} (sweep.stack=off: equal to the bit to runs alone)"
    return _Plan(size, reason, forks)
