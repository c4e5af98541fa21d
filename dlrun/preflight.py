"""What is checked before the first step: one small batch through model and loss, the monitored metric, the disk."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.data.batches import Batch, Batches
from dlrun.errors import RequestError
from dlrun.runtime import rng_state, set_rng_state
from dlrun.task import Task


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # of one sample
    parameters: int


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
    rows: list[Layer] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = output.shape[1:] if isinstance(output, Tensor) else ()
            count = sum(p.numel() for p in module.parameters())
            rows.append(Layer(name, type(module).__name__, tuple(shape), count))

        return hook

    shown = _shown(model)
    handles = [module.register_forward_hook(record(name)) for name, module in shown.items()]
    try:
        with untouched(model), torch.no_grad(), autocast():
            outputs = model.eval()(*batch[0])
            _check_outputs(outputs, batch[1], task)
            task.loss(outputs, batch[1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in batch[0])
        raise RequestError(
            f"the model does not take this data (inputs of shape {shapes}): {str(error).splitlines()[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _shown(model: nn.Module, most: int = 30) -> dict[str, nn.Module]:
    """The layers that the table lists: the leaves, or the blocks when there are too many leaves."""
    leaves = {name: m for name, m in model.named_modules() if name and not any(m.children())}
    if len(leaves) <= most:
        return leaves or {type(model).__name__: model}
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
