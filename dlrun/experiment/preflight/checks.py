"""Checks before the first step: a small batch through model and loss, the monitored metric, the disk."""

import inspect
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from dlrun.core.errors import RequestError, join_names
from dlrun.core.suggest import did_you_mean
from dlrun.core.user_code import add_user_line, get_first_clause
from dlrun.data.batches import Batch, EpochOrder
from dlrun.engine.device import is_out_of_memory
from dlrun.engine.metric_names import find_direction
from dlrun.engine.objective import Objective
from dlrun.engine.optim import direct
from dlrun.engine.preserve import preserve_state, restore_attributes
from dlrun.experiment.preflight.memory import count_bytes

# The layer table has no more rows than this, unless the model has more children.
_MOST_LAYERS = 30

# A forward pass of so many multiply-adds takes about a tenth of a second; of larger ones fewer rows are checked.
_MOST_WORK = 4e9


@dataclass(frozen=True)
class Layer:
    """One row of the layer table; a block counts its layers. Sizes and work are of one sample."""

    name: str
    kind: str

    # At its last call.
    output_shape: tuple[int, ...]
    parameters: int

    # Over all calls: multiplications, and numbers that its leaf layers put out.
    multiply_adds: int
    values: int = 0


def inspect_layers(model: nn.Module, batch: Batch, objective: Objective, autocast: Any) -> list[Layer]:
    """Send `batch` through model and loss, and return the layer table.

    Leaves the model as it was. Raises RequestError if the batch does not get through.
    """
    # By layer name, in the order in which the layers return.
    shapes: dict[str, tuple[int, ...]] = {}
    work: Counter[str] = Counter()
    values: Counter[str] = Counter()

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        is_tensor = isinstance(output, Tensor)
        is_block = any(module.children())
        shapes[name] = tuple(output.shape[1:]) if is_tensor else ()
        work[name] += count_multiply_adds(module, inputs, output)
        values[name] += output.numel() if is_tensor and not is_block else 0

    handles = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules()]
    try:
        with preserve_state(model), restore_attributes(model), torch.no_grad(), autocast():
            names = _collect_parameter_names(model)
            outputs = _run_model(model, batch)
            _refuse_late_parameters(model, names)
            _check_outputs(outputs, batch[1], objective)
            _check_loss(outputs, batch[1], objective)
    finally:
        for handle in handles:
            handle.remove()

    # Counts are over the batch, the table is of one sample.
    samples = len(batch[1])
    modules = _select_modules(model)
    table = []
    for name, shape in shapes.items():
        if name in modules:
            module = modules[name]
            kind = type(module).__name__
            parameters = sum(p.numel() for p in module.parameters())
            layer_work = _sum_below(name, work) // samples
            layer_values = _sum_below(name, values) // samples
            table.append(Layer(name or kind, kind, shape, parameters, layer_work, layer_values))
    return table


def _select_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules to list: the leaves, or the blocks when there are too many leaves."""
    leaves = {name: module for name, module in model.named_modules() if name and not any(module.children())}
    if len(leaves) <= _MOST_LAYERS:
        # A model that is one layer has no names.
        return leaves or {"": model}

    # Blocks of the second level, and those of the first that have none.
    blocks = {name: module for name, module in model.named_modules() if name and name.count(".") <= 1}
    parents = {name.partition(".")[0] for name in blocks if "." in name}
    inner = {name: module for name, module in blocks.items() if name not in parents}
    return inner if len(inner) <= _MOST_LAYERS else dict(model.named_children())


def _sum_below(name: str, counts: Counter[str]) -> int:
    """Sum the counts of a module and of all inside it; the root's name is empty."""
    if not name:
        return sum(counts.values())
    return sum(count for other, count in counts.items() if other == name or other.startswith(name + "."))


def count_multiply_adds(layer: nn.Module, inputs: Any, output: Any) -> int:
    """Count the multiplications of one call that a sum follows, over the whole batch.

    Convolution: output elements x input channels / groups x kernel area (for a transposed one, input elements x
    output channels / groups x kernel area). Linear: weight size x positions. Recurrent: weight sizes x steps,
    those of packed sequences without their padding. Biases, normalization, pooling and activations count 0, and
    so does what a forward computes without a layer of torch.nn.
    """
    if isinstance(layer, _ConvNd):
        elements: int = (inputs[0] if layer.transposed else output).numel()
        return elements * layer.weight[0].numel()
    if isinstance(layer, nn.Linear | nn.RNNBase | nn.RNNCellBase):
        # `data` of a packed sequence: (steps of all samples, features).
        rows: Tensor = inputs[0].data
        weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
        return weights * (rows.numel() // rows.shape[-1])
    return 0


def _run_model(model: nn.Module, batch: Batch) -> Any:
    try:
        return model.eval()(*batch[0])
    except Exception as error:  # the model may be the user's own
        if is_out_of_memory(error) or isinstance(error, RequestError):
            raise
        sizes = ", ".join(str(tuple(x.shape)) for x in batch[0])
        raise RequestError(
            f"the model does not take this data (inputs of shape {sizes}): {_format_error(error)}"
        ) from error


def _collect_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of all parameters that the model has now."""
    return {name for name, _ in model.named_parameters()}


def _refuse_late_parameters(model: nn.Module, names: set[str]) -> None:
    """Raise RequestError for parameters made in `forward`: the optimizer was built before and would not train them.

    names: of the parameters before the first forward pass.
    """
    late = sorted(_collect_parameter_names(model) - names)
    if late:
        raise RequestError(
            f"the model makes {join_names(late)} in forward, where the optimizer does not see them and they would "
            "never be trained; make them in __init__"
        )


def _check_outputs(outputs: Any, targets: Tensor, objective: Objective) -> None:
    if isinstance(outputs, dict):
        names = join_names([str(key) for key in outputs])
        raise RequestError(
            f"the model returns a dict of {names}, and the data have one output; return one tensor, or name several in "
            "spec.outputs of the data"
        )
    if not isinstance(outputs, Tensor):
        several = "; several are named in spec.outputs of the data" if isinstance(outputs, list | tuple) else ""
        raise RequestError(f"the model must return a tensor, not {type(outputs).__name__}{several}")

    # (B, C), for tagging (B, T, C)
    shape_needed: tuple[int, ...] = (len(targets), objective.spec.output_size)
    if objective.spec.task == "tagging":
        shape_needed = (len(targets), targets.shape[1], objective.spec.output_size)
    if tuple(outputs.shape) != shape_needed:
        raise RequestError(
            f"the model's output has the shape {tuple(outputs.shape)}, and {objective.spec.task} with "
            f"{objective.spec.output_size} outputs needs {shape_needed}: use spec.output_size for its last layer"
        )


def _check_loss(outputs: Tensor, targets: Tensor, objective: Objective) -> None:
    # Rounding may lift a logarithm of 1 a little above 0.
    if objective.loss_name == "nll" and (outputs > 1e-3).any():
        raise RequestError(
            "task.loss=nll takes logarithms of probabilities, which are not above 0 as this model's outputs are; "
            "type task.loss=cross_entropy, or end the model in LogSoftmax"
        )
    if objective.spec.reconstructs and str(objective.loss_name).startswith("bce"):
        low, high = (float(value) for value in torch.aminmax(targets))
        if low < 0 or high > 1:
            raise RequestError(
                f"task.loss={objective.loss_name} is for inputs of 0 to 1, and these are {low:.3g} to {high:.3g}; "
                "leave them unnormalized (data.mean=0 data.std=1, or data.normalize=false), or type task.loss=mse"
            )
    try:
        loss = objective.compute_loss(outputs, targets)
    except Exception as error:  # the loss may be the user's own
        if is_out_of_memory(error):
            raise
        takes_logits = objective.spec.task in ("binary", "multilabel") or objective.spec.reconstructs
        instead = "bce_with_logits" if takes_logits else "null"
        raise RequestError(
            f"task.loss={objective.loss_name} does not take the model's output: {_format_error(error)}; "
            f"type task.loss={instead}"
        ) from error
    if loss.dim():
        raise RequestError(
            f"task.loss={objective.loss_name} gives numbers {tuple(loss.shape)}, not one; return their mean"
        )


def _format_error(error: Exception) -> str:
    """An error of torch or of a user's model, in one line."""
    # The kind says nothing where torch raises it for any argument that does not fit.
    message = get_first_clause(error)
    is_plain = isinstance(error, RuntimeError | ValueError | TypeError)
    kind = "" if is_plain else f"{type(error).__name__}: "
    return add_user_line(kind + message, error)


@dataclass(frozen=True)
class BatchSize:
    """Rows that one process sends through the model at once, and the rows of the whole batch."""

    rows: int
    batch_rows: int

    # The last batch of an epoch, with fewer rows than the others.
    is_ragged: bool


def list_batch_sizes(order: EpochOrder, processes: int = 1, most_batches: int | None = None) -> list[BatchSize]:
    """List all batch sizes of an epoch, largest first.

    most_batches: how many of the epoch's batches the whole training takes, None for all.
    """
    full = min(order.batch_size, order.rows)
    ragged = 0
    if order.rows > order.batch_size and not order.drop_last:
        ragged = order.rows % order.batch_size
    # The training ends before it reaches the last batch.
    if most_batches is not None and most_batches < len(order):
        ragged = 0

    sizes = []
    for batch_rows, is_ragged in ((full, False), (ragged, True)):
        if batch_rows == 0:
            continue
        shares = {batch_rows // processes, -(-batch_rows // processes)}
        # A process without a row of a batch sends one through all the same: the others wait for it.
        sizes += [BatchSize(max(rows, 1), batch_rows, is_ragged) for rows in sorted(shares, reverse=True)]
    return sizes


def check_batch_sizes(
    model: nn.Module,
    batch: Batch,
    objective: Objective,
    autocast: Any,
    sizes: list[BatchSize],
    order: EpochOrder,
    work: int,
) -> None:
    """Send batches of each size through model and loss as in training; RequestError for one that does not get through.

    batch: a full one. work: multiply-adds for one row. Leaves the model as it was.
    """
    most_rows = max(2, int(_MOST_WORK / max(work, 1)))
    # Sizes that are equal after the cut need one pass only.
    passed: set[int] = set()
    for size in sizes:
        rows = min(size.rows, most_rows, len(batch[1]))
        if rows in passed:
            continue

        running: list[tuple[str, nn.Module]] = []
        try:
            inputs = tuple(x[:rows] for x in batch[0])
            targets = batch[1][:rows]
            with (
                preserve_state(model),
                restore_attributes(model),
                _track_running_layers(model, running),
                torch.no_grad(),
                autocast(),
            ):
                names = _collect_parameter_names(model)
                outputs = model.train()(*inputs)
                _refuse_late_parameters(model, names)
                _check_outputs(outputs, targets, objective)
                _check_loss(outputs, targets, objective)
        except Exception as error:  # the model may be the user's own
            if is_out_of_memory(error):
                raise
            raise RequestError(_explain_batch_size(size, order, running, model, error)) from error
        passed.add(rows)


@contextmanager
def _track_running_layers(model: nn.Module, running: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep `running` up to date, innermost layer last; after an error it names the layer that failed."""

    def enter(name: str, module: nn.Module, _inputs: Any) -> None:
        running.append((name, module))

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _explain_batch_size(
    size: BatchSize, order: EpochOrder, running: list[tuple[str, nn.Module]], model: nn.Module, error: Exception
) -> str:
    """Why a batch of this size does not get through, and what to type."""
    name, layer = running[-1] if running else ("", model)
    rows = _format_rows(size.rows)
    batch = _format_rows(size.batch_rows)
    share = "" if size.rows == size.batch_rows else f", of which a process gets {size.rows:,}"

    if isinstance(error, RequestError):
        why = f"with {rows} in training {error}"
    else:
        owner = f"layer {name} ({type(layer).__name__})" if name else f"the model ({type(model).__name__})"
        why = f"{owner} does not take {rows} in training: {_format_error(error)}"

    if size.is_ragged:
        return (
            f"the last batch of an epoch has {batch}{share} ({order.rows:,} training rows in "
            f"batches of {order.batch_size:,}), and {why}; type data.drop_last=true"
        )
    if size.rows == 1 and order.rows == 1:
        return f"there is one training row only, and {why}; give more rows, or take another layer"
    if size.rows == 1:
        return f"a batch has {batch}{share}, and {why}; type a larger data.batch_size, or take another layer"
    return why


def _format_rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def resolve_monitor(
    monitor: str | None,
    mode: str | None,
    objective: Objective,
    has_val: bool,
    averages: bool = False,
    may_log: bool = False,
    word: str = "checkpoint.monitor=",
) -> tuple[str, str]:
    """Return the metric that decides which epoch is best, and its direction, "min" or "max".

    averages: whether averaged weights are evaluated too. may_log: whether callbacks or a model of the user's own may
    log values under any name. word: what stands before the metric where it is typed. Raises RequestError if there is
    no such metric.
    """
    splits = ("train", "val") if has_val else ("train",)
    known = []
    for split in splits:
        known += [f"{split}/{metric}" for metric in objective.metric_names]
    if averages and has_val:
        known += [f"val/ema_{metric}" for metric in objective.metric_names]

    if monitor is None:
        if mode == "max":
            raise RequestError("checkpoint.mode=max needs a metric that grows; type checkpoint.monitor=... too")
        return f"{splits[-1]}/loss", "min"
    if monitor in known:
        direction = mode or find_direction(monitor)
        if direction is None:
            raise RequestError(
                f"{word}{monitor}: it is not known whether more or less of it is better; "
                "type checkpoint.mode=max, or checkpoint.mode=min"
            )
        return monitor, direction

    if monitor.startswith("val/") and not has_val:
        raise RequestError(
            f"{word}{monitor}: there is no validation part; "
            f"type data.val_fraction=0.1 or {word}train/{monitor.removeprefix('val/')}"
        )

    # Only the training shows whether it is logged.
    if may_log and not monitor.startswith(("train/", "val/")):
        if mode is None:
            raise RequestError(
                f"{word}{monitor} is logged by code of your own, and dlrun does not know which way is "
                "better; type checkpoint.mode=min or checkpoint.mode=max too"
            )
        return monitor, mode

    hint = did_you_mean(monitor, known)
    raise RequestError(f"{word}{monitor} is no metric of this run; {hint}type one of {join_names(known)}")


def check_disk(outputs: Path, model: nn.Module, optimizer: Optimizer, keep: int, full: bool = False) -> None:
    """Raise RequestError unless the disk has room for the checkpoints of a run.

    These are the newest `keep`, the best, one being written, and with `full` model.pt.
    """
    # 4 MiB besides, for the small files of a run.
    bytes_needed = (keep + 2) * estimate_checkpoint_bytes(model, optimizer) + 2**22
    if full:
        bytes_needed += count_bytes(_list_tensors(model))

    # The folder may have to be made: what counts is the disk of its nearest parent.
    place = outputs
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < bytes_needed:
        free_mb = free / 2**20
        needed_mb = bytes_needed / 2**20
        raise RequestError(
            f"{outputs} has {free_mb:,.0f} MB free, and the checkpoints need about {needed_mb:,.0f} MB; "
            "make room, or type paths.outputs=<folder> or checkpoint.keep=1"
        )


def estimate_checkpoint_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Estimate the size of one checkpoint on the disk."""
    tensors = _list_tensors(model)
    weights = count_bytes(tensors)
    trainable_bytes = sum(count_bytes(group["params"]) for group in optimizer.param_groups)
    moments = trainable_bytes * count_moments(optimizer)
    # Name, shape and alignment of each tensor in the archive.
    per_tensor = 400
    # Generators and config.
    fixed = 18_000
    return int(weights + moments + per_tensor * len(tensors) * 2 + fixed)


def _list_tensors(model: nn.Module) -> list[Tensor]:
    """The tensors of a state dict, without the extra state of modules, which may be anything."""
    return [value for value in model.state_dict().values() if isinstance(value, Tensor)]


def count_moments(optimizer: Optimizer) -> float:
    """Count the numbers that an optimizer keeps for each that it trains: 0 for plain SGD, 2 for Adam.

    Measured by one step of a twin on a parameter of a thousand zeros; 2 where that does not work.
    """
    # LBFGS: two vectors a remembered step, and the direction and gradient of the last one.
    history = optimizer.defaults.get("history_size")
    if history is not None:
        return 2.0 * int(history) + 2

    probe = nn.Parameter(torch.zeros(1000))
    accepted = inspect.signature(type(optimizer)).parameters
    arguments = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    try:
        twin = type(optimizer)([probe], **arguments)
        probe.grad = torch.zeros_like(probe)
        direct.get_step(twin)()
    except Exception:  # a class of the user's own may want anything
        return 2.0
    state = [value for value in twin.state[probe].values() if isinstance(value, Tensor)]
    return count_bytes(state) / (probe.numel() * probe.element_size())


def check_export(model: nn.Module) -> list[str]:
    """For checkpoint.format=full: raise RequestError if the model cannot be pickled, now and not after the training.

    Returns notes: which classes can be found again in this very process only.
    """
    try:
        # Half a second for a model of 500 MB.
        with Path(os.devnull).open("wb") as nowhere:
            torch.save(model, nowhere)
    except Exception as error:  # whatever the attributes of a user's model make pickle raise
        if is_out_of_memory(error):
            raise
        if any(is_parametrized(module) for module in model.modules()):
            raise RequestError(
                "checkpoint.format=full: torch does not pickle a model with parametrizations (weight_norm, "
                "spectral_norm); type checkpoint.format=state_dict"
            ) from error
        raise RequestError(
            f"checkpoint.format=full: this model cannot be pickled ({error}); define its class in a module "
            "that can be imported, or type checkpoint.format=state_dict"
        ) from error

    in_main = [type(module) for module in model.modules() if type(module).__module__ == "__main__"]
    names = sorted({kind.__qualname__ for kind in in_main})
    if not names:
        return []
    return [
        f"checkpoint.format=full: {', '.join(names)} {'are' if len(names) > 1 else 'is'} defined in __main__ (a script "
        "or a notebook), so model.pt will open there only; define it in a module, such as mynet.py, to open it anywhere"
    ]
