"""What is checked before the first step: one small batch through model and loss, the monitored metric, the disk."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dlrun.data.batches import Batch, Batches
from dlrun.errors import RequestError
from dlrun.runtime import rng_state, set_rng_state
from dlrun.task import Task


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of one sample, at its last call
    parameters: int
    multiply_adds: int  # of one sample, over all calls


def small_batch(batches: Batches, rows: int = 2) -> Batch:
    """The first rows of an epoch, as the model gets them."""
    inputs, targets = next(batches.epoch(1))
    return tuple(x[:rows] for x in inputs), targets[:rows]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves generators, buffers and mode of the model as they were."""
    rng, training = rng_state(), model.training
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(buffers[name])
        model.train(training)
        set_rng_state(rng)


def layers(model: nn.Module, batch: Batch, task: Task, autocast: Any) -> list[Layer]:
    """Send `batch` through model and loss; RequestError when it does not get through. Returns the layer table."""
    shapes: dict[str, tuple[int, ...]] = {}  # in the order in which the layers answer
    work: Counter[str] = Counter()

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        work[name] += multiply_adds(module, inputs, output)

    handles = [module.register_forward_hook(partial(record, name)) for name, module in model.named_modules()]
    try:
        with untouched(model), torch.no_grad(), autocast():
            outputs = model.eval()(*batch[0])
            _check_outputs(outputs, batch[1], task)
            task.loss(outputs, batch[1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        sizes = ", ".join(str(tuple(x.shape)) for x in batch[0])
        raise RequestError(
            f"the model does not take this data (inputs of shape {sizes}): {str(error).splitlines()[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    shown, samples = _shown(model), len(batch[1])
    return [_row(name, shown[name], shapes[name], work, samples) for name in shapes if name in shown]


def _row(name: str, module: nn.Module, shape: tuple[int, ...], work: Counter[str], samples: int) -> Layer:
    """A layer, or a block with what its layers come to; the work was counted over `samples`."""
    below = [count for other, count in work.items() if not name or other == name or other.startswith(name + ".")]
    kind, parameters = type(module).__name__, sum(p.numel() for p in module.parameters())
    return Layer(name or kind, kind, shape, parameters, sum(below) // samples)


def multiply_adds(layer: nn.Module, inputs: Any, output: Any) -> int:
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


def _check_outputs(outputs: Any, targets: Tensor, task: Task) -> None:
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


def monitored(monitor: str | None, mode: str | None, task: Task, has_val: bool) -> tuple[str, str]:
    """The metric that decides which epoch is best, and its direction; RequestError when there is no such metric."""
    split = "val" if has_val else "train"
    known = [f"{s}/{m}" for s in (("train", "val") if has_val else ("train",)) for m in task.metric_names]
    if monitor is None:
        if mode == "max":
            raise RequestError("checkpoint.mode=max needs a metric that grows; type checkpoint.monitor=... too")
        return f"{split}/loss", "min"
    if monitor in known:
        return monitor, mode or ("min" if monitor.endswith(("/loss", "/mse", "/mae")) else "max")
    if monitor.startswith("val/") and not has_val:
        raise RequestError(
            f"checkpoint.monitor={monitor}: there is no validation part; "
            f"type data.val_fraction=0.1 or checkpoint.monitor=train/{monitor.removeprefix('val/')}"
        )
    close = get_close_matches(monitor, known, 1, 0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise RequestError(f"checkpoint.monitor={monitor} is no metric of this run; {hint}type one of {', '.join(known)}")


def check_disk(outputs: Path, model: nn.Module, keep: int) -> None:
    """Room for the newest `keep` checkpoints, the best, and one being written, with two optimizer moments each."""
    needed = (keep + 2) * 3 * sum(p.numel() * p.element_size() for p in model.parameters()) + 2**22
    place = outputs
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RequestError(
            f"{outputs} has {free / 2**20:,.0f} MB free, and the checkpoints need about {needed / 2**20:,.0f} MB; "
            "make room, or type paths.outputs=<folder> or checkpoint.keep=1"
        )


def check_export(model: nn.Module) -> list[str]:
    """For checkpoint.format=full: RequestError when the model cannot be pickled, now and not after the training.

    Returns notes: which classes can be found again in this very process only.
    """
    try:
        with Path(os.devnull).open("wb") as nowhere:  # half a second for a model of 500 MB
            torch.save(model, nowhere)
    except Exception as error:  # whatever the attributes of a user's model make pickle raise
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
