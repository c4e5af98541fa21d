"""Which jobs of a sweep train together as a stack, and which alone."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrun.core.errors import CheckpointError, DlrunError
from dlrun.engine.device import get_rng_state
from dlrun.engine.stack.model import has_chain
from dlrun.experiment.context import RunContext
from dlrun.experiment.stack import choice
from dlrun.experiment.stack.halving import Halving
from dlrun.experiment.stack.stack import PreparedRun, prepare_run, read_keys
from dlrun.sweep.jobs import Job, has_own_code

# Fewer jobs are trained alone by sweep.stack=auto: they would hardly end sooner, and are equal to the bit that way.
FEWEST = 4

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


def plan_stacks(jobs: Sequence[Job], mode: str, folder: Path, prepared: PreparedJobs) -> tuple[list[Unit], list[str]]:
    """The stacks among new jobs, and what was chosen and why, a line for each group that could be one.

    mode: sweep.stack. Jobs that are in no stack train alone.
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
        size, note = _choose_stack_size(group, mode, prepared)
        notes.append(note)
        for begin in range(0, len(group) if size > 1 else 0, size):
            members = group[begin : begin + size]
            if len(members) > 1:
                units.append(Unit(tuple(members), folder / _name_file(members)))

    return units, notes


def _name_file(jobs: Sequence[Job]) -> str:
    # The same jobs have the same file when the sweep is resumed.
    digest = hashlib.sha256("".join(job.key for job in jobs).encode()).hexdigest()
    return _FILES.replace("*", digest[:12])


def _choose_stack_size(group: Sequence[Job], mode: str, prepared: PreparedJobs) -> tuple[int, str]:
    """The number of jobs of a group that train together, 1 for none, and a line that says why."""
    count = len(group)
    if has_own_code(group[0]):
        # That code may end its process, which is the process of the whole sweep.
        if mode == "auto":
            return 1, "not stacked: code of your own takes part (sweep.stack=on stacks it nevertheless)"
        return count, f"{count} runs train as one stack, as sweep.stack=on asks"

    try:
        prepared_job = prepared.by_key.get(group[0].key)
        context = prepare_run(group[0].request).context if prepared_job is None else prepared_job.context
        obstacle = choice.find_obstacle(context)
        if obstacle is not None:
            return 1, f"not stacked: {obstacle}"
        # What does not fit into the memory at once becomes several stacks.
        size = min(count, choice.count_fitting(context))
        if mode == "on":
            return size, f"{count} runs train as one stack, as sweep.stack=on asks"
        if not has_chain(context.state.model):
            return 1, (
                f"not stacked: {type(context.state.model).__name__} is no chain of layers that are known to be "
                "faster that way (sweep.stack=on tries)"
            )
        if choice.has_batch_norm(context.state.model):
            return 1, "not stacked: batch norm magnifies rounding (sweep.stack=on stacks it nevertheless)"
        trial = choice.time_steps(context, size)
    except DlrunError as error:
        return 1, f"not stacked: {error}"

    if not trial.pays:
        return 1, f"not stacked: {trial.describe()}"
    return (
        size,
        f"{count} runs train as one stack: {trial.describe()} (sweep.stack=off: equal to the bit to runs alone)",
    )
