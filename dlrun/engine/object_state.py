"""What objects hold in their attributes: traverse, copy and compare it, whatever their class."""

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
_STATELESS_TYPES = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.CodeType,
    *_LOCKS,
)

# A compiled call runs that very module, whichever object holds it; copies leave it out.
_COMPILED = "_compiled_call_impl"

# Attributes that every module may have: flags, hooks, registries.
TORCH_ATTRIBUTES = frozenset((*nn.Module().__dict__, _COMPILED))


def _iterate_parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Objects that a value holds, each with the suffix that accesses it: `[0]`, `['key']`, `.name`."""
    if isinstance(value, (*PLAIN_TYPES, *_STATELESS_TYPES, Tensor, np.ndarray)):
        return

    # Contents are copied into lists: whoever iterates may change the value meanwhile.
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield f"[{key!r}]", item
    elif isinstance(value, list | tuple | deque):
        for i, item in enumerate(list(value)):
            yield f"[{i}]", item
    elif isinstance(value, set | frozenset):
        for item in list(value):
            yield "", item

    for name, item in _iterate_attributes(value):
        yield f".{name}", item


def _iterate_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of an object's own attributes, including slots."""
    for name, item in list(getattr(value, "__dict__", {}).items()):
        if name != _COMPILED:
            yield name, item

    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        if isinstance(slots, str):
            slots = (slots,)
        for name in slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def iterate_reachable(value: Any) -> Iterator[Any]:
    """A value and all that it holds at any depth, each object once; plain values are left out."""
    visited: set[int] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, PLAIN_TYPES) or id(current) in visited:
            continue
        visited.add(id(current))
        yield current
        # A list in place of recursion: objects may be nested deeper than Python's stack.
        pending += [part for _, part in _iterate_parts(current)]


def find_enclosing_function(value: Any) -> types.FunctionType | None:
    """A function inside the value that has a module in its closure, as `lambda x: self.scale * x` does.

    Copies share the function, and with it the module.
    """
    visited: set[int] = set()
    pending = [value]
    while pending:
        for candidate in iterate_reachable(pending.pop()):
            if not isinstance(candidate, types.FunctionType) or id(candidate) in visited:
                continue
            visited.add(id(candidate))

            for cell in candidate.__closure__ or ():
                try:
                    content = cell.cell_contents
                except ValueError:
                    # An empty cell.
                    continue
                if any(isinstance(inner, nn.Module) for inner in iterate_reachable(content)):
                    return candidate
                pending.append(content)
    return None


def count_bytes(value: Any) -> int:
    """Bytes of all tensors and arrays that a value holds."""
    total = 0
    for part in iterate_reachable(value):
        if isinstance(part, np.ndarray) or (isinstance(part, Tensor) and not is_lazy(part)):
            total += part.nbytes
    return total


def duplicate(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy that shares nothing which a call could change; raises any exception if a part cannot be copied.

    Tensors amid a graph, which torch does not copy, are copied without it. Locks are shared: they hold no numbers.
    memo: copies by the id of their original, as copy.deepcopy takes them; the new ones are added.
    """
    memo = {} if memo is None else memo
    for part in iterate_reachable(value):
        if isinstance(part, _LOCKS):
            memo[id(part)] = part
        elif isinstance(part, Tensor) and not part.is_leaf:
            memo[id(part)] = part.detach().clone()
    return copy.deepcopy(value, memo)


def find_difference(one: Any, two: Any, compared: set[tuple[int, int]] | None = None) -> str | None:
    """Suffix of the first part in which two values differ, "" for the values themselves; None if they are equal.

    Modules inside are not compared, nor what cannot be, such as functions and open files.
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
        are_both_nan = one != one and two != two
        return None if one == two or are_both_nan else ""

    if isinstance(one, np.ndarray):
        if one.dtype.hasobject:
            return find_difference(one.tolist(), two.tolist(), compared)
        is_same_array = one.shape == two.shape and one.dtype == two.dtype and one.tobytes() == two.tobytes()
        return None if is_same_array else ""
    if isinstance(one, np.generic):
        return None if one.tobytes() == two.tobytes() else ""

    generator_state = get_generator_state(one)
    if generator_state is not None:
        other_state = get_generator_state(two)
        return None if find_difference(generator_state, other_state, compared) is None else ""
    if isinstance(one, Iterator):
        # A representation with an address tells nothing about the position.
        return None if repr(one) == repr(two) or " object at 0x" in repr(one) else ""
    if isinstance(one, set | frozenset):
        return None if one == two else ""
    if isinstance(one, list | tuple | deque) and len(one) != len(two):
        return ""

    # Elements and attributes, those of the first value before those that only the second one has.
    parts = dict(_iterate_parts(one))
    others = dict(_iterate_parts(two))
    suffixes = [*parts, *(suffix for suffix in others if suffix not in parts)]
    for suffix in suffixes:
        if suffix not in parts or suffix not in others:
            return suffix
        difference = find_difference(parts[suffix], others[suffix], compared)
        if difference is not None:
            return suffix + difference
    return None


def get_generator_state(value: Any) -> Any:
    """State of a random number generator; None for any other object."""
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

    # Sparse tensors cannot be compared element by element.
    a = one.detach()
    b = two.detach().to(one.device)
    if a.layout != torch.strided or b.layout != torch.strided:
        return a.layout == b.layout and _are_equal_tensors(a.to_dense(), b.to_dense())
    are_both_nan = (a != a) & (b != b)
    return bool(((a == b) | are_both_nan).all())


def name_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by name, also those in attributes, lists and dictionaries, where torch does not see them."""
    modules = dict(model.named_modules())
    known_ids = {id(module) for module in modules.values()}
    pending = list(modules.items())
    while pending:
        name, module = pending.pop(0)
        for attribute, value in _iterate_attributes(module):
            if attribute in TORCH_ATTRIBUTES:
                continue
            for suffix, inner in _iterate_modules(value):
                if id(inner) in known_ids:
                    continue

                path = f"{name}.{attribute}{suffix}" if name else attribute + suffix
                for below, submodule in inner.named_modules():
                    if id(submodule) in known_ids:
                        continue
                    known_ids.add(id(submodule))
                    full_name = f"{path}.{below}" if below else path
                    modules[full_name] = submodule
                    pending.append((full_name, submodule))
    return modules


def _iterate_modules(value: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules in containers and objects at any depth, but not inside other modules, with their suffixes."""
    visited: set[int] = set()
    pending = [("", value)]
    while pending:
        suffix, current = pending.pop(0)
        if isinstance(current, PLAIN_TYPES) or id(current) in visited:
            continue
        visited.add(id(current))
        if isinstance(current, nn.Module):
            yield suffix, current
            continue
        pending += [(suffix + more, part) for more, part in _iterate_parts(current)]
