"""Build objects from settings: nothing else instantiates the targets of a config."""

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

from dlrun.config.schema import CONFIG_DIR
from dlrun.config.settings import Component, Settings
from dlrun.core import user_code
from dlrun.core.errors import DlrunError, MisfitError, RequestError, join_names
from dlrun.core.own_code import is_own_name, iter_targets
from dlrun.data import datasets
from dlrun.data.batches import (
    Batches,
    EpochOrder,
    LoaderBatches,
    MemoryBatches,
    Placement,
    SplitBatches,
    measure_free_memory,
)
from dlrun.data.datasets import Part
from dlrun.data.inspection import BatchCheck, Inspection, inspect_loaded, inspect_splits
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.targets import (
    ARRAYS_TARGET,
    CSV_TARGET,
    HUGGINGFACE_TARGET,
    SERIES_TARGET,
    TABLE_TARGET,
    TEXT_TARGET,
    WEBDATASET_TARGET,
)
from dlrun.data.workers import GuardedDataset
from dlrun.engine.device import Runtime, count_cores, is_out_of_memory
from dlrun.engine.multitask import join_outputs
from dlrun.engine.optim import direct
from dlrun.engine.optim.groups import make_parameter_groups
from dlrun.engine.optim.schedule import LENGTH_ARGUMENTS, Schedule, count_scheduler_steps
from dlrun.engine.state import StopRules
from dlrun.engine.trainer import requires_closure
from dlrun.experiment.builder import targets
from dlrun.experiment.builder.balance import compute_row_weights
from dlrun.experiment.builder.category_codes import choose_codes
from dlrun.experiment.builder.freeze import freeze
from dlrun.experiment.builder.normalization import choose_normalization
from dlrun.experiment.builder.start_values import set_start_values

# Keys of a component that say how to call its target, and are no arguments of it.
_CALL_KEYS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")

# Data whose files may hold targets of any task.
_TABLES = (TABLE_TARGET, TEXT_TARGET, CSV_TARGET)
_READS_ANY_TARGET = (*_TABLES, ARRAYS_TARGET, HUGGINGFACE_TARGET, WEBDATASET_TARGET)

# Words by which torch's optimizers name an argument in an error message.
_NAMES_IN_MESSAGES = (("learning rate", "lr"), ("beta parameter", "betas"), ("epsilon", "eps"))


def build_data(settings: Settings, trusted_modules: Sequence[str] | None) -> Splits:
    """Build the data: checked, with a validation split held out if it has none, and cut to the limits of `data`."""
    keys = settings.data.keys
    settings, normalization_notes = choose_normalization(choose_codes(settings, trusted_modules))
    component = _choose_target_kind(settings)
    draws_val = targets.has_argument(_resolve_target(component, trusted_modules), "val_fraction")
    # Data that are fitted to the training rows have to know which rows these are.
    if draws_val:
        component = dataclasses.replace(component, arguments={**component.arguments, "val_fraction": keys.val_fraction})
    splits = instantiate(component, trusted_modules)
    if not isinstance(splits, Splits):
        raise RequestError(
            f"data._target_={settings.data.target} must return dlrun.data.spec.Splits, not {type(splits).__name__}; "
            "type data=<one of `dlrun ls data`>"
        )
    splits = _set_task(splits, settings)
    splits = dataclasses.replace(splits, notes=(*splits.notes, *normalization_notes))
    splits = inspect_splits(splits, _configure_inspection(settings, splits.spec))

    train = splits.train
    val = splits.val
    test = splits.test
    if val is None and keys.val_fraction > 0 and not draws_val:
        # The seed of the data, not of the run: runs of other seeds are compared on the same rows.
        seed = int(settings.data.arguments.get("seed") or 0)
        train, val = datasets.hold_out(train, keys.val_fraction, seed)
    # Before rows are left out: reasons compare the limits with all rows.
    unheeded = _find_unheeded(splits, train, val, settings, draws_val)

    if keys.train_rows is not None:
        train = _limit_rows(train, keys.train_rows, "train")
    if keys.limit_batches is not None:
        rows = keys.limit_batches * keys.batch_size
        train = _limit_rows(train, rows, "train")
        val = val and _limit_rows(val, rows, "val")
        test = test and _limit_rows(test, rows, "test")

    if keys.drop_last and datasets.count_rows(train) < keys.batch_size:
        raise RequestError(
            f"data.drop_last=true leaves no batch: there are {datasets.count_rows(train)} training rows and "
            f"data.batch_size={keys.batch_size}; type data.drop_last=false or a smaller data.batch_size"
        )
    return dataclasses.replace(splits, train=train, val=val, test=test, unheeded=unheeded)


def _choose_target_kind(settings: Settings) -> Component[Any]:
    """The data's block; files of the user's own are read for the task, unless data.task says what they hold."""
    component = settings.data
    kind = settings.task.kind
    if (
        kind is None
        or component.target not in _READS_ANY_TARGET
        or (kind == "autoencoder" and component.target != ARRAYS_TARGET)
    ):
        return component
    # Two keys for one fact: neither may win in silence.
    if component.arguments.get("task") not in (None, kind):
        raise RequestError(f"task={kind} and data.task={component.arguments['task']} differ; leave out one of them")
    return dataclasses.replace(component, arguments={**component.arguments, "task": kind})


def _set_task(splits: Splits, settings: Settings) -> Splits:
    """The data with the task that `task.kind` names; RequestError for data that do not allow it."""
    kind = settings.task.kind
    spec: Any = splits.spec
    # The inspection reports a spec of another type.
    if not isinstance(spec, DataSpec):
        return splits

    if kind != "autoencoder" and spec.output_size == 0 and settings.data.target in (*_TABLES, HUGGINGFACE_TARGET):
        raise RequestError("data.target=[] names no column; type data.target=<column>, or task=autoencoder")
    if kind == "multilabel" and spec.task != "multilabel":
        raise RequestError(
            f"task=multilabel takes targets of several labels a row, and data={settings.data.choice} is for "
            f"{spec.task}; type data=csv with data.target=[a,b,c], data=arrays, or data of your own whose DataSpec has "
            "task 'multilabel'"
        )
    if kind != "autoencoder":
        return splits

    if spec.kind == "tokens":
        raise RequestError(
            f"task=autoencoder gives vectors and images back, and data={settings.data.choice} has sequences of tokens; "
            "choose other data"
        )
    spec = dataclasses.replace(
        spec, task="regression", output_size=spec.input_size, class_names=(), reconstructs=True, outputs=()
    )
    # Inputs are scaled already.
    spec = dataclasses.replace(spec, target_mean=(), target_std=())
    # One class alone, or one value, is no reason not to learn what its inputs look like.
    return dataclasses.replace(splits, spec=spec, truth=None, nothing_to_learn="")


def _find_unheeded(
    splits: Splits, train: Part, val: Part | None, settings: Settings, data_draw_val: bool
) -> dict[str, str]:
    """By name, the settings of `data` that have no effect on these splits, and why.

    train, val: after a validation split has been held out, and before rows are left out; data_draw_val: whether the
    data did that themselves.
    """
    keys = settings.data.keys
    arguments = settings.data.arguments
    reasons = dict(splits.unheeded)
    if splits.val is not None and not data_draw_val:
        reasons["val_fraction"] = "the data bring a validation part of their own"

    # Data with a test_fraction use their seed only to draw the parts.
    draws_test = "test_fraction" not in reasons and bool(arguments.get("test_fraction"))
    draws_val = "val_fraction" not in reasons and keys.val_fraction > 0
    is_shipped = str(settings.data.target).startswith("dlrun.data.")
    if is_shipped and "test_fraction" in arguments and not draws_test and not draws_val:
        reasons["seed"] = "no part is drawn at random"

    rows = datasets.count_rows(train)
    limit = None if keys.limit_batches is None else keys.limit_batches * keys.batch_size
    most = max(datasets.count_rows(part) for part in (train, val, splits.test) if part is not None)
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
    """Settings under which a file is read whole and in its order: no row is held out, left out or drawn.

    overrides: of this command line, whose limits on rows stay in force.
    """
    arguments = dict(settings.data.arguments)
    if "test_fraction" in arguments:
        arguments["test_fraction"] = 0.0
    # Every window, whatever the distance of those that were trained on.
    if settings.data.target == SERIES_TARGET:
        arguments |= {"stride": 1, "folds": None, "fold": 0, "val_path": None, "test_path": None}
    # Tables have other ways to split.
    if settings.data.target in (TABLE_TARGET, TEXT_TARGET):
        arguments |= {"split": "random", "split_column": None, "folds": None, "fold": 0}
        arguments |= {"val_path": None, "test_path": None}

    typed = {word.lstrip("+").partition("=")[0] for word in overrides}
    keys = dataclasses.replace(settings.data.keys, val_fraction=0.0, drop_last=False)
    if "data.train_rows" not in typed:
        keys.train_rows = None
    if "data.limit_batches" not in typed:
        keys.limit_batches = None
    data = dataclasses.replace(settings.data, arguments=arguments, keys=keys)
    return dataclasses.replace(settings, data=data)


def _configure_inspection(settings: Settings, spec: DataSpec) -> Inspection:
    """How strictly data are checked against their spec: own models and losses may take more kinds of it."""
    is_own_model = not str(settings.model.target).startswith(("dlrun.", "torch.nn."))
    is_own_loss = is_own_name(settings.task.loss)
    name = f"data={settings.data.choice}"
    return Inspection(name, spec, keeps_integers=is_own_model, masks_targets=is_own_loss)


def _limit_rows(part: Part, rows: int, name: str) -> Part:
    """At most `rows` rows, evenly spaced, so that sorted classes stay mixed."""
    count = datasets.count_rows(part)
    if count <= rows:
        return part
    return datasets.take(part, torch.linspace(0, count - 1, rows).long(), name)


def build_model(
    settings: Settings, spec: DataSpec, runtime: Runtime, trusted_modules: Sequence[str] | None
) -> nn.Module:
    """Build the model on its device, with its start values; MisfitError where it cannot take the data."""
    component = settings.model
    target = _resolve_target(component, trusted_modules)
    if not _fits(target, spec):
        raise MisfitError(
            f"model={component.choice} does not take data={settings.data.choice} ({_describe_spec(spec)}); "
            f"models that do: {', '.join(_find_fitting_models(spec))}"
        )
    # A net of the user's own may have an argument of this name, and then freezes by itself.
    has_own_freeze = targets.has_argument(target, "freeze")
    patterns = component.keys.freeze
    if has_own_freeze and patterns is not None:
        component = dataclasses.replace(component, arguments={**component.arguments, "freeze": patterns})

    model = instantiate(component, trusted_modules, spec)
    if not isinstance(model, nn.Module):
        raise RequestError(f"model._target_={component.target} must be a torch.nn.Module, not {type(model).__name__}")

    if spec.reconstructs and spec.kind == "image":
        # A hook, so that nets that return images need not know that targets are flat.
        model.register_forward_hook(_flatten_outputs)
    if spec.outputs:
        # A net may return its outputs by name; loss and metrics take them in one tensor.
        model.register_forward_hook(functools.partial(join_outputs, spec.outputs))
    model = set_precision(model, runtime.dtype)
    # Lazy layers have no parameters yet that could be filled or moved.
    _initialize_lazy_layers(model, spec, runtime.dtype)
    set_start_values(model, settings.model.keys.init or {})
    if patterns not in (None, []) and not has_own_freeze:
        freeze(model, patterns)
    # Start values were drawn on the CPU, so that every device begins with the same ones.
    model = model.to(runtime.device)
    if wants_channels_last(model, spec, runtime):
        _set_channels_last(model)
    return model


def _flatten_outputs(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    """A forward hook: images (N, C, H, W) that an autoencoder returns become (N, values), as its targets are."""
    return outputs.flatten(1) if isinstance(outputs, Tensor) else outputs


def set_precision(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert floats to the precision of the training. `nn.Module.to` would make complex numbers real."""
    return net.double() if dtype == torch.float64 else net.float()


def _set_channels_last(net: nn.Module) -> None:
    """Lay four-dimensional weights and buffers out channels last. `nn.Module.to` fails at five dimensions."""
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _initialize_lazy_layers(net: nn.Module, spec: DataSpec, dtype: torch.dtype) -> None:
    """Give lazy layers (nn.LazyLinear and the like) their sizes, by two rows of zeros that follow `spec`.

    The optimizer and the start values need the parameters. RequestError where the rows do not get through.
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
    except Exception as error:
        # The model may be the user's own, so anything can come.
        message = (
            f"the sizes of {join_names(lazy)} are not known, and rows of zeros of this data do not get through the "
            f"model to tell them: {user_code.get_first_line(error)}; give the sizes in __init__"
        )
        raise RequestError(user_code.add_user_line(message, error)) from error
    finally:
        net.train(training)


def _fits(target: Any, spec: DataSpec) -> bool:
    """Whether a model takes such data, by its `kinds` and `tasks`. A user's own need not have them."""
    # Class attributes: nothing has to be built, or may fail, to know what fits.
    kinds = getattr(target, "kinds", None)
    tasks = getattr(target, "tasks", None)
    return (kinds is None or spec.kind in kinds) and (tasks is None or spec.task in tasks)


def _describe_spec(spec: DataSpec) -> str:
    if spec.kind == "tokens":
        return f"{spec.task} on sequences"
    shape = "×".join(str(size) for size in spec.input_shape)
    return f"{spec.task} on {spec.kind}s of {shape}"


def _find_fitting_models(spec: DataSpec) -> list[str]:
    """Names of the shipped models that take such data."""
    names = []
    for name, target in _list_shipped_models():
        if _fits(targets.resolve(target, "model._target_", None), spec):
            names.append(name)
    return names


@functools.cache
def _list_shipped_models() -> list[tuple[str, str]]:
    """The options of model= with their targets."""
    paths = sorted((CONFIG_DIR / "model").glob("*.yaml"))
    return [(path.stem, str(OmegaConf.select(OmegaConf.load(path), "_target_"))) for path in paths]


def wants_channels_last(model: nn.Module, spec: DataSpec, runtime: Runtime) -> bool:
    """Whether to lay images out channels last: `device.channels_last`, or by default for 2-d convolutions.

    It makes them up to 2 times faster on a CPU.
    """
    if spec.kind != "image":
        return False
    if runtime.channels_last is not None:
        return runtime.channels_last
    return runtime.device.type != "mps" and any(isinstance(module, nn.Conv2d) for module in model.modules())


def build_batches(settings: Settings, splits: Splits, model: nn.Module, runtime: Runtime) -> SplitBatches:
    """Build the batches of train, val and test, in memory on the device where they fit."""
    keys = settings.data.keys
    channels_last = wants_channels_last(model, splits.spec, runtime)
    placement = Placement(runtime.device, runtime.dtype, splits.spec, channels_last)
    inspection = _configure_inspection(settings, splits.spec)
    batch_size = keys.batch_size * runtime.batches_per_step
    # Without gradients there is room for more rows, and larger batches are faster.
    eval_batch_size = keys.eval_batch_size or max(keys.batch_size, 256)
    # One core is left to the training.
    workers = min(max(count_cores() - 1, 1), 4) if keys.num_workers is None else keys.num_workers

    # Every local process holds the data, on a CPU in the same memory; processes that outnumber the GPUs share them.
    sharers = runtime.ranks.local_world_size
    if runtime.device.type == "cuda":
        sharers = math.ceil(sharers / torch.cuda.device_count())
    free_bytes = int(keys.memory_share * measure_free_memory(runtime.device)) // sharers

    batches: dict[str, Batches] = {}
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if part is None:
            continue

        rows = datasets.count_rows(part)
        if name == "train":
            weights = compute_row_weights(settings, part, splits.spec)
            blocks = getattr(part, "blocks", None)
            if weights is not None and blocks is not None:
                raise RequestError(
                    f"data.sampler={keys.sampler} draws rows anywhere, and data.order=shards reads them as they lie; "
                    "leave out one of them"
                )
            order = EpochOrder(rows, batch_size, keys.shuffle, keys.drop_last, settings.seed, weights, blocks)
        else:
            order = EpochOrder(rows, eval_batch_size)

        if name == "train" and keys.loader == "memory" and getattr(part, "augments", False):
            raise RequestError(
                "data.augment makes another image of each every epoch, and data.loader=memory would read them once; "
                "type data.in_memory=true to decode the files once"
            )

        # Worker processes hand a failure over in the place of a batch, as no exception may leave them.
        readable = part if isinstance(part, Split) else GuardedDataset(part)
        split = datasets.load_in_memory(readable, keys.loader, runtime.dtype, free_bytes)
        # Rows that were read from a dataset have not been inspected yet.
        if split is not None:
            if split is not part:
                split = dataclasses.replace(split, origin=datasets.get_origin(part, name))
                split = inspect_loaded(split, inspection)
            # Memory that one part takes is not free for the next.
            free_bytes -= datasets.count_bytes(split, runtime.dtype)
            batches[name] = MemoryBatches(split, order, placement)
        elif isinstance(part, Split):
            batches[name] = LoaderBatches(datasets.Pairs(part), order, placement, workers, None)
        else:
            check = BatchCheck(inspection, datasets.get_origin(part, name))
            batches[name] = LoaderBatches(part, order, placement, workers, check)
    return SplitBatches(batches["train"], batches.get("val"), batches.get("test"))


def build_stop_rules(settings: Settings, train: Batches) -> StopRules:
    """When training ends, and how a step is made."""
    trainer = settings.trainer
    return StopRules(
        epochs=trainer.limit_epochs(math.ceil(len(train) / trainer.accumulate_steps)),
        max_steps=trainer.max_steps,
        accumulate_steps=trainer.accumulate_steps,
        grad_clip_norm=trainer.grad_clip_norm,
        log_every_steps=trainer.log_every_steps,
        patience=trainer.early_stopping.patience,
        min_delta=trainer.early_stopping.min_delta,
    )


def build_optimizer(
    settings: Settings, model: nn.Module, trusted_modules: Sequence[str] | None, loss: nn.Module | None = None
) -> Optimizer:
    """Build the optimizer over the parameters of the model, and of a loss, in the groups of `optimizer.groups`."""
    entries = settings.optimizer.keys.groups or []
    groups = make_parameter_groups(model, entries, loss)
    for number, entry in enumerate(entries):
        _try_group(settings.optimizer, entry, f"optimizer.groups[{number}]", trusted_modules)

    if not settings.device.compile:
        direct.spare_compiler_import()
    component = _choose_fused_kernel(settings.optimizer, model, trusted_modules)
    optimizer = instantiate(component, trusted_modules, groups)
    if not isinstance(optimizer, Optimizer):
        raise RequestError(f"optimizer._target_={settings.optimizer.target} must be a torch.optim.Optimizer")
    if requires_closure(optimizer) and settings.device.precision == "fp16":
        raise RequestError(
            f"optimizer={settings.optimizer.choice} evaluates the loss itself; type device.precision=bf16"
        )
    return optimizer


def _choose_fused_kernel(
    component: Component[Any], model: nn.Module, trusted_modules: Sequence[str] | None
) -> Component[Any]:
    """The component with fused=true where torch has one kernel for the whole step, unless the user chose.

    It computes the same sums and rounds them once less. Measured on a CPU for an MLP 784-128-10: Adam 185 -> 75
    microseconds a step, SGD with momentum 60 -> 36.
    """
    # A component without a target is refused where it is built.
    if not component.target:
        return component

    device = next(model.parameters()).device.type
    target = targets.resolve(str(component.target), "optimizer._target_", trusted_modules)
    if device == "cpu":
        has_kernel = target in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    else:
        has_kernel = device == "cuda" and target in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    # torch refuses fused=true beside the other two.
    is_chosen = not {"fused", "foreach", "differentiable"}.isdisjoint(component.arguments)
    if is_chosen or not has_kernel:
        return component
    return dataclasses.replace(component, arguments={**component.arguments, "fused": True})


def _try_group(
    component: Component[Any], entry: dict[str, Any], where: str, trusted_modules: Sequence[str] | None
) -> None:
    """Build the optimizer once with a group's own settings, as torch checks only those of the whole."""
    # One parameter will do: settings are checked when a group is added.
    own = {key: value for key, value in entry.items() if key != "match"}
    trial = dataclasses.replace(component, arguments={**component.arguments, **own})
    try:
        instantiate(trial, trusted_modules, [nn.Parameter(torch.zeros(1))])
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def build_schedule(
    settings: Settings, optimizer: Optimizer, train: Batches, mode: str, trusted_modules: Sequence[str] | None
) -> Schedule:
    """Build the learning rate schedule. Lengths left null become the length of the training.

    mode: "min" or "max" of the monitored metric, for plateau
    """
    component = settings.scheduler
    keys = settings.scheduler.keys
    if component.target is None:
        return Schedule(optimizer, None, keys.interval, keys.warmup_steps)

    trainer = settings.trainer
    steps_per_epoch = math.ceil(len(train) / trainer.accumulate_steps)
    steps = trainer.limit_epochs(steps_per_epoch) * steps_per_epoch
    if trainer.max_steps:
        steps = min(steps, trainer.max_steps)
    length = max(count_scheduler_steps(steps, steps_per_epoch, keys.interval, keys.warmup_steps), 1)

    # The rate of the whole comes first: the first group may have one of its own.
    lr = float(optimizer.defaults.get("lr") or optimizer.param_groups[0]["lr"])
    defaults = {"max_lr": 10 * lr, **dict.fromkeys(LENGTH_ARGUMENTS, length)}
    arguments = dict(component.arguments)
    spans_training = False
    for key, value in component.arguments.items():
        if value is None and key in defaults:
            arguments[key] = defaults[key]
            spans_training = spans_training or key in LENGTH_ARGUMENTS

    # Plateau watches the monitored metric, so it must know which way is better.
    if "plateau" in str(component.target).lower():
        arguments.setdefault("mode", mode)
        if keys.interval == "step":
            raise RequestError(
                "scheduler.interval=step: plateau looks at a metric, which there is once an epoch; "
                "type scheduler.interval=epoch"
            )
    if isinstance(arguments.get("total_steps"), int) and arguments["total_steps"] < length:
        raise RequestError(
            f"scheduler.total_steps={arguments['total_steps']} is shorter than the training; "
            f"type scheduler.total_steps={length}, or null"
        )
    complete = dataclasses.replace(component, arguments=arguments)
    scheduler = instantiate(complete, trusted_modules, optimizer)
    return Schedule(optimizer, scheduler, keys.interval, keys.warmup_steps, spans_training)


def instantiate(component: Component[Any], trusted_modules: Sequence[str] | None, *positional: Any) -> Any:
    """Build what a component names; whatever its constructor raises becomes a RequestError of one sentence.

    positional: arguments that dlrun passes.
    """
    check_component(component, trusted_modules, len(positional))
    try:
        return _call(_resolve_target(component, trusted_modules), component.arguments, trusted_modules, positional)
    except Exception as cause:
        # The target may be the user's own, so anything can come.
        if isinstance(cause, DlrunError) or is_out_of_memory(cause):
            raise

        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        key = _find_key(component, str(cause))
        where = (
            f"{component.group}.{key}={component.arguments[key]}" if key else f"{component.group}={component.choice}"
        )
        message = user_code.add_user_line(f"{where}: {kind}{user_code.get_first_line(cause)}", cause)
        if key and "; type" not in message:
            message += targets.suggest_value(component, key)
        raise RequestError(message) from cause


def _call(
    target: Callable[..., Any],
    arguments: dict[str, Any],
    trusted_modules: Sequence[str] | None,
    positional: Sequence[Any],
) -> Any:
    """Call a target as Hydra's `instantiate` does, but with plain values: text is text, whatever it contains.

    Blocks inside the arguments are built first, unless `_recursive_: false`. Positional arguments are `positional`,
    or else `_args_`; `_partial_: true` gives a functools.partial instead of calling.
    """
    if arguments.get("_recursive_") is False:
        # A copy, as what is built may change its arguments, and the config is saved later.
        values = copy.deepcopy(arguments)
    else:
        values = {key: _build_argument(value, trusted_modules) for key, value in arguments.items()}
    keywords = {key: value for key, value in values.items() if key not in _CALL_KEYS}
    positional = positional or values.get("_args_", [])
    if arguments.get("_partial_") is True:
        return functools.partial(target, *positional, **keywords)
    return target(*positional, **keywords)


def _build_argument(value: Any, trusted_modules: Sequence[str] | None) -> Any:
    """A copy of an argument, with every component in it replaced by the object that it names."""
    if isinstance(value, list):
        return [_build_argument(item, trusted_modules) for item in value]
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        target = targets.resolve(str(value["_target_"]), "_target_", trusted_modules)
        return _call(target, value, trusted_modules, [])
    return {key: _build_argument(item, trusted_modules) for key, item in value.items()}


def _resolve_target(component: Component[Any], trusted_modules: Sequence[str] | None) -> Callable[..., Any]:
    """The class or function that a component names; RequestError where it names none."""
    where = f"{component.group}._target_"
    if not component.target:
        raise RequestError(f"{where} has no value; type {component.group}=<one of `dlrun ls {component.group}`>")
    return targets.resolve(str(component.target), where, trusted_modules)


def check_component(component: Component[Any], trusted_modules: Sequence[str] | None, positional: int) -> None:
    """Raise RequestError for a target or an argument that does not exist.

    positional: number of positional arguments that dlrun passes.
    """
    empty = [key for key, value in component.arguments.items() if value == "???"]
    if empty:
        raise RequestError(f"{component.group}.{empty[0]} has no value yet; type {component.group}.{empty[0]}=...")
    # Blocks inside the arguments name targets too.
    for name in iter_targets(component.arguments):
        targets.resolve(name, f"{component.group}: _target_", trusted_modules)
    # dlrun reads these keys itself, and the target need not have them.
    own_keys = [field.name for field in dataclasses.fields(component.keys)]
    targets.check_arguments(component, _resolve_target(component, trusted_modules), own_keys, positional)


def _find_key(component: Component[Any], message: str) -> str | None:
    """The argument that a constructor's error message names, if any."""
    text = message.lower().replace(":", " ")
    for words, name in _NAMES_IN_MESSAGES:
        text = text.replace(words, name)
    words_in_text = text.split()
    return next((key for key in component.arguments if key in words_in_text), None)
