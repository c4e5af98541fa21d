"""result.json: metrics of a run beside those of the trivial answer, and what else was measured."""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra.utils
import torch

from dlrun.config import schema
from dlrun.data.datasets import Part, count_rows
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.windows import SeriesPreprocessing, forecast_naively, is_series, name_naive_forecast
from dlrun.engine import evaluation, trainer
from dlrun.engine.objective import Objective
from dlrun.experiment import probes
from dlrun.experiment.callbacks import diagnostics
from dlrun.experiment.context import RunContext
from dlrun.experiment.final_outputs import FinalOutputs
from dlrun.runs import expectations, logger
from dlrun.runs.expectations import Value
from dlrun.runs.logger import RunLogger
from dlrun.runs.record import RunRecord
from dlrun.runs.reports.console import format_number

# Windows that are read one by one for the trivial forecast.
_MOST_WINDOWS = 5_000


def compute_baseline(objective: Objective, splits: Splits) -> dict[str, float]:
    """Metrics of the trivial answer, the training split's mean or majority class, on every split.

    For series the naive forecast, which repeats the end of the window. Empty where a dataset of the user's own has no
    `targets`.
    """
    if is_series(splits.spec) and not splits.spec.reconstructs:
        return _score_naive_forecasts(objective, splits)
    train = get_valid_targets(splits.train, splits.spec)
    metrics: dict[str, float] = {}
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        targets = get_valid_targets(part, splits.spec)
        if train is not None and targets is not None:
            metrics |= {f"{name}/{key}": value for key, value in objective.compute_baseline(train, targets).items()}
    return metrics


def _score_naive_forecasts(objective: Objective, splits: Splits) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if part is not None:
            scores = score_naive_forecast(objective, part, splits.spec)
            metrics |= {f"{name}/{key}": value for key, value in scores.items()}
    return metrics


def score_naive_forecast(objective: Objective, part: Part, spec: DataSpec) -> dict[str, float]:
    """Metrics of the trivial forecast on the windows of a part; of one that is not in memory, on some of them."""
    if isinstance(part, Split):
        x = part.inputs[0]
        targets = part.targets
    else:
        count = count_rows(part)
        rows = torch.linspace(0, count - 1, min(count, _MOST_WINDOWS)).long().tolist()
        windows: Any = part
        pairs = [windows[row] for row in rows]
        inputs_of_rows, targets_of_rows = zip(*pairs, strict=True)
        x = torch.stack(list(map(torch.as_tensor, inputs_of_rows)))
        targets = torch.stack(list(map(torch.as_tensor, targets_of_rows)))

    return objective.score_outputs(objective.scale_values(forecast_naively(spec, x)), targets.double())


def compare_naive_forecasts(context: RunContext, metrics: Mapping[str, float]) -> str:
    """The mean absolute error of the last value, of a usual season ago and of the net on the same windows; one line.

    "" for other data than series, and for a run without metrics.
    """
    splits = context.splits
    parts = {"test": splits.test, "val": splits.val, "train": splits.train}
    name = next((name for name, part in parts.items() if part is not None and f"{name}/mae" in metrics), None)
    if not is_series(splits.spec) or splits.spec.reconstructs or name is None:
        return ""
    part = parts[name]
    assert part is not None
    fitted = SeriesPreprocessing.from_plain(splits.spec.preprocessing)
    texts = []
    for season in sorted({1, fitted.season, fitted.steps.season}):
        if season > fitted.window:
            continue
        spec = dataclasses.replace(splits.spec, preprocessing=dataclasses.replace(fitted, season=season).to_plain())
        mae = score_naive_forecast(context.objective, part, spec)["mae"]
        texts.append(f"the {name_naive_forecast(spec)} gets {format_number(mae)}")
    net_error = format_number(metrics[f"{name}/mae"])
    return f"mean absolute error on the {name} windows: {', '.join(texts)}, and this net {net_error}"


def collect_result(
    context: RunContext,
    folder: Path,
    status: str,
    metrics: dict[str, float],
    weights_sha256: str,
    error: str | None,
) -> dict[str, Any]:
    """The content of result.json, with no measurements and no expectations yet."""
    progress = context.state.progress
    seconds = progress.train_seconds
    baseline = context.baseline
    if metrics:
        baseline = {key: value for key, value in baseline.items() if key in metrics}
    return {
        "name": context.settings.run.name,
        # Written at the start of the run, so that a resumed run has it too.
        "parent": RunRecord(folder).environment.get("parent"),
        "status": status,
        "metrics": metrics,
        "baseline": dict(baseline),
        "best": {
            "metric": context.state.monitor,
            "value": progress.best_value,
            "epoch": progress.best_epoch,
        },
        "epochs": progress.epoch,
        "steps": progress.step,
        "train_seconds": seconds,
        "compile_seconds": context.state.compile_seconds,
        "samples_per_second": progress.samples / seconds if seconds else None,
        "parameters": sum(p.numel() for p in context.state.model.parameters()),
        "config_hash": schema.hash_config(context.settings.plain),
        "code_hash": _compute_code_hash(context),
        "weights_sha256": weights_sha256,
        "warnings": context.notes,
        "error": error,
        "measured": {},
        "expected": [],
    }


def measure(context: RunContext) -> dict[str, Value]:
    """Measure what `expect` can name besides the metrics, with the weights of the last step, not the best ones.

    Parameters of a small model by name, answers to `probes`, the first loss, the evaluations of a search, and
    metrics of the training split as final/<metric>, if an expectation names one.
    """
    state = context.state
    expected = context.settings.expect
    parameters = state.get_parameter_values()
    values: dict[str, Value] = {name.removeprefix("parameter/"): value for name, value in parameters.items()}

    answers = probes.predict_probes(context.settings.probes, state, context.runtime)
    values |= {f"answer({name})": answer for name, answer in answers.items()}
    if state.progress.first_loss is not None:
        values["first_loss"] = state.progress.first_loss
    evaluations = getattr(state.optimizer, "evaluations", None)
    if evaluations is not None:
        values["evaluations"] = evaluations

    # This costs a pass over the training split.
    if any("final/" in line for line in expected):
        final = trainer.evaluate(context.state.model, state.train, context.objective, context.runtime.autocast)
        values |= {f"final/{key}": value for key, value in final.items()}
    return values


def check_expectations(context: RunContext, result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Check what the config expects of the run."""
    if not context.settings.expect:
        return []
    values = expectations.collect_values("", result, logger.read_rows(folder))
    checked = expectations.check(context.settings.expect, [values])
    return [dataclasses.asdict(line) for line in checked]


def diagnose(
    context: RunContext, rows: list[dict[str, float]], metrics: dict[str, float], outputs: FinalOutputs
) -> list[str]:
    """Notes on a search by the optimizer, and on learning trouble that was not noted during training."""
    state = context.state
    # An optimizer that searches has a summary of what it tried.
    summary = getattr(state.optimizer, "summary", None)
    notes = [summary()] if summary else []
    if not context.settings.tracking.diagnose:
        return notes

    troubles = state.progress.troubles
    if state.scaler.is_enabled() and "overflowing" not in troubles:
        scale = state.scaler.get_scale()
        overflowing = diagnostics.find_overflow(scale, state.progress.step, at_end=True)
        troubles.update(overflowing)
        notes += overflowing.values()

    # The same rows that figures show.
    final = outputs.get()
    predicted = context.objective.predict(final.outputs)
    lr = context.settings.hyperparameters.get("optimizer.lr")
    new_troubles = diagnostics.diagnose_run(
        rows, final.split, predicted, final.targets, context.splits.spec, lr, metrics, context.baseline, troubles
    )
    # Where a reason is known why it learns slowly, that is what to mend; early stopping saw the fall end.
    if not {*troubles, *new_troubles} and len(rows) == state.stop_rules.epochs:
        new_troubles |= diagnostics.find_unfinished_fall(rows, context.baseline)
    return notes + list(new_troubles.values())


def _compute_code_hash(context: RunContext) -> str:
    """sha256 of the source files that define the model and the data."""
    digest = hashlib.sha256()
    data = hydra.utils.get_object(str(context.settings.data.target))
    for definition in (type(context.state.model), data):
        try:
            digest.update(Path(inspect.getfile(definition)).read_bytes())
        except (TypeError, OSError):
            # Typed at a prompt, or compiled: the name is all there is.
            digest.update(f"{definition.__module__}.{definition.__qualname__}".encode())

    return digest.hexdigest()


def log_end(context: RunContext, metrics: dict[str, float], run_logger: RunLogger) -> list[str]:
    """Log test metrics, hyperparameters and the graph to TensorBoard; returns notes on what did not work."""
    settings = context.settings
    step = context.state.progress.step
    run_logger.log_step(step, {key: value for key, value in metrics.items() if key.startswith("test/")})
    run_logger.log_hparams(settings.hyperparameters, metrics, step)
    return log_graph(context, run_logger)


def log_graph(context: RunContext, run_logger: RunLogger) -> list[str]:
    """Log the graph to TensorBoard, if the settings ask for it; returns a note if that did not work."""
    if not context.settings.tracking.graph:
        return []

    inputs, _ = evaluation.take_small_batch(context.state.train)
    reason = run_logger.log_graph(context.state.model, inputs)
    return [f"TensorBoard shows no graph: {reason}"] if reason else []
