"""result.json: what a run came to, next to the trivial answer."""

import hashlib
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra.utils

from dlrun.config import schema
from dlrun.core.yaml import flatten
from dlrun.data.inspection import get_valid_targets
from dlrun.data.spec import Splits
from dlrun.engine import evaluation, trainer
from dlrun.engine.objective import Objective
from dlrun.experiment import probes
from dlrun.experiment.callbacks import diagnostics
from dlrun.experiment.context import RunContext
from dlrun.runs import expectations, logger
from dlrun.runs.expectations import Value
from dlrun.runs.logger import Logger


def compute_baseline(task: Objective, splits: Splits) -> dict[str, float]:
    """Every split's metrics for the mean or the majority class of the training split.

    Empty where a dataset of the user's own has no `targets`.
    """
    train = get_valid_targets(splits.train, splits.spec)
    found: dict[str, float] = {}
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        targets = get_valid_targets(part, splits.spec)
        if train is not None and targets is not None:
            found |= {f"{name}/{k}": v for k, v in task.baseline(train, targets).items()}
    return found


def collect_result(
    parts: RunContext, status: str, metrics: dict[str, float], weights_sha256: str, error: str | None
) -> dict[str, Any]:
    """What result.json holds."""
    progress = parts.training.progress
    seconds = progress.train_seconds
    return {
        "status": status,
        "metrics": metrics,
        "baseline": {k: v for k, v in parts.baseline.items() if not metrics or k in metrics},
        "best": {
            "metric": parts.training.monitor,
            "value": progress.best_value,
            "epoch": progress.best_epoch,
        },
        "epochs": progress.epoch,
        "steps": progress.step,
        "train_seconds": seconds,
        "compile_seconds": parts.compile_seconds,
        "samples_per_second": progress.samples / seconds if seconds else None,
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "config_hash": schema.config_hash(parts.settings.plain),
        "code_hash": compute_code_hash(parts),
        "weights_sha256": weights_sha256,
        "warnings": parts.notes,
        "error": error,
        "measured": {},  # what `expect` can name besides, and what came of it
        "expected": [],
    }


def measure(parts: RunContext) -> dict[str, Value]:
    """What `expect` can name besides the metrics, with the weights of the last step, not the best ones.

    Each number of a small model, the answers to `probes`, the first loss, the evaluations that a search made,
    and the training split's metrics with these weights as final/<metric>, if an expectation names one.
    """
    training = parts.training
    values: dict[str, Value] = {k.removeprefix("parameter/"): v for k, v in training.parameter_values().items()}
    answers = probes.predict_probes(parts, parts.settings.rest.probes)
    values |= {f"answer({name})": answer for name, answer in answers.items()}
    if training.progress.first_loss is not None:
        values["first_loss"] = training.progress.first_loss
    evaluations = getattr(training.optimizer, "evaluations", None)
    if evaluations is not None:
        values["evaluations"] = evaluations
    if any("final/" in line for line in parts.settings.rest.expect):
        final = trainer.evaluate(parts.model, training.train, parts.task, parts.runtime.autocast)
        values |= {f"final/{k}": v for k, v in final.items()}
    return values


def check_expectations(parts: RunContext, result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The expectations of a run that stands alone, as result.json keeps them."""
    if not parts.is_alone:
        return []
    outcome = expectations.outcome_of("", result, logger.read_rows(folder))
    return [asdict(line) for line in expectations.check(parts.settings.rest.expect, [outcome])]


def diagnose(parts: RunContext, rows: list[dict[str, float]], metrics: dict[str, float]) -> list[str]:
    """What a search did, and what went wrong in learning that was not said before: see diagnostics.py."""
    summary = getattr(parts.training.optimizer, "summary", None)
    notes = [summary()] if summary else []
    if not parts.settings.rest.tracking.diagnose:
        return notes
    scaler, progress = parts.training.scaler, parts.training.progress
    if scaler.is_enabled() and "overflowing" not in progress.troubles:
        overflowing = diagnostics.find_overflow(scaler.get_scale(), progress.step, at_end=True)
        progress.troubles.update(overflowing)
        notes += overflowing.values()
    split, batches = evaluation.shown_split(parts.training, parts.test)
    _, answers, targets = evaluation.outputs_of(parts.model, batches, parts.runtime.autocast)
    lr = float(parts.settings.optimizer.arguments.get("lr") or 0.0)
    predicted, said = parts.task.predictions(answers), parts.training.progress.troubles
    spec, trivial = parts.splits.spec, parts.baseline
    found = diagnostics.diagnose_run(rows, split, predicted, targets, spec, lr, metrics, trivial, said)
    return notes + list(found.values())


def compute_code_hash(parts: RunContext) -> str:
    """sha256 of the source files that define the model and the data."""
    digest = hashlib.sha256()
    for found in (type(parts.model), hydra.utils.get_object(str(parts.settings.data.target))):
        try:
            digest.update(Path(inspect.getfile(found)).read_bytes())
        except (TypeError, OSError):  # written at a prompt, or compiled: its name is all there is
            digest.update(f"{found.__module__}.{found.__qualname__}".encode())
    return digest.hexdigest()


def log_end(parts: RunContext, metrics: dict[str, float], tracker: Logger) -> list[str]:
    """The last entries in TensorBoard: test metrics, hyperparameters, the graph; returns what did not work."""
    step = parts.training.progress.step
    tracker.log_step(step, {k: v for k, v in metrics.items() if k.startswith("test/")})
    wanted = ("seed", "data", "model", "optimizer", "scheduler", "task", "trainer")
    settings = flatten({k: parts.settings.plain[k] for k in wanted})
    choices = {k: getattr(parts.settings, k).choice for k in ("data", "model", "optimizer", "scheduler")}
    shown = {k: v for k, v in settings.items() if not k.endswith("_target_") and v is not None}
    tracker.log_hparams(choices | shown, metrics, step)
    if parts.settings.rest.tracking.graph:
        why = tracker.log_graph(parts.model, evaluation.small_batch(parts.training.train)[0])
        return [f"TensorBoard shows no graph: {why}"] if why else []
    return []
