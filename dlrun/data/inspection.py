"""Data held against their description: what DataSpec promises is true of every row before the first step.

A difference that loses nothing is mended and said in a note; every other one is a sentence that names the row.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from dlrun.core.errors import DataError
from dlrun.data.datasets import Part, count_rows, get_origin, get_targets
from dlrun.data.origin import Origin
from dlrun.data.spec import PADDING, DataSpec, Kind, Split, Splits, TaskName

PARTS = ("train", "val", "test")
Label = Callable[[int], str]  # what a sentence calls a row of those looked at
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_NEVER_CODES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.bool)  # torch's Embedding takes none of them


@dataclass
class Inspection:
    """One look at data.

    data: what they are called in sentences; keeps_integers: leave whole numbers among the inputs to the net, which is
    the user's own and may take them for codes; masks_targets: the loss is the user's own and may leave out targets
    that are not finite.
    """

    data: str
    spec: DataSpec
    keeps_integers: bool = False
    masks_targets: bool = False
    notes: dict[str, list[str]] = field(default_factory=dict)  # the parts that a remark is about

    def error(self, sentence: str) -> DataError:
        """The error to raise."""
        return DataError(f"{self.data}: {sentence}" if self.data else sentence)

    def note(self, part: str, remark: str) -> None:
        """Remember a mended difference."""
        parts = self.notes.setdefault(remark, [])
        if part not in parts:
            parts.append(part)

    def sentences(self) -> tuple[str, ...]:
        """The remarks, each with the parts that it is about."""
        return tuple(f"{self.data}: {' and '.join(parts)} {remark}" for remark, parts in self.notes.items())


def inspect_splits(splits: Splits, look: Inspection) -> Splits:
    """The same data, as DataSpec describes them; a Split is looked at as a whole, a dataset by two samples.

    Raises DataError, naming the row, for what cannot be mended without a guess.
    """
    check_spec(look)
    parts: dict[str, Part | None] = {}
    for name in PARTS:
        part = getattr(splits, name)
        parts[name] = None if part is None else _inspect_part(look, name, part)
    train = parts["train"]
    if train is None or count_rows(train) == 0:
        raise DataError(f"{look.data} has no training rows")
    for name in ("val", "test"):
        part = parts[name]
        if part is not None and count_rows(part) == 0:
            look.note(name, "left out, as there is no row")
            parts[name] = None
    notes = (*splits.notes, *look.sentences())
    return replace(splits, train=train, val=parts["val"], test=parts["test"], notes=notes)


def check_spec(look: Inspection) -> None:
    """DataError for a description that contradicts itself."""
    spec = look.spec
    if not isinstance(spec, DataSpec):
        raise look.error(f"spec is a {type(spec).__name__}; return a dlrun.data.spec.DataSpec")
    for key, value, known in (("kind", spec.kind, get_args(Kind)), ("task", spec.task, get_args(TaskName))):
        if value not in known:
            raise look.error(f"spec.{key}={value!r} is none; write one of {', '.join(known)}")
    if spec.output_size < 1 or (spec.task == "binary" and spec.output_size != 1):
        wanted = "1, the logit of class 1" if spec.task == "binary" else "at least 1"
        raise look.error(f"spec.output_size={spec.output_size}, and for {spec.task} it is {wanted}")
    # A table of one class alone has one name: see Splits.nothing_to_learn.
    if spec.task != "regression" and len(spec.class_names) not in (0, 1, count_classes(spec)):
        raise look.error(
            f"spec.class_names has {len(spec.class_names)} names, and {spec.task} with spec.output_size="
            f"{spec.output_size} has {count_classes(spec)} classes; name each"
        )


def count_classes(spec: DataSpec) -> int:
    """How many classes a target can be of."""
    return 2 if spec.task == "binary" else spec.output_size


def _inspect_part(look: Inspection, name: str, part: Any) -> Part:
    if isinstance(part, Split):
        return _inspect_split(look, name, part)
    kind = type(part).__name__
    if isinstance(part, IterableDataset):
        raise look.error(
            f"the {name} part is an IterableDataset ({kind}), whose rows can neither be counted nor be asked for by "
            "number; return a map-style Dataset, with __len__ and __getitem__, or a Split of tensors"
        )
    if isinstance(part, DataLoader):
        raise look.error(f"the {name} part is a DataLoader; return its dataset, dlrun makes the batches")
    is_map_style = hasattr(part, "__len__") and hasattr(part, "__getitem__")
    if not is_map_style or isinstance(part, tuple | dict | str | Tensor | np.ndarray):
        raise look.error(
            f"the {name} part is a {kind}; return Split(inputs=(x,), targets=y), or a map-style Dataset of "
            "(input, target) pairs"
        )
    _inspect_samples(look, name, cast(Part, part))
    return cast(Part, part)


def _inspect_split(look: Inspection, name: str, part: Split) -> Split:
    given: Any = part.inputs
    if not isinstance(given, tuple | list):
        look.note(name, "inputs stood in no tuple and were taken for the only ones")
        given = (given,)
    if not given:
        raise look.error(f"the {name} part has no inputs; return Split(inputs=(x,), targets=y)")
    inputs = tuple(_as_tensor(look, name, "inputs", x) for x in given)
    targets = _as_tensor(look, name, "targets", part.targets)
    for i, x in enumerate(inputs):
        if len(x) != len(targets):
            which = "inputs" if len(inputs) == 1 else f"inputs[{i}]"
            raise look.error(
                f"the {name} part has {len(x):,} rows of {which} and {len(targets):,} of targets; give as many of each"
            )
    origin = part.origin or Origin.from_position(name, len(targets))
    if len(targets):
        inputs, targets = conform(look, name, inputs, targets, origin.format_label)
    return Split(inputs, targets, origin)


def inspect_loaded(split: Split, look: Inspection) -> Split:
    """The same for a dataset that was read as a whole; what is mended was said of its first sample."""
    origin = split.origin or Origin.from_position("", len(split))
    inputs, targets = conform(look, "", split.inputs, split.targets, origin.format_label)
    return Split(inputs, targets, origin)


@dataclass(frozen=True)
class BatchCheck:
    """Holds batches that are read from a dataset against its description, on the CPU, as they come."""

    look: Inspection
    origin: Origin  # of all rows of the dataset

    def conform(self, inputs: tuple[Tensor, ...], targets: Tensor, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The batch as DataSpec wants it; DataError names the row that is not so. rows: int64, their numbers."""
        return conform(self.look, "", inputs, targets, lambda i: self.origin.format_label(int(rows[i])))


def _as_tensor(look: Inspection, name: str, what: str, value: Any) -> Tensor:
    """A tensor with the rows along its first dimension, of an array or a nested list too."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:  # a ragged list
            raise look.error(f"the {name} {what} are a {type(value).__name__} that is no array ({error})") from error
        if array.dtype.kind not in "fiub":
            raise look.error(
                f"the {name} {what} are a {type(value).__name__} of {array.dtype}; return a tensor of numbers"
            )
        look.note(name, f"{what} were a {_kind_of(value)} and were taken as a tensor")
        # torch knows neither another machine's byte order nor arrays that cannot be written to.
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    if tensor.dim() == 0:
        raise look.error(f"the {name} {what} are one number; give a row a sample")
    if tensor.is_complex() or tensor.layout != torch.strided:
        what_it_is = tensor.dtype if tensor.is_complex() else str(tensor.layout).removeprefix("torch.")
        raise look.error(f"the {name} {what} are a tensor of {what_it_is}; return a dense one of real numbers")
    return tensor


def _kind_of(value: Any) -> str:
    return "NumPy array" if isinstance(value, np.ndarray) else type(value).__name__


def _inspect_samples(look: Inspection, name: str, part: Part) -> None:
    """Read the first and the last sample of a dataset and look at both."""
    rows = count_rows(part)
    dataset: Any = part
    for row in dict.fromkeys([0, rows - 1] if rows else []):
        where = get_origin(part, name).format_label(row)
        try:
            with _generators_restored():
                sample = dataset[row]
        except DataError:
            raise
        except Exception as error:  # the dataset may be the user's own
            said = (str(error).strip() or "no message").splitlines()[0]
            raise look.error(f"{where} cannot be read: {type(error).__name__}: {said}") from error
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise look.error(f"{where} is a {type(sample).__name__}; return a pair (input, target)")
        try:
            columns = default_collate([tuple(sample)])
        except Exception as error:  # torch names the type that it cannot make a batch of
            said = (str(error).strip() or "no message").splitlines()[0]
            raise look.error(f"{where} makes no batch: {said}; return tensors and numbers") from error
        *inputs, targets = columns
        if not all(isinstance(column, Tensor) for column in columns):
            odd = next(column for column in columns if not isinstance(column, Tensor))
            value = odd[0] if isinstance(odd, list | tuple) and odd else odd
            raise look.error(f"{where} holds a {type(value).__name__}; return tensors and numbers")
        conform(look, name, tuple(inputs), targets, get_origin(part, name).take(torch.tensor([row])).format_label)


@contextmanager
def _generators_restored() -> Iterator[None]:
    """A dataset that draws random numbers draws the same in training as if nobody had looked."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def conform(
    look: Inspection, name: str, inputs: tuple[Tensor, ...], targets: Tensor, label: Label
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Some rows as DataSpec wants them; DataError names the first that is not so. name: of the part, for notes."""
    first = _conform_codes(look, name, inputs, label) if look.spec.kind == "tokens" else None
    if first is None:
        first = tuple(_conform_floats(look, name, x, i, label) for i, x in enumerate(inputs))
    if look.spec.task == "regression":
        return first, _conform_values(look, name, targets, label)
    return first, _conform_classes(look, name, targets, label)


def _conform_floats(look: Inspection, name: str, x: Tensor, number: int, label: Label) -> Tensor:
    """Inputs of vectors and images; the first of them has the shape that the spec says."""
    spec = look.spec
    if number == 0:
        x = _conform_shape(look, name, x)
    if not x.is_floating_point():
        if look.keeps_integers and x.dtype not in _NEVER_CODES:
            return x
        look.note(name, f"inputs were {_dtype(x)} and were taken as float32, as they are")
        return x.float()
    position = _first_not_finite(x)
    if position is not None:
        row, *place = position
        value = float(x[tuple(position)])
        raise look.error(
            f"{label(row)} holds {value} in the inputs{_place(spec, place)}; "
            "remove the row, or put a number in its place"
        )
    return x


def _conform_shape(look: Inspection, name: str, x: Tensor) -> Tensor:
    spec = look.spec
    wanted, shape = tuple(spec.input_shape), tuple(x.shape[1:])
    if shape == wanted:
        return x
    if wanted == (1, *shape):
        look.note(name, f"inputs of shape {_rows(shape)} were taken as {_rows(wanted)}")
        return x.unsqueeze(1)
    hint = "write both alike"
    if len(wanted) == 3 and len(shape) == 3 and (shape[2], shape[0], shape[1]) == wanted:
        hint = "write x.permute(0, 3, 1, 2)"
    elif math.prod(shape) == math.prod(wanted) and len(wanted) == 1:
        hint = "write x.flatten(1)"
    raise look.error(
        f"the {name} inputs have the shape {_rows(shape)}, and spec.input_shape={wanted} says {_rows(wanted)}; {hint}"
    )


def _conform_codes(look: Inspection, name: str, inputs: tuple[Tensor, ...], label: Label) -> tuple[Tensor, ...]:
    """Codes and lengths of tokens."""
    spec = look.spec
    found = []
    for i, x in enumerate(inputs[:2]):
        what, dimensions = (("codes", 2), ("lengths", 1))[i]
        if x.dim() != dimensions:
            wanted = "(rows, length)" if i == 0 else "(rows,)"
            raise look.error(f"the {name} {what} have the shape {tuple(x.shape)}; tokens are {what} {wanted}")
        if x.dtype != torch.int64:
            fraction = None if not x.is_floating_point() else _first_false(x == x.floor())
            if fraction is not None:
                value = float(x.flatten(1)[fraction] if i == 0 else x[fraction[0]])
                raise look.error(f"{label(fraction[0])} holds {value} among its {what}, which are whole numbers")
            look.note(name, f"{what} were {_dtype(x)} and were taken as int64")
            x = x.long()
        found.append(x)
    low, high = (0, len(spec.vocabulary) - 1) if spec.vocabulary else (0, None)
    _check_range(look, found[0], low, high, "code", label)
    if len(found) > 1:
        _check_range(look, found[1], 1, found[0].shape[1], "length", label)
    return (*found, *inputs[2:])


def _check_range(look: Inspection, x: Tensor, low: int, high: int | None, what: str, label: Label) -> None:
    least, most = (int(value) for value in torch.aminmax(x))
    if least >= low and (high is None or most <= high):
        return
    position = _first_false((x >= low) & (x <= most if high is None else x <= high))
    assert position is not None
    value = int(x.reshape(len(x), -1)[position])
    wanted = f"{low} and more" if high is None else f"{low} to {high}"
    raise look.error(f"{label(position[0])} has a {what} of {value}, and there are {wanted}")


def _conform_values(look: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Targets of a regression: floats (N, output_size)."""
    size = look.spec.output_size
    if y.dim() == 1 and size == 1:
        look.note(name, "targets of shape (rows,) were taken as (rows, 1)")
        y = y.unsqueeze(1)
    if tuple(y.shape[1:]) != (size,):
        raise look.error(
            f"the {name} targets have the shape {_rows(tuple(y.shape[1:]))}, and regression with spec.output_size="
            f"{size} takes (rows, {size})"
        )
    if not y.is_floating_point():
        look.note(name, f"targets were {_dtype(y)} and were taken as floats")
        return y.double() if y.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64) else y.float()
    position = _first_not_finite(y)
    if position is None:
        return y
    where = f"{label(position[0])} has a target of {float(y[tuple(position)])}"
    column = f" in column {position[1]}" if size > 1 else ""
    if look.masks_targets:
        look.note(name, f"targets are not all finite ({where}{column}, say): that is left to the loss of your own")
        return y
    raise look.error(f"{where}{column}; remove the row, or put a number in its place")


def _conform_classes(look: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Class numbers: int64 (N,), or (N, length) with -100 where padded."""
    spec = look.spec
    count, dimensions = count_classes(spec), 2 if spec.task == "tagging" else 1
    if y.is_floating_point():
        position = _first_not_finite(y)
        if position is not None:
            value = float(y[tuple(position)])
            raise look.error(f"{label(position[0])} has a target of {value}; remove the row, or name its class")
    if dimensions == 1 and y.dim() == 2 and y.shape[1] == 1:
        look.note(name, "targets of shape (rows, 1) were taken as (rows,)")
        y = y.squeeze(1)
    if dimensions == 1 and y.dim() == 2 and y.shape[1] == count and _is_one_hot(y):
        look.note(name, f"targets of shape (rows, {count}) were one-hot and were taken as class numbers")
        y = y.byte().argmax(1)
    if y.dim() != dimensions:
        wanted = "(rows, length), a class a position" if dimensions == 2 else "(rows,), one class number a row"
        raise look.error(
            f"the {name} targets have the shape {_rows(tuple(y.shape[1:]))}, and {spec.task} takes {wanted}"
        )
    if y.dtype != torch.int64:
        fraction = _first_false(y == y.floor()) if y.is_floating_point() else None
        if fraction is not None:
            value = float(y.reshape(len(y), -1)[fraction])
            raise look.error(
                f"{label(fraction[0])} has a target of {value:g}, and {spec.task} takes whole class numbers "
                f"from 0 to {count - 1}"
            )
        look.note(name, f"targets were {_dtype(y)} and were taken as class numbers (int64)")
        y = _as_int64(y)
    _check_classes(look, name, y, label)
    return y


def _check_classes(look: Inspection, name: str, y: Tensor, label: Label) -> None:
    spec, count = look.spec, count_classes(look.spec)
    if not y.numel():
        return
    least, most = (int(value) for value in torch.aminmax(y))
    padded = spec.task == "tagging"
    if most < count and (least >= 0 or (padded and bool(((y >= 0) | (y == PADDING)).all()))):
        return
    real = y >= 0
    position = _first_false((real | (y == PADDING) if padded else real) & (y < count))
    assert position is not None
    value = int(y.reshape(len(y), -1)[position])
    hint = ""
    if least == 1 and most == count:
        hint = "; write targets - 1, classes are counted from 0"
    elif spec.task == "binary" and least == -1 and most == 1 and not bool((y == 0).any()):
        hint = "; write (targets + 1) // 2"
    elif value == PADDING:
        hint = "; remove the row, only tags can be left out"
    elif spec.task == "multiclass" and least >= 0:
        hint = "; correct it, or make spec.output_size larger"
    raise look.error(
        f"{label(position[0])} has a target of {value}, and {spec.task} with {count} classes takes 0 to "
        f"{count - 1}{f', or {PADDING} where padded' if padded else ''}{hint}"
    )


def _as_int64(y: Tensor) -> Tensor:
    """Exact; what int64 cannot hold becomes the largest that it can, which is no class."""
    if y.dtype == torch.uint64:
        wrapped = y.long()
        return torch.where(wrapped < 0, torch.full_like(wrapped, torch.iinfo(torch.int64).max), wrapped)
    if y.is_floating_point():
        return y.double().clamp(-(2.0**62), 2.0**62).long()
    return y.long()


def _is_one_hot(y: Tensor) -> bool:
    return y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()) and bool(((y == 1).sum(1) == 1).all())


def _first_not_finite(x: Tensor) -> list[int] | None:
    """Where the first number lies that is nan or infinite; None if all are finite.

    One pass over the numbers: a sum is finite only if all of them are, and where it overflows they are looked at.
    """
    if not x.numel() or math.isfinite(float(x.sum())):
        return None
    for start in range(0, len(x), 4096):
        bad = ~x[start : start + 4096].isfinite()
        if bool(bad.any()):
            row, *place = bad.nonzero()[0].tolist()
            return [start + row, *place]
    return None


def _first_false(holds: Tensor) -> tuple[int, int] | None:
    """Row, and position in the flattened row, of the first False."""
    wrong = (~holds.reshape(len(holds), -1)).nonzero()
    return (int(wrong[0, 0]), int(wrong[0, 1])) if len(wrong) else None


def _place(spec: DataSpec, place: list[int]) -> str:
    if not place:
        return ""
    if len(place) > 1:
        return f" at {place} (counted from 0)"
    if spec.feature_names and place[0] < len(spec.feature_names):
        return f", column '{spec.feature_names[place[0]]}'"
    return f", column {place[0]} (counted from 0)"


def _rows(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['rows', *map(str, shape)])}{',' if not shape else ''})"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def get_valid_targets(part: Part | None, spec: DataSpec) -> Tensor | None:
    """All targets of a part without a sample being read; None where a dataset states none, or others than it yields."""
    targets = None if part is None else get_targets(part)
    if targets is None or part is None or isinstance(part, Split):
        return targets
    look = Inspection("", spec)
    try:
        if spec.task == "regression":
            return _conform_values(look, "", targets, get_origin(part).format_label)
        return _conform_classes(look, "", targets, get_origin(part).format_label)
    except DataError:
        return None
