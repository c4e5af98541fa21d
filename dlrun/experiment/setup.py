"""Build what a run is made of, and check all of it before anything is written."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dlrun.config.request import Request
from dlrun.config.schema import DeviceConfig, OptimizerKeys, TrainerConfig
from dlrun.config.settings import Settings, read_settings
from dlrun.core import lock, user_code
from dlrun.core.errors import DataError, ErrorList, RequestError
from dlrun.core.own_code import is_ours
from dlrun.data import workers
from dlrun.data.augmentation import BatchMix
from dlrun.data.batches import Batch, Batches, EpochOrder, MemoryBatches, Placement, SplitBatches
from dlrun.data.files import download
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.engine import device, evaluation, plain
from dlrun.engine.device import Runtime
from dlrun.engine.distributed import SINGLE_PROCESS, Distributed
from dlrun.engine.objective import Objective
from dlrun.engine.optim import direct
from dlrun.engine.optim.ema import ExponentialMovingAverage
from dlrun.engine.optim.schedule import Schedule
from dlrun.engine.preserve import preserve_state, restore_attributes
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import requires_closure
from dlrun.experiment import probes, request_notes, results
from dlrun.experiment.builder import build, data_cache, objectives, transfer
from dlrun.experiment.builder.balance import find_balance_notes
from dlrun.experiment.builder.callbacks import build_callbacks
from dlrun.experiment.builder.loggers import build_loggers
from dlrun.experiment.callbacks import evolution
from dlrun.experiment.context import Answer, Preflight, RunContext, Start
from dlrun.experiment.hidden_state import comparison
from dlrun.experiment.preflight import checks, final_activation, memory
from dlrun.experiment.ranks import is_sharded, refuse_unshardable
from dlrun.models.pretrained import skip_trained_weights
from dlrun.runs import expectations
from dlrun.runs.loggers.base import Logger


def prepare_run(request: Request, stack: ExitStack, ranks: Distributed, folder_lock: lock.Lock) -> RunContext:
    """Build and check everything without writing anything; a RequestError lists all that is wrong."""
    problems = ErrorList()
    settings = read_settings(request.config, request.choices, problems).decide_pictures(request.sweep is None)
    if ranks.world_size > 1 and settings.device.num_threads == "auto":
        problems.add(RequestError("device.num_threads=auto times one process alone; type a number under torchrun"))

    # A run that began with several processes is resumed by one with as many batches a step.
    batches_per_step = request.processes or ranks.world_size
    runtime = enter_device_session(stack, settings, problems, ranks, batches_per_step)

    # Lock the folder before anything in it is read.
    if request.folder is not None and request.folder.is_dir() and not ranks.rank:
        folder_lock.take(request.folder)

    if request.continues:
        context = prepare_resumed(settings, runtime, request, problems)
    else:
        context = prepare(settings, runtime, request.trusted_modules, problems)

    request_notes.add_notes(context, request)
    return context


def prepare_resumed(settings: Settings, runtime: Runtime, request: Request, problems: ErrorList) -> RunContext:
    """Prepare a resumed run: its checkpoint holds the weights, so no file of initial weights is read."""
    arguments = settings.model.arguments
    has_trained_weights = arguments.get("weights") is not None or arguments.get("pretrained") is True
    began_elsewhere = settings.init_from is not None or has_trained_weights
    without_init = dataclasses.replace(settings, init_from=None)

    with skip_trained_weights():
        context = prepare(without_init, runtime, request.trusted_modules, problems)

    # The weights that gave the first predictions are not here.
    if began_elsewhere:
        context = dataclasses.replace(context, start=dataclasses.replace(context.start, predictions={}))
    return context


def enter_device_session(
    stack: ExitStack,
    settings: Settings,
    problems: ErrorList,
    ranks: Distributed = SINGLE_PROCESS,
    batches_per_step: int = 1,
) -> Runtime:
    """Open the requested device until `stack` closes.

    If that fails, `problems` gets the reason, and a CPU is opened to check everything else on.
    """
    seed = settings.seed
    session = device.device_session(settings.device, seed, ranks, batches_per_step)
    runtime = problems.collect(stack.enter_context, session)
    if runtime is not None:
        return runtime
    return stack.enter_context(device.device_session(DeviceConfig(name="cpu"), seed, ranks, batches_per_step))


def prepare(
    settings: Settings, runtime: Runtime, trusted_modules: list[str] | None, problems: ErrorList | None = None
) -> RunContext:
    """Build everything and send one small batch through the model; a RequestError lists all that does not fit.

    problems: errors found earlier, which are listed too.
    """
    problems = ErrorList() if problems is None else problems
    try:
        return _build_context(settings, runtime, trusted_modules, problems)
    except Exception as error:
        # The user's own code may raise anything, and memory may run out anywhere.
        death = workers.explain_death(error)
        if death is not None:
            raise death from error
        if device.is_out_of_memory(error):
            raise RequestError(memory.explain_out_of_memory(settings, str(runtime.device))) from error
        explanation = user_code.explain(error)
        if explanation is None:
            raise
        raise RequestError(explanation) from error


def _build_context(
    settings: Settings, runtime: Runtime, trusted_modules: list[str] | None, problems: ErrorList
) -> RunContext:
    # Expectations are checked after the training; an error in one of them shows now.
    for line in settings.expect:
        problems.collect(expectations.parse, line)

    objective: Objective | None = None
    model: nn.Module | None = None
    # Only the first process logs.
    loggers: dict[str, Logger] = {}
    if not runtime.ranks.rank:
        loggers = build_loggers(settings, trusted_modules, problems)

    splits = _build_splits(settings, trusted_modules, problems)
    if splits is not None:
        objective = problems.collect(_build_objective, settings, splits, runtime, trusted_modules)

    # The weights depend on the seed, not on how the data was read.
    device.seed_everything(settings.seed)
    if splits is not None:
        model = problems.collect(build.build_model, settings, splits.spec, runtime, trusted_modules)

    if splits is None or objective is None or model is None:
        _check_remaining(settings, splits, objective, model, trusted_modules, problems)
        problems.raise_if_any()
    assert splits is not None
    assert objective is not None
    assert model is not None

    notes = [
        *splits.notes,
        *_find_model_notes(model),
        *_find_freeze_notes(settings),
        *find_balance_notes(settings, splits),
        *_apply_options(settings, splits, model, problems),
    ]
    batches = build.build_batches(settings, splits, model, runtime)
    problems.collect(_check_mixing, splits.mixing, objective)
    state = _build_train_state(settings, runtime, objective, model, batches, splits.mixing, trusted_modules, problems)
    if is_sharded(settings, runtime.ranks.world_size):
        problems.collect(refuse_unshardable, settings, state)
    callbacks = problems.collect(build_callbacks, settings, trusted_modules) or {}
    state.callbacks = callbacks
    if not problems.errors:
        problems.collect(_refuse_unsaveable, settings, splits, state, trusted_modules)

    notes += _find_limit_notes(state)
    parameters = state.get_parameter_values()
    preflight: Preflight | None = None
    with _preserve_loss(objective):
        baseline = data_cache.get_or_compute_baseline(objective, splits, results.compute_baseline)
        if settings.preflight:
            preflight = problems.collect(_run_preflight, settings, runtime, state, notes)
    # A model that failed there predicts nothing.
    predictions: dict[str, Answer] | None = None
    if not problems.errors:
        predictions = problems.collect(probes.predict_probes, settings.probes, state, runtime)
    problems.raise_if_any()

    return RunContext(
        settings=settings,
        runtime=runtime,
        splits=splits,
        batches=batches,
        objective=objective,
        state=state,
        callbacks=callbacks,
        baseline=baseline,
        preflight=preflight or Preflight(),
        start=Start(parameters, predictions or {}),
        notes=notes,
        loggers=loggers,
    )


def _build_objective(
    settings: Settings, splits: Splits, runtime: Runtime, trusted_modules: list[str] | None
) -> Objective:
    weights = objectives.compute_class_weights(settings, splits.spec, splits.train)
    return objectives.build_objective(settings, splits.spec, runtime, trusted_modules, weights)


@contextlib.contextmanager
def _preserve_loss(objective: Objective) -> Iterator[None]:
    """Leave a loss that is a module as it was before the first step."""
    module = objective.loss_module
    if module is None:
        yield
        return
    with preserve_state(module), restore_attributes(module):
        yield


def _build_splits(settings: Settings, trusted_modules: list[str] | None, problems: ErrorList) -> Splits | None:
    """The data, or None with the reason in `problems`."""
    # Download nothing for a request that is wrong anyway.
    downloads = download.forbid_downloads() if problems.errors else contextlib.nullcontext()
    with downloads:
        try:
            splits = problems.collect(
                data_cache.get_or_build,
                settings,
                trusted_modules,
                lambda: build.build_data(settings, trusted_modules),
            )
        except download.DownloadForbiddenError:
            return None

    if splits is not None and splits.nothing_to_learn:
        problems.add(DataError(splits.nothing_to_learn))
        return None
    return splits


def _apply_options(settings: Settings, splits: Splits, model: nn.Module, problems: ErrorList) -> list[str]:
    """Check evolution pictures and the full export, and load the weights of init_from; returns notes."""
    notes: list[str] = []
    if settings.tracking.evolution_every_epochs:
        problems.collect(evolution.choose_kind, splits.spec)
    if settings.init_from:
        notes += _load_initial_weights(settings, model, problems)
    if settings.checkpoint.format == "full":
        notes += problems.collect(checks.check_export, model) or []
    return notes


def _load_initial_weights(settings: Settings, model: nn.Module, problems: ErrorList) -> list[str]:
    source = Path(str(settings.init_from))
    return problems.collect(transfer.load_matching_weights, model, source, settings.init_map or {}) or []


def _build_train_state(
    settings: Settings,
    runtime: Runtime,
    objective: Objective,
    model: nn.Module,
    batches: SplitBatches,
    mixing: BatchMix | None,
    trusted_modules: list[str] | None,
    problems: ErrorList,
) -> TrainState:
    """The state that trains, with stand-ins for what cannot be built, so that the rest is checked too."""
    train = batches.train
    val = batches.val
    keys = settings.checkpoint
    decay = settings.trainer.ema_decay
    monitored = problems.collect(
        checks.resolve_monitor,
        keys.monitor,
        keys.mode,
        objective,
        val is not None,
        decay is not None,
        may_log=may_log(settings),
    )
    monitor, mode = monitored or ("train/loss", "min")

    optimizer = problems.collect(build.build_optimizer, settings, model, trusted_modules, objective.loss_module)
    optimizer = optimizer or _make_trial_optimizer([0.1], 0.1)
    schedule = problems.collect(_build_schedule, settings, optimizer, train, mode, trusted_modules)
    return TrainState(
        model=model,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule or Schedule(optimizer, None),
        scaler=runtime.make_scaler(),
        train=train,
        val=val,
        stop_rules=build.build_stop_rules(settings, train),
        monitor=monitor,
        mode=mode,
        autocast=runtime.autocast,
        synchronize=device.get_synchronizer(runtime.device),
        ema=None if decay is None else ExponentialMovingAverage(model, optimizer, decay),
        mixing=mixing,
    )


def _check_mixing(mixing: BatchMix | None, objective: Objective) -> None:
    """RequestError for a loss that takes no shares of classes as targets."""
    if mixing is None:
        return

    subject = f"data.augment: {' and '.join(mixing.names)} make soft targets, and"
    if objective.spec.task != "multiclass":
        raise RequestError(
            f"{subject} this task is {objective.spec.task}; type data.task=multiclass, or leave them out"
        )
    if objective.own_loss is not None or objective.loss_name != "cross_entropy":
        raise RequestError(f"{subject} task.loss={objective.loss_name} takes none; leave one of the two out")
    if objective.class_weights is not None:
        raise RequestError(
            f"{subject} task.class_weights is for one class a row; type data.sampler=balanced in its place"
        )


def may_log(settings: Settings) -> bool:
    """Whether code of the user's own takes part, which may log values under names of its own."""
    return bool(settings.callbacks) or not is_ours(str(settings.model.target))


def _build_schedule(
    settings: Settings, optimizer: Optimizer, train: Batches, mode: str, trusted_modules: list[str] | None
) -> Schedule:
    """The schedule, after a trial step on another optimizer; RequestError where it cannot make that step.

    torch's schedulers divide by settings that they do not check.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    # A scheduler changes the rates of its optimizer, so the trial gets one of its own.
    trial_optimizer = _make_trial_optimizer(rates, optimizer.defaults.get("lr") or rates[0])
    trial = build.build_schedule(settings, trial_optimizer, train, mode, trusted_modules).scheduler
    try:
        if trial is not None:
            direct.get_step(trial.optimizer)()
            advance: Callable[..., None] = trial.step
            if isinstance(trial, ReduceLROnPlateau):
                advance(0.0)
            else:
                advance()
    except Exception as error:
        # The scheduler may be the user's own, so anything can come.
        arguments = settings.scheduler.arguments
        zeros = [key for key, value in arguments.items() if type(value) is int and value == 0]
        culprit = f"scheduler.{zeros[0]}=0" if zeros else f"scheduler={settings.scheduler.choice}"
        message = user_code.add_user_line(str(error), error)
        raise RequestError(f"{culprit} does not work: {message}; type another value, or scheduler=none") from error

    # A scheduler of the user's own may hold state that no checkpoint can.
    refusal = "" if trial is None else plain.explain_refusal("scheduler", trial.state_dict())
    if refusal:
        raise RequestError(refusal)
    return build.build_schedule(settings, optimizer, train, mode, trusted_modules)


def _make_trial_optimizer(rates: list[float], lr: float) -> Optimizer:
    """An optimizer of one number a group, with these learning rates, to try a scheduler on.

    lr: the rate of groups without one of their own.
    """
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def _refuse_unsaveable(
    settings: Settings, splits: Splits, state: TrainState, trusted_modules: list[str] | None
) -> None:
    """RequestError for state that no checkpoint can hold, so that the run could not be resumed."""
    states = state.state_dict() | {"spec": splits.spec.to_dict(), "config": settings.plain}
    # Many optimizers create their state in the first step only.
    states["optimizer after a step"] = _try_own_optimizer(settings, trusted_modules)
    for owner, values in states.items():
        refusal = plain.explain_refusal(owner.split()[0], values)
        if refusal:
            raise RequestError(refusal)


def _try_own_optimizer(settings: Settings, trusted_modules: list[str] | None) -> Any:
    """The state of a user's own optimizer after a step on one number; None where it cannot be tried."""
    # The state of torch's optimizers, and of ours, holds tensors and plain values alone.
    if str(settings.optimizer.target).startswith(("torch.optim.", "dlrun.")):
        return None

    # The optimizer may draw random numbers, which the training must not notice.
    with device.preserve_rng_state():
        try:
            model = nn.Linear(1, 1)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer: Any = build.build_optimizer(settings, model, trusted_modules)
            if requires_closure(optimizer):
                optimizer.step(lambda: torch.zeros(()))
            else:
                optimizer.step()
            return optimizer.state_dict()
        except Exception:
            # It may need another kind of model. Then the first save shows whether its state can be saved.
            return None


def _check_remaining(
    settings: Settings,
    splits: Splits | None,
    objective: Objective | None,
    model: nn.Module | None,
    trusted_modules: list[str] | None,
    problems: ErrorList,
) -> None:
    """Collect the remaining errors, where the data, the objective or the model could not be built."""
    keys = settings.checkpoint
    # Target and arguments of a block can be checked without building it.
    if model is None:
        problems.collect(build.check_component, settings.model, trusted_modules, 1)
    if splits is not None and objective is not None:
        has_val = splits.val is not None
        problems.collect(checks.resolve_monitor, keys.monitor, keys.mode, objective, has_val, may_log=may_log(settings))
    problems.collect(build.check_component, settings.optimizer, trusted_modules, 1)

    # Groups, and dlrun's own optimizers, know parameters by their names, which a stand-in does not have.
    if model is not None:
        loss = None if objective is None else objective.loss_module
        problems.collect(build.build_optimizer, settings, model, trusted_modules, loss)
    elif str(settings.optimizer.target).startswith("torch.optim."):
        without_groups = dataclasses.replace(
            settings, optimizer=dataclasses.replace(settings.optimizer, keys=OptimizerKeys())
        )
        problems.collect(build.build_optimizer, without_groups, nn.Linear(1, 1), trusted_modules)

    one_row = Split((torch.zeros(1, 1),), torch.zeros(1))
    spec = DataSpec("vector", (1,), "regression", 1)
    one_batch = MemoryBatches(one_row, EpochOrder(1, 1), Placement(torch.device("cpu"), torch.float32, spec))
    optimizer = _make_trial_optimizer([0.1], 0.1)
    problems.collect(_build_schedule, settings, optimizer, one_batch, "min", trusted_modules)


def _run_preflight(settings: Settings, runtime: Runtime, state: TrainState, notes: list[str]) -> Preflight:
    """Send two rows and batches of every size through the model, and check that memory and disk suffice.

    notes: to which what the user should know is added.
    """
    model = state.model
    # One batch serves all checks, as reading it may be slow.
    first_batch = next(state.train.epoch(1))
    two_rows = evaluation.take_rows(first_batch)

    layers = checks.inspect_layers(model, two_rows, state.objective, state.autocast)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    _check_batch_sizes(settings.trainer, runtime, state, first_batch, multiply_adds)
    sample = comparison.take_sample(first_batch, multiply_adds) if comparison.is_needed(settings, model) else None

    note = final_activation.find_redundant_layer(model, two_rows, state.objective, state.autocast)
    if note is not None:
        notes.append(note)
        # The diagnostics need not report it again.
        state.progress.troubles[final_activation.TROUBLE] = note

    values = sum(layer.values for layer in layers)
    moments = checks.count_moments(state.optimizer)
    rows = min(settings.data.keys.batch_size, state.train.order.rows)
    estimate = memory.estimate_memory(model, moments, values, settings, runtime.ranks.world_size, rows)
    notes += memory.note_shortage(estimate, settings, runtime.device)

    outputs = Path(settings.paths.outputs)
    keys = settings.checkpoint
    checks.check_disk(outputs, model, state.optimizer, keys.keep, keys.format == "full")
    return Preflight(layers, estimate, sample)


def _check_batch_sizes(
    trainer: TrainerConfig, runtime: Runtime, state: TrainState, first_batch: Batch, multiply_adds: int
) -> None:
    """Send a batch of every size that an epoch holds through the model, as in training.

    multiply_adds: work of the model for one sample.
    """
    order = state.train.order
    most_batches = None if trainer.max_steps is None else trainer.max_steps * trainer.accumulate_steps
    sizes = checks.list_batch_sizes(order, runtime.ranks.world_size, most_batches)
    checks.check_batch_sizes(state.model, first_batch, state.objective, state.autocast, sizes, order, multiply_adds)


def _find_limit_notes(state: TrainState) -> list[str]:
    """Notes on epochs that end the training before trainer.max_steps, and on epochs shorter than one step."""
    limits = state.stop_rules
    batches = len(state.train)
    steps = limits.epochs * math.ceil(batches / limits.accumulate_steps)
    notes = []
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


def _find_freeze_notes(settings: Settings) -> list[str]:
    """The note that frozen weights are random ones. A net of the user's own may load weights by itself."""
    component = settings.model
    # From the plain config: the settings of a resumed run do not say what its first weights were.
    arguments = component.arguments
    is_trained = settings.plain["init_from"] or arguments.get("weights") or arguments.get("pretrained")
    if not component.keys.freeze or is_trained or not str(component.target).startswith("dlrun."):
        return []
    return ["model.freeze: what is frozen has random weights; init_from=<run or file> starts from trained ones"]


def _find_model_notes(model: nn.Module) -> list[str]:
    """The note that a model class has for its user, in the attribute `note`."""
    note: Any = getattr(model, "note", None)
    return [note] if isinstance(note, str) else []
