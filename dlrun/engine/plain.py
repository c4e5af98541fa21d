"""Encode a state as plain Python values and tensors; NumPy values are converted, and restored when read."""

import copy
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# The key of a checkpoint that marks values that were NumPy's.
NUMPY = "numpy"
_VALUES = frozenset((
    type(None), bool, int, float, complex, str, bytes, bytearray,
    torch.Size, torch.dtype, torch.device, torch.layout, Tensor, nn.Parameter,
))  # fmt: skip
_KEYS = frozenset((type(None), bool, int, float, complex, str, bytes))
# Levels of nested dictionaries and lists.
_DEEPEST = 50
# How messages name the parts of a checkpoint; other parts go by their keys.
_OWNERS = {
    "model": "the model's state",
    "ema": "the averaged model's state",
    "optimizer": "the optimizer's state",
    "scheduler": "the scheduler's state",
    "loss": "the loss's state",
    "callbacks": "the callbacks' state",
    "spec": "the data's description",
    "config": "the config",
}

# The keys and positions that lead to a value.
Path = tuple[Any, ...]
# [path, "scalar" or "array", the dtype as NumPy writes it].
Mark = list[Any]


class NotPlainError(Exception):
    """A value that no checkpoint can hold; the message says where it is, and what."""


def encode(state: dict[str, Any]) -> dict[str, Any]:
    """Convert NumPy scalars to plain values and arrays to tensors, and mark them for `decode`.

    Unchanged parts are not copied. NotPlainError for anything that `torch.load(weights_only=True)` would refuse.
    """
    marks: list[Mark] = []
    plain: dict[str, Any] = _encode(state, (), marks, [])
    return plain | {NUMPY: marks} if marks else plain


def join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Join two encoded states that share no key, as if `encode` had been called on both together."""
    marks = [*first.get(NUMPY, []), *second.get(NUMPY, [])]
    return first | second | ({NUMPY: marks} if marks else {})


def take_copy(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state, its tensors to the CPU: the training continues and changes the original.

    Tensors that are one, as tied weights are, stay one.
    """
    copied: dict[str, Any] = _copy(state, {})
    return copied


def _copy(value: Any, copies: dict[Any, Tensor]) -> Any:
    """copies: of the tensors so far, by where they lie."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        return _copy_tensor(value, copies)
    if kind in (dict, OrderedDict, Counter):
        # copy.copy keeps the attribute that torch adds to a state_dict: the versions of its layers.
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = _copy(item, copies)
        return new

    if kind in (list, tuple):
        return kind([_copy(item, copies) for item in value])
    if kind in _VALUES and kind is not bytearray:
        # These cannot change.
        return value
    return copy.deepcopy(value)


def _copy_tensor(value: Tensor, copies: dict[Any, Tensor]) -> Tensor:
    where = None
    if value.layout == torch.strided and not value.is_complex():
        where = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device, type(value))
        if where in copies and value.numel():
            return copies[where]

    new = value.detach().to("cpu", copy=True)
    if type(value) is nn.Parameter:
        new = nn.Parameter(new, value.requires_grad)
    elif value.requires_grad:
        new.requires_grad_()

    if where is not None:
        copies[where] = new
    return new


def decode(state: dict[str, Any]) -> dict[str, Any]:
    """Undo `encode`, in place. ValueError if the marks do not fit the state."""
    marks = state.pop(NUMPY, [])
    try:
        for path, kind, dtype in marks:
            *outer, last = path
            _restore(state, outer, last, kind, np.dtype(str(dtype)))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError("its note on NumPy values does not fit what it holds") from error

    return state


def explain_refusal(owner: str, values: Any) -> str:
    """Describe the first of `values` that no checkpoint can hold; "" if there is none."""
    try:
        encode({owner: values})
    except NotPlainError as error:
        return str(error)
    return ""


def _encode(value: Any, path: Path, marks: list[Mark], outer: list[int]) -> Any:
    # By exact type: torch refuses subclasses of these when it loads the file.
    kind = type(value)
    if kind in _VALUES:
        return value
    if isinstance(value, np.generic):
        return _encode_scalar(value, path, marks)
    if kind is np.ndarray:
        return _encode_array(value, path, marks)

    if id(value) in outer:
        raise NotPlainError(f"{_locate(path)}, which holds itself; checkpoints cannot hold that")
    if len(outer) >= _DEEPEST:
        raise NotPlainError(f"{_locate(path)}, which lies deeper than {_DEEPEST} levels; make it flatter")
    within = [*outer, id(value)]

    if kind in (dict, OrderedDict, Counter):
        return _encode_mapping(value, path, marks, within)
    if kind in (list, tuple):
        items = [_encode(item, (*path, i), marks, within) for i, item in enumerate(value)]
        is_changed = any(new is not old for new, old in zip(items, value, strict=True))
        return kind(items) if is_changed else value

    # torch loads sets, but marks cannot point into one, which has no positions: NumPy values in it stay plain.
    if kind is set:
        elements = {_encode(item, (*path, "an element"), [], within) for item in value}
        is_changed = {type(item) for item in elements} != {type(item) for item in value}
        return elements if is_changed else value

    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    raise NotPlainError(
        f"{_locate(path)}, a {name}, and checkpoints hold plain values (numbers, text, lists, dictionaries) "
        "and tensors alone; make it one of these, or leave it out"
    )


def _encode_mapping(value: Any, path: Path, marks: list[Mark], outer: list[int]) -> Any:
    pairs = []
    is_changed = False
    for key, item in value.items():
        # Most keys and values stay as they are, and a config has hundreds.
        new_key = key if type(key) in _KEYS else _encode_key(key, path)
        new_item = item if type(item) in _VALUES else _encode(item, (*path, new_key), marks, outer)
        is_changed = is_changed or new_key is not key or new_item is not item
        pairs.append((new_key, new_item))

    if not is_changed:
        return value

    # A copy keeps the attribute that torch adds to a state_dict: the versions of its layers.
    changed_copy = copy.copy(value)
    changed_copy.clear()
    changed_copy.update(dict(pairs))
    return changed_copy


def _encode_key(key: Any, path: Path) -> Any:
    if isinstance(key, np.generic):
        key = key.item()
    # torch loads such keys, so that their parts decide.
    if type(key) is tuple:
        parts = tuple(_encode_key(part, path) for part in key)
        is_changed = any(new is not old for new, old in zip(parts, key, strict=True))
        return parts if is_changed else key

    if type(key) not in _KEYS:
        raise NotPlainError(f"{_locate(path)}, with a key that is a {type(key).__name__}; make it text or a number")
    return key


def _encode_scalar(value: np.generic, path: Path, marks: list[Mark]) -> Any:
    plain = value.item()
    # Dates, objects and long doubles have no plain value.
    if type(plain) not in _VALUES:
        raise NotPlainError(f"{_locate(path)}, a NumPy {value.dtype}; make it a number or text")
    marks.append([list(path), "scalar", value.dtype.str])
    return plain


def _encode_array(value: np.ndarray[Any, Any], path: Path, marks: list[Mark]) -> Any:
    plain: Any
    if value.dtype.kind in "US":
        plain = value.tolist()
    else:
        # Tensors have no byte order; the mark keeps the array's own.
        native = np.dtype(value.dtype.newbyteorder("=").str)
        try:
            plain = torch.from_numpy(np.array(value, dtype=native, order="C").view(native))
        except TypeError as error:
            raise NotPlainError(f"{_locate(path)}, a NumPy array of {value.dtype}; make it numbers or text") from error

    marks.append([list(path), "array", value.dtype.str])
    return plain


def _locate(path: Path) -> str:
    """Describe a path in words, as in "the scheduler's state holds table[3]"."""
    owner, *keys = path or ("state",)
    if owner == "scheduler" and keys[:1] == ["scheduler"]:
        # The user's own scheduler, inside the state that dlrun keeps for it.
        keys = keys[1:]

    inner = ""
    for key in keys:
        if isinstance(key, int):
            inner += f"[{key}]"
        else:
            inner += f".{key}" if inner else str(key)

    whose = _OWNERS.get(owner, f"the run's {owner}")
    return f"{whose} holds {inner}" if inner else f"{whose} is a value"


def _restore(value: Any, outer: list[Any], last: Any, kind: str, dtype: np.dtype[Any]) -> Any:
    """Convert the value at a path back to NumPy; returns `value`, or a new tuple in its place."""
    if outer:
        key, *rest = outer
        old = value[key]
        new = _restore(old, rest, last, kind, dtype)
    else:
        key = last
        old = value[key]
        new = _to_numpy(old, kind, dtype)

    # A tuple cannot be changed in place, so that its owner gets a new one.
    if isinstance(value, tuple):
        return tuple(new if i == key else item for i, item in enumerate(value))
    if new is not old:
        value[key] = new
    return value


def _to_numpy(plain: Any, kind: str, dtype: np.dtype[Any]) -> Any:
    # Object arrays among others, whose elements could be anything.
    if dtype.kind not in "biufcUS":
        raise ValueError(f"no values of {dtype} are written")
    if kind == "scalar":
        return dtype.type(plain)
    if isinstance(plain, Tensor):
        return plain.numpy().astype(dtype)
    return np.array(plain, dtype=dtype)
