"""A model tried on something, and left as it was: generators, buffers, modes, attributes of a user's modules."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlrun.engine.device import get_rng_state, set_rng_state


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves generators, buffers and modes of the model as they were."""
    rng = get_rng_state()
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: b.detach().clone() for name, b in model.named_buffers() if not is_lazy(b)}
    try:
        yield
    finally:
        after = dict(model.named_buffers())
        with torch.no_grad():
            for name, before in buffers.items():
                # A buffer of another shape was replaced or grown in the forward pass: `attributes_restored` undoes it.
                if name in after and after[name].shape == before.shape:
                    after[name].copy_(before)
        for module, mode in modes:
            module.training = mode
        set_rng_state(rng)


@contextmanager
def restore_attributes(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass does to attributes of a user's modules: counters, hidden states, buffers it registers.

    Values are put back two containers deep; what a module holds besides plain values and tensors is left alone.
    """
    undo = [_undo_attributes(module) for module in model.modules()]
    try:
        yield
    finally:
        for restore in undo:
            restore()


# Hooks and flags belong to torch; these three hold what a module registers.
_OF_TORCH = set(nn.Module().__dict__)
_REGISTERED = ("_parameters", "_buffers", "_modules")


def _undo_attributes(module: nn.Module) -> Callable[[], None]:
    kind = type(module)
    registered = {name: dict(module.__dict__[name]) for name in _REGISTERED}
    own = {name: value for name, value in module.__dict__.items() if name not in _OF_TORCH}
    undo = [_undo_value(value, depth=2) for value in own.values()]

    def restore() -> None:
        if type(module) is not kind:  # a lazy layer has met its input and become another class
            return
        for name, before in registered.items():
            if _differs(module.__dict__[name], before) and not any(map(_is_lazy_value, before.values())):
                module.__dict__[name].clear()
                module.__dict__[name].update(before)
        for name in [name for name in module.__dict__ if name not in _OF_TORCH and name not in own]:
            del module.__dict__[name]
        module.__dict__.update(own)
        for restore_value in undo:
            restore_value()

    return restore


def _differs(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a registry holds other things; tensors are not compared by value."""
    return now.keys() != before.keys() or any(now[name] is not before[name] for name in before)


def _is_lazy_value(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(is_lazy(value))


def _undo_value(value: Any, depth: int) -> Callable[[], None]:
    """What puts the content of a container, array or tensor back in place; nothing for a value that cannot change."""
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
    content: Any = value.copy()
    inside = value.values() if isinstance(value, dict) else value
    undo = [_undo_value(entry, depth - 1) for entry in inside]

    def restore_container() -> None:
        value.clear()
        if isinstance(value, list | deque):
            value.extend(content)
        else:
            value.update(content)
        for restore_value in undo:
            restore_value()

    return restore_container
