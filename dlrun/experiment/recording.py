"""The folder of one run as it is written: log, metrics, events, checkpoints, and the result of a run that fails."""

import contextlib
import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from dlrun.config import schema
from dlrun.config.overrides import get_key
from dlrun.config.request import Request
from dlrun.core import signals
from dlrun.core.errors import RunError
from dlrun.core.files import DiskProblems, write_json
from dlrun.core.lock import Lock
from dlrun.experiment import results, resume
from dlrun.experiment.callbacks.progress import ProgressDisplay
from dlrun.experiment.context import RunContext
from dlrun.experiment.failure import describe_failure
from dlrun.experiment.reports import terminal
from dlrun.experiment.request_notes import read_typed_words
from dlrun.runs import checkpoint, logger
from dlrun.runs import folder as run_folder
from dlrun.runs.checkpoint_manager import CheckpointManager, Examination
from dlrun.runs.logger import RunLogger
from dlrun.runs.loggers.base import LoggedRun
from dlrun.runs.record import RESULT, RunRecord
from dlrun.runs.reports.console import Console


def make_note_writer(context: RunContext, console: Console) -> Callable[[str], None]:
    """Return a function that prints a note at once and records it for result.json."""

    def note(text: str) -> None:
        context.notes.append(text)
        console.say(f"note: {text}")

    return note


class Recording:
    """Writes the folder of a run. As a context manager it closes all files, and records an error before it leaves."""

    # Open from `start` on.
    run_logger: RunLogger
    checkpoints: CheckpointManager
    progress: ProgressDisplay

    def __init__(
        self,
        request: Request,
        context: RunContext,
        console: Console,
        folder_lock: Lock,
        resumed: dict[str, Any] | None = None,
    ) -> None:
        """Open the folder: that of the resumed run, the requested one, or a new one.

        folder_lock: locks it until it is released. resumed: the checkpoint that the run continues from.
        """
        self.request = request
        self.context = context
        self.console = console
        self.resumed = resumed
        self.note = make_note_writer(context, console)
        # A file that cannot be saved is noted, and the run continues.
        self.disk_problems = DiskProblems(self.note)
        # Number of the context's notes that have been printed.
        self._printed_notes = 0
        self.folder = self._open_folder(folder_lock)
        self._open_files = contextlib.ExitStack()

    def _open_folder(self, folder_lock: Lock) -> Path:
        settings = self.context.settings
        requested = self.request.folder
        if self.resumed is not None and requested is not None:
            self.context.notes.extend(run_folder.reopen(requested, self.resumed["epoch"], settings.plain["run"]))
            return requested

        choices = self.request.choices
        name = settings.run.name or f"{choices.get('model', 'model')}_{choices.get('data', 'data')}"
        return run_folder.open_new(self.request, self.context.runtime, Path(settings.paths.outputs), name, folder_lock)

    def open_log(self) -> None:
        """Write run.log from here on."""
        self.console.open_log(self.folder / "run.log", self.disk_problems)

    def print_opening(self) -> None:
        """Print what the run is made of, and the notes so far."""
        overrides = self.request.overrides if self.request.sweep else ()
        is_resumed = self.resumed is not None
        terminal.print_opening(self.console, self.context, self.folder, overrides, is_resumed)
        self.mark_notes_printed()

    def mark_notes_printed(self) -> None:
        """Leave the notes so far out of the closing."""
        self._printed_notes = len(self.context.notes)

    def print_closing(self, result: dict[str, Any]) -> None:
        """Print the result, with the notes that have not been printed yet."""
        notes = self.context.notes[self._printed_notes :]
        terminal.print_closing(self.console, self.context, self.folder, result, notes)
        self.console.close()

    def start(self, examine: Examination | None = None) -> None:
        """Open checkpoints and loggers; the end of the `with` block closes them.

        examine: called with the state of each checkpoint that was read back.
        """
        self.checkpoints = self._make_checkpoint_manager(examine)
        self.run_logger = self._open_files.enter_context(
            logger.open_logger(self._describe_for_loggers(), self.context.loggers)
        )
        # Closed in reverse order: the last checkpoint is complete before the loggers close.
        self._open_files.callback(self.checkpoints.close)
        self.run_logger.start_others(self.context.settings.hyperparameters, self.console.say)
        self.progress = ProgressDisplay(self.console, self.context.state, self.context.settings.trainer.progress)

    def _make_checkpoint_manager(self, examine: Examination | None) -> CheckpointManager:
        """The checkpoint manager; each of its checkpoints can be opened without the other files of the run."""
        context = self.context
        identity = resume.describe_process(context) | {
            "run_id": self.run_id,
            "config": schema.strip_permissions(context.settings.plain),
            "choices": self.request.choices,
        }
        keys = context.settings.checkpoint
        manager = CheckpointManager(
            self.folder / "checkpoints",
            identity,
            keys.every_epochs,
            keys.every_steps,
            keys.keep,
            self.disk_problems,
            keys.every_seconds,
            examine,
        )
        if self.resumed is not None:
            manager.restore(self.resumed)
        return manager

    @functools.cached_property
    def run_id(self) -> str:
        """ID of the run, which stays the same when its folder is moved."""
        if self.resumed is not None:
            return str(self.resumed["run_id"])
        return str(RunRecord(self.folder).environment["run_id"])

    def _describe_for_loggers(self) -> LoggedRun:
        labels = self.context.settings.run
        outputs = Path(self.context.settings.paths.outputs)
        sweep = self.request.sweep
        return LoggedRun(
            folder=self.folder,
            outputs=outputs,
            run_id=self.run_id,
            name=labels.name or self.folder.name,
            tags=tuple(labels.tags),
            notes=labels.notes,
            sweep=None if sweep is None else _name_sweep(sweep, outputs),
            varied=tuple(_list_varied_keys(self.request)),
            resumed_step=self.resumed["step"] if self.resumed else None,
            rows=logger.read_rows(self.folder) if self.resumed else (),
            disk_problems=self.disk_problems,
        )

    def log_opening(self) -> None:
        """Log the names of the classes and the config as text."""
        class_names = self.context.splits.spec.class_names
        if class_names:
            # As text, since no font here may have their letters.
            lines = [f"{number}: {name}" for number, name in enumerate(class_names)]
            self.run_logger.log_text("classes", terminal.indent_as_code(lines))
        config = schema.strip_permissions(self.context.settings.plain)
        self.run_logger.log_text("config", terminal.format_config(config))

    def __enter__(self) -> "Recording":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_parallel = self.context.runtime.ranks.world_size > 1
        if is_parallel and isinstance(error, Exception | SystemExit):
            signals.ignore_termination()

        try:
            self._open_files.__exit__(kind, error, trace)
        except (Exception, SystemExit) as closing_error:
            # A logger of the user's own may raise anything.
            error = closing_error
        # KeyboardInterrupt is no failure, and leaves nothing to record.
        if isinstance(error, Exception | SystemExit):
            raise self.record_failure(error) from error

    def record_failure(self, error: Exception | SystemExit) -> RunError:
        """Write result.json and the traceback of the failed run; returns the error to raise."""
        context = self.context
        # The error may have come before run.log was open.
        if not self.console.is_logged:
            self.open_log()
        self.console.log_only("".join(traceback.format_exception(error)))

        message = describe_failure(error, context, self.folder / "run.log")
        # If another rank failed first, its message replaces this one.
        message = context.runtime.ranks.explain_failure(error, message)
        # Hashing split weights would need the other processes, which may be gone.
        weights_sha256 = "" if context.state.sharded is not None else checkpoint.hash_weights(context.state.model)
        result = results.collect_result(context, self.folder, "failed", {}, weights_sha256, error=message)
        with self.disk_problems.tolerate(RESULT, again=False):
            write_json(self.folder / RESULT, result)
        self.console.close()
        return RunError(f"the run {self.folder} failed: {message}")


def _list_varied_keys(request: Request) -> list[str]:
    """Keys that the jobs of a sweep vary; for a single run those of its command line, which other runs may vary."""
    if request.sweep is not None:
        return request.varied
    return list(dict.fromkeys(map(get_key, read_typed_words(request))))


def _name_sweep(sweep: Path, outputs: Path) -> str:
    """Name of a sweep for loggers: the name of its folder, below paths.outputs with the day in front."""
    try:
        return "_".join(sweep.relative_to(outputs / "multirun").parts)
    except ValueError:
        return sweep.name
