"""What is checked before the first step: a small batch through model and loss, the monitored metric, the disk."""

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

from dlrun.core.errors import RequestError, did_you_mean, listed
from dlrun.core.user_code import first_line, with_place
from dlrun.data.batches import Batch, EpochOrder
from dlrun.engine.device import is_out_of_memory
from dlrun.engine.objective import Objective
from dlrun.engine.untouched import preserve_state, restore_attributes


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of one sample, at its last call
    parameters: int
    multiply_adds: int  # of one sample, over all calls
    values: int = 0  # that its own layers put out, of one sample, over all calls


def inspect_layers(model: nn.Module, batch: Batch, task: Objective, autocast: Any) -> list[Layer]:
    """Send `batch` through model and loss; RequestError when it does not get through. Returns the layer table."""
    shapes: dict[str, tuple[int, ...]] = {}  # in the order in which the layers answer
    work: Counter[str] = Counter()
    values: Counter[str] = Counter()

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        work[name] += count_multiply_adds(module, inputs, output)
        values[name] += 0 if any(module.children()) or not isinstance(output, Tensor) else output.numel()

    handles = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules()]
    try:
        with preserve_state(model), restore_attributes(model), torch.no_grad(), autocast():
            names = collect_parameter_names(model)
            outputs = _outputs(model, batch)
            refuse_late_parameters(model, names)
            _check_outputs(outputs, batch[1], task)
            _check_loss(outputs, batch[1], task)
    finally:
        for handle in handles:
            handle.remove()
    shown, samples = _shown(model), len(batch[1])
    return [_row(name, shown[name], shapes[name], work, values, samples) for name in shapes if name in shown]


def _row(
    name: str, module: nn.Module, shape: tuple[int, ...], work: Counter[str], values: Counter[str], samples: int
) -> Layer:
    """A layer, or a block with what its layers come to; work and values were counted over `samples`."""

    def below(counts: Counter[str]) -> int:
        inside = (n for other, n in counts.items() if not name or other == name or other.startswith(name + "."))
        return sum(inside) // samples

    kind, parameters = type(module).__name__, sum(p.numel() for p in module.parameters())
    return Layer(name or kind, kind, shape, parameters, below(work), below(values))


def _outputs(model: nn.Module, batch: Batch) -> Any:
    try:
        return model.eval()(*batch[0])
    except Exception as error:  # the model may be the user's own
        if is_out_of_memory(error) or isinstance(error, RequestError):
            raise
        sizes = ", ".join(str(tuple(x.shape)) for x in batch[0])
        raise RequestError(f"the model does not take this data (inputs of shape {sizes}): {_reason(error)}") from error


def collect_parameter_names(model: nn.Module) -> set[str]:
    """Names of all parameters that the model has now."""
    return {name for name, _ in model.named_parameters()}


def refuse_late_parameters(model: nn.Module, names: set[str]) -> None:
    """RequestError for parameters made in `forward`: the optimizer has been built and would never train them."""
    late = sorted(collect_parameter_names(model) - names)
    if late:
        raise RequestError(
            f"the model makes {listed(late)} in forward, where the optimizer does not see them and they would never "
            "be trained; make them in __init__"
        )


def _check_loss(outputs: Tensor, targets: Tensor, task: Objective) -> None:
    if task.loss_name == "nll" and (outputs > 1e-3).any():  # the smallest excess is rounding
        raise RequestError(
            "task.loss=nll takes logarithms of probabilities, which are not above 0 as this model's outputs are; "
            "type task.loss=cross_entropy, or end the model in LogSoftmax"
        )
    try:
        loss = task.compute_loss(outputs, targets)
    except Exception as error:  # the loss may be the user's own
        if is_out_of_memory(error):
            raise
        instead = "bce_with_logits" if task.spec.task == "binary" else "null"
        raise RequestError(
            f"task.loss={task.loss_name} does not take the model's output: {_reason(error)}; type task.loss={instead}"
        ) from error
    if loss.dim():
        raise RequestError(f"task.loss={task.loss_name} gives numbers {tuple(loss.shape)}, not one; return their mean")


def _reason(error: Exception) -> str:
    """What an exception of torch or of a user's model says, in one line."""
    said = first_line(error).rstrip(".: ")
    kind = "" if isinstance(error, RuntimeError | ValueError | TypeError) else f"{type(error).__name__}: "
    return with_place(kind + said, error)


def count_multiply_adds(layer: nn.Module, inputs: Any, output: Any) -> int:
    """The multiplications of one call that a sum follows, over the whole batch; 0 where there are none to speak of.

    Convolution: output elements x input channels / groups x kernel area (for a transposed one, input elements x
    output channels / groups x kernel area). Linear: weight size x positions. Recurrent: weight sizes x steps,
    those of packed sequences without their padding. Biases, normalization, pooling and activations count 0, and
    so does what a forward computes without a layer of torch.nn.
    """
    if isinstance(layer, _ConvNd):
        elements: int = (inputs[0] if layer.transposed else output).numel()
        return elements * layer.weight[0].numel()
    if isinstance(layer, nn.Linear | nn.RNNBase | nn.RNNCellBase):
        given: Tensor = inputs[0].data  # of a packed sequence: (steps of all samples, features)
        weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
        return weights * (given.numel() // given.shape[-1])
    return 0


def _shown(model: nn.Module, most: int = 30) -> dict[str, nn.Module]:
    """The layers that the table lists: the leaves, or the blocks when there are too many leaves."""
    leaves = {name: m for name, m in model.named_modules() if name and not any(m.children())}
    if len(leaves) <= most:
        return leaves or {"": model}
    blocks = {n: m for n, m in model.named_modules() if n and n.count(".") <= 1}
    inner = {n: m for n, m in blocks.items() if "." in n or not any(k.startswith(n + ".") for k in blocks)}
    return inner if len(inner) <= most else dict(model.named_children())


def _check_outputs(outputs: Any, targets: Tensor, task: Objective) -> None:
    if not isinstance(outputs, Tensor):
        raise RequestError(f"the model must return a tensor, not {type(outputs).__name__}")
    needed: tuple[int, ...] = (len(targets), task.spec.output_size)
    if task.spec.task == "tagging":
        needed = (len(targets), targets.shape[1], task.spec.output_size)
    if tuple(outputs.shape) != needed:
        raise RequestError(
            f"the model's output has the shape {tuple(outputs.shape)}, and {task.spec.task} with "
            f"{task.spec.output_size} outputs needs {needed}: use spec.output_size for its last layer"
        )


@dataclass(frozen=True)
class BatchSize:
    """How many rows one process sends through the model at once, and the batch that they are of."""

    rows: int
    batch_rows: int
    is_ragged: bool  # the last batch of an epoch, with fewer rows than the others


def list_batch_sizes(order: EpochOrder, processes: int = 1, most_batches: int | None = None) -> list[BatchSize]:
    """All the sizes that an epoch holds. most_batches: how many of them the whole training takes, None for all."""
    full = min(order.batch_size, order.rows)
    ragged = order.rows % order.batch_size if order.rows > order.batch_size and not order.drop_last else 0
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


# A forward pass of so many multiply-adds takes about a tenth of a second; of more, fewer rows are looked at.
_MOST_WORK = 4e9


def check_batch_sizes(
    model: nn.Module, batch: Batch, task: Objective, autocast: Any, sizes: list[BatchSize], order: EpochOrder, work: int
) -> None:
    """Send batches of each size through model and loss as in training; RequestError for one that does not get through.

    batch: a full one; work: multiply-adds for one row. Everything that the model keeps is afterwards as it was.
    """
    affordable = max(2, int(_MOST_WORK / max(work, 1)))
    passed: set[int] = set()
    for size in sizes:
        rows = min(size.rows, affordable, len(batch[1]))
        if rows in passed:
            continue
        running: list[tuple[str, nn.Module]] = []
        try:
            inputs = tuple(x[:rows] for x in batch[0])
            targets = batch[1][:rows]
            with (
                preserve_state(model),
                restore_attributes(model),
                _layers_running(model, running),
                torch.no_grad(),
                autocast(),
            ):
                names = collect_parameter_names(model)
                outputs = model.train()(*inputs)
                refuse_late_parameters(model, names)
                _check_outputs(outputs, targets, task)
                _check_loss(outputs, targets, task)
        except Exception as error:  # the model may be the user's own
            if is_out_of_memory(error):
                raise
            raise RequestError(_batch_refused(size, order, running, model, error)) from error
        passed.add(rows)


@contextmanager
def _layers_running(model: nn.Module, running: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keep `running` up to date: the innermost layer last, also where it fails."""

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


def _batch_refused(
    size: BatchSize, order: EpochOrder, running: list[tuple[str, nn.Module]], model: nn.Module, error: Exception
) -> str:
    name, layer = running[-1] if running else ("", model)
    who = f"layer {name} ({type(layer).__name__})" if name else f"the model ({type(model).__name__})"
    many = _count(size.rows)
    of_all = "" if size.rows == size.batch_rows else f", of which a process gets {size.rows:,}"
    if isinstance(error, RequestError):
        why = f"with {many} in training {error}"
    else:
        why = f"{who} does not take {many} in training: {_reason(error)}"
    if size.is_ragged:
        return (
            f"the last batch of an epoch has {_count(size.batch_rows)}{of_all} ({order.rows:,} training rows in "
            f"batches of {order.batch_size:,}), and {why}; type data.drop_last=true"
        )
    if size.rows == 1 and order.rows == 1:
        return f"there is one training row only, and {why}; give more rows, or take another layer"
    if size.rows == 1:
        batch = _count(size.batch_rows)
        return f"a batch has {batch}{of_all}, and {why}; type a larger data.batch_size, or take another layer"
    return why


def _count(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


_FALLING = ("loss", "mse", "mae")


def resolve_monitor(
    monitor: str | None, mode: str | None, task: Objective, has_val: bool, averages: bool = False
) -> tuple[str, str]:
    """The metric that decides which epoch is best, and its direction; RequestError when there is no such metric."""
    split = "val" if has_val else "train"
    known = [f"{s}/{m}" for s in (("train", "val") if has_val else ("train",)) for m in task.metric_names]
    if averages and has_val:
        known += [f"val/ema_{m}" for m in task.metric_names]
    if monitor is None:
        if mode == "max":
            raise RequestError("checkpoint.mode=max needs a metric that grows; type checkpoint.monitor=... too")
        return f"{split}/loss", "min"
    if monitor in known:
        return monitor, mode or ("min" if monitor.split("/")[-1].removeprefix("ema_") in _FALLING else "max")
    if monitor.startswith("val/") and not has_val:
        raise RequestError(
            f"checkpoint.monitor={monitor}: there is no validation part; "
            f"type data.val_fraction=0.1 or checkpoint.monitor=train/{monitor.removeprefix('val/')}"
        )
    hint = did_you_mean(monitor, known)
    raise RequestError(f"checkpoint.monitor={monitor} is no metric of this run; {hint}type one of {listed(known)}")


def check_disk(outputs: Path, model: nn.Module, optimizer: Optimizer, keep: int, full: bool = False) -> None:
    """Room for the newest `keep` checkpoints, the best, one being written, and model.pt where it is asked for."""
    weights = sum(t.numel() * t.element_size() for t in _tensors(model))
    needed = (keep + 2) * estimate_checkpoint_bytes(model, optimizer) + full * weights + 2**22
    place = outputs
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RequestError(
            f"{outputs} has {free / 2**20:,.0f} MB free, and the checkpoints need about {needed / 2**20:,.0f} MB; "
            "make room, or type paths.outputs=<folder> or checkpoint.keep=1"
        )


def estimate_checkpoint_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """About what one checkpoint of this choice takes on the disk."""
    states = _tensors(model)
    weights = sum(t.numel() * t.element_size() for t in states)
    trained = sum(p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    per_tensor = 400  # name, shape and alignment of each in the archive
    fixed = 18_000  # generators and config
    return int(weights + trained * count_moments(optimizer) + per_tensor * len(states) * 2 + fixed)


def _tensors(model: nn.Module) -> list[Tensor]:
    """What a state dict holds besides the extra state of modules, which may be anything."""
    return [value for value in model.state_dict().values() if isinstance(value, Tensor)]


def count_moments(optimizer: Optimizer) -> float:
    """How many numbers an optimizer keeps for each that it trains: 0 for plain SGD, 2 for Adam.

    Found by one step of its own on a parameter of a thousand zeros; 2 where that does not work.
    """
    history = optimizer.defaults.get("history_size")
    if history is not None:  # LBFGS: two vectors a remembered step, and the direction and gradient of the last one
        return 2.0 * int(history) + 2
    probe = nn.Parameter(torch.zeros(1000))
    takes = inspect.signature(type(optimizer)).parameters
    try:
        twin = type(optimizer)([probe], **{k: v for k, v in optimizer.defaults.items() if k in takes})
        probe.grad = torch.zeros_like(probe)
        twin.step()
    except Exception:  # a class of the user's own may want anything
        return 2.0
    kept = [value for value in twin.state[probe].values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in kept) / (probe.numel() * probe.element_size())


def check_export(model: nn.Module) -> list[str]:
    """For checkpoint.format=full: RequestError when the model cannot be pickled, now and not after the training.

    Returns notes: which classes can be found again in this very process only.
    """
    try:
        with Path(os.devnull).open("wb") as nowhere:  # half a second for a model of 500 MB
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
    names = sorted({type(m).__qualname__ for m in model.modules() if type(m).__module__ == "__main__"})
    if not names:
        return []
    return [
        f"checkpoint.format=full: {', '.join(names)} {'are' if len(names) > 1 else 'is'} defined in __main__ (a script "
        "or a notebook), so model.pt will open there only; define it in a module, such as mynet.py, to open it anywhere"
    ]
