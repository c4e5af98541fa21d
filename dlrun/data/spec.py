"""The contract between data and model: what goes in, what comes out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError
from dlrun.data.origin import Origin

Kind = Literal["vector", "image", "tokens"]
TaskName = Literal["regression", "binary", "multiclass", "tagging"]
PADDING = -100  # tags where a sequence has ended
MOST_CLASSES = 100_000  # a higher class number is taken for a mistake, such as a year or an identifier


@dataclass(frozen=True)
class DataSpec:
    """What a model must know of its data.

    kind and input_shape (one sample, without the batch dimension):
        "vector"  (features,)                  float inputs
        "image"   (channels, height, width)    float inputs
        "tokens"  (longest length,)            int64 codes padded with 0, and int64 lengths
    task and output_size (what the last dimension of the model's output holds):
        "regression"  number of target columns     targets float (N, output_size)
        "binary"      1 (one logit)                targets int64 (N,), 0 or 1
        "multiclass"  number of classes            targets int64 (N,)
        "tagging"     number of tags               targets int64 (N, length), -100 where padded
    """

    kind: Kind
    input_shape: tuple[int, ...]
    task: TaskName
    output_size: int
    class_names: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()  # tokens: what code i stands for; code 0 is the padding
    feature_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()  # was subtracted from the inputs, a value a channel or feature
    std: tuple[float, ...] = ()  # then the inputs were divided by it
    framing: tuple[float, ...] = ()  # of images of a light figure on a dark ground: see files/framing.py

    def __post_init__(self) -> None:
        """Take NumPy's numbers, arrays and texts, and tensors, as plain values: a checkpoint holds nothing else."""
        plain: dict[str, Any] = {
            "kind": _plain_text(self.kind),
            "task": _plain_text(self.task),
            "input_shape": tuple(_whole_number("input_shape", v) for v in _values("input_shape", self.input_shape)),
            "output_size": _whole_number("output_size", self.output_size),
        }
        for name in ("class_names", "vocabulary", "feature_names"):
            plain[name] = tuple(_name(name, value) for value in _values(name, getattr(self, name)))
        for name in ("mean", "std", "framing"):
            plain[name] = tuple(_number(name, value) for value in _values(name, getattr(self, name)))
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def input_size(self) -> int:
        """How many numbers one sample holds when it is flattened."""
        size = 1
        for length in self.input_shape:
            size *= length
        return size

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as checkpoints need them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def _plain_text(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value  # numpy.str_ is one


def _values(field: str, values: Any) -> Sequence[Any]:
    """A field's values, of a tuple, list, array, tensor, or one alone."""
    if values is None:
        return ()
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, list | tuple | range):
        return plain
    if isinstance(plain, int | float):
        return (plain,)
    raise DataError(f"DataSpec.{field} is a {type(values).__name__}; write a tuple of values")


def _whole_number(field: str, value: Any) -> int:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, float) and plain.is_integer():
        return int(plain)
    if not isinstance(plain, int):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write whole numbers")
    return int(plain)


def _number(field: str, value: Any) -> float:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, int | float):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write one number a channel or feature")
    return float(plain)


def _name(field: str, value: Any) -> str:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, str | int | float):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write texts")
    return str(plain)


@dataclass(frozen=True)
class Split:
    """One part of the data, held in memory: every tensor has the samples along its first dimension.

    inputs: (x,) for vectors and images, (codes, lengths) for tokens: what the model is called with.
    origin: where the rows are from; None: they are called by their position.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Tensor) -> "Split":
        """The part that `index` (int64) selects, in its order."""
        origin = self.origin or Origin.from_position("", len(self))
        return Split(tuple(x[index] for x in self.inputs), self.targets[index], origin.take(index))


@dataclass(frozen=True)
class Splits:
    """What every data option yields; a part is a `Split`, or a map-style Dataset of (input, target)
    pairs when it is to be read from disk sample by sample.

    val=None: the runner takes `data.val_fraction` of the training part. test=None: there is no test.
    notes: what the user should be told about how the data was read, one sentence each.
    truth: the function that the targets were drawn from, without noise: (N, features) -> (N, outputs), for pictures.
    nothing_to_learn: why no training can be made of these rows, all of one class say, as a sentence; they can be
    evaluated all the same.
    unheeded: by their name, settings of `data` that had no effect on these rows, and why: a note where one was typed.
    """

    train: "Split | Dataset[Any]"
    val: "Split | Dataset[Any] | None"
    test: "Split | Dataset[Any] | None"
    spec: DataSpec
    notes: tuple[str, ...] = ()
    truth: Callable[[Tensor], Tensor] | None = None
    nothing_to_learn: str = ""
    unheeded: Mapping[str, str] = field(default_factory=dict)
