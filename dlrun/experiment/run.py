"""One run from request to exit code, on rank 0; reads like a table of contents."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

from dlrun.config.request import Request
from dlrun.core import lock, signals
from dlrun.core.errors import DlrunError, RunError
from dlrun.core.library_warnings import divert_warnings
from dlrun.core.terminal import escape_line, write_error
from dlrun.data import workers
from dlrun.engine import device
from dlrun.engine.callback import Callback
from dlrun.engine.distributed import join_processes
from dlrun.engine.trainer import Trainer
from dlrun.experiment.acceleration import accelerate
from dlrun.experiment.callbacks.diagnostics import Diagnostics
from dlrun.experiment.callbacks.evolution import Evolution
from dlrun.experiment.callbacks.fingerprints import WeightHashes
from dlrun.experiment.callbacks.histograms import WeightHistograms
from dlrun.experiment.callbacks.profiler import PROFILE_FOLDER, ProfiledTrainer, Profiler
from dlrun.experiment.callbacks.pruning import Pruner
from dlrun.experiment.callbacks.tolerant import DiskTolerant
from dlrun.experiment.callbacks.unsaved import UnsavedAttributes
from dlrun.experiment.context import RunContext
from dlrun.experiment.failure import describe_failure
from dlrun.experiment.finish import finish
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.ranks import join_ranks
from dlrun.experiment.recording import Recording, make_note_writer
from dlrun.experiment.resume import restore_checkpoint
from dlrun.experiment.setup import prepare_run
from dlrun.runs import logger
from dlrun.runs.checkpoint_manager import Examination
from dlrun.runs.reports.console import Console


def run(request: Request, console: Console | None = None, pruner: Pruner | None = None) -> int:
    """Train the requested run and return the exit code. A DlrunError says what was wrong or what failed.

    console: shows the run, besides run.log; None for the terminal. pruner: may end the run between two epochs.
    """
    console = console or Console()
    pruner = pruner or Pruner()
    with contextlib.ExitStack() as stack:
        # Warnings of libraries go to run.log, and one note sums them up.
        library_warnings = stack.enter_context(divert_warnings(console.log_only))
        ranks = stack.enter_context(join_processes())
        stack.callback(workers.end_workers)
        folder_lock = stack.enter_context(lock.Lock())

        # The other ranks read no command line, they take this request. The first rank of a machine prepares
        # alone, so that the others find what it has downloaded.
        shared_request = ranks.broadcast(request)
        context = ranks.rank_zero_first(partial(prepare_run, shared_request, stack, ranks, folder_lock))

        try:
            join_ranks(request, context)
            resumed = restore_checkpoint(request, context)
            accelerate(context, make_note_writer(context, console))

            # From here on there is something to save.
            stop_requested = stack.enter_context(signals.catch_signals())
            with Recording(request, context, console, folder_lock, resumed) as recording:
                recording.open_log()
                recording.print_opening()
                recording.start(make_reload_check(recording))

                profiler = Profiler(context.state.synchronize) if context.settings.trainer.profile else None
                trainer = make_trainer(recording, pruner, stop_requested, profiler)
                if resumed is not None:
                    device.set_rng_state(resumed["rng"])
                with recording.progress.show():
                    if pruner.is_pruned and not context.state.is_finished:
                        # An earlier process pruned the run, and was killed before it recorded that.
                        status = "pruned"
                    else:
                        status = pruner.name_status(trainer.fit())
                context.state.leave_shards()

                recording.mark_notes_printed()
                context.notes.extend(library_warnings.note())
                result = finish(recording, status, profiler)
                if profiler is not None:
                    profiler.charge("other")
                    console.say(profiler.make_table())

        # Training runs code of the user's own, which may raise anything.
        except (Exception, SystemExit) as error:  # whatever user code raises
            if ranks.world_size == 1:
                raise
            signals.ignore_termination()
            if isinstance(error, DlrunError):
                raise
            raise RunError(ranks.explain_failure(error, describe_failure(error, context))) from error

        recording.print_closing(result)
    return choose_exit_code(context, recording.folder, result, stop_requested, recording.disk_problems.summary())


def make_reload_check(recording: Recording) -> Examination | None:
    """The check for state that resume would lose; None if it was made before, or if no code is the user's own."""
    context = recording.context
    troubles = context.state.progress.troubles
    if any(kind.startswith(comparison.KIND) for kind in troubles):
        # An earlier process made the check.
        context.notes.extend([text for text in troubles.values() if text not in context.notes])
        return None
    if not comparison.is_needed(context.settings, context.state.model):
        return None
    return comparison.ReloadCheck(context, recording.request.trusted_modules, recording.note)


def make_trainer(
    recording: Recording, pruner: Pruner, stop_requested: signals.Interrupt, profiler: Profiler | None
) -> Trainer:
    """The trainer with dlrun's own callbacks, in their order; with a profiler one that times its phases."""
    context = recording.context
    # A row and its pictures are on the disk before the checkpoint that a resumed run begins from. The pruner comes
    # last, so that all it judges by is on the disk before it ends the run.
    callbacks = [
        UnsavedAttributes(context.callbacks, recording.note),
        recording.run_logger,
        *start_recorders(recording),
        recording.checkpoints,
        recording.progress,
        pruner,
    ]
    pruner.catch_up(recording.run_logger.rows)
    stop = pruner.add_to(context.runtime.ranks.any_rank(stop_requested))
    if profiler is None:
        return Trainer(context.state, callbacks, stop, context.user_callbacks)
    trace_folder = recording.folder / PROFILE_FOLDER
    return ProfiledTrainer(context.state, callbacks, stop, context.user_callbacks, profiler, trace_folder)


def start_recorders(recording: Recording) -> list[Callback]:
    """The callbacks that record epochs besides the loggers; a new run has its start recorded at once."""
    context = recording.context
    run_logger = recording.run_logger
    tracking = context.settings.tracking

    # Hashes come before pictures, which may fail.
    hashes = WeightHashes(context.state.model, recording.folder, recording.disk_problems)
    # A resumed run has the lines up to its checkpoint.
    recording.checkpoints.wait_for_records = hashes.wait

    def flush_records() -> None:
        run_logger.flush()
        hashes.flush()

    recording.checkpoints.flush_records = flush_records
    callbacks: list[Callback] = [hashes]
    if tracking.evolution_every_epochs or context.splits.spec.task == "tagging":
        callbacks.append(Evolution(context, recording.folder, tracking.evolution_every_epochs or 1, run_logger))
    if tracking.weight_histograms:
        callbacks.append(WeightHistograms(context.state.model, run_logger))

    if recording.resumed is None:
        hashes.record(epoch=0, step=0)
        recording.log_opening()
    if tracking.diagnose:
        callbacks.append(Diagnostics(context, logger.read_rows(recording.folder), recording.console.say))
    return [DiskTolerant(callback, recording.disk_problems) for callback in callbacks]


def choose_exit_code(
    context: RunContext, folder: Path, result: dict[str, Any], stop_requested: signals.Interrupt, lost: str
) -> int:
    """0; 128 and the signal's number; or 1 for a missed expectation under `strict`.

    lost: files that could not be saved, and why; RunError if there are any.
    """
    # A signal that came after the training still stops a sweep, so it decides the code of a complete run too.
    if stop_requested():
        if lost:
            write_error(escape_line(f"dlrun: {folder} lacks what could not be saved: {lost}"))
        return signals.get_signal_exit_code(stop_requested.signal_number)

    if lost:
        raise RunError(f"the run {folder} is {result['status']}, but not all of it could be saved: {lost}")
    is_as_expected = all(line["ok"] for line in result["expected"])
    # A run that trained well is no failure of the program, unless the user says so.
    return int(context.settings.strict and not is_as_expected)
