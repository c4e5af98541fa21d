"""One run from start to end; reads like a table of contents."""

import traceback
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dlrun import (
    build,
    checkpoint,
    conclusion,
    config,
    expectations,
    figures,
    loop,
    preflight,
    probes,
    report,
    results,
    run_folder,
    runtime,
    saved,
    tracking,
)
from dlrun.config import Settings
from dlrun.console import Console
from dlrun.data.batches import Batches
from dlrun.data.spec import Splits
from dlrun.errors import DlrunError, RunError
from dlrun.plots import evolution
from dlrun.probes import Answer
from dlrun.request import Request
from dlrun.runtime import Runtime
from dlrun.task import Task
from dlrun.tracking import FileTracker
from dlrun.training import Training


@dataclass
class Parts:
    """What one run is made of: built and checked before anything is written."""

    settings: Settings
    runtime: Runtime
    splits: Splits
    task: Task
    model: nn.Module
    training: Training
    test: Batches | None
    layers: list[preflight.Layer]
    baseline: dict[str, float]  # the trivial answer's metrics, by split
    notes: list[str]  # what the user should know
    start_parameters: dict[str, float] = field(default_factory=dict)  # of a model small enough to watch them move
    first_answers: dict[str, Answer] = field(default_factory=dict)  # to `probes`, before training
    alone: bool = True  # not one of several runs whose expectations are checked together


def run(request: Request) -> int:
    """Train what is asked for; returns the exit code. A DlrunError says what was wrong, or what failed."""
    settings = config.read(request.config, request.choices)
    console = Console()
    with runtime.session(settings.rest.device, settings.rest.seed) as process:
        parts = prepare(settings, process, request.trusted_modules)
        parts.alone = request.group is None
        earlier = saved.newest_state(request.folder) if request.going_on and request.folder else None
        folder = open_folder(request, parts, earlier)
        console.open_log(folder / "run.log")
        report.opening(console, parts, folder, request.overrides if request.sweep else ())
        said = len(parts.notes)
        saver = make_saver(folder, parts, request, earlier)
        purge_step = earlier["step"] + 1 if earlier else None
        with tracking.tracked(folder, purge_step) as tracker, runtime.interruptible() as stop:
            try:
                start(parts, folder, tracker, earlier)
                with console.following(parts.training):
                    status = loop.fit(parts.training, tracker, console, saver, stop)
                result = finish(parts, folder, status, tracker, saver)
            except Exception as error:
                raise failure(error, parts, folder, console) from error
        report.closing(console, parts, folder, result, parts.notes[said:])
        console.close()
    if status == "interrupted":
        return 128 + stop.signal_number
    return int(settings.rest.strict and not all(line["ok"] for line in result["expected"]))


def prepare(settings: Settings, process: Runtime, trusted_modules: list[str] | None) -> Parts:
    """Build everything and send one small batch through; a RequestError names what does not fit."""
    splits = build.data(settings, trusted_modules)
    task = build.task(settings, splits.spec)
    runtime.seed_everything(settings.rest.seed)  # the weights depend on the seed, not on how the data was read
    model = build.model(settings, splits.spec, process, trusted_modules)
    notes = [*splits.notes, *remark(model)]
    if settings.rest.tracking.evolution_every_epochs:
        evolution.kind_of(splits.spec)
    if settings.rest.init_from:
        notes += saved.take_weights(model, Path(settings.rest.init_from))
    if settings.rest.checkpoint.format == "full":
        notes += preflight.check_export(model)
    train, val, test = build.batches(settings, splits, model, process)
    assert train is not None
    keys = settings.rest.checkpoint
    monitor, mode = preflight.monitored(keys.monitor, keys.mode, task, val is not None)
    optimizer = build.optimizer(settings, model, trusted_modules)
    training = Training(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=build.schedule(settings, optimizer, train, mode, trusted_modules),
        scaler=process.scaler(),
        train=train,
        val=val,
        limits=build.limits(settings),
        monitor=monitor,
        mode=mode,
        autocast=process.autocast,
        synchronize=runtime.synchronizer(process.device),
    )
    layers = preflight.layers(model, preflight.small_batch(train), task, process.autocast)
    preflight.check_disk(Path(settings.rest.paths.outputs), model, keys.keep)
    baseline = results.baseline(task, splits)
    for line in settings.rest.expect:
        expectations.parse(line)
    parts = Parts(settings, process, splits, task, model, training, test, layers, baseline, notes)
    parts.start_parameters = training.parameter_values()
    parts.first_answers = probes.ask(parts, settings.rest.probes)
    return parts


def remark(model: nn.Module) -> list[str]:
    """What a model class says of itself that its user should know."""
    note: Any = getattr(model, "note", None)
    return [note] if isinstance(note, str) else []


def open_folder(request: Request, parts: Parts, earlier: dict[str, Any] | None) -> Path:
    """The run's folder: the earlier one with its rows cut back, the one asked for, or a new one."""
    if earlier is not None and request.folder is not None:
        tracking.cut_back(request.folder, earlier["step"])
        return request.folder
    if request.folder is not None:
        folder = run_folder.claim(request.folder)
    else:
        names = f"{request.choices.get('model', 'model')}_{request.choices.get('data', 'data')}"
        folder = run_folder.create(Path(parts.settings.rest.paths.outputs), names)
    run_folder.describe(folder, request, parts.runtime)
    return folder


def make_saver(folder: Path, parts: Parts, request: Request, earlier: dict[str, Any] | None) -> checkpoint.Saver:
    """What writes this run's checkpoints, each with all that is needed to load it alone."""
    identity = {
        "run_id": earlier["run_id"] if earlier else uuid.uuid4().hex,
        "config": parts.settings.plain,
        "choices": request.choices,
        "spec": parts.splits.spec.to_dict(),
    }
    keys = parts.settings.rest.checkpoint
    return checkpoint.Saver(folder / "checkpoints", identity, keys.every_epochs, keys.every_steps, keys.keep)


def start(parts: Parts, folder: Path, tracker: FileTracker, earlier: dict[str, Any] | None) -> None:
    """Go on exactly where an earlier process stood, or note down what begins."""
    every_epochs = parts.settings.rest.tracking.evolution_every_epochs
    if every_epochs or parts.splits.spec.task == "tagging":
        tracker.each_epoch.append(evolution.Evolution(parts, folder, every_epochs or 1))
    if parts.settings.rest.tracking.weight_histograms:
        tracker.each_epoch.append(lambda t, row: t.log_histograms(parts.model, int(row["step"])))
    if earlier is None:
        tracker.log_text("config", report.config_as_markdown(parts.settings.plain))
        return
    parts.training.load_state_dict(earlier, parts.runtime.device)
    runtime.set_rng_state(earlier["rng"])


def finish(parts: Parts, folder: Path, status: str, tracker: FileTracker, saver: checkpoint.Saver) -> dict[str, Any]:
    """Test the best weights, draw, export, and write result.json last."""
    tracker.begin_end()
    sha256 = checkpoint.weights_sha256(parts.model)
    rows = tracking.read_rows(folder)
    metrics = {k: v for k, v in (rows[-1] if rows else {}).items() if k.startswith(("train/", "val/"))}
    measured = results.measure(parts)
    if status != "interrupted":
        best = folder / "checkpoints" / "best.pt"
        if best.exists():
            parts.model.load_state_dict(checkpoint.load(best)["model"])
        if parts.test is not None:
            tested = loop.evaluate(parts.model, parts.test, parts.task, parts.runtime.autocast)
            metrics |= {f"test/{k}": v for k, v in tested.items()}
        if parts.settings.rest.checkpoint.format == "full":
            measured["reload_difference"] = export(parts, folder / "checkpoints")
        parts.notes += results.diagnose(parts, rows, metrics)
        if parts.settings.rest.figures:
            figures.draw_all(parts, folder, tracker)
        parts.notes += results.record_end(parts, metrics, tracker)
    result = results.collect(parts, status, metrics, sha256, error=None) | {"measured": measured}
    result["expected"] = conclusion.of_one(parts, result, folder) if status != "interrupted" else []
    run_folder.write_json(folder / "result.json", result)
    return result


def export(parts: Parts, checkpoints: Path) -> float:
    """Write model.pt and open both files again; returns how far their outputs are apart."""
    checkpoint.export_full_model(parts.model, checkpoints / "model.pt")
    inputs, _ = preflight.small_batch(parts.training.train)
    files = (checkpoints / "model.pt", checkpoints / "best.pt")
    difference = checkpoint.reload_difference(*files, parts.model, inputs, parts.runtime.autocast)
    parts.notes.append(f"model.pt and best.pt, opened again, give outputs {difference:g} apart")
    return difference


def failure(error: Exception, parts: Parts, folder: Path, console: Console) -> DlrunError:
    """Leave result.json and the traceback behind; returns the sentence to raise."""
    console.log_only("".join(traceback.format_exception(error)))
    said = str(error).strip() or "no message"
    if not isinstance(error, DlrunError):
        said = f"{type(error).__name__}: {said.splitlines()[0]} (traceback in {folder / 'run.log'}; -v shows it here)"
    result = results.collect(parts, "failed", {}, checkpoint.weights_sha256(parts.model), error=said)
    run_folder.write_json(folder / "result.json", result)
    console.close()
    return RunError(f"the run {folder} failed: {said}")
