"""Other data of the same kind, mapped to what a trained model expects: its columns, normalization, class numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import MisfitError, join_names
from dlrun.data.datasets import Part, get_targets
from dlrun.data.spec import DataSpec, Split, Splits


@dataclass(frozen=True)
class Alignment:
    """Transform from rows of the other data to those of training; None for a step that is not needed.

    columns: int64 (features,), position of each feature of the model. scale and shift: x becomes x * scale + shift,
    broadcastable to one row. classes: int64 (other classes,), the model's number of each class of the other data.
    labels: int64 (labels,), position of each label of a multilabel model among those of the other data.
    """

    columns: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    classes: Tensor | None
    labels: Tensor | None = None

    def align_inputs(self, x: Tensor) -> Tensor:
        """Align the inputs of one row, or of many along the first dimension."""
        if self.columns is not None:
            x = x[..., self.columns]
        if self.scale is None or self.shift is None:
            return x
        return x * self.scale.to(x.dtype) + self.shift.to(x.dtype)

    def align_targets(self, y: Tensor) -> Tensor:
        """Map class numbers, of any shape, to those of the model, and put columns of labels into its order."""
        if self.labels is not None:
            return y[..., self.labels]
        if self.classes is None:
            return y
        # Negative targets are padding and stay as they are.
        return torch.where(y < 0, y, self.classes[y.clamp_min(0)])


class AlignedRows(Dataset[Any]):
    """A map-style dataset, aligned row by row."""

    def __init__(self, dataset: Dataset[Any], alignment: Alignment) -> None:
        self.dataset = dataset
        self.alignment = alignment
        self.origin = getattr(dataset, "origin", None)

        # Whoever counts classes reads `targets` in place of every row, so it must exist only if the dataset has it.
        targets = get_targets(dataset)
        if targets is not None:
            self.targets = alignment.align_targets(targets)

    def __len__(self) -> int:
        return len(cast(Sequence[Any], self.dataset))

    def __getitem__(self, row: int) -> Any:
        x, *others, y = self.dataset[row]
        return (self.alignment.align_inputs(x), *others, self.alignment.align_targets(torch.as_tensor(y)))


def align_splits(splits: Splits, training: DataSpec, data: str | None) -> Splits:
    """Return the splits as data for a model of the spec `training`; the same object if nothing differs.

    data: name of the splits, for messages. MisfitError if they are of another kind, lack a feature, or have a class
    that the model does not know.
    """
    other = splits.spec
    if training.outputs != other.outputs:
        raise MisfitError(
            f"the model was trained for the outputs {_format_outputs(training)}, and data={data} has "
            f"{_format_outputs(other)}"
        )
    # Columns first: a table may have more columns than the model if the names match.
    columns = _match_columns(training, other, data)
    _refuse_other_kind(training, other, data, same_shape=columns is None)
    scale, shift = _match_normalization(training, other, columns)
    labels: Tensor | None = None
    classes: Tensor | None = None
    if training.task == "multilabel":
        labels = _match_labels(training, other, data)
    else:
        classes = _match_classes(training, other, data)
    if columns is None and scale is None and classes is None and labels is None:
        return splits

    alignment = Alignment(columns, scale, shift, classes, labels)
    return dataclasses.replace(
        splits,
        train=_align_part(splits.train, alignment),
        val=None if splits.val is None else _align_part(splits.val, alignment),
        test=None if splits.test is None else _align_part(splits.test, alignment),
        spec=training,
    )


def _align_part(part: Part, alignment: Alignment) -> Part:
    if not isinstance(part, Split):
        return AlignedRows(part, alignment)

    x, *others = part.inputs
    inputs = (alignment.align_inputs(x), *others)
    return Split(inputs, alignment.align_targets(part.targets), part.origin)


def _refuse_other_kind(training: DataSpec, other: DataSpec, data: str | None, same_shape: bool) -> None:
    names = ["kind", "task"]
    if training.kind == "tokens":
        # A longer sequence is still the same kind of data, so the shape is not compared.
        names.append("vocabulary")
    elif same_shape:
        names.append("input_shape")
    # Classes with names are compared by name, later.
    if not (training.class_names and other.class_names):
        names.append("output_size")

    for name in names:
        expected = getattr(training, name)
        actual = getattr(other, name)
        if expected != actual and name == "vocabulary":
            raise MisfitError(
                f"the model was trained for a vocabulary of {len(expected)} codes, and data={data} has another one, "
                f"of {len(actual)}"
            )
        if expected != actual:
            raise MisfitError(f"the model was trained for {name} {expected}, and data={data} has {actual}")


def _match_columns(training: DataSpec, other: DataSpec, data: str | None) -> Tensor | None:
    """Find the position of each of the model's features by name, if both tables have names."""
    if training.feature_names == other.feature_names or not training.feature_names or not other.feature_names:
        return None

    # A table without a header line has numbered names: there columns match by position.
    for names in (training.feature_names, other.feature_names):
        if names == tuple(f"column_{number}" for number in range(len(names))):
            return None

    missing = [name for name in training.feature_names if name not in other.feature_names]
    if missing:
        raise MisfitError(
            f"the model was trained on the columns {join_names(training.feature_names)}, "
            f"and data={data} has no {join_names(missing)}"
        )
    return torch.tensor([other.feature_names.index(name) for name in training.feature_names])


def _match_normalization(
    training: DataSpec, other: DataSpec, columns: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return (x * other std + other mean - training mean) / training std as scale and shift, per channel or feature."""
    if (training.mean, training.std) == (other.mean, other.std) and columns is None:
        return None, None

    training_mean, training_std = _read_constants(training)
    mean, std = _read_constants(other)
    # A single constant normalizes every column.
    if columns is not None and len(mean) > 1:
        mean = mean[columns]
        std = std[columns]

    # One value per channel (C, H, W), or per feature (F,).
    shape = (-1, 1, 1) if training.kind == "image" else (-1,)
    scale = (std / training_std).view(shape)
    shift = ((mean - training_mean) / training_std).view(shape)
    return scale, shift


def _read_constants(spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as float64 tensors; 0 and 1 for data that are not normalized."""
    mean = torch.tensor(spec.mean or (0.0,)).double()
    std = torch.tensor(spec.std or (1.0,)).double()
    return mean, std


def _format_outputs(spec: DataSpec) -> str:
    texts = []
    for output in spec.outputs:
        names = f" of {join_names(output.class_names)}" if output.class_names else ""
        texts.append(f"{output.name} ({output.task}{names})")
    return ", ".join(texts) or "of one target"


def _match_labels(training: DataSpec, other: DataSpec, data: str | None) -> Tensor | None:
    """Find each of the model's labels by name; further labels of the other data are left out."""
    if training.class_names == other.class_names:
        return None
    missing = [name for name in training.class_names if name not in other.class_names]
    if missing or not training.class_names:
        raise MisfitError(
            f"the model was trained for the labels {join_names(training.class_names)}, "
            f"and data={data} has {join_names(other.class_names)}"
        )
    return torch.tensor([other.class_names.index(name) for name in training.class_names])


def _match_classes(training: DataSpec, other: DataSpec, data: str | None) -> Tensor | None:
    """Find the model's number of each class by name; the other data may have fewer classes."""
    if training.class_names == other.class_names:
        return None
    if not training.class_names or not other.class_names:
        raise MisfitError(
            f"the model was trained for class_names {training.class_names}, and data={data} has {other.class_names}"
        )

    unknown = [name for name in other.class_names if name not in training.class_names]
    if unknown:
        raise MisfitError(
            f"the model was trained for class_names {join_names(training.class_names)}, "
            f"and data={data} has {join_names(unknown)} besides"
        )
    # Position: class number of the other data; value: that of the model.
    return torch.tensor([training.class_names.index(name) for name in other.class_names])
