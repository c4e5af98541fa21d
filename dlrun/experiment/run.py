"""One run from start to end; reads like a table of contents."""

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dlrun.config import schema
from dlrun.config.request import Request
from dlrun.core import lock, signals, user_code
from dlrun.core.errors import DlrunError, RequestError, RunError
from dlrun.core.files import forget_halves, writing_to
from dlrun.core.library_warnings import diverted
from dlrun.core.problems import ErrorList
from dlrun.core.terminal import escape_line, write_error
from dlrun.data import workers
from dlrun.engine import device, evaluation
from dlrun.engine.acceleration import compile
from dlrun.engine.acceleration import threads as thread_choice
from dlrun.engine.callback import Callback
from dlrun.engine.device import ran_out
from dlrun.engine.distributed import Distributed, joined
from dlrun.engine.trainer import Trainer, evaluate_split
from dlrun.experiment import ignored, resume, sources
from dlrun.experiment import result as results
from dlrun.experiment.callbacks import evolution, profiler
from dlrun.experiment.callbacks.diagnostics import Diagnostics
from dlrun.experiment.callbacks.fingerprints import WeightHashes
from dlrun.experiment.callbacks.histograms import WeightHistograms
from dlrun.experiment.callbacks.progress import ProgressDisplay
from dlrun.experiment.callbacks.tolerant import Tolerant
from dlrun.experiment.context import RunContext
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.preflight import memory
from dlrun.experiment.reports import figures, html, terminal
from dlrun.experiment.setup import enter_device_session, prepare
from dlrun.models.pretrained import weights_follow
from dlrun.runs import checkpoint, logger
from dlrun.runs import folder as run_folder
from dlrun.runs.checkpoint_manager import CheckpointManager
from dlrun.runs.logger import Logger
from dlrun.runs.record import RESULT, RunRecord
from dlrun.runs.reports.console import Console
from dlrun.runs.reports.plots import fonts


def run(request: Request, console: Console | None = None) -> int:
    """Train what is asked for; returns the exit code. A DlrunError says what was wrong, or what failed.

    console: where it is told besides run.log; the terminal where that is left out.
    """
    console = console or Console()
    with contextlib.ExitStack() as held:
        warned = held.enter_context(diverted(console.log_only))
        ranks = held.enter_context(joined())
        held.callback(workers.end_workers)
        own = held.enter_context(lock.Lock())
        parts = ranks.in_turn(partial(prepare_run, ranks.share(request), held, ranks, own))
        parts.unsaved.say = make_note_writer(parts, console)
        folder: Path | None = None
        try:
            earlier = restore_checkpoint(request, parts)
            if parts.settings.rest.device.num_threads == "auto":
                choose_threads(parts)
            if parts.runtime.device.type == "cuda" and parts.settings.rest.device.cuda_graph != "off":
                use_cuda_graph(parts)
            if parts.runtime.compile:
                compile_model(parts)
            stop = held.enter_context(signals.interruptible())  # from here on there is something to save
            folder = open_folder(request, parts, earlier, own)
            console.open_log(folder / "run.log", parts.unsaved)
            terminal.print_opening(console, parts, folder, request.overrides if request.sweep else ())
            saver = make_checkpoint_manager(folder, parts, request, earlier)
            saver.examine = make_reload_check(parts, request, make_note_writer(parts, console))
            purge_step = earlier["step"] + 1 if earlier else None
            with logger.open_logger(folder, purge_step, parts.unsaved) as tracker:
                recorders = start_recording(parts, folder, tracker, earlier, console)
                progress = ProgressDisplay(console, parts.training)
                # A row and its pictures are on the disk before the checkpoint that a resumed run begins from.
                callbacks = [tracker, *recorders, saver, progress]
                trainer = Trainer(parts.training, callbacks, ranks.together(stop))
                with progress.show(), start_profile(parts, trainer, folder) as profile:
                    status = trainer.fit()
                said = len(parts.notes)
                parts.notes += warned.note()
                result = finish(parts, folder, status, tracker, saver, profile)
                if profile is not None:
                    profile.charge("other")
                    console.say(profile.make_table())
        except (Exception, SystemExit) as error:  # training runs code of the user's own
            if ranks.count > 1:
                signals.ignore_termination()
            if folder is not None:
                raise record_failure(error, parts, folder, console) from error
            if ranks.count > 1 and not isinstance(error, DlrunError):
                raise RunError(ranks.blame(error, explain_failure(error, parts))) from error
            raise
        terminal.print_closing(console, parts, folder, result, parts.notes[said:])
        console.close()
    return choose_exit_code(parts, folder, result, stop)


def use_cuda_graph(parts: RunContext) -> None:
    """Start the kernels of a step as one from now on, or note why not."""
    from dlrun.engine.acceleration import cuda_graph

    rest = parts.settings.rest
    reason = cuda_graph.why_not(parts.training, parts.splits.spec.kind, rest.device.compile, rest.trainer.profile)
    if reason is None:
        parts.training.graph = cuda_graph.CudaGraphStep(cuda_graph.GraphRecorder(), parts.unsaved.say)
    else:
        parts.notes.append(f"no CUDA graph: {reason}")


def compile_model(parts: RunContext) -> None:
    """Compile the model before the clock starts; RequestError where that fails or memory runs out."""
    try:
        parts.compile_seconds = compile.compile_model(parts.training, parts.test)
    except Exception as error:  # compile_model explains all but memory, as it does not know the settings
        if not ran_out(error):
            raise
        raise RequestError(memory.explain_out_of_memory(parts.settings, str(parts.runtime.device))) from error

    parts.notes.append(f"device.compile: the model was compiled in {parts.compile_seconds:.1f} s")


def prepare_run(request: Request, held: contextlib.ExitStack, ranks: Distributed, own: lock.Lock) -> RunContext:
    """Build and check everything, with nothing written; a RequestError lists all that is wrong."""
    problems = ErrorList()
    settings = schema.read(request.config, request.choices, problems)
    threads, together = settings.rest.device.num_threads, request.processes or ranks.count
    if ranks.count > 1 and threads == "auto":
        problems.add(RequestError("device.num_threads=auto times one process alone; type a number under torchrun"))
    process = enter_device_session(held, settings, problems, ranks, together)
    if request.folder is not None and request.folder.is_dir() and not ranks.number:
        own.take(request.folder)  # before anything in it is read
    if request.going_on:
        parts = prepare_without_start(settings, process, request, problems)
    else:
        parts = prepare(settings, process, request.trusted_modules, problems)
    parts.is_alone = request.group is None
    parts.notes += request.notes
    parts.notes += ignored.find_without_effect(parts, request, typed_words(request), keys_in_files(request))
    if settings.rest.device.tf32 is not None and process.device.type != "cuda":
        parts.notes.append(f"device.tf32 is for cuda, and changes nothing on {process.device}")
    if together > 1 or ranks.count > 1:
        rows, several = settings.data_keys.batch_size, "1 process" if ranks.count == 1 else f"{ranks.count} processes"
        parts.notes.append(f"{several}: a batch is of {together} × {rows} = {together * rows} rows")
    return parts


def typed_words(request: Request) -> list[str]:
    """The overrides of a run: a resumed one notes what the run that was never interrupted notes."""
    if not request.going_on or request.folder is None:
        return request.overrides
    return [*RunRecord(request.folder).overrides, *request.overrides]


def keys_in_files(request: Request) -> dict[str, str]:
    """The keys that config files of the user's own set, with the file; those of a resumed run when it began."""
    if not request.going_on or request.folder is None:
        return request.keys_in_files
    return dict(RunRecord(request.folder).environment.get("keys_in_files", {}))


def prepare_without_start(
    settings: schema.Settings, process: device.Runtime, request: Request, problems: ErrorList
) -> RunContext:
    """`prepare` for a run that goes on: its checkpoint holds the weights, so no file that it began from is read."""
    began_elsewhere = settings.rest.init_from is not None or settings.model.arguments.get("weights") is not None
    fresh = replace(settings, rest=replace(settings.rest, init_from=None))

    with weights_follow():
        parts = prepare(fresh, process, request.trusted_modules, problems)
    if began_elsewhere:
        parts.first_predictions = {}  # they were given by weights that are not here
    return parts


def choose_exit_code(parts: RunContext, folder: Path, result: dict[str, Any], stop: signals.Interrupt) -> int:
    """0, 128 and the signal's number, or 1 for a missed expectation if `strict`. RunError for what was lost."""
    lost = parts.unsaved.summary()
    if stop():  # in its last figures perhaps, and complete; but whoever says stop wants no next job
        if lost:
            write_error(escape_line(f"dlrun: {folder} lacks what could not be saved: {lost}"))
        return signals.exit_code(stop.signal_number)
    if lost:
        raise RunError(f"the run {folder} is {result['status']}, but not all of it could be saved: {lost}")
    return int(parts.settings.rest.strict and not all(line["ok"] for line in result["expected"]))


def start_profile(
    parts: RunContext, trainer: Trainer, folder: Path
) -> contextlib.AbstractContextManager[profiler.Profile | None]:
    """Stops the training where trainer.profile asks for it."""
    if not parts.settings.rest.trainer.profile:
        return contextlib.nullcontext()
    return profiler.profile_training(trainer, folder)


def choose_threads(parts: RunContext) -> None:
    """Take the number of CPU threads that a few steps show to be fastest; a resumed run takes what it had."""
    count, times = thread_choice.fastest(parts.training, device.cores())
    torch.set_num_threads(count)
    listed = ", ".join(f"{took:.2f} ms with {n}" for n, took in times.items())
    parts.notes.append(f"device.num_threads=auto: {count} (a step takes {listed})")


def make_note_writer(parts: RunContext, console: Console) -> Callable[[str], None]:
    """What says a remark when it is due, and keeps it for result.json."""

    def note(text: str) -> None:
        parts.notes.append(text)
        console.say(f"note: {text}")

    return note


def restore_checkpoint(request: Request, parts: RunContext) -> dict[str, Any] | None:
    """The newest whole checkpoint of the run to go on with, taken over by all; notes name those that are damaged."""
    ranks, state = parts.runtime.ranks, None
    ranks.limit(parts.settings.rest.device.timeout_seconds)
    parts.training.join(ranks)
    if request.going_on and request.folder is not None and not ranks.number:
        _, state, skipped = checkpoint.newest_whole(request.folder / "checkpoints", resume.TO_GO_ON)
        parts.notes += [f"{said}; going on from step {state['step']} instead" for said in skipped]
        parts.notes += resume.find_environment_changes(state, describe_process(parts))
    state = ranks.share(state)
    if state is not None:
        parts.training.load_state_dict(state, parts.runtime.device)
    return state


def open_folder(request: Request, parts: RunContext, earlier: dict[str, Any] | None, own: lock.Lock) -> Path:
    """The run's folder, locked: the earlier one with its rows cut back, the one asked for, or a new one."""
    if earlier is not None and request.folder is not None:
        rows, notes = logger.rows_until(request.folder, earlier["epoch"])  # before anything is removed
        parts.notes += notes
        with writing_to(request.folder, "make room there, or see who may write there"):
            forget_halves(request.folder, request.folder / "checkpoints")
            for name in (RESULT, "report.html"):  # it is finished no more
                (request.folder / name).unlink(missing_ok=True)
            logger.cut_back(request.folder, rows)
        return request.folder
    is_new = request.folder is None or not request.folder.exists()
    if request.folder is not None:
        folder = run_folder.claim(request.folder)
    else:
        names = f"{request.choices.get('model', 'model')}_{request.choices.get('data', 'data')}"
        folder = run_folder.create(Path(parts.settings.rest.paths.outputs), names)
    try:
        own.take(folder)
        run_folder.describe(folder, request, parts.runtime)
    except Exception:  # also the death of a data worker, which torch raises wherever this process is
        is_ours = own.folder == folder
        own.release()
        run_folder.abandon(folder, is_ours, is_new)
        raise
    return folder


def describe_process(parts: RunContext) -> dict[str, Any]:
    """What a checkpoint says of the process that wrote it: a resumed run compares it with its own."""
    hashes = sources.hash_sources(parts)
    return {
        "spec": parts.splits.spec.to_dict(),
        "rows": parts.training.train.rows,
        "threads": torch.get_num_threads(),
        "processes": parts.runtime.batches_a_step,
        "torch": str(torch.__version__),  # a plain string: its own class would be foreign code in a checkpoint
    } | ({"sources": hashes} if hashes else {})


def make_checkpoint_manager(
    folder: Path, parts: RunContext, request: Request, earlier: dict[str, Any] | None
) -> CheckpointManager:
    """What writes this run's checkpoints, each with all that is needed to load it alone."""
    repeated = describe_process(parts) | {
        "run_id": earlier["run_id"] if earlier else RunRecord(folder).environment["run_id"],
        "config": schema.recorded(parts.settings.plain),
        "choices": request.choices,
    }
    keys = parts.settings.rest.checkpoint
    where = folder / "checkpoints"
    saver = CheckpointManager(where, repeated, keys.every_epochs, keys.every_steps, keys.keep, parts.unsaved)
    if earlier is not None:
        with parts.unsaved.attempt("what follows on the earlier checkpoints", again=False):
            saver.go_on(earlier)
    return saver


def make_reload_check(
    parts: RunContext, request: Request, say: Callable[[str], None]
) -> Callable[[dict[str, Any]], None] | None:
    """What looks for state that resume cannot see, once a run; None where there is no code of the user's own."""
    troubles = parts.training.progress.troubles
    if any(kind.startswith(comparison.KIND) for kind in troubles):
        parts.notes += [text for text in troubles.values() if text not in parts.notes]
        return None
    if not comparison.is_needed(parts.settings, parts.model):
        return None
    return comparison.ReloadCheck(parts, request.trusted_modules, say)


def start_recording(
    parts: RunContext, folder: Path, tracker: Logger, earlier: dict[str, Any] | None, console: Console
) -> list[Callback]:
    """Go on exactly where an earlier process stood, or note down what begins; returns what records each epoch."""
    hashes = WeightHashes(parts.model, folder, parts.unsaved)
    callbacks: list[Callback] = [hashes]  # before pictures, which may fail
    every_epochs = parts.settings.rest.tracking.evolution_every_epochs
    if every_epochs or parts.splits.spec.task == "tagging":
        callbacks.append(evolution.Evolution(parts, folder, every_epochs or 1, tracker))
    if parts.settings.rest.tracking.weight_histograms:
        callbacks.append(WeightHistograms(parts.model, tracker))
    if earlier is None:
        hashes.record(epoch=0, step=0)
        classes = parts.splits.spec.class_names
        if classes:  # as text: no font of this machine need have their letters
            tracker.log_text("classes", terminal.indent_as_code([f"{i}: {name}" for i, name in enumerate(classes)]))
        tracker.log_text("config", terminal.format_config(schema.recorded(parts.settings.plain)))
    else:
        device.set_rng_state(earlier["rng"])
    if parts.settings.rest.tracking.diagnose:
        callbacks.append(Diagnostics(parts, logger.read_rows(folder), console.say))
    return [Tolerant(callback, parts.unsaved) for callback in callbacks]


def finish(
    parts: RunContext,
    folder: Path,
    status: str,
    tracker: Logger,
    saver: CheckpointManager,
    profile: profiler.Profile | None,
) -> dict[str, Any]:
    """Test the best weights, draw, export, and write result.json last."""
    tracker.begin_end()
    sha256 = checkpoint.weights_sha256(parts.model)
    rows = tracker.rows
    metrics = {k: v for k, v in (rows[-1] if rows else {}).items() if k.startswith(("train/", "val/"))}
    measured, stopped = results.measure(parts), contextlib.nullcontext if profile is None else profile.time_phase
    if status != "interrupted":
        with stopped("evaluation"):
            metrics |= evaluate_best_weights(parts, saver.best_weights(parts.training))
        if parts.settings.rest.checkpoint.format == "full":
            with parts.unsaved.attempt("model.pt", again=False):
                measured |= export(parts, saver)
        parts.notes += results.diagnose(parts, rows, metrics)
        if parts.settings.rest.figures:
            with parts.unsaved.attempt("figures", again=False), stopped("figures"):
                figures.draw_all(parts, folder, tracker)
            parts.notes += fonts.note()
        parts.notes += results.log_end(parts, metrics, tracker)
    result = results.collect_result(parts, status, metrics, sha256, error=None) | {"measured": measured}
    result["expected"] = results.check_expectations(parts, result, folder) if status != "interrupted" else []
    if parts.settings.rest.figures and status != "interrupted":
        with parts.unsaved.attempt("report.html", again=False):
            html.write_report(parts, folder, result, rows)
    with parts.unsaved.attempt(RESULT, again=False):
        run_folder.write_json(folder / RESULT, result)
    return result


def evaluate_best_weights(parts: RunContext, best: dict[str, Any] | None) -> dict[str, float]:
    """The best weights taken over by all processes, if there are such, and their metrics on the test split."""
    best = parts.runtime.ranks.share(best)
    if best is not None:
        parts.training.use_weights(best)
    return {} if parts.test is None else evaluate_split(parts.training, parts.test, "test")


def export(parts: RunContext, saver: CheckpointManager) -> dict[str, float]:
    """Write model.pt and open it and best.pt, if that is saved, again; how far their outputs are apart."""
    files = (saver.folder / "model.pt", saver.folder / "best.pt")
    checkpoint.export_full_model(parts.model, files[0])
    if saver.best is not None or not files[1].exists():
        return {}
    inputs, _ = evaluation.small_batch(parts.training.train)
    difference = checkpoint.reload_difference(*files, parts.model, inputs, parts.runtime.autocast)
    parts.notes.append(f"model.pt and best.pt, opened again, give outputs {difference:g} apart")
    return {"reload_difference": difference}


def record_failure(error: Exception | SystemExit, parts: RunContext, folder: Path, console: Console) -> DlrunError:
    """Leave result.json and the traceback behind; returns the sentence to raise."""
    if not console.is_logged:
        console.open_log(folder / "run.log", parts.unsaved)
    console.log_only("".join(traceback.format_exception(error)))
    said = explain_failure(error, parts, folder / "run.log")
    said = parts.runtime.ranks.blame(error, said)
    result = results.collect_result(parts, "failed", {}, checkpoint.weights_sha256(parts.model), error=said)
    with parts.unsaved.attempt(RESULT, again=False):
        run_folder.write_json(folder / RESULT, result)
    console.close()
    return RunError(f"the run {folder} failed: {said}")


def explain_failure(error: BaseException, parts: RunContext, log: Path | None = None) -> str:
    """What is said of an error that ends a run; log: where its traceback is."""
    said = str(error).strip() or "no message"
    death = workers.explain_death(error)
    if death is not None:
        return f"{death} (traceback in {log})" if log else str(death)
    if ran_out(error):
        sentence = memory.explain_out_of_memory(parts.settings, str(parts.runtime.device))
        return f"{sentence} (traceback in {log})" if log else sentence
    if isinstance(error, DlrunError):
        return said
    said = user_code.explain(error) or f"{type(error).__name__}: {said.splitlines()[0]}"
    return f"{said} (traceback in {log}; -v shows it here)" if log else f"{said} (-v shows the traceback)"
