"""The contract between data and model: what goes in, what comes out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError
from dlrun.data.augmentation import BatchMix
from dlrun.data.origin import Origin

Kind = Literal["vector", "image", "tokens", "series"]
TaskName = Literal["regression", "binary", "multiclass", "multilabel", "multitask", "tagging"]
OutputTask = Literal["regression", "binary", "multiclass"]

# Tag of the positions after the end of a sequence.
PADDING = -100

# A higher class number is taken for a mistake, such as a year or an identifier.
MOST_CLASSES = 100_000

# Fields of a spec that came after runs had been saved.
_LATER_FIELDS = ("target_mean", "target_std", "preprocessing", "outputs", "reconstructs", "code_counts")


@dataclass(frozen=True)
class Output:
    """One of several outputs of a model.

    size: outputs of the model for it, those of a DataSpec with this task alone.
    """

    name: str
    task: OutputTask
    size: int = 1
    class_names: tuple[str, ...] = ()

    @property
    def columns(self) -> int:
        """Columns of the targets: a value each for regression, else one with the class number."""
        return self.size if self.task == "regression" else 1

    @property
    def class_count(self) -> int:
        """Number of classes; two for binary, 0 for regression."""
        return {"regression": 0, "binary": 2}.get(self.task, self.size)

    def name_class(self, number: int) -> str:
        """The name of a class, its number if the classes have no names."""
        return self.class_names[number] if self.class_names else str(number)


@dataclass(frozen=True)
class DataSpec:
    """Everything a model needs to know about its data.

    kind and input_shape (one sample, without the batch dimension):
        "vector"  (features,)                  float inputs
        "image"   (channels, height, width)    float inputs
        "tokens"  (longest length,)            int64 codes padded with 0, and int64 lengths
        "series"  (window, features)           float inputs, a row a time step
    task and output_size (the last dimension of the model's output):
        "regression"  number of target columns     targets float (N, output_size)
        "binary"      1 (one logit)                targets int64 (N,), 0 or 1
        "multiclass"  number of classes            targets int64 (N,)
        "multilabel"  number of labels             targets float (N, output_size), 0 or 1
        "multitask"   sum of the outputs' sizes    targets float (N, columns), those of the outputs side by side
        "tagging"     number of tags               targets int64 (N, length), -100 where padded
    """

    kind: Kind
    input_shape: tuple[int, ...]
    task: TaskName
    output_size: int

    # Of a multilabel task the names of the labels.
    class_names: tuple[str, ...] = ()

    # Tokens: the text of each code; code 0 is the padding.
    vocabulary: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()

    # The inputs were normalized, (x - mean) / std, one value a channel or feature.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    # Images of a light figure on a dark ground: how the figures lie, see files/framing.py.
    framing: tuple[float, ...] = ()

    # Grey values that became 0 and 1 in images of more than 8 bits; empty: their 16 bits were scaled to 8.
    pixel_range: tuple[float, ...] = ()

    # The targets are the inputs, flattened, and those of the data are left aside: an autoencoder, a regression with
    # output_size = input_size.
    reconstructs: bool = False

    # A regression is trained on (target - target_mean) / target_std, one value a target column. Targets, metrics and
    # predictions are in the unit of the data; the outputs of the model are not.
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()

    # Tables: how cells become inputs, as plain data, see columns/preprocessing.py.
    preprocessing: Mapping[str, Any] = field(default_factory=dict)

    # Vectors: how many codes each feature has that holds codes of categories, 0 for a number. Code 0 is a category that
    # the training rows did not have. Empty: all features are numbers.
    code_counts: tuple[int, ...] = ()

    # Of a multitask: what the columns of outputs and targets are, in their order.
    outputs: tuple[Output, ...] = ()

    def __post_init__(self) -> None:
        """Convert NumPy's numbers, arrays and strings, and tensors, to plain Python: checkpoints hold nothing else."""
        input_shape = _to_sequence("input_shape", self.input_shape)
        plain: dict[str, Any] = {
            "kind": _to_plain_str(self.kind),
            "task": _to_plain_str(self.task),
            "input_shape": tuple(_to_int("input_shape", length) for length in input_shape),
            "output_size": _to_int("output_size", self.output_size),
        }
        for name in ("class_names", "vocabulary", "feature_names"):
            texts = _to_sequence(name, getattr(self, name))
            plain[name] = tuple(_to_str(name, text) for text in texts)

        for name in ("mean", "std", "framing", "pixel_range", "target_mean", "target_std"):
            numbers = _to_sequence(name, getattr(self, name))
            plain[name] = tuple(_to_float(name, number) for number in numbers)

        code_counts = _to_sequence("code_counts", self.code_counts)
        plain["code_counts"] = tuple(_to_int("code_counts", count) for count in code_counts)
        plain["outputs"] = tuple(map(_to_output, self.outputs))

        # The dataclass is frozen: fields can be set this way only.
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def input_size(self) -> int:
        """Number of values in one flattened sample."""
        size = 1
        for length in self.input_shape:
            size *= length
        return size

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, as checkpoints need them."""
        plain: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            # Most data have none of these, and an older dlrun does not know them.
            if name in _LATER_FIELDS and not value:
                continue
            # Lists in place of tuples, which JSON does not have.
            plain[name] = list(value) if isinstance(value, tuple) else value

        for output in plain.get("outputs", ()):
            output["class_names"] = list(output["class_names"])
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSpec":
        """Invert `to_dict`."""
        fields = dict(values)
        for name, value in values.items():
            if isinstance(value, list):
                fields[name] = tuple(value)
        return cls(**fields)


def _to_output(value: Any) -> Output:
    """An output given as one, or as the fields that a file holds."""
    output = Output(**value) if isinstance(value, dict) else value
    if not isinstance(output, Output):
        raise DataError(
            f"DataSpec.outputs holds a {type(value).__name__}; write dlrun.data.spec.Output(name, task, size)"
        )
    names = tuple(_to_str("outputs", name) for name in output.class_names)
    return Output(str(output.name), _to_plain_str(output.task), _to_int("outputs", output.size), names)


def _to_plain_str(value: Any) -> Any:
    # numpy.str_ is a str too, and would be pickled as a NumPy object.
    return str(value) if isinstance(value, str) else value


def _to_plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _to_sequence(field: str, values: Any) -> Sequence[Any]:
    """The values of a field given as a tuple, list, array or tensor, or as a single number."""
    if values is None:
        return ()

    plain = _to_plain(values)
    if isinstance(plain, list | tuple | range):
        return plain
    # One channel or feature: a single number will do.
    if isinstance(plain, int | float):
        return (plain,)
    raise DataError(f"DataSpec.{field} is a {type(values).__name__}; write a tuple of values")


def _to_int(field: str, value: Any) -> int:
    plain = _to_plain(value)
    # NumPy often makes floats of sizes: 3.0 is the integer 3.
    if isinstance(plain, float) and plain.is_integer():
        return int(plain)
    if not isinstance(plain, int):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write whole numbers")
    return int(plain)


def _to_float(field: str, value: Any) -> float:
    plain = _to_plain(value)
    if not isinstance(plain, int | float):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write one number a channel or feature")
    return float(plain)


def _to_str(field: str, value: Any) -> str:
    plain = _to_plain(value)
    if not isinstance(plain, str | int | float):
        raise DataError(f"DataSpec.{field} holds {plain!r}; write texts")
    return str(plain)


@dataclass(frozen=True)
class Split:
    """One part of the data, held in memory; the first dimension of every tensor counts the samples.

    inputs: the arguments of the model, (x,) for vectors and images, (codes, lengths) for tokens.
    origin: files and lines of the rows; None labels rows by their position.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, index: Tensor) -> "Split":
        """Select rows by `index` (int64), in its order."""
        origin = self.origin or Origin.from_position("", len(self))
        inputs = tuple(column[index] for column in self.inputs)
        return Split(inputs, self.targets[index], origin.take(index))


@dataclass(frozen=True)
class Splits:
    """Result of every data function.

    A part is a `Split`, or a map-style Dataset of (input, target) pairs that is read from disk sample by sample.
    val=None: the runner holds out `data.val_fraction` of the training part. test=None: there is no test part.
    notes: remarks for the user on how the data was read, one sentence each.
    truth: noise-free function behind the targets, (N, features) -> (N, outputs), for plots.
    nothing_to_learn: reason why these rows cannot be trained on, such as a single class, as a sentence; they can
    still be evaluated.
    mixing: mixes training batches, whose targets become soft; None for batches as they are.
    unheeded: settings of `data` without effect on these rows, by name, with the reason; noted where one was typed.
    columns: of a table, for the opening lines: name, kind, gaps, range or categories, and what is done with it.
    """

    train: "Split | Dataset[Any]"
    val: "Split | Dataset[Any] | None"
    test: "Split | Dataset[Any] | None"
    spec: DataSpec
    notes: tuple[str, ...] = ()
    truth: Callable[[Tensor], Tensor] | None = None
    nothing_to_learn: str = ""
    unheeded: Mapping[str, str] = field(default_factory=dict)
    mixing: BatchMix | None = None
    columns: tuple[tuple[str, ...], ...] = ()
