"""Data checked against their description: what DataSpec promises is true of every row before the first step.

A difference that loses nothing is corrected, with a note; any other one is an error that names the row.
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
from dlrun.core.user_code import get_first_line
from dlrun.data.datasets import Part, count_rows, get_origin, get_targets
from dlrun.data.origin import Origin
from dlrun.data.spec import PADDING, DataSpec, Kind, OutputTask, Split, Splits, TaskName

PARTS = ("train", "val", "test")

# Formats the label of an inspected row for a sentence.
Label = Callable[[int], str]

# Integers that torch's Embedding does not take as codes.
_NEVER_CODES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.bool)


@dataclass
class Inspection:
    """One inspection of a data set.

    data: name of the data in sentences.
    """

    data: str
    spec: DataSpec

    # Leave integer inputs to the net, which is the user's own and may take them for codes.
    keeps_integers: bool = False

    # The loss is the user's own and may leave out targets that are not finite.
    masks_targets: bool = False

    # By remark, the parts that it is about.
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, sentence: str) -> DataError:
        """Build the error to raise."""
        return DataError(f"{self.data}: {sentence}" if self.data else sentence)

    def note(self, part: str, remark: str) -> None:
        """Record a corrected difference."""
        parts = self.notes.setdefault(remark, [])
        if part not in parts:
            parts.append(part)

    def list_notes(self) -> tuple[str, ...]:
        """The remarks as sentences, each with the parts that it is about."""
        return tuple(f"{self.data}: {' and '.join(parts)} {remark}" for remark, parts in self.notes.items())


def inspect_splits(splits: Splits, inspection: Inspection) -> Splits:
    """The same data, conforming to its DataSpec; a Split is inspected in full, a dataset by two samples.

    Raises DataError, naming the row, for what cannot be corrected without a guess.
    """
    check_spec(inspection)
    parts: dict[str, Part | None] = {}
    for name in PARTS:
        part = getattr(splits, name)
        parts[name] = None if part is None else _inspect_part(inspection, name, part)

    train = parts["train"]
    if train is None or count_rows(train) == 0:
        raise DataError(f"{inspection.data} has no training rows")
    # An empty part cannot be evaluated.
    for name in ("val", "test"):
        part = parts[name]
        if part is not None and count_rows(part) == 0:
            inspection.note(name, "left out, as there is no row")
            parts[name] = None

    notes = (*splits.notes, *inspection.list_notes())
    return replace(splits, train=train, val=parts["val"], test=parts["test"], notes=notes)


def check_spec(inspection: Inspection) -> None:
    """Raise DataError for a spec that contradicts itself."""
    spec = inspection.spec
    if not isinstance(spec, DataSpec):
        raise inspection.error(f"spec is a {type(spec).__name__}; return a dlrun.data.spec.DataSpec")

    for key, value, choices in (("kind", spec.kind, get_args(Kind)), ("task", spec.task, get_args(TaskName))):
        if value not in choices:
            raise inspection.error(f"spec.{key}={value!r} is none; write one of {', '.join(choices)}")

    if spec.output_size < 1 or (spec.task == "binary" and spec.output_size != 1):
        expected = "1, the logit of class 1" if spec.task == "binary" else "at least 1"
        raise inspection.error(f"spec.output_size={spec.output_size}, and for {spec.task} it is {expected}")

    flattens = spec.task == "regression" and spec.kind != "tokens" and spec.output_size == spec.input_size
    if spec.reconstructs and not flattens:
        raise inspection.error(
            "spec.reconstructs is for regression of vectors and images with output_size = input_size; leave it out, "
            "and type task=autoencoder"
        )

    if (spec.task == "multitask") != bool(spec.outputs):
        raise inspection.error("spec.task='multitask' and spec.outputs belong together; write both, or neither")
    if spec.outputs:
        _check_outputs(inspection)

    # A table with a single class has one name: see Splits.nothing_to_learn.
    if spec.task not in ("regression", "multitask") and len(spec.class_names) not in (0, 1, count_classes(spec)):
        raise inspection.error(
            f"spec.class_names has {len(spec.class_names)} names, and {spec.task} with spec.output_size="
            f"{spec.output_size} has {count_classes(spec)} classes; name each"
        )


def _check_outputs(inspection: Inspection) -> None:
    """Raise DataError for outputs that contradict themselves or the spec that they are of."""
    spec = inspection.spec
    names = [output.name for output in spec.outputs]
    for output in spec.outputs:
        where = f"spec.outputs: {output.name}"
        if output.task not in get_args(OutputTask):
            raise inspection.error(
                f"{where} has the task {output.task!r}; write one of {', '.join(get_args(OutputTask))}"
            )
        if not output.name or "/" in output.name or names.count(output.name) > 1:
            raise inspection.error(f"{where} must be a name of its own, without /")
        least = 2 if output.task == "multiclass" else 1
        if output.size < least or (output.task == "binary" and output.size != 1):
            expected = "1" if output.task == "binary" else f"at least {least}"
            raise inspection.error(f"{where} has the size {output.size}, and for {output.task} it is {expected}")
        if len(output.class_names) not in (0, output.class_count):
            raise inspection.error(
                f"{where} has {len(output.class_names)} class names for {output.class_count} classes"
            )

    total = sum(output.size for output in spec.outputs)
    if spec.output_size != total:
        raise inspection.error(
            f"spec.output_size is {spec.output_size}, and the sizes of spec.outputs add up to {total}"
        )


def count_classes(spec: DataSpec) -> int:
    """Number of classes of a target; binary tasks have two and a single output."""
    return 2 if spec.task == "binary" else spec.output_size


def _inspect_part(inspection: Inspection, name: str, part: Any) -> Part:
    if isinstance(part, Split):
        return _inspect_split(inspection, name, part)

    kind = type(part).__name__
    if isinstance(part, IterableDataset):
        raise inspection.error(
            f"the {name} part is an IterableDataset ({kind}), whose rows can neither be counted nor be asked for by "
            "number; return a map-style Dataset, with __len__ and __getitem__, or a Split of tensors"
        )
    if isinstance(part, DataLoader):
        raise inspection.error(f"the {name} part is a DataLoader; return its dataset, dlrun makes the batches")

    # Tuples and tensors can be indexed too, and are a usual mistake.
    is_map_style = hasattr(part, "__len__") and hasattr(part, "__getitem__")
    if not is_map_style or isinstance(part, tuple | dict | str | Tensor | np.ndarray):
        raise inspection.error(
            f"the {name} part is a {kind}; return Split(inputs=(x,), targets=y), or a map-style Dataset of "
            "(input, target) pairs"
        )
    _inspect_samples(inspection, name, cast(Part, part))
    return cast(Part, part)


def _inspect_split(inspection: Inspection, name: str, part: Split) -> Split:
    columns: Any = part.inputs
    if not isinstance(columns, tuple | list):
        inspection.note(name, "inputs stood in no tuple and were taken for the only ones")
        columns = (columns,)
    if not columns:
        raise inspection.error(f"the {name} part has no inputs; return Split(inputs=(x,), targets=y)")

    inputs = tuple(_to_tensor(inspection, name, "inputs", column) for column in columns)
    targets = _to_tensor(inspection, name, "targets", part.targets)
    for i, x in enumerate(inputs):
        if len(x) != len(targets):
            which = "inputs" if len(inputs) == 1 else f"inputs[{i}]"
            raise inspection.error(
                f"the {name} part has {len(x):,} rows of {which} and {len(targets):,} of targets; give as many of each"
            )

    origin = part.origin or Origin.from_position(name, len(targets))
    if len(targets):
        inputs, targets = conform(inspection, name, inputs, targets, origin.format_label)
    return Split(inputs, targets, origin)


def inspect_loaded(split: Split, inspection: Inspection) -> Split:
    """Inspect a dataset that was loaded into memory; its corrections were noted at its first sample."""
    origin = split.origin or Origin.from_position("", len(split))
    inputs, targets = conform(inspection, "", split.inputs, split.targets, origin.format_label)
    return Split(inputs, targets, origin)


@dataclass(frozen=True)
class BatchCheck:
    """Checks batches of a dataset against its spec on the CPU as they are read; origin: of all its rows."""

    inspection: Inspection
    origin: Origin

    def conform(self, inputs: tuple[Tensor, ...], targets: Tensor, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Correct the batch to its DataSpec; DataError names a row that cannot be. rows: int64, their numbers."""

        def format_label(i: int) -> str:
            return self.origin.format_label(int(rows[i]))

        return conform(self.inspection, "", inputs, targets, format_label)


def _to_tensor(inspection: Inspection, name: str, what: str, value: Any) -> Tensor:
    """A tensor with the rows along its first dimension; arrays and nested lists are converted."""
    if isinstance(value, Tensor):
        # A tensor that requires gradients would keep its graph alive.
        tensor = value.detach()
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            # A ragged list.
            raise inspection.error(
                f"the {name} {what} are a {type(value).__name__} that is no array ({error})"
            ) from error
        if array.dtype.kind not in "fiub":
            raise inspection.error(
                f"the {name} {what} are a {type(value).__name__} of {array.dtype}; return a tensor of numbers"
            )

        kind = "NumPy array" if isinstance(value, np.ndarray) else type(value).__name__
        inspection.note(name, f"{what} were a {kind} and were taken as a tensor")
        # torch supports neither another machine's byte order nor read-only arrays.
        tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))

    if tensor.dim() == 0:
        raise inspection.error(f"the {name} {what} are one number; give a row a sample")
    if tensor.is_complex() or tensor.layout != torch.strided:
        kind_of_tensor = tensor.dtype if tensor.is_complex() else str(tensor.layout).removeprefix("torch.")
        raise inspection.error(
            f"the {name} {what} are a tensor of {kind_of_tensor}; return a dense one of real numbers"
        )
    return tensor


def _inspect_samples(inspection: Inspection, name: str, part: Part) -> None:
    """Read the first and the last sample of a dataset and inspect both."""
    rows = count_rows(part)
    dataset: Any = part
    # The last row shows whether __len__ promises too much.
    for row in dict.fromkeys([0, rows - 1] if rows else []):
        label = get_origin(part, name).format_label(row)
        try:
            with _preserve_rng_state():
                sample = dataset[row]
        except DataError:
            raise
        except Exception as error:
            # The dataset may be the user's own and raise anything.
            message = get_first_line(error)
            raise inspection.error(f"{label} cannot be read: {type(error).__name__}: {message}") from error

        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise inspection.error(f"{label} is a {type(sample).__name__}; return a pair (input, target)")
        try:
            columns = default_collate([tuple(sample)])
        except Exception as error:
            # torch names the type that it cannot collate.
            message = get_first_line(error)
            raise inspection.error(f"{label} makes no batch: {message}; return tensors and numbers") from error

        for column in columns:
            if not isinstance(column, Tensor):
                # Strings are collated to a list of them.
                value = column[0] if isinstance(column, list | tuple) and column else column
                raise inspection.error(f"{label} holds a {type(value).__name__}; return tensors and numbers")

        *inputs, targets = columns
        origin = get_origin(part, name).take(torch.tensor([row]))
        conform(inspection, name, tuple(inputs), targets, origin.format_label)


@contextmanager
def _preserve_rng_state() -> Iterator[None]:
    # A dataset that draws random numbers then draws the same in training as without an inspection.
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def conform(
    inspection: Inspection, name: str, inputs: tuple[Tensor, ...], targets: Tensor, label: Label
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Correct rows to their DataSpec; DataError names the first that cannot be. name: of the part, for notes."""
    if inspection.spec.kind == "tokens":
        inputs = _conform_codes(inspection, name, inputs, label)
    else:
        inputs = tuple(_conform_floats(inspection, name, x, i, label) for i, x in enumerate(inputs))

    return inputs, _conform_targets(inspection, name, targets, label)


def _conform_targets(inspection: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    # An autoencoder never looks at them.
    if inspection.spec.reconstructs:
        return y
    if y.dim() > 2:
        raise inspection.error(
            f"the {name} targets have the shape {_format_shape(tuple(y.shape[1:]))}; an answer for every pixel, "
            "segmentation, is nothing that dlrun trains"
        )
    if inspection.spec.task == "multitask":
        return _conform_outputs(inspection, name, y, label)
    if inspection.spec.task == "regression":
        return _conform_values(inspection, name, y, label)
    if inspection.spec.task == "multilabel":
        return _conform_labels(inspection, name, y, label)
    return _conform_classes(inspection, name, y, label)


def _conform_floats(inspection: Inspection, name: str, x: Tensor, number: int, label: Label) -> Tensor:
    """Inputs of vectors and images; the spec gives the shape of the first of them."""
    if number == 0:
        x = _conform_shape(inspection, name, x)
    if not x.is_floating_point():
        if inspection.keeps_integers and x.dtype not in _NEVER_CODES:
            return x
        inspection.note(name, f"inputs were {_format_dtype(x)} and were taken as float32, as they are")
        return x.float()

    position = _find_not_finite(x)
    if position is not None:
        row, *place = position
        value = float(x[tuple(position)])
        raise inspection.error(
            f"{label(row)} holds {value} in the inputs{_format_place(inspection.spec, place)}; "
            "remove the row, or put a number in its place"
        )
    return x


def _conform_shape(inspection: Inspection, name: str, x: Tensor) -> Tensor:
    expected = tuple(inspection.spec.input_shape)
    shape = tuple(x.shape[1:])
    if shape == expected:
        return x
    if expected == (1, *shape):
        # Grey images without a channel.
        inspection.note(name, f"inputs of shape {_format_shape(shape)} were taken as {_format_shape(expected)}")
        return x.unsqueeze(1)

    # Hints for the two usual mistakes: channels last, and images for a flat input.
    hint = "write both alike"
    if len(expected) == 3 and len(shape) == 3 and (shape[2], shape[0], shape[1]) == expected:
        hint = "write x.permute(0, 3, 1, 2)"
    elif math.prod(shape) == math.prod(expected) and len(expected) == 1:
        hint = "write x.flatten(1)"
    raise inspection.error(
        f"the {name} inputs have the shape {_format_shape(shape)}, and spec.input_shape={expected} says "
        f"{_format_shape(expected)}; {hint}"
    )


def _conform_codes(inspection: Inspection, name: str, inputs: tuple[Tensor, ...], label: Label) -> tuple[Tensor, ...]:
    """Codes int64 (N, length) and lengths int64 (N,) of tokens; further inputs are left as they are."""
    tensors = []
    for i, x in enumerate(inputs[:2]):
        what = "codes" if i == 0 else "lengths"
        shape = "(rows, length)" if i == 0 else "(rows,)"
        if x.dim() != (2 if i == 0 else 1):
            raise inspection.error(f"the {name} {what} have the shape {tuple(x.shape)}; tokens are {what} {shape}")

        if x.dtype != torch.int64:
            position = _find_fraction(x)
            if position is not None:
                value = float(x.flatten(1)[position] if i == 0 else x[position[0]])
                raise inspection.error(f"{label(position[0])} holds {value} among its {what}, which are whole numbers")
            inspection.note(name, f"{what} were {_format_dtype(x)} and were taken as int64")
            x = x.long()
        tensors.append(x)

    # Without a vocabulary any code from 0 is allowed.
    vocabulary = inspection.spec.vocabulary
    highest_code = len(vocabulary) - 1 if vocabulary else None
    _check_range(inspection, tensors[0], 0, highest_code, "code", label)
    if len(tensors) > 1:
        _check_range(inspection, tensors[1], 1, tensors[0].shape[1], "length", label)
    return (*tensors, *inputs[2:])


def _check_range(inspection: Inspection, x: Tensor, low: int, high: int | None, what: str, label: Label) -> None:
    # One pass for the usual case; the position is looked up only for an error.
    lowest, highest = (int(value) for value in torch.aminmax(x))
    if lowest >= low and (high is None or highest <= high):
        return

    is_allowed = (x >= low) & (x <= (highest if high is None else high))
    position = _find_false(is_allowed)
    assert position is not None
    value = int(x.reshape(len(x), -1)[position])
    allowed = f"{low} and more" if high is None else f"{low} to {high}"
    raise inspection.error(f"{label(position[0])} has a {what} of {value}, and there are {allowed}")


def _conform_values(inspection: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Targets of a regression: floats (N, output_size)."""
    size = inspection.spec.output_size
    if y.dim() == 1 and size == 1:
        inspection.note(name, "targets of shape (rows,) were taken as (rows, 1)")
        y = y.unsqueeze(1)
    if tuple(y.shape[1:]) != (size,):
        raise inspection.error(
            f"the {name} targets have the shape {_format_shape(tuple(y.shape[1:]))}, and regression with "
            f"spec.output_size={size} takes (rows, {size})"
        )

    if not y.is_floating_point():
        inspection.note(name, f"targets were {_format_dtype(y)} and were taken as floats")
        # float32 does not hold every number of 32 bits.
        is_wide = y.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64)
        return y.double() if is_wide else y.float()

    position = _find_not_finite(y)
    if position is None:
        return y
    where = f"{label(position[0])} has a target of {float(y[tuple(position)])}"
    column = f" in column {position[1]}" if size > 1 else ""
    if inspection.masks_targets:
        inspection.note(
            name, f"targets are not all finite ({where}{column}, say): that is left to the loss of your own"
        )
        return y
    raise inspection.error(f"{where}{column}; remove the row, or put a number in its place")


def _conform_labels(inspection: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Targets of a multilabel task: floats (N, output_size) of 0 and 1, whatever type they come in."""
    spec = inspection.spec
    if y.dim() == 1 and spec.output_size == 1:
        inspection.note(name, "targets of shape (rows,) were taken as (rows, 1)")
        y = y.unsqueeze(1)
    if tuple(y.shape[1:]) != (spec.output_size,):
        raise inspection.error(
            f"the {name} targets have the shape {_format_shape(tuple(y.shape[1:]))}, and multilabel with "
            f"spec.output_size={spec.output_size} takes (rows, {spec.output_size}), 0 or 1 a label"
        )

    position = _find_false((y == 0) | (y == 1))
    if position is not None:
        row, column = position
        name_of_label = f"'{spec.class_names[column]}'" if spec.class_names else str(column)
        raise inspection.error(
            f"{label(row)} has a target of {float(y[row, column]):g} for label {name_of_label}, and multilabel takes "
            "0 and 1; correct it, or remove the row"
        )
    return y if y.is_floating_point() else y.float()


def _conform_outputs(inspection: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Targets of several outputs: floats (N, columns), side by side, class numbers among them."""
    outputs = inspection.spec.outputs
    columns = sum(output.columns for output in outputs)
    if tuple(y.shape[1:]) != (columns,):
        names = ", ".join(output.name for output in outputs)
        raise inspection.error(
            f"the {name} targets have the shape {_format_shape(tuple(y.shape[1:]))}, and spec.outputs ({names}) take "
            f"(rows, {columns}), a column for each class and value"
        )

    position = _find_not_finite(y) if y.is_floating_point() else None
    start = 0
    for output in outputs:
        values = y[:, start : start + output.columns]
        if position is not None and start <= position[1] < start + output.columns:
            value = float(y[tuple(position)])
            raise inspection.error(
                f"{label(position[0])} has a target of {value} for {output.name}; remove the row, or put a number in "
                "its place"
            )
        start += output.columns
        if output.task == "regression":
            continue

        bad = _find_false((values >= 0) & (values < output.class_count) & (values == values.floor()))
        if bad is not None:
            value = float(values[bad[0], 0])
            raise inspection.error(
                f"{label(bad[0])} has a target of {value:g} for {output.name}, and {output.task} with "
                f"{output.class_count} classes takes 0 to {output.class_count - 1}"
            )
    # Counts of 32 bits and more are not all in float32.
    return y if y.is_floating_point() else y.double()


def _conform_classes(inspection: Inspection, name: str, y: Tensor, label: Label) -> Tensor:
    """Class numbers: int64 (N,), or (N, length) with -100 where padded."""
    task = inspection.spec.task
    classes = count_classes(inspection.spec)
    dimensions = 2 if task == "tagging" else 1

    if y.is_floating_point():
        bad = _find_not_finite(y)
        if bad is not None:
            value = float(y[tuple(bad)])
            raise inspection.error(f"{label(bad[0])} has a target of {value}; remove the row, or name its class")

    # Columns of class numbers and one-hot rows mean the same as a vector.
    if dimensions == 1 and y.dim() == 2 and y.shape[1] == 1:
        inspection.note(name, "targets of shape (rows, 1) were taken as (rows,)")
        y = y.squeeze(1)
    if dimensions == 1 and y.dim() == 2 and y.shape[1] == classes and _is_one_hot(y):
        inspection.note(name, f"targets of shape (rows, {classes}) were one-hot and were taken as class numbers")
        y = y.byte().argmax(1)
    if y.dim() != dimensions:
        expected = "(rows, length), a class a position" if dimensions == 2 else "(rows,), one class number a row"
        raise inspection.error(
            f"the {name} targets have the shape {_format_shape(tuple(y.shape[1:]))}, and {task} takes {expected}"
        )

    if y.dtype != torch.int64:
        fraction = _find_fraction(y)
        if fraction is not None:
            value = float(y.reshape(len(y), -1)[fraction])
            raise inspection.error(
                f"{label(fraction[0])} has a target of {value:g}, and {task} takes whole class numbers "
                f"from 0 to {classes - 1}"
            )
        inspection.note(name, f"targets were {_format_dtype(y)} and were taken as class numbers (int64)")
        y = _to_int64(y)
    _check_classes(inspection, y, label)
    return y


def _check_classes(inspection: Inspection, y: Tensor, label: Label) -> None:
    """Raise an error for the first class number out of range, with a hint for the usual mistakes."""
    if not y.numel():
        return

    task = inspection.spec.task
    classes = count_classes(inspection.spec)
    lowest, highest = (int(value) for value in torch.aminmax(y))
    is_padded = task == "tagging"
    if highest < classes:
        if lowest >= 0:
            return
        if is_padded and bool(((y >= 0) | (y == PADDING)).all()):
            return

    is_allowed = y >= 0
    if is_padded:
        is_allowed = is_allowed | (y == PADDING)
    position = _find_false(is_allowed & (y < classes))
    assert position is not None
    value = int(y.reshape(len(y), -1)[position])

    # Hints for the usual mistakes: counted from 1, -1 and 1, padding, and a wrong output_size.
    hint = ""
    if lowest == 1 and highest == classes:
        hint = "; write targets - 1, classes are counted from 0"
    elif task == "binary" and lowest == -1 and highest == 1 and not bool((y == 0).any()):
        hint = "; write (targets + 1) // 2"
    elif value == PADDING:
        hint = "; remove the row, only tags can be left out"
    elif task == "multiclass" and lowest >= 0:
        hint = "; correct it, or make spec.output_size larger"

    padding = f", or {PADDING} where padded" if is_padded else ""
    raise inspection.error(
        f"{label(position[0])} has a target of {value}, and {task} with {classes} classes takes 0 to "
        f"{classes - 1}{padding}{hint}"
    )


def _to_int64(y: Tensor) -> Tensor:
    """Convert exactly; what int64 cannot hold becomes its largest number, or 2**62, neither of them a class."""
    # Above 2**63 a uint64 wraps to a negative int64.
    if y.dtype == torch.uint64:
        wrapped = y.long()
        return torch.where(wrapped < 0, torch.full_like(wrapped, torch.iinfo(torch.int64).max), wrapped)
    if y.is_floating_point():
        return y.double().clamp(-(2.0**62), 2.0**62).long()
    return y.long()


def _is_one_hot(y: Tensor) -> bool:
    return y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all()) and bool(((y == 1).sum(1) == 1).all())


def _find_not_finite(x: Tensor) -> list[int] | None:
    """Position of the first number that is nan or infinite; None if all are finite."""
    # One pass: a sum is finite only if all numbers are. Where it overflows they are inspected.
    if not x.numel() or math.isfinite(float(x.sum())):
        return None

    for start in range(0, len(x), 4096):
        is_bad = ~x[start : start + 4096].isfinite()
        if bool(is_bad.any()):
            row, *place = is_bad.nonzero()[0].tolist()
            return [start + row, *place]
    return None


def _find_fraction(x: Tensor) -> tuple[int, int] | None:
    """Row, and position in the flattened row, of the first number that is not whole."""
    return _find_false(x == x.floor()) if x.is_floating_point() else None


def _find_false(mask: Tensor) -> tuple[int, int] | None:
    """Row, and position in the flattened row, of the first False."""
    positions = (~mask.reshape(len(mask), -1)).nonzero()
    if not len(positions):
        return None
    return int(positions[0, 0]), int(positions[0, 1])


def _format_place(spec: DataSpec, place: list[int]) -> str:
    if not place:
        return ""
    if len(place) > 1:
        return f" at {place} (counted from 0)"
    if spec.feature_names and place[0] < len(spec.feature_names):
        return f", column '{spec.feature_names[place[0]]}'"
    return f", column {place[0]} (counted from 0)"


def _format_shape(shape: tuple[int, ...]) -> str:
    # As Python writes tuples: (rows,) and (rows, 3).
    comma = "" if shape else ","
    return f"({', '.join(['rows', *map(str, shape)])}{comma})"


def _format_dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def get_valid_targets(part: Part | None, spec: DataSpec) -> Tensor | None:
    """All targets of a part without a sample being read; None if a dataset states none, or not as in its spec."""
    if part is None:
        return None
    if spec.reconstructs:
        return part.inputs[0].flatten(1) if isinstance(part, Split) else None
    targets = get_targets(part)
    if targets is None or isinstance(part, Split):
        return targets

    # Errors are of no interest here: the samples themselves may be right.
    inspection = Inspection("", spec)
    try:
        return _conform_targets(inspection, "", targets, get_origin(part).format_label)
    except DataError:
        return None
