"""From settings to objects: the only place that instantiates anything from config."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import Dataset

from dlrun.config.schema import CONFIG_DIR, Block, DataKeys, ModelKeys, OptimizerKeys, SchedulerKeys, Settings
from dlrun.core import user_code
from dlrun.core.errors import DlrunError, MisfitError, RequestError, listed
from dlrun.core.own_code import target_names
from dlrun.data import batches as batching
from dlrun.data import datasets as rows_of
from dlrun.data.batches import Batches, EpochOrder, LoaderBatches, MemoryBatches, Placement
from dlrun.data.datasets import Part
from dlrun.data.inspection import BatchCheck, Inspection, inspect_loaded, inspect_splits
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.workers import GuardedDataset
from dlrun.engine.device import Runtime, cores, ran_out
from dlrun.engine.objective import Objective
from dlrun.engine.optim.groups import parameter_groups
from dlrun.engine.optim.schedule import OF_THE_WHOLE, Schedule, moves_after_warmup
from dlrun.engine.state import StopRules
from dlrun.engine.trainer import requires_closure
from dlrun.experiment.build import targets
from dlrun.experiment.build.start_values import set_start_values


def build_data(settings: Settings, trusted_modules: Sequence[str] | None) -> Splits:
    """The data, with a validation part carved off where there is none, and cut to `data.limit_batches`."""
    keys = settings.data_keys
    made = _instantiate(settings.data, trusted_modules, DataKeys)
    if not isinstance(made, Splits):
        raise RequestError(
            f"data._target_={settings.data.target} must return dlrun.data.spec.Splits, not {type(made).__name__}; "
            "type data=<one of `dlrun ls data`>"
        )
    made = inspect_splits(made, _inspection(settings, made.spec))
    train, val, test = made.train, made.val, made.test
    if val is None and keys.val_fraction > 0:
        train, val = rows_of.hold_out(train, keys.val_fraction, int(settings.data.arguments.get("seed") or 0))
    unheeded = _find_unheeded(made, train, val, settings)
    if keys.train_rows is not None:
        train = _limited(train, keys.train_rows, "train")
    if keys.limit_batches is not None:
        rows = keys.limit_batches * keys.batch_size
        train = _limited(train, rows, "train")
        val = val and _limited(val, rows, "val")
        test = test and _limited(test, rows, "test")
    if keys.drop_last and rows_of.count_rows(train) < keys.batch_size:
        raise RequestError(
            f"data.drop_last=true leaves no batch: there are {rows_of.count_rows(train)} training rows and "
            f"data.batch_size={keys.batch_size}; type data.drop_last=false or a smaller data.batch_size"
        )
    return dataclasses.replace(made, train=train, val=val, test=test, unheeded=unheeded)


def _find_unheeded(made: Splits, train: Part, val: Part | None, settings: Settings) -> dict[str, str]:
    """By name, the settings of `data` that have no effect on these parts, and why.

    train, val: after a validation part has been drawn, and before rows are left out.
    """
    keys, arguments = settings.data_keys, settings.data.arguments
    reasons = dict(made.unheeded)
    if made.val is not None:
        reasons["val_fraction"] = "the data bring a validation part of their own"

    # Where the data have a test_fraction, their seed is for drawing parts alone.
    draws_test = "test_fraction" not in reasons and bool(arguments.get("test_fraction"))
    draws_val = made.val is None and keys.val_fraction > 0
    is_shipped = str(settings.data.target).startswith("dlrun.data.")
    if is_shipped and "test_fraction" in arguments and not draws_test and not draws_val:
        reasons["seed"] = "no part is drawn at random"

    rows = rows_of.count_rows(train)
    limit = None if keys.limit_batches is None else keys.limit_batches * keys.batch_size
    most = max(rows_of.count_rows(part) for part in (train, val, made.test) if part is not None)
    if keys.train_rows is not None and keys.train_rows >= rows:
        reasons["train_rows"] = f"there are {rows:,} training rows"
    elif keys.train_rows is not None and limit is not None and limit <= keys.train_rows:
        reasons["train_rows"] = f"data.limit_batches={keys.limit_batches} leaves {limit:,} rows"
    if limit is not None and limit >= most:
        reasons["limit_batches"] = (
            f"{keys.limit_batches:,} batches are {limit:,} rows, and no part has more than {most:,}"
        )
    return reasons


def disable_splitting(settings: Settings, overrides: Sequence[str]) -> Settings:
    """The settings by which a file is read whole, in its order: nothing is held out, left out or drawn.

    overrides: of this command line, whose limits hold.
    """
    arguments = dict(settings.data.arguments)
    if "test_fraction" in arguments:
        arguments["test_fraction"] = 0.0
    asked = {word.lstrip("+").partition("=")[0] for word in overrides}
    keys = dataclasses.replace(settings.data_keys, val_fraction=0.0, drop_last=False)
    if "data.train_rows" not in asked:
        keys.train_rows = None
    if "data.limit_batches" not in asked:
        keys.limit_batches = None
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, arguments=arguments), data_keys=keys)


def _inspection(settings: Settings, spec: DataSpec) -> Inspection:
    """How data are held against their description."""
    own_net = not str(settings.model.target).startswith(("dlrun.", "torch.nn."))
    own_loss = "." in (settings.rest.task.loss or "")
    return Inspection(f"data={settings.data.choice}", spec, keeps_integers=own_net, masks_targets=own_loss)


def _limited(part: Part, rows: int, name: str) -> Part:
    """At most `rows` rows, spread over the part so that sorted classes stay mixed."""
    if rows_of.count_rows(part) <= rows:
        return part
    return rows_of.take(part, torch.linspace(0, rows_of.count_rows(part) - 1, rows).long(), name)


def build_model(
    settings: Settings, spec: DataSpec, runtime: Runtime, trusted_modules: Sequence[str] | None
) -> nn.Module:
    """The model on its device, with its start values; MisfitError when it cannot take the data."""
    block = settings.model
    target = resolve_target(block, trusted_modules)
    if not _fits(target, spec):
        raise MisfitError(
            f"model={block.choice} does not take data={settings.data.choice} ({_described(spec)}); "
            f"models that do: {', '.join(find_fitting_models(spec))}"
        )
    made = _instantiate(block, trusted_modules, ModelKeys, spec)
    if not isinstance(made, nn.Module):
        raise RequestError(f"model._target_={block.target} must be a torch.nn.Module, not {type(made).__name__}")
    made = set_precision(made, runtime.dtype)
    initialize_lazy_layers(made, spec, runtime.dtype)
    set_start_values(made, settings.model_keys.init or {})
    made = made.to(runtime.device)
    if wants_channels_last(made, spec, runtime):
        set_channels_last(made)
    return made


def set_precision(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Floats in the precision of the training; `nn.Module.to` would make complex numbers real."""
    return net.double() if dtype == torch.float64 else net.float()


def set_channels_last(net: nn.Module) -> None:
    """Lay the four-dimensional weights and buffers out with channels last; `nn.Module.to` fails at five dimensions."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def initialize_lazy_layers(net: nn.Module, spec: DataSpec, dtype: torch.dtype) -> None:
    """Give lazy layers (nn.LazyLinear and its kin) their sizes, by two rows of zeros such as `spec` describes.

    The optimizer and start values need the parameters. RequestError where the rows do not get through.
    """
    lazy = [name for name, tensor in (*net.named_parameters(), *net.named_buffers()) if is_lazy(tensor)]
    if not lazy:
        return

    if spec.kind == "tokens":
        inputs: tuple[Tensor, ...] = (torch.zeros(2, 4, dtype=torch.int64), torch.full((2,), 4))
    else:
        inputs = (torch.zeros(2, *spec.input_shape, dtype=dtype),)

    training = net.training
    try:
        with torch.no_grad():
            net.eval()(*inputs)
    except Exception as error:  # the model may be the user's own
        sentence = (
            f"the sizes of {listed(lazy)} are not known, and rows of zeros of this data do not get through the model "
            f"to tell them: {user_code.first_line(error)}; give the sizes in __init__"
        )
        raise RequestError(user_code.with_place(sentence, error)) from error
    finally:
        net.train(training)


def _fits(target: Any, spec: DataSpec) -> bool:
    """A model says what it takes in `kinds` and `tasks`; a user's own need not."""
    kinds, tasks = getattr(target, "kinds", None), getattr(target, "tasks", None)
    return (kinds is None or spec.kind in kinds) and (tasks is None or spec.task in tasks)


def _described(spec: DataSpec) -> str:
    shape = "×".join(str(n) for n in spec.input_shape)
    return f"{spec.task} on {spec.kind}s of {shape}" if spec.kind != "tokens" else f"{spec.task} on sequences"


def find_fitting_models(spec: DataSpec) -> list[str]:
    """The shipped models that take such data."""
    return [name for name, target in _shipped_models() if _fits(targets.resolve(target, "model._target_", None), spec)]


@functools.cache
def _shipped_models() -> list[tuple[str, str]]:
    """The options of model= with their targets."""
    paths = sorted((CONFIG_DIR / "model").glob("*.yaml"))
    return [(path.stem, str(OmegaConf.select(OmegaConf.load(path), "_target_"))) for path in paths]


def wants_channels_last(model: nn.Module, spec: DataSpec, runtime: Runtime) -> bool:
    """As `device.channels_last` says; by default for 2-d convolutions, which it made up to 2 times faster on a CPU."""
    if spec.kind != "image":
        return False
    if runtime.channels_last is not None:
        return runtime.channels_last
    return runtime.device.type != "mps" and any(isinstance(m, nn.Conv2d) for m in model.modules())


def build_batches(settings: Settings, splits: Splits, model: nn.Module, runtime: Runtime) -> list[Batches | None]:
    """Training, validation and test batches, in memory on the device where they fit."""
    keys = settings.data_keys
    wide = wants_channels_last(model, splits.spec, runtime)
    place = Placement(runtime.device, runtime.dtype, splits.spec, wide)
    big = keys.eval_batch_size or max(keys.batch_size, 256)
    on_device = 1 if runtime.device.type == "cuda" else runtime.ranks.local_count  # processes that hold the data there
    room = int(keys.memory_share * batching.measure_free_memory(runtime.device)) // on_device
    size = keys.batch_size * runtime.batches_a_step
    made: list[Batches | None] = []
    look = _inspection(settings, splits.spec)
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if part is None:
            made.append(None)
            continue
        rows = rows_of.count_rows(part)
        order = EpochOrder(rows, size, keys.shuffle, keys.drop_last, settings.rest.seed)
        order = order if name == "train" else EpochOrder(rows, big)
        readable = part if isinstance(part, Split) else GuardedDataset(part)
        split = rows_of.load_in_memory(readable, keys.loader, runtime.dtype, room)
        if split is not None:
            if split is not part:
                split = inspect_loaded(dataclasses.replace(split, origin=rows_of.get_origin(part, name)), look)
            room -= rows_of.count_bytes(split, runtime.dtype)
            made.append(MemoryBatches(split, order, place))
        else:
            check = None if isinstance(part, Split) else BatchCheck(look, rows_of.get_origin(part, name))
            made.append(LoaderBatches(_as_dataset(part), order, place, _workers(keys), check))
    return made


def _as_dataset(part: Part) -> Dataset[Any]:
    return rows_of.Pairs(part) if isinstance(part, Split) else part


def _workers(keys: DataKeys) -> int:
    """As asked for; else one core is left to the training."""
    return min(max(cores() - 1, 1), 4) if keys.num_workers is None else keys.num_workers


def build_objective(settings: Settings, spec: DataSpec, trusted_modules: Sequence[str] | None) -> Objective:
    """Loss and metrics; a loss with a dot in its name is a function of the user's."""
    keys = settings.rest.task
    own = targets.resolve(keys.loss, "task.loss", trusted_modules) if keys.loss and "." in keys.loss else None
    return Objective(spec, keys.loss, keys.reduction, own)


def build_stop_rules(settings: Settings, train: Batches) -> StopRules:
    """When training ends and how a step is made."""
    trainer = settings.rest.trainer
    return StopRules(
        epochs=trainer.limit_epochs(math.ceil(len(train) / trainer.accumulate_steps)),
        max_steps=trainer.max_steps,
        accumulate_steps=trainer.accumulate_steps,
        grad_clip_norm=trainer.grad_clip_norm,
        log_every_steps=trainer.log_every_steps,
        patience=trainer.early_stopping.patience,
        min_delta=trainer.early_stopping.min_delta,
    )


def build_optimizer(settings: Settings, model: nn.Module, trusted_modules: Sequence[str] | None) -> Optimizer:
    """The optimizer over the model's parameters, in the groups asked for."""
    asked = settings.optimizer_keys.groups or []
    groups = parameter_groups(model, asked)
    for i, entry in enumerate(asked):
        _try_group(settings.optimizer, entry, f"optimizer.groups[{i}]", trusted_modules)
    block = _fused(settings.optimizer, model, trusted_modules)
    made = _instantiate(block, trusted_modules, OptimizerKeys, groups)
    if not isinstance(made, Optimizer):
        raise RequestError(f"optimizer._target_={settings.optimizer.target} must be a torch.optim.Optimizer")
    if requires_closure(made) and settings.rest.device.precision == "fp16":
        raise RequestError(
            f"optimizer={settings.optimizer.choice} evaluates the loss itself; type device.precision=bf16"
        )
    return made


def _fused(block: Block, model: nn.Module, trusted_modules: Sequence[str] | None) -> Block:
    """One kernel for all of a step where torch has it, unless the user chose: the same sums, rounded once less.

    Measured on a CPU for an MLP 784-128-10: Adam 185 -> 75 microseconds a step, SGD with momentum 60 -> 36.
    """
    if not block.target:
        return block  # which is refused where it is built
    where = next(model.parameters()).device.type
    target = targets.resolve(str(block.target), "optimizer._target_", trusted_modules)
    takes_it = target in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    chosen = {"fused", "foreach", "differentiable"} & set(block.arguments)
    if chosen or not takes_it or not (where == "cpu" or (where == "cuda" and target is not torch.optim.Adagrad)):
        return block
    return dataclasses.replace(block, arguments={**block.arguments, "fused": True})


def _try_group(block: Block, entry: dict[str, Any], where: str, trusted_modules: Sequence[str] | None) -> None:
    """Build the optimizer once with a group's own settings: torch checks those of the whole only."""
    own = {k: v for k, v in entry.items() if k != "match"}
    trial = dataclasses.replace(block, arguments={**block.arguments, **own})
    try:
        _instantiate(trial, trusted_modules, OptimizerKeys, [nn.Parameter(torch.zeros(1))])
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def build_schedule(
    settings: Settings, optimizer: Optimizer, train: Batches, mode: str, trusted_modules: Sequence[str] | None
) -> Schedule:
    """The learning rate over time; lengths left null become those of the whole training."""
    block, keys = settings.scheduler, settings.scheduler_keys
    if block.target is None:
        return Schedule(optimizer, None, keys.interval, keys.warmup_steps)
    trainer = settings.rest.trainer
    per_epoch = math.ceil(len(train) / trainer.accumulate_steps)
    epochs = trainer.limit_epochs(per_epoch)
    steps = min(epochs * per_epoch, trainer.max_steps or epochs * per_epoch)
    length = max(moves_after_warmup(steps, per_epoch, keys.interval, keys.warmup_steps), 1)
    lr = float(settings.optimizer.arguments.get("lr") or optimizer.param_groups[0]["lr"])
    whole = {"max_lr": 10 * lr, **dict.fromkeys(OF_THE_WHOLE, length)}
    filled = {k: whole[k] if v is None and k in whole else v for k, v in block.arguments.items()}
    if "plateau" in str(block.target).lower():
        filled.setdefault("mode", mode)
        if keys.interval == "step":
            raise RequestError(
                "scheduler.interval=step: plateau looks at a metric, which there is once an epoch; "
                "type scheduler.interval=epoch"
            )
    if isinstance(filled.get("total_steps"), int) and filled["total_steps"] < length:
        raise RequestError(
            f"scheduler.total_steps={filled['total_steps']} is shorter than the training; "
            f"type scheduler.total_steps={length}, or null"
        )
    made = _instantiate(dataclasses.replace(block, arguments=filled), trusted_modules, SchedulerKeys, optimizer)
    return Schedule(optimizer, made, keys.interval, keys.warmup_steps)


def _instantiate(block: Block, trusted_modules: Sequence[str] | None, keys: type, *given: Any) -> Any:
    """Build what a block names; whatever its constructor objects to becomes one sentence."""
    check_block(block, trusted_modules, keys, len(given))
    try:
        return _called(resolve_target(block, trusted_modules), block.arguments, trusted_modules, given)
    except Exception as cause:  # whatever the target raises
        if isinstance(cause, DlrunError) or ran_out(cause):
            raise
        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        key = _key(block, str(cause))
        where = f"{block.group}.{key}={block.arguments[key]}" if key else f"{block.group}={block.choice}"
        said = user_code.with_place(f"{where}: {kind}{user_code.first_line(cause)}", cause)
        raise RequestError(
            said + (targets.suggest_value(block, key) if key and "; type" not in said else "")
        ) from cause


def _called(
    target: Callable[..., Any], arguments: dict[str, Any], trusted_modules: Sequence[str] | None, given: Sequence[Any]
) -> Any:
    """Call a target as Hydra's `instantiate` does, with plain values: text is text, whatever stands in it.

    Blocks inside the arguments are built first, but not with `_recursive_: false`. The positional arguments are those
    `given`, or else `_args_`; with `_partial_: true` the call is left to whoever gets it.
    """
    if arguments.get("_recursive_") is False:
        values = copy.deepcopy(arguments)
    else:
        values = {key: _built(value, trusted_modules) for key, value in arguments.items()}
    keywords = {key: value for key, value in values.items() if key not in _OF_THE_CALL}
    positional = given or values.get("_args_", [])
    if arguments.get("_partial_") is True:
        return functools.partial(target, *positional, **keywords)
    return target(*positional, **keywords)


_OF_THE_CALL = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


def _built(value: Any, trusted_modules: Sequence[str] | None) -> Any:
    """A copy of an argument, with what its blocks name in their place."""
    if isinstance(value, list):
        return [_built(item, trusted_modules) for item in value]
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        target = targets.resolve(str(value["_target_"]), "_target_", trusted_modules)
        return _called(target, value, trusted_modules, [])
    return {key: _built(item, trusted_modules) for key, item in value.items()}


def resolve_target(block: Block, trusted_modules: Sequence[str] | None) -> Callable[..., Any]:
    """The object that a block names; RequestError when it names none."""
    where = f"{block.group}._target_"
    if not block.target:
        raise RequestError(f"{where} has no value; type {block.group}=<one of `dlrun ls {block.group}`>")
    return targets.resolve(str(block.target), where, trusted_modules)


def check_block(block: Block, trusted_modules: Sequence[str] | None, keys: type, given: int) -> None:
    """RequestError for a target or an argument that does not exist; given: positional arguments that dlrun passes."""
    empty = [key for key, value in block.arguments.items() if value == "???"]
    if empty:
        raise RequestError(f"{block.group}.{empty[0]} has no value yet; type {block.group}.{empty[0]}=...")
    for name in target_names(block.arguments):
        targets.resolve(name, f"{block.group}: _target_", trusted_modules)
    ours = [f.name for f in dataclasses.fields(keys)]
    targets.check_arguments(block, resolve_target(block, trusted_modules), ours, given)


def _key(block: Block, message: str) -> str | None:
    """The key that a constructor's complaint is about, if it names one of its arguments."""
    said = message.lower().replace(":", " ")
    for words, name in (("learning rate", "lr"), ("beta parameter", "betas"), ("epsilon", "eps")):
        said = said.replace(words, name)
    return next((key for key in block.arguments if key in said.split()), None)
