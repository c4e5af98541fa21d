"""One run from start to end, as process 0 makes it; reads like a table of contents."""

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dlrun.config import schema, unheeded
from dlrun.config.request import Request
from dlrun.config.settings import Settings, read_settings
from dlrun.core import lock, signals, user_code
from dlrun.core.errors import DlrunError, ErrorList, RequestError, RunError
from dlrun.core.files import DiskProblems, write_json
from dlrun.core.library_warnings import divert_warnings
from dlrun.core.own_code import is_ours
from dlrun.core.terminal import escape_line, write_error
from dlrun.data import workers
from dlrun.engine import device, evaluation
from dlrun.engine.acceleration import compile, threads
from dlrun.engine.callback import Callback
from dlrun.engine.device import is_out_of_memory
from dlrun.engine.distributed import Distributed, join_processes
from dlrun.engine.metric_names import select_metrics
from dlrun.engine.trainer import Trainer, evaluate_split
from dlrun.experiment import ignored, resume, sharding, simple_models, sources
from dlrun.experiment import result as results
from dlrun.experiment.callbacks import evolution
from dlrun.experiment.callbacks.diagnostics import Diagnostics
from dlrun.experiment.callbacks.fingerprints import WeightHashes
from dlrun.experiment.callbacks.histograms import WeightHistograms
from dlrun.experiment.callbacks.profiler import PROFILE_FOLDER, ProfiledTrainer, Profiler
from dlrun.experiment.callbacks.progress import ProgressDisplay
from dlrun.experiment.callbacks.pruning import Pruner
from dlrun.experiment.callbacks.tolerant import Tolerant
from dlrun.experiment.callbacks.unsaved import UnsavedAttributes
from dlrun.experiment.context import RunContext
from dlrun.experiment.final_outputs import FinalOutputs, SplitOutputs, make_recorder
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.preflight import memory
from dlrun.experiment.reports import figures, html, terminal
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.models.pretrained import skip_trained_weights
from dlrun.runs import checkpoint, logger
from dlrun.runs import folder as run_folder
from dlrun.runs.checkpoint_manager import CheckpointManager, Examination
from dlrun.runs.logger import RunLogger
from dlrun.runs.loggers.base import LoggedRun
from dlrun.runs.record import CUT_SHORT, RESULT, RunRecord
from dlrun.runs.reports.console import Console
from dlrun.runs.reports.plots import fonts


def run(request: Request, console: Console | None = None, pruner: Pruner | None = None) -> int:
    """Train the requested run and return the exit code. A DlrunError says what was wrong or what failed.

    console: shows the run, besides run.log; None for the terminal. pruner: may end the run between two epochs.
    """
    console = console or Console()
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
        folder: Path | None = None

        try:
            join_ranks(request, context)
            note = make_note_writer(context, console)
            resumed = restore_checkpoint(request, context)
            accelerate(context, note)

            # From here on there is something to save.
            stop_requested = stack.enter_context(signals.catch_signals())
            folder = open_folder(request, context, resumed, folder_lock)
            # What the disk does not take is noted, and the run continues.
            unsaved = DiskProblems(note)
            console.open_log(folder / "run.log", unsaved)
            overrides = request.overrides if request.sweep else ()
            terminal.print_opening(console, context, folder, overrides, is_resumed=resumed is not None)

            logged_run = describe_for_loggers(request, context, folder, resumed, unsaved)
            examine = make_reload_check(context, request, note)
            checkpoints = make_checkpoint_manager(folder, context, request, resumed, unsaved, examine)
            with logger.open_logger(logged_run, context.loggers) as run_logger, contextlib.closing(checkpoints):
                run_logger.start_others(context.settings.hyperparameters, console.say)
                recorders = start_recording(context, folder, run_logger, checkpoints, resumed, console)
                progress = ProgressDisplay(console, context.state, context.settings.trainer.progress)
                # A row and its pictures are on the disk before the checkpoint that a resumed run begins from.
                callbacks = [UnsavedAttributes(context.callbacks, note), run_logger, *recorders, checkpoints, progress]
                profiler = Profiler(context.state.synchronize) if context.settings.trainer.profile else None
                stop = ranks.any_rank(stop_requested)
                if pruner is not None:
                    # After the checkpoints, so that what is judged is on the disk.
                    callbacks.append(pruner)
                    pruner.catch_up(run_logger.rows)
                    stop = pruner.join(stop)
                trainer = make_trainer(context, callbacks, stop, profiler, folder)

                # An earlier process may have been killed after it had pruned the run.
                is_pruned = pruner is not None and pruner.is_pruned and not context.state.is_finished
                with progress.show():
                    status = "pruned" if is_pruned else trainer.fit()
                    context.state.leave_shards()
                if pruner is not None:
                    status = pruner.name_status(status)
                # Notes up to here have been shown.
                notes_before_end = len(context.notes)
                context.notes.extend(library_warnings.note())

                result = finish(context, folder, status, run_logger, checkpoints, profiler, request.group is None)
                if profiler is not None:
                    profiler.charge("other")
                    console.say(profiler.make_table())

        # Training runs code of the user's own, which may raise anything.
        except (Exception, SystemExit) as error:  # whatever user code raises
            if ranks.world_size > 1:
                signals.ignore_termination()
            if folder is not None:
                raise record_failure(error, context, folder, console, unsaved) from error
            if ranks.world_size > 1 and not isinstance(error, DlrunError):
                raise RunError(ranks.explain_failure(error, explain_failure(error, context))) from error
            raise

        terminal.print_closing(console, context, folder, result, context.notes[notes_before_end:])
        console.close()
    return choose_exit_code(context, folder, result, stop_requested, unsaved.summary())


def prepare_run(
    request: Request, stack: contextlib.ExitStack, ranks: Distributed, folder_lock: lock.Lock
) -> RunContext:
    """Build and check everything without writing anything; a RequestError lists all that is wrong."""
    problems = ErrorList()
    settings = read_settings(request.config, request.choices, problems).decide_pictures(request.sweep is None)
    if ranks.world_size > 1 and settings.device.num_threads == "auto":
        problems.add(RequestError("device.num_threads=auto times one process alone; type a number under torchrun"))

    # A run that began with several processes is resumed by one with as many batches a step.
    batches_per_step = request.processes or ranks.world_size
    process = enter_device_session(stack, settings, problems, ranks, batches_per_step)

    # Lock the folder before anything in it is read.
    if request.folder is not None and request.folder.is_dir() and not ranks.rank:
        folder_lock.take(request.folder)

    if request.continues:
        context = prepare_resumed(settings, process, request, problems)
    else:
        context = prepare(settings, process, request.trusted_modules, problems)

    add_notes(context, request)
    return context


def join_ranks(request: Request, context: RunContext) -> None:
    """Train together with the other processes from here on, as device.strategy has it. A collective call."""
    state = context.state
    keys = context.settings.device
    ranks = context.runtime.ranks
    state.join(ranks, keys.timeout_seconds)
    if sharding.is_sharded(context.settings, ranks.world_size):
        state.shard_model(sharding.choose_blocks(context, request.trusted_modules))
    else:
        state.wrap_model()


def add_notes(context: RunContext, request: Request) -> None:
    """Note what the request says, and what of it has no effect."""
    settings = context.settings
    process = context.runtime
    typed = read_typed_words(request)
    in_files = read_keys_in_files(request)
    context.notes.extend(request.notes)
    if request.continues and request.folder is not None and request.sweep is None:
        # A resumed run says what the run left alone says of its own command line.
        context.notes.extend(unheeded.find_repeated(RunRecord(request.folder).overrides))
    context.notes.extend(ignored.find_without_effect(context, request, typed, in_files))
    if settings.device.tf32 is not None and process.device.type != "cuda":
        context.notes.append(f"device.tf32 is for cuda, and changes nothing on {process.device}")
    batches_per_step = process.batches_per_step
    world_size = process.ranks.world_size
    if batches_per_step > 1 or world_size > 1:
        rows = settings.data.keys.batch_size
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        context.notes.append(f"{processes}: a batch is of {batches_per_step} × {rows} = {batches_per_step * rows} rows")


def prepare_resumed(settings: Settings, process: device.Runtime, request: Request, problems: ErrorList) -> RunContext:
    """Prepare a resumed run: its checkpoint holds the weights, so no file of initial weights is read."""
    arguments = settings.model.arguments
    has_trained_weights = arguments.get("weights") is not None or arguments.get("pretrained") is True
    began_elsewhere = settings.init_from is not None or has_trained_weights
    without_init = replace(settings, init_from=None)

    with skip_trained_weights():
        context = prepare(without_init, process, request.trusted_modules, problems)

    # The weights that gave the first predictions are not here.
    if began_elsewhere:
        context = replace(context, start=replace(context.start, predictions={}))
    return context


def read_typed_words(request: Request) -> list[str]:
    """The overrides of a run. A resumed one adds those it began with, so that it notes the same."""
    if not request.continues or request.folder is None:
        return request.overrides
    return [*RunRecord(request.folder).overrides, *request.overrides]


def read_keys_in_files(request: Request) -> dict[str, str]:
    """Keys set by the user's own config files, with the file; of a resumed run those of its start."""
    if not request.continues or request.folder is None:
        return request.keys_in_files
    return dict(RunRecord(request.folder).environment.get("keys_in_files", {}))


def restore_checkpoint(request: Request, context: RunContext) -> dict[str, Any] | None:
    """Load the newest valid checkpoint on rank 0 and broadcast it; None where the run is new.

    Damaged checkpoints that were skipped, and differences in the environment, are noted.
    """
    ranks = context.runtime.ranks
    # Only rank 0 reads the files; the others receive its state.
    state = None
    if request.continues and request.folder is not None and not ranks.rank:
        newest = resume.take_newest(request.folder)
        state = newest.state
        for reason in newest.skipped:
            context.notes.append(f"{reason}; resuming from step {state['step']} instead")
        context.notes.extend(resume.find_environment_changes(state, describe_process(context)))

    state = ranks.broadcast(state)
    if state is not None:
        context.state.load_state_dict(state, context.runtime.device)
        # A callback's wish to stop does not hold for a longer training.
        if resume.is_longer(state, request.config):
            context.state.progress.is_stopped = False
    return state


def accelerate(context: RunContext, note: Callable[[str], None]) -> None:
    """Choose the CPU threads, record the CUDA graph and compile the model, where the settings ask for it.

    note: reports why a step cannot be recorded.
    """
    keys = context.settings.device
    if keys.num_threads == "auto":
        context.notes.append(threads.choose_fastest(context.state, device.count_cores()))

    if context.runtime.device.type == "cuda" and keys.cuda_graph != "off":
        from dlrun.engine.acceleration import cuda_graph

        kind = context.splits.spec.kind
        reason = cuda_graph.attach_graph(context.state, kind, keys.compile, context.settings.trainer.profile, note)
        if reason is not None:
            context.notes.append(f"no CUDA graph: {reason}")

    if context.runtime.compile:
        compile_model(context)


def compile_model(context: RunContext) -> None:
    """Compile the model before the clock starts; RequestError if that fails or memory runs out."""
    try:
        compile.compile_model(context.state, context.batches.test)
    except Exception as error:
        # compile_model explains all but memory, as it does not know the settings.
        if not is_out_of_memory(error):
            raise
        raise RequestError(memory.explain_out_of_memory(context.settings, str(context.runtime.device))) from error

    context.notes.append(f"device.compile: the model was compiled in {context.state.compile_seconds:.1f} s")


def open_folder(request: Request, context: RunContext, resumed: dict[str, Any] | None, folder_lock: lock.Lock) -> Path:
    """Return the locked run folder: that of the resumed run, the requested one, or a new one."""
    settings = context.settings
    if resumed is not None and request.folder is not None:
        context.notes.extend(run_folder.reopen(request.folder, resumed["epoch"], settings.plain["run"]))
        return request.folder

    choices = f"{request.choices.get('model', 'model')}_{request.choices.get('data', 'data')}"
    outputs = Path(settings.paths.outputs)
    return run_folder.open_new(request, context.runtime, outputs, settings.run.name or choices, folder_lock)


def describe_process(context: RunContext) -> dict[str, Any]:
    """What a checkpoint records about the process that wrote it, for a resumed run to compare with its own."""
    description = {
        "spec": context.splits.spec.to_dict(),
        "rows": context.state.train.rows,
        "threads": torch.get_num_threads(),
        "processes": context.runtime.batches_per_step,
        # A plain string: torch's own class would be foreign code in a checkpoint.
        "torch": str(torch.__version__),
    }
    hashes = sources.hash_sources(context)
    if hashes:
        description["sources"] = hashes
    return description


def describe_for_loggers(
    request: Request, context: RunContext, folder: Path, resumed: dict[str, Any] | None, unsaved: DiskProblems
) -> LoggedRun:
    """What loggers are told about the run."""
    labels = context.settings.run
    outputs = Path(context.settings.paths.outputs)
    return LoggedRun(
        folder=folder,
        outputs=outputs,
        run_id=str(resumed["run_id"] if resumed else RunRecord(folder).environment.get("run_id", "")),
        name=labels.name or folder.name,
        tags=tuple(labels.tags),
        notes=labels.notes,
        sweep=None if request.sweep is None else name_sweep(request.sweep, outputs),
        varied=tuple(list_varied_keys(request)),
        resumed_step=resumed["step"] if resumed else None,
        rows=logger.read_rows(folder) if resumed else (),
        disk_problems=unsaved,
    )


def list_varied_keys(request: Request) -> list[str]:
    """Keys that differ between the jobs of a sweep; of a run alone those of its command line, which others may vary."""
    if request.sweep is not None:
        return request.varied
    return list(dict.fromkeys(map(unheeded.get_key, read_typed_words(request))))


def name_sweep(sweep: Path, outputs: Path) -> str:
    """Name of a sweep for loggers: its folder, below paths.outputs with the day in front."""
    try:
        return "_".join(sweep.relative_to(outputs / "multirun").parts)
    except ValueError:
        return sweep.name


def make_checkpoint_manager(
    folder: Path,
    context: RunContext,
    request: Request,
    resumed: dict[str, Any] | None,
    unsaved: DiskProblems,
    examine: Examination | None = None,
) -> CheckpointManager:
    """The manager of this run's checkpoints, each of which holds all that is needed to load it alone.

    examine: called with checkpoints that were read back.
    """
    run_id = resumed["run_id"] if resumed else RunRecord(folder).environment["run_id"]
    repeated = describe_process(context) | {
        "run_id": run_id,
        "config": schema.strip_permissions(context.settings.plain),
        "choices": request.choices,
    }
    keys = context.settings.checkpoint
    manager = CheckpointManager(
        folder / "checkpoints",
        repeated,
        keys.every_epochs,
        keys.every_steps,
        keys.keep,
        unsaved,
        keys.every_seconds,
        examine,
    )
    if resumed is not None:
        manager.restore(resumed)
    return manager


def make_reload_check(context: RunContext, request: Request, say: Callable[[str], None]) -> Examination | None:
    """The check for state that resume would lose, made once a run; None where no code is the user's own."""
    troubles = context.state.progress.troubles
    if any(kind.startswith(comparison.KIND) for kind in troubles):
        # An earlier process made the check.
        context.notes.extend([text for text in troubles.values() if text not in context.notes])
        return None
    if not comparison.is_needed(context.settings, context.state.model):
        return None
    return comparison.ReloadCheck(context, request.trusted_modules, say)


def start_recording(
    context: RunContext,
    folder: Path,
    run_logger: RunLogger,
    checkpoints: CheckpointManager,
    resumed: dict[str, Any] | None,
    console: Console,
) -> list[Callback]:
    """Restore the generators of a resumed run, or log how a new one begins; returns the recording callbacks."""
    tracking = context.settings.tracking
    spec = context.splits.spec

    # Hashes come before pictures, which may fail.
    hashes = WeightHashes(context.state.model, folder, run_logger.disk_problems)
    # A resumed run has the lines up to its checkpoint.
    checkpoints.wait_for_records = hashes.wait
    callbacks: list[Callback] = [hashes]
    if tracking.evolution_every_epochs or spec.task == "tagging":
        callbacks.append(evolution.Evolution(context, folder, tracking.evolution_every_epochs or 1, run_logger))
    if tracking.weight_histograms:
        callbacks.append(WeightHistograms(context.state.model, run_logger))

    if resumed is None:
        hashes.record(epoch=0, step=0)
        log_opening(context, run_logger)
    else:
        device.set_rng_state(resumed["rng"])

    if tracking.diagnose:
        callbacks.append(Diagnostics(context, logger.read_rows(folder), console.say))
    return [Tolerant(callback, run_logger.disk_problems) for callback in callbacks]


def log_opening(context: RunContext, run_logger: RunLogger) -> None:
    """Log the names of the classes and the config as text."""
    class_names = context.splits.spec.class_names
    if class_names:
        # As text: no font of this machine need have their letters.
        lines = [f"{number}: {name}" for number, name in enumerate(class_names)]
        run_logger.log_text("classes", terminal.indent_as_code(lines))
    run_logger.log_text("config", terminal.format_config(schema.strip_permissions(context.settings.plain)))


def make_trainer(
    context: RunContext,
    callbacks: list[Callback],
    stop_requested: Callable[[], bool],
    profiler: Profiler | None,
    folder: Path,
) -> Trainer:
    """The trainer, or one that times itself where there is a profiler."""
    if profiler is None:
        return Trainer(context.state, callbacks, stop_requested, context.user_callbacks)
    trace_folder = folder / PROFILE_FOLDER
    return ProfiledTrainer(context.state, callbacks, stop_requested, context.user_callbacks, profiler, trace_folder)


def make_note_writer(context: RunContext, console: Console) -> Callable[[str], None]:
    """A function that shows a note at once and records it for result.json."""

    def note(text: str) -> None:
        context.notes.append(text)
        console.say(f"note: {text}")

    return note


def finish(
    context: RunContext,
    folder: Path,
    status: str,
    run_logger: RunLogger,
    checkpoints: CheckpointManager,
    profiler: Profiler | None,
    is_alone: bool,
    stacked: int | None = None,
    best_weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the best weights on the test split, export, draw, and write result.json last; returns its content.

    is_alone: False for one of several runs whose expectations are checked together. stacked: number of runs that
    trained as one net with this one. best_weights: what best.pt holds, where it need not be read again.
    """
    unsaved = run_logger.disk_problems
    # From here on events go into a file of their own, which a resumed run drops.
    run_logger.start_final_events()
    # Hash and measure the weights of the last step, before the best ones replace them.
    weights_sha256 = checkpoint.hash_weights(context.state.model)
    rows = run_logger.rows
    last_row = rows[-1] if rows else {}
    metrics = select_metrics(last_row)
    measured = results.measure(context)
    time_as = contextlib.nullcontext if profiler is None else profiler.time_phase
    has_figures = bool(context.settings.figures) and status not in CUT_SHORT
    scores: simple_models.Scores = {}

    if status not in CUT_SHORT:
        with time_as("evaluation"):
            best = None
            if not has_best_weights(context, checkpoints):
                best = best_weights or checkpoints.load_best_weights(context.state)
            test_metrics, test_outputs = evaluate_best_weights(context, best)
            metrics |= test_metrics
        outputs = FinalOutputs(context, test_outputs)
        if context.settings.checkpoint.format == "full":
            with unsaved.tolerate("model.pt", again=False):
                measured |= export_model(context, checkpoints)
        context.notes.extend(results.diagnose(context, rows, metrics, outputs))
        if context.settings.tracking.simple_models:
            scores, notes = simple_models.compare(context, metrics)
            context.notes.extend(notes)

        if has_figures:
            with unsaved.tolerate("figures", again=False), time_as("figures"):
                figures.draw_all(context, folder, run_logger, outputs)
            context.notes.extend(fonts.describe_missing_letters())
        context.notes.extend(results.log_end(context, metrics, run_logger))

    run_logger.status = status
    context.notes.extend(run_logger.settle())
    result = results.collect_result(context, folder, status, metrics, weights_sha256, error=None)
    result["measured"] = measured
    result["expected"] = []
    if stacked is not None:
        result["stacked"] = stacked
    if scores:
        result["simple_models"] = scores
    if status not in CUT_SHORT and is_alone:
        result["expected"] = results.check_expectations(context, result, folder)

    if has_figures:
        with unsaved.tolerate("report.html", again=False):
            html.write_report(context, folder, result, rows)
    with unsaved.tolerate(RESULT, again=False):
        write_json(folder / RESULT, result)
    return result


def has_best_weights(context: RunContext, checkpoints: CheckpointManager) -> bool:
    """Whether the model still has the weights of the best epoch, so that they need not be read from the disk."""
    # Of several processes each has its own running averages, and the user's own code may change weights at any time.
    is_simple = context.runtime.ranks.world_size == 1 and not context.callbacks
    is_last = checkpoints.best_step == context.state.progress.step
    return is_last and is_simple and is_ours(str(context.settings.model.target))


def evaluate_best_weights(
    context: RunContext, best: dict[str, Any] | None
) -> tuple[dict[str, float], SplitOutputs | None]:
    """Load the best weights in all processes, if there are any; returns their metrics and outputs on the test split.

    best: on process 0, the weights or None to evaluate those that the model has; of the others it is ignored.
    """
    best = context.runtime.ranks.broadcast(best)
    if best is not None:
        context.state.use_weights(best)
    test = context.batches.test
    if test is None:
        return {}, None

    recorder = make_recorder(context)
    if recorder is None:
        return evaluate_split(context.state, test, "test"), None
    metrics = evaluate_split(context.state, test, "test", recorder.add)
    return metrics, recorder.concatenate(test)


def export_model(context: RunContext, checkpoints: CheckpointManager) -> dict[str, float]:
    """Write model.pt, open it again beside best.pt, if that is saved, and measure how far their outputs differ."""
    model_path = checkpoints.folder / "model.pt"
    best_path = checkpoints.folder / "best.pt"
    checkpoint.export_full_model(context.state.model, model_path)
    # Best weights that could not be saved are still in memory, and best.pt holds older ones or is missing.
    if checkpoints.best is not None or not best_path.exists():
        return {}

    inputs, _ = evaluation.take_small_batch(context.state.train)
    difference = checkpoint.measure_reload_difference(
        model_path, best_path, context.state.model, inputs, context.runtime.autocast
    )
    context.notes.append(f"model.pt and best.pt, opened again, give outputs {difference:g} apart")
    return {"reload_difference": difference}


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


def record_failure(
    error: Exception | SystemExit, context: RunContext, folder: Path, console: Console, unsaved: DiskProblems
) -> DlrunError:
    """Write result.json and the traceback of a failed run; returns the error to raise."""
    # The error may have come before run.log was open.
    if not console.is_logged:
        console.open_log(folder / "run.log", unsaved)
    console.log_only("".join(traceback.format_exception(error)))

    message = explain_failure(error, context, folder / "run.log")
    # Where another rank failed first, its message tells more.
    message = context.runtime.ranks.explain_failure(error, message)
    # The other processes, which have their shares of the model, may be gone.
    weights_sha256 = "" if context.state.sharded is not None else checkpoint.hash_weights(context.state.model)
    result = results.collect_result(context, folder, "failed", {}, weights_sha256, error=message)
    with unsaved.tolerate(RESULT, again=False):
        write_json(folder / RESULT, result)
    console.close()
    return RunError(f"the run {folder} failed: {message}")


def explain_failure(error: BaseException, context: RunContext, log: Path | None = None) -> str:
    """One sentence about the error that ended a run, with `log` as the place of its traceback."""
    message = str(error).strip() or "no message"
    death = workers.explain_death(error)
    if death is not None:
        return f"{death} (traceback in {log})" if log else str(death)
    if is_out_of_memory(error):
        sentence = memory.explain_out_of_memory(context.settings, str(context.runtime.device))
        return f"{sentence} (traceback in {log})" if log else sentence
    # An error of dlrun's own is a sentence for the user already.
    if isinstance(error, DlrunError):
        return message

    explanation = user_code.explain(error) or f"{type(error).__name__}: {message.splitlines()[0]}"
    if log is None:
        return f"{explanation} (-v shows the traceback)"
    return f"{explanation} (traceback in {log}; -v shows it here)"
