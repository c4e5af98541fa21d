"""result.json: what a run came to, next to the trivial answer."""

import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra.utils

from dlrun import build, config, preflight
from dlrun.data.spec import Splits
from dlrun.task import Task
from dlrun.tracking import FileTracker, flatten

if TYPE_CHECKING:
    from dlrun.experiment import Parts


def baseline(task: Task, splits: Splits) -> dict[str, float]:
    """Every split's metrics for the mean or the majority class of the training split.

    Empty where a dataset of the user's own has no `targets`.
    """
    train = build.targets_of(splits.train)
    found: dict[str, float] = {}
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        targets = build.targets_of(part)
        if train is not None and targets is not None:
            found |= {f"{name}/{k}": v for k, v in task.baseline(train, targets).items()}
    return found


def collect(
    parts: "Parts", status: str, metrics: dict[str, float], weights_sha256: str, error: str | None
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
        "samples_per_second": progress.samples / seconds if seconds else None,
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "config_hash": config.config_hash(parts.settings.plain),
        "code_hash": code_hash(parts),
        "weights_sha256": weights_sha256,
        "warnings": parts.notes,
        "error": error,
    }


def code_hash(parts: "Parts") -> str:
    """sha256 of the source files that define the model and the data."""
    digest = hashlib.sha256()
    for found in (type(parts.model), hydra.utils.get_object(str(parts.settings.data.target))):
        try:
            digest.update(Path(inspect.getfile(found)).read_bytes())
        except (TypeError, OSError):  # written at a prompt, or compiled: its name is all there is
            digest.update(f"{found.__module__}.{found.__qualname__}".encode())
    return digest.hexdigest()


def record_end(parts: "Parts", metrics: dict[str, float], tracker: FileTracker) -> list[str]:
    """The last entries in TensorBoard: test metrics, hyperparameters, the graph; returns what did not work."""
    step = parts.training.progress.step
    tracker.log_step(step, {k: v for k, v in metrics.items() if k.startswith("test/")})
    wanted = ("seed", "data", "model", "optimizer", "scheduler", "task", "trainer")
    settings = flatten({k: parts.settings.plain[k] for k in wanted})
    choices = {k: getattr(parts.settings, k).choice for k in ("data", "model", "optimizer", "scheduler")}
    shown = {k: v for k, v in settings.items() if not k.endswith("_target_") and v is not None}
    tracker.log_hparams(choices | shown, metrics, step)
    if parts.settings.rest.tracking.graph:
        why = tracker.log_graph(parts.model, preflight.small_batch(parts.training.train)[0])
        return [f"TensorBoard shows no graph: {why}"] if why else []
    return []
