"""The end of a run: its best weights evaluated, exported and drawn, and result.json, which is written last."""

import contextlib
from typing import Any

from dlrun.core.files import write_json
from dlrun.core.own_code import is_ours
from dlrun.engine import evaluation
from dlrun.engine.metric_names import select_metrics
from dlrun.engine.trainer import evaluate_split
from dlrun.experiment import results, simple_models
from dlrun.experiment.callbacks.profiler import Profiler
from dlrun.experiment.context import RunContext
from dlrun.experiment.final_outputs import FinalOutputs, SplitOutputs, make_recorder
from dlrun.experiment.recording import Recording
from dlrun.experiment.reports import figures, html
from dlrun.runs import checkpoint
from dlrun.runs.checkpoint_manager import CheckpointManager
from dlrun.runs.record import CUT_SHORT, RESULT
from dlrun.runs.reports.plots import fonts


def finish(
    recording: Recording,
    status: str,
    profiler: Profiler | None = None,
    stack_size: int | None = None,
    best_weights: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate the best weights on the test split, export, draw, and write result.json last; returns its content.

    stack_size: number of runs in the stack that this one trained in. best_weights: the content of best.pt, if it is in
    memory.
    """
    context = recording.context
    folder = recording.folder
    run_logger = recording.run_logger
    checkpoints = recording.checkpoints
    disk_problems = recording.disk_problems
    # From here on events go into a file of their own, which a resumed run drops.
    run_logger.start_final_events()
    # Hash and measure the weights of the last step, before the best ones replace them.
    weights_sha256 = checkpoint.hash_weights(context.state.model)
    rows = run_logger.rows
    last_row = rows[-1] if rows else {}
    metrics = select_metrics(last_row)
    measured = results.measure(context)
    time_as = contextlib.nullcontext if profiler is None else profiler.time_phase
    is_complete = status not in CUT_SHORT
    has_figures = bool(context.settings.figures) and is_complete
    scores: simple_models.Scores = {}

    if is_complete:
        with time_as("evaluation"):
            best = None
            if not _has_best_weights(context, checkpoints):
                best = best_weights or checkpoints.load_best_weights(context.state)
            test_metrics, test_outputs = evaluate_best_weights(context, best)
            metrics |= test_metrics
        outputs = FinalOutputs(context, test_outputs)

        if context.settings.checkpoint.format == "full":
            with disk_problems.tolerate("model.pt", again=False):
                measured |= _export_model(context, checkpoints)
        context.notes.extend(results.diagnose(context, rows, metrics, outputs))
        if context.settings.tracking.simple_models:
            scores, notes = simple_models.compare(context, metrics)
            context.notes.extend(notes)

        if has_figures:
            with disk_problems.tolerate("figures", again=False), time_as("figures"):
                figures.draw_all(context, folder, run_logger, outputs)
            context.notes.extend(fonts.describe_missing_letters())
        context.notes.extend(results.log_end(context, metrics, run_logger))

    run_logger.status = status
    context.notes.extend(run_logger.settle())
    result = results.collect_result(context, folder, status, metrics, weights_sha256, error=None)
    result["measured"] = measured
    result["expected"] = []
    if stack_size is not None:
        result["stacked"] = stack_size
    if scores:
        result["simple_models"] = scores
    # The expectations of a group are checked over all of its runs.
    if is_complete and recording.request.group is None:
        result["expected"] = results.check_expectations(context, result, folder)

    if has_figures:
        with disk_problems.tolerate("report.html", again=False):
            html.write_report(context, folder, result, rows)
    with disk_problems.tolerate(RESULT, again=False):
        write_json(folder / RESULT, result)
    return result


def _has_best_weights(context: RunContext, checkpoints: CheckpointManager) -> bool:
    """Whether the model still has the weights of the best epoch, so that they need not be read from the disk."""
    # Ranks differ in their running statistics, and the user's own code may change weights at any time.
    is_simple = context.runtime.ranks.world_size == 1 and not context.callbacks
    is_last = checkpoints.best_step == context.state.progress.step
    return is_last and is_simple and is_ours(str(context.settings.model.target))


def evaluate_best_weights(
    context: RunContext, best: dict[str, Any] | None
) -> tuple[dict[str, float], SplitOutputs | None]:
    """Load the best weights on all ranks, if there are any; returns metrics and outputs on the test split.

    best: on rank 0 the weights, or None to evaluate those that the model has; ignored on the other ranks.
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


def _export_model(context: RunContext, checkpoints: CheckpointManager) -> dict[str, float]:
    """Write model.pt; returns how far its outputs, opened again, differ from those of best.pt if that is saved."""
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
