"""Try a model and restore it: generators, buffers, modes, attributes of a user's modules."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlrun.engine.device import preserve_rng_state


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore generators, and buffers and modes of the model, on exit."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = {}
    for name, buffer in model.named_buffers():
        if not is_lazy(buffer):
            # Statistics of batch norm move in every forward pass of training mode.
            buffers[name] = buffer.detach().clone()

    try:
        with preserve_rng_state():
            yield
    finally:
        current = dict(model.named_buffers())
        with torch.no_grad():
            for name, before in buffers.items():
                # A buffer of another shape was replaced or grown in the forward pass: `restore_attributes` undoes it.
                if name in current and current[name].shape == before.shape:
                    current[name].copy_(before)
        for module, is_training in modes:
            module.training = is_training


@contextmanager
def restore_attributes(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass does to attributes of a user's modules: counters, hidden states, buffers it registers.

    Values are restored two containers deep; objects that are neither plain values nor tensors are left alone.
    """
    restorers = [_record_attributes(module) for module in model.modules()]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


# Attributes that every module has: hooks and flags of torch's own, and its registries.
_TORCH_ATTRIBUTES = set(nn.Module().__dict__)
_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _record_attributes(module: nn.Module) -> Callable[[], None]:
    """Record the attributes of one module; returns a function that restores them."""
    kind = type(module)
    registries = {name: dict(module.__dict__[name]) for name in _REGISTRIES}
    # Attributes that a user's forward pass may set, such as a counter or a hidden state.
    attributes = {name: value for name, value in module.__dict__.items() if name not in _TORCH_ATTRIBUTES}
    restorers = [_record_value(value, depth=2) for value in attributes.values()]

    def restore() -> None:
        # A lazy layer that has met its input has become another class.
        if type(module) is not kind:
            return

        for name, before in registries.items():
            registry = module.__dict__[name]
            if _has_changed(registry, before) and not any(map(_is_lazy_value, before.values())):
                registry.clear()
                registry.update(before)

        # A forward pass may ask by hasattr whether it is the first.
        added = [name for name in module.__dict__ if name not in _TORCH_ATTRIBUTES and name not in attributes]
        for name in added:
            del module.__dict__[name]
        module.__dict__.update(attributes)
        for restore_value in restorers:
            restore_value()

    return restore


def _has_changed(registry: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a registry holds other objects; tensors are not compared by value."""
    return registry.keys() != before.keys() or any(registry[name] is not before[name] for name in before)


def _is_lazy_value(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(is_lazy(value))


def _record_value(value: Any, depth: int) -> Callable[[], None]:
    """Record the content of a container, array or tensor; returns a function that restores it in place.

    The function does nothing for a value that cannot change, or for a container below `depth`.
    """
    if isinstance(value, Tensor) and not is_lazy(value):
        copy = value.detach().clone()

        def restore_tensor() -> None:
            with torch.no_grad():
                if value.shape == copy.shape:
                    value.copy_(copy)

        return restore_tensor

    if isinstance(value, np.ndarray):
        array = value.copy()
        return partial(np.copyto, value, array)

    if not isinstance(value, list | dict | set | deque) or not depth:
        return lambda: None

    # Restored in place, since other objects may hold the same list.
    content: Any = value.copy()
    entries = value.values() if isinstance(value, dict) else value
    restorers = [_record_value(entry, depth - 1) for entry in entries]

    def restore_container() -> None:
        value.clear()
        if isinstance(value, list | deque):
            value.extend(content)
        else:
            value.update(content)
        for restore_value in restorers:
            restore_value()

    return restore_container
