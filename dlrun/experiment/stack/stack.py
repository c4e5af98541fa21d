"""A stack of runs from start to end: prepare them, train them together, and record each at its end."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch

from dlrun.config.request import Request
from dlrun.config.settings import Settings
from dlrun.core import signals
from dlrun.core.errors import CheckpointError, ErrorList
from dlrun.core.files import DiskProblems
from dlrun.core.forks import HAS_FORKS, Forks
from dlrun.core.lock import Lock
from dlrun.core.own_code import find_own_modules
from dlrun.engine import device
from dlrun.engine.distributed import SINGLE_PROCESS
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.trainer import StackTrainer
from dlrun.experiment import setup
from dlrun.experiment.context import Preflight, RunContext
from dlrun.experiment.request_notes import add_notes
from dlrun.experiment.stack.halving import Halving
from dlrun.experiment.stack.member import SparseDiagnostics, StackedRun, is_power_of_two, probe_together
from dlrun.runs import checkpoint
from dlrun.runs.loggers.tensorboard import TensorBoardLogger
from dlrun.runs.reports.plots import canvas

# Least time between two saves; it grows so that saving takes a twentieth of the time at most.
_SECONDS_BETWEEN_SAVES = 1.0
_SAVE_SHARE = 20

# Fewest runs ending together that are recorded by several processes: a fork takes as long as half a run's folder.
_FEWEST_TO_SHARE = 8
# Processes for each core: most of the time of a folder goes into waiting for the disk.
_PROCESSES_PER_CORE = 3

# Called when the folder of a run is written, with the number of the run in the stack, its exit code, and its error if
# it has one; returns False to stop the others.
RunEnd = Callable[[int, int, BaseException | None], bool]


@dataclass(frozen=True)
class PreparedRun:
    """A run that was built to check it."""

    context: RunContext
    # State of all generators after it was built.
    rng: dict[str, Any]


def prepare_run(
    request: Request, prepared: PreparedRun | None = None, preflight: Preflight | None = None
) -> StackedRun:
    """Build and check a run as if it were to train alone; RequestError for anything that is wrong with it.

    prepared: the run, if it was built before; preflight: what it showed of another run with the same net.
    """
    if prepared is not None:
        settings = prepared.context.settings.decide_pictures(is_alone=False)
        context = replace(prepared.context, settings=settings)
        if preflight is not None and not context.preflight.layers:
            context = replace(context, preflight=preflight)
        add_notes(context, request)
        return StackedRun(request, context, prepared.rng)

    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(Lock())
        context = setup.prepare_run(request, stack, SINGLE_PROCESS, lock)
        return StackedRun(request, context, device.get_rng_state())


def can_fork(request: Request, context: RunContext) -> bool:
    """Whether a forked process can train or record a run: on a CPU, and without code of the user's own."""
    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    if not HAS_FORKS or context.runtime.device.type != "cpu" or is_initialized():
        return False
    if find_own_modules(request.config):
        return False
    # Other loggers and scikit-learn have threads, which a fork leaves behind.
    loggers = context.loggers.values()
    return not context.settings.tracking.simple_models and all(type(logger) is TensorBoardLogger for logger in loggers)


class Stack:
    """Runs that train together, and the file from which they continue after a kill."""

    def __init__(
        self,
        runs: Sequence[StackedRun],
        file: Path,
        is_recorded: Sequence[bool],
        on_run_end: RunEnd,
        say: Callable[[str], None],
        halving: Halving | None = None,
    ) -> None:
        """is_recorded: which runs have their folders already; they train along, so that the others round as before.

        halving: ends the worse runs between two epochs; None trains all to their ends.
        """
        self.runs = list(runs)
        self.file = file
        self.is_recorded = list(is_recorded)
        self.on_run_end = on_run_end
        self.halving = halving
        self.disk_problems = DiskProblems(say)
        self.is_stopping = False
        self.is_save_due = False
        self._last_save = time.monotonic()
        self._save_seconds = 0.0
        self._is_verified = False

    def train(self) -> int:
        """Train all runs to their ends; returns 0, or the exit code of an interruption."""
        # Runs of one stack share their device and its settings.
        settings: Settings = self.runs[0].settings
        with contextlib.ExitStack() as stack:
            setup.enter_device_session(stack, settings, ErrorList())
            stop_requested = stack.enter_context(signals.catch_signals())

            def is_stopped() -> bool:
                return self.is_stopping or stop_requested()

            trainer = StackTrainer(
                [run.member for run in self.runs], is_stopped, self.record, self.save_if_due, self.probe, self.prune
            )
            # Before the first step: a stack that is killed now is resumed with the same members.
            if not self.restore(trainer):
                self.save_beginning()
            if not trainer.fit():
                self.save(trainer)
                if stop_requested():
                    return signals.get_signal_exit_code(stop_requested.signal_number)
                return 0

        # Every run has its own checkpoints now.
        self.file.unlink(missing_ok=True)
        return 0

    def probe(self, trainer: StackTrainer) -> None:
        """Look into the nets of all members at once, where the diagnostics look at the epoch that ends now.

        An epoch that turns out to be a member's last one by its patience is looked at by that member alone.
        """
        number = trainer.members[0].state.progress.epoch + 1
        if trainer.model.chain is None or not (is_power_of_two(number) or number >= trainer.rules.epochs):
            return

        looking: list[SparseDiagnostics] = []
        for member in trainer.members:
            diagnostics = self.runs[self.find_number(member)].diagnostics
            if diagnostics is not None and (diagnostics.has_relus or number == 1):
                looking.append(diagnostics)
        # All or none: the stack computes every member.
        if len(looking) < len(trainer.members):
            return
        with trainer.model.evaluation_mode():
            probe_together(trainer.model, looking, trainer.train_data.order.batch_size)

    def prune(self, trainer: StackTrainer) -> None:
        """Choose the members that leave after the epoch that has just ended."""
        training: dict[str, Member] = {}
        for member in [] if self.halving is None else trainer.members:
            if not member.is_finished:
                training[self.runs[self.find_number(member)].request.key] = member
        if self.halving is None or not training:
            return

        # A member that has failed has not ended the epoch.
        epoch = next(iter(training.values())).state.progress.epoch
        for key in self.halving.choose_worse(epoch, {key: member.row for key, member in training.items()}):
            training[key].is_pruned = True

    def record(self, members: Sequence[Member]) -> None:
        """Write the folders of the runs that have left the stack."""
        self.is_save_due = True
        numbers = [self.find_number(member) for member in members]
        numbers = [number for number in numbers if not self.is_recorded[number]]
        with device.compute_in_one_thread():
            if len(numbers) >= _FEWEST_TO_SHARE and all(map(self.can_record_in_fork, numbers)):
                self.record_in_forks(numbers)
            else:
                self.record_one_by_one(numbers)

    def record_one_by_one(self, numbers: Sequence[int]) -> None:
        """Write folders one after the other."""
        for number in numbers:
            if self.is_stopping:
                return
            code = 1
            error: BaseException | None = None
            try:
                code = self.runs[number].record(len(self.runs), self._is_verified)
                self._is_verified = True
            except (Exception, SystemExit) as raised:
                # A run that cannot be written or evaluated does not end the others.
                error = raised
            self.end_run(number, code, error)

    def record_in_forks(self, numbers: Sequence[int]) -> None:
        """Write folders in several processes at once."""
        is_verified = set[int]()

        def record(number: int) -> int:
            # Each process reads back the first checkpoint that it writes.
            code = self.runs[number].record(len(self.runs), bool(is_verified))
            is_verified.add(number)
            return code

        # A process of the sweep has one core as its share.
        is_child = parent_process() is not None
        cores = 1 if is_child else device.count_cores()
        with Forks(record, numbers, _PROCESSES_PER_CORE * cores) as forks:
            if not is_child:
                # The pictures of the sweep come next, and this process would only wait.
                canvas.load()
            for number, (code, error) in zip(numbers, forks, strict=True):
                self.end_run(number, 1 if error is not None else code, error)
                if self.is_stopping:
                    return

    def can_record_in_fork(self, number: int) -> bool:
        """Whether a forked process can record a run: one that has failed stays here."""
        run = self.runs[number]
        return run.member.error is None and can_fork(run.request, run.context)

    def end_run(self, number: int, code: int, error: BaseException | None) -> None:
        """Report a run whose folder is written, or could not be."""
        self.is_recorded[number] = True
        self.is_stopping = not self.on_run_end(number, code, error)

    def save_if_due(self, trainer: StackTrainer) -> None:
        """Save the stack if the last save is long enough ago, or if runs have left it since."""
        seconds = time.monotonic() - self._last_save
        if self.is_save_due or seconds >= max(_SECONDS_BETWEEN_SAVES, _SAVE_SHARE * self._save_seconds):
            self.save(trainer)

    def save(self, trainer: StackTrainer) -> None:
        """Write the state of all runs that are still training to the stack's file."""
        begin = time.monotonic()
        numbers = [self.find_number(member) for member in trainer.members]
        state: dict[str, Any] = {
            "keys": [self.runs[number].request.key for number in numbers],
            "runs": [self.runs[number].state_dict() for number in numbers],
            "stack": trainer.state_dict(),
            "format_version": checkpoint.FORMAT_VERSION,
        }
        with self.disk_problems.tolerate("the checkpoint of the stack"):
            checkpoint.save(self.file, state)
        self.is_save_due = False
        self._last_save = time.monotonic()
        # The longer a save takes, the later comes the next.
        self._save_seconds = self._last_save - begin

    def save_beginning(self) -> None:
        """Write which runs train together: a stack of fewer would round in other places."""
        state = {"keys": [run.request.key for run in self.runs], "format_version": checkpoint.FORMAT_VERSION}
        with self.disk_problems.tolerate("the checkpoint of the stack"):
            checkpoint.save(self.file, state)

    def restore(self, trainer: StackTrainer) -> bool:
        """Continue from the stack's file; returns False if there is none, or one without a state.

        Such a stack begins anew, and ends in the same weights.
        """
        try:
            state = checkpoint.load(self.file)
        except CheckpointError:
            if self.file.exists():
                # Kept under another name: it may be unreadable only for the moment.
                self.file.replace(self.file.with_suffix(".damaged"))
            return False

        if "stack" not in state:
            return True

        runs = {run.request.key: run for run in self.runs}
        ordered = [runs[key] for key in state["keys"]]
        # The order decides which rows of the stack belong to whom.
        trainer.members = [run.member for run in ordered]
        trainer.build()
        trainer.load_state_dict(state["stack"])
        for run, values in zip(ordered, state["runs"], strict=True):
            run.load_state_dict(values)
        return True

    def find_number(self, member: Member) -> int:
        """The number of a member's run."""
        return next(i for i, run in enumerate(self.runs) if run.member is member)


def read_keys(file: Path) -> list[str]:
    """Keys of the runs that a stack's file holds the state of; CheckpointError if it cannot be read."""
    keys = checkpoint.load(file).get("keys")
    if not isinstance(keys, list) or not keys:
        raise CheckpointError(f"{file} names no runs")
    return [str(key) for key in keys]
