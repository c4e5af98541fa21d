"""Other data of the same kind, brought to what a trained model knows: its columns, its constants, its class numbers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import MisfitError, listed
from dlrun.data.datasets import Part, get_targets
from dlrun.data.spec import DataSpec, Split, Splits


@dataclass(frozen=True)
class Alignment:
    """What is done to rows of the other data; null where they are as they were in training.

    columns: int64 (features,), where each of the model's features lies; scale and shift: x becomes x * scale + shift,
    shaped to go with one row; classes: int64 (their classes,), the model's number of each of theirs.
    """

    columns: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    classes: Tensor | None

    def inputs(self, x: Tensor) -> Tensor:
        """Of one row, or of many along the first dimension."""
        x = x if self.columns is None else x[..., self.columns]
        return x if self.scale is None or self.shift is None else x * self.scale.to(x.dtype) + self.shift.to(x.dtype)

    def targets(self, y: Tensor) -> Tensor:
        """Class numbers of any shape, as the model counts."""
        return y if self.classes is None else torch.where(y < 0, y, self.classes[y.clamp_min(0)])  # below 0: padding


class AlignedRows(Dataset[Any]):
    """A map-style dataset, aligned row by row."""

    def __init__(self, dataset: Dataset[Any], alignment: Alignment) -> None:
        self.dataset, self.alignment = dataset, alignment
        self.origin = getattr(dataset, "origin", None)
        targets = get_targets(dataset)
        if targets is not None:
            self.targets = alignment.targets(targets)

    def __len__(self) -> int:
        return len(cast(Sequence[Any], self.dataset))

    def __getitem__(self, row: int) -> Any:
        x, *others, y = self.dataset[row]
        return (self.alignment.inputs(x), *others, self.alignment.targets(torch.as_tensor(y)))


def align_splits(splits: Splits, trained: DataSpec, data: str | None) -> Splits:
    """The splits as data of a model's that was trained for `trained`; as they are where nothing differs.

    data: what they are called. MisfitError where they are of another kind, lack a feature, or have a class that the
    model does not know.
    """
    given = splits.spec
    columns = _columns(trained, given, data)
    _refuse_other_kind(trained, given, data, same_shape=columns is None)
    scale, shift = _rescaled(trained, given, columns)
    found = Alignment(columns, scale, shift, _classes(trained, given, data))
    if all(what is None for what in (found.columns, found.scale, found.classes)):
        return splits
    val, test = (None if part is None else _part(part, found) for part in (splits.val, splits.test))
    return dataclasses.replace(splits, train=_part(splits.train, found), val=val, test=test, spec=trained)


def _part(part: Part, alignment: Alignment) -> Part:
    if not isinstance(part, Split):
        return AlignedRows(part, alignment)
    x, *others = part.inputs
    return Split((alignment.inputs(x), *others), alignment.targets(part.targets), part.origin)


def _refuse_other_kind(trained: DataSpec, given: DataSpec, data: str | None, same_shape: bool) -> None:
    names = ["kind", "task", *(["input_shape"] if same_shape else [])]
    if trained.kind == "tokens":  # a longer sequence is no other kind
        names = ["kind", "task", "vocabulary"]
    names += [] if trained.class_names and given.class_names else ["output_size"]
    for name in names:
        was, now = getattr(trained, name), getattr(given, name)
        if was != now:
            raise MisfitError(f"the model was trained for {name} {was}, and data={data} has {now}")


def _columns(trained: DataSpec, given: DataSpec, data: str | None) -> Tensor | None:
    """By name, where both sides have names."""
    ours, theirs = trained.feature_names, given.feature_names
    if ours == theirs or not ours or not theirs:
        return None
    if any(names == tuple(f"column_{i}" for i in range(len(names))) for names in (ours, theirs)):
        return None  # a table without a header line: by position
    lacking = [name for name in ours if name not in theirs]
    if lacking:
        raise MisfitError(
            f"the model was trained on the columns {listed(ours)}, and data={data} has no {listed(lacking)}"
        )
    return torch.tensor([theirs.index(name) for name in ours])


def _rescaled(trained: DataSpec, given: DataSpec, columns: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(x * theirs + their mean - our mean) / ours as one scale and one shift, a value a channel or feature."""
    if (trained.mean, trained.std) == (given.mean, given.std) and columns is None:
        return None, None
    our_mean, our_std = _constants(trained)
    mean, std = _constants(given)
    if columns is not None and len(mean) > 1:
        mean, std = mean[columns], std[columns]
    shape = (-1, 1, 1) if trained.kind == "image" else (-1,)
    return (std / our_std).view(shape), ((mean - our_mean) / our_std).view(shape)


def _constants(spec: DataSpec) -> tuple[Tensor, Tensor]:
    return torch.tensor(spec.mean or (0.0,)).double(), torch.tensor(spec.std or (1.0,)).double()


def _classes(trained: DataSpec, given: DataSpec, data: str | None) -> Tensor | None:
    """By name, where both sides have names; theirs may be fewer."""
    ours, theirs = trained.class_names, given.class_names
    if ours == theirs:
        return None
    if not ours or not theirs:
        raise MisfitError(f"the model was trained for class_names {ours}, and data={data} has {theirs}")
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        raise MisfitError(
            f"the model was trained for class_names {listed(ours)}, and data={data} has {listed(unknown)} besides"
        )
    return torch.tensor([ours.index(name) for name in theirs])
