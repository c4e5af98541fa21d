"""What objects keep in their attributes: walked through, copied and compared, whatever their class."""

import copy
import random
import threading
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))
_WITHOUT_STATE = (
    type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, types.CodeType, *_LOCKS,
)  # fmt: skip
_COMPILED = "_compiled_call_impl"  # of a module: calls that very module, whoever holds it; no copy takes it along
TORCH_ATTRIBUTES = frozenset(
    (*nn.Module().__dict__, _COMPILED)
)  # what every module may have: flags, hooks, its registers


def iterate_parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with what is written behind the value's name to get it: `[0]`, `['key']`, `.name`."""
    if isinstance(value, (*PLAIN_TYPES, *_WITHOUT_STATE, Tensor, np.ndarray)):
        return
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{key!r}]", item
    elif isinstance(value, list | tuple | deque):
        for i, item in enumerate(list(value)):
            yield f"[{i}]", item
    elif isinstance(value, set | frozenset):
        for item in list(value):
            yield "", item
    for name, item in iterate_attributes(value):
        yield f".{name}", item


def iterate_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """An object's own attributes, those in slots too."""
    for name, item in list(getattr(value, "__dict__", {}).items()):
        if name != _COMPILED:
            yield name, item
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def iterate_reachable(value: Any) -> Iterator[Any]:
    """A value and all that it holds at any depth, each object once; plain values are left out."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, PLAIN_TYPES) or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        waiting += [part for _, part in iterate_parts(thing)]


def find_enclosing_function(value: Any) -> types.FunctionType | None:
    """A function that holds a module in a closure, as `lambda x: self.scale * x` does: copies share it, and it."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        for thing in iterate_reachable(waiting.pop()):
            if not isinstance(thing, types.FunctionType) or id(thing) in seen:
                continue
            seen.add(id(thing))
            for cell in thing.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:  # nothing has been put there yet
                    continue
                if any(isinstance(inner, nn.Module) for inner in iterate_reachable(content)):
                    return thing
                waiting.append(content)
    return None


def count_bytes(value: Any) -> int:
    """Bytes of all tensors and arrays that a value holds."""
    total = 0
    for thing in iterate_reachable(value):
        if isinstance(thing, np.ndarray) or (isinstance(thing, Tensor) and not is_lazy(thing)):
            total += thing.nbytes
    return total


def duplicate(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy that shares nothing which a call could change; an exception of any kind where there can be none.

    Tensors amid a graph, which torch does not copy, are copied without it. Locks are shared: they hold no numbers.
    memo: copies by the id of their original, as copy.deepcopy takes them; those made here are added.
    """
    memo = {} if memo is None else memo
    for thing in iterate_reachable(value):
        if isinstance(thing, _LOCKS):
            memo[id(thing)] = thing
        elif isinstance(thing, Tensor) and not thing.is_leaf:
            memo[id(thing)] = thing.detach().clone()
    return copy.deepcopy(value, memo)


def find_difference(one: Any, two: Any, compared: set[tuple[int, int]] | None = None) -> str | None:
    """Where two values differ, as it is written behind their name, "" for the values themselves; None where nowhere.

    Modules inside are not looked into, nor what cannot be compared, such as functions and open files.
    """
    compared = set() if compared is None else compared
    if one is two or (id(one), id(two)) in compared:
        return None
    compared.add((id(one), id(two)))

    if isinstance(one, nn.Module) and isinstance(two, nn.Module):
        return None
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return None if _are_equal_tensors(one, two) else ""
    if type(one) is not type(two):
        return ""
    if isinstance(one, PLAIN_TYPES):
        both_nan = one != one and two != two
        return None if one == two or both_nan else ""
    if isinstance(one, np.ndarray):
        if one.dtype.hasobject:
            return find_difference(one.tolist(), two.tolist(), compared)
        return None if one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes() else ""
    if isinstance(one, np.generic):
        return None if one.tobytes() == two.tobytes() else ""

    drawn = get_generator_state(one)
    if drawn is not None:
        return None if find_difference(drawn, get_generator_state(two), compared) is None else ""
    if isinstance(one, Iterator):
        return None if repr(one) == repr(two) or " object at 0x" in repr(one) else ""
    if isinstance(one, set | frozenset):
        return None if one == two else ""
    if isinstance(one, list | tuple | deque) and len(one) != len(two):
        return ""

    parts = dict(iterate_parts(one))
    others = dict(iterate_parts(two))
    for suffix in (*parts, *(name for name in others if name not in parts)):
        if suffix not in parts or suffix not in others:
            return suffix
        inner = find_difference(parts[suffix], others[suffix], compared)
        if inner is not None:
            return suffix + inner
    return None


def get_generator_state(value: Any) -> Any:
    """Where a generator of random numbers stands; None for anything else."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.BitGenerator):
        return value.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate()
    return None


def _are_equal_tensors(one: Tensor, two: Tensor) -> bool:
    if is_lazy(one) or is_lazy(two):
        return is_lazy(one) == is_lazy(two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    a = one.detach()
    b = two.detach().to(one.device)
    if a.layout != torch.strided or b.layout != torch.strided:
        return a.layout == b.layout and _are_equal_tensors(a.to_dense(), b.to_dense())
    return bool(((a == b) | ((a != a) & (b != b))).all())


def name_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, also those in attributes, lists and dictionaries, where torch does not see them."""
    named = dict(model.named_modules())
    known = {id(module) for module in named.values()}
    waiting = list(named.items())
    while waiting:
        name, module = waiting.pop(0)
        for attribute, value in iterate_attributes(module):
            if attribute in TORCH_ATTRIBUTES:
                continue
            for suffix, inner in _modules_inside(value):
                if id(inner) in known:
                    continue
                path = f"{name}.{attribute}{suffix}" if name else attribute + suffix
                for below, submodule in inner.named_modules():
                    if id(submodule) not in known:
                        known.add(id(submodule))
                        named[f"{path}.{below}" if below else path] = submodule
                        waiting.append((f"{path}.{below}" if below else path, submodule))
    return named


def _modules_inside(value: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules in a value, with what is written behind its name; in containers and objects, at any depth."""
    seen: set[int] = set()
    waiting = [("", value)]
    while waiting:
        suffix, thing = waiting.pop(0)
        if isinstance(thing, PLAIN_TYPES) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            yield suffix, thing
            continue
        waiting += [(suffix + more, part) for more, part in iterate_parts(thing)]
