"""What one run is made of: built and checked before anything is written."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dlrun.config.schema import DeviceConfig, ModelKeys, OptimizerKeys, Settings
from dlrun.core import user_code
from dlrun.core.errors import DataError, RequestError
from dlrun.core.problems import ErrorList
from dlrun.data import workers
from dlrun.data.batches import Batch, Batches, EpochOrder, MemoryBatches, Placement
from dlrun.data.files import download
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.engine import device as runtime
from dlrun.engine import evaluation
from dlrun.engine import trainer as loop
from dlrun.engine.device import Runtime
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.objective import Objective
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.state import TrainState
from dlrun.experiment import probes, result
from dlrun.experiment.build import build, data_cache, transfer
from dlrun.experiment.callbacks import evolution
from dlrun.experiment.context import RunContext
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.preflight import checks, final_activation, memory
from dlrun.runs import expectations, plain

_ANYWHERE = Placement(torch.device("cpu"), torch.float32, DataSpec("vector", (1,), "regression", 1))


def enter_device_session(
    held: ExitStack,
    settings: Settings,
    problems: ErrorList,
    ranks: Distributed = SINGLE_PROCESS,
    batches_a_step: int = 1,
) -> Runtime:
    """The device asked for, until `held` ends; a CPU to check the rest on, when that is a problem."""
    seed, several = settings.rest.seed, (ranks, batches_a_step)
    process = problems.attempt(held.enter_context, runtime.session(settings.rest.device, seed, *several))
    return process or held.enter_context(runtime.session(DeviceConfig(name="cpu"), seed, *several))


def prepare(
    settings: Settings, process: Runtime, trusted_modules: list[str] | None, problems: ErrorList | None = None
) -> RunContext:
    """Build everything and send one small batch through; a RequestError lists all that does not fit.

    problems: what was found wrong before, to be listed too.
    """
    found = ErrorList() if problems is None else problems
    try:
        return _built(settings, process, trusted_modules, found)
    except Exception as error:  # code of the user's own, and memory that runs out anywhere
        death = workers.explain_death(error)
        if death is not None:
            raise death from error
        if runtime.ran_out(error):
            raise RequestError(memory.explain_out_of_memory(settings, str(process.device))) from error
        said = user_code.explain(error)
        if said is None:
            raise
        raise RequestError(said) from error


def _built(settings: Settings, process: Runtime, trusted_modules: list[str] | None, found: ErrorList) -> RunContext:
    attempt = found.attempt
    for line in settings.rest.expect:
        attempt(expectations.parse, line)
    splits = _data(settings, trusted_modules, found)
    task = attempt(build.build_objective, settings, splits.spec, trusted_modules) if splits else None
    runtime.seed_everything(settings.rest.seed)  # the weights depend on the seed, not on how the data was read
    model = attempt(build.build_model, settings, splits.spec, process, trusted_modules) if splits else None
    if splits is None or task is None or model is None:
        _try_the_rest(settings, splits, task, model, trusted_modules, found)
        found.settle()
    assert splits is not None
    assert task is not None
    assert model is not None
    notes = [*splits.notes, *find_model_notes(model), *_asked_of(settings, splits, model, found)]
    train, val, test = build.build_batches(settings, splits, model, process)
    assert train is not None
    training = _training(settings, process, task, model, train, val, trusted_modules, found)
    if not found.found:
        attempt(_refuse_unsaveable, settings, splits, training, trusted_modules)
    baseline = result.compute_baseline(task, splits)
    parts = RunContext(settings, process, splits, task, model, training, test, [], baseline, notes)
    parts.notes += find_limit_notes(training)
    parts.start_parameters = training.parameter_values()
    if settings.rest.preflight:
        attempt(_look, parts)
    if not found.found:  # a model that fails there has no answers
        parts.first_predictions = attempt(probes.predict_probes, parts, settings.rest.probes) or {}
    found.settle()
    return parts


def _data(settings: Settings, trusted_modules: list[str] | None, found: ErrorList) -> Splits | None:
    """The data; null when it cannot be had. Nothing is downloaded for a request that is wrong anyway."""
    with download.forbid_downloads() if found.found else contextlib.nullcontext():
        try:
            splits = found.attempt(
                data_cache.get_or_build, settings, lambda: build.build_data(settings, trusted_modules)
            )
        except download.DownloadForbiddenError:
            return None
    if splits is not None and splits.nothing_to_learn:
        found.add(DataError(splits.nothing_to_learn))
        return None
    return splits


def _asked_of(settings: Settings, splits: Splits, model: nn.Module, found: ErrorList) -> list[str]:
    """What was asked for besides, checked; returns notes."""
    rest, notes = settings.rest, []
    if rest.tracking.evolution_every_epochs:
        found.attempt(evolution.choose_kind, splits.spec)
    if rest.init_from:
        notes += found.attempt(transfer.take_weights, model, Path(rest.init_from)) or []
    if rest.checkpoint.format == "full":
        notes += found.attempt(checks.check_export, model) or []
    return notes


def _training(
    settings: Settings,
    process: Runtime,
    task: Objective,
    model: nn.Module,
    train: Batches,
    val: Batches | None,
    trusted_modules: list[str] | None,
    found: ErrorList,
) -> TrainState:
    """All that trains; with stand-ins for what could not be built, so that the rest is looked at too."""
    keys = settings.rest.checkpoint
    decay = settings.rest.trainer.ema_decay
    best = found.attempt(checks.resolve_monitor, keys.monitor, keys.mode, task, val is not None, decay is not None)
    monitor, mode = best or ("train/loss", "min")
    optimizer = found.attempt(build.build_optimizer, settings, model, trusted_modules) or _like([0.1])
    schedule = found.attempt(_schedule, settings, optimizer, train, mode, trusted_modules)
    return TrainState(
        model=model,
        task=task,
        optimizer=optimizer,
        schedule=schedule or Schedule(optimizer, None),
        scaler=process.scaler(),
        train=train,
        val=val,
        limits=build.build_stop_rules(settings, train),
        monitor=monitor,
        mode=mode,
        autocast=process.autocast,
        synchronize=runtime.synchronizer(process.device),
        average=None if decay is None else ExponentialMovingAverage(model, optimizer, decay),
    )


def _refuse_unsaveable(
    settings: Settings, splits: Splits, training: TrainState, trusted_modules: list[str] | None
) -> None:
    """RequestError for what the run would hold and no checkpoint can: it could not be gone on with."""
    states = training.state_dict() | {"spec": splits.spec.to_dict(), "config": settings.plain}
    states["optimizer after a step"] = _state_of_own_optimizer(settings, trusted_modules)
    for owner, state in states.items():
        refusal = plain.refusal(owner.split()[0], state)
        if refusal:
            raise RequestError(refusal)


def _state_of_own_optimizer(settings: Settings, trusted_modules: list[str] | None) -> Any:
    """What a user's own optimizer keeps after a step, tried on one number; None where it cannot be tried."""
    if str(settings.optimizer.target).startswith(("torch.optim.", "dlrun.")):
        return None
    generators = runtime.rng_state()
    try:
        model = nn.Linear(1, 1)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer: Any = build.build_optimizer(settings, model, trusted_modules)
        if loop.requires_closure(optimizer):
            optimizer.step(lambda: torch.zeros(()))
        else:
            optimizer.step()
        return optimizer.state_dict()
    except Exception:  # it may want a net of another kind; the first save says what this cannot
        return None
    finally:
        runtime.set_rng_state(generators)


def _schedule(
    settings: Settings, optimizer: Optimizer, train: Batches, mode: str, trusted_modules: list[str] | None
) -> Schedule:
    """The schedule; RequestError when it cannot make a step: torch divides by settings that it has not looked at."""
    rates = [group["lr"] for group in optimizer.param_groups]
    trial = build.build_schedule(settings, _like(rates), train, mode, trusted_modules).scheduler
    try:
        if trial is not None:
            trial.optimizer.step()
            advance: Callable[..., None] = trial.step
            advance(*([0.0] if isinstance(trial, ReduceLROnPlateau) else []))
    except Exception as error:  # schedulers divide by settings, and may be the user's own
        arguments = settings.scheduler.arguments
        zero = [key for key, value in arguments.items() if type(value) is int and value == 0]
        where = f"scheduler.{zero[0]}=0" if zero else f"scheduler={settings.scheduler.choice}"
        said = user_code.with_place(str(error), error)
        raise RequestError(f"{where} does not work: {said}; type another value, or scheduler=none") from error
    refusal = "" if trial is None else plain.refusal("scheduler", trial.state_dict())
    if refusal:
        raise RequestError(refusal)
    return build.build_schedule(settings, optimizer, train, mode, trusted_modules)


def _like(rates: list[float]) -> Optimizer:
    """An optimizer of one number a group, to try things on."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def _try_the_rest(
    settings: Settings,
    splits: Splits | None,
    task: Objective | None,
    model: nn.Module | None,
    trusted_modules: list[str] | None,
    found: ErrorList,
) -> None:
    """Note the mistakes that show without the data or the model that could not be had."""
    keys = settings.rest.checkpoint
    if model is None:
        found.attempt(build.check_block, settings.model, trusted_modules, ModelKeys, 1)
    if splits is not None and task is not None:
        found.attempt(checks.resolve_monitor, keys.monitor, keys.mode, task, splits.val is not None)
    found.attempt(build.check_block, settings.optimizer, trusted_modules, OptimizerKeys, 1)
    if model is not None or str(settings.optimizer.target).startswith("torch.optim."):  # ours know parameters by name
        tried = settings if model is not None else dataclasses.replace(settings, optimizer_keys=OptimizerKeys())
        found.attempt(build.build_optimizer, tried, model or nn.Linear(1, 1), trusted_modules)
    one_batch = MemoryBatches(Split((torch.zeros(1, 1),), torch.zeros(1)), EpochOrder(1, 1), _ANYWHERE)
    found.attempt(_schedule, settings, _like([0.1]), one_batch, "min", trusted_modules)


def _look(parts: RunContext) -> None:
    """Send two rows and batches of every size through, and see whether memory and disk will do."""
    settings, model, training = parts.settings, parts.model, parts.training
    keys = settings.rest.checkpoint
    first = next(training.train.epoch(1))
    batch = evaluation.head(first)
    parts.layers = checks.inspect_layers(model, batch, parts.task, training.autocast)
    _check_batch_sizes(parts, first)
    if comparison.is_needed(settings, model):
        parts.sample = comparison.take_sample(first, sum(layer.multiply_adds for layer in parts.layers))
    note = final_activation.find_redundant_layer(model, batch, parts.task, training.autocast)
    if note is not None:
        parts.notes.append(note)
        # The diagnostics need not report it again.
        training.progress.troubles[final_activation.TROUBLE] = note
    values = sum(layer.values for layer in parts.layers)
    parts.memory_estimate = memory.estimate_memory(model, checks.count_moments(training.optimizer), values, settings)
    parts.notes += memory.note_shortage(parts.memory_estimate, settings, parts.runtime.device)
    outputs = Path(settings.rest.paths.outputs)
    checks.check_disk(outputs, model, training.optimizer, keys.keep, keys.format == "full")


def _check_batch_sizes(parts: RunContext, first: Batch) -> None:
    """Send a batch of every size that an epoch holds through the model, as in training."""
    training, trainer = parts.training, parts.settings.rest.trainer
    order = training.train.order
    most_batches = None if trainer.max_steps is None else trainer.max_steps * trainer.accumulate_steps
    sizes = checks.list_batch_sizes(order, parts.runtime.ranks.count, most_batches)
    work = sum(layer.multiply_adds for layer in parts.layers)
    checks.check_batch_sizes(parts.model, first, parts.task, training.autocast, sizes, order, work)


def find_limit_notes(training: TrainState) -> list[str]:
    """A note where the epochs end the training before trainer.max_steps, or an epoch ends before a whole step."""
    limits = training.limits
    batches = len(training.train)
    notes = []
    steps = limits.epochs * math.ceil(batches / limits.accumulate_steps)
    if limits.max_steps is not None and limits.max_steps > steps:
        notes.append(
            f"trainer.epochs={limits.epochs} ends the training after {steps:,} steps, before "
            f"trainer.max_steps={limits.max_steps}; type trainer.epochs=null to make them all"
        )
    if limits.accumulate_steps > max(batches, 1):
        notes.append(
            f"trainer.accumulate_steps={limits.accumulate_steps}: an epoch has {batches:,} batches, so that a step is "
            "of no more than these"
        )
    return notes


def find_model_notes(model: nn.Module) -> list[str]:
    """What a model class says of itself that its user should know."""
    note: Any = getattr(model, "note", None)
    return [note] if isinstance(note, str) else []
