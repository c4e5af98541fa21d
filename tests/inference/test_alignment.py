"""Other data as a model knows them: by hand-made numbers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import MisfitError
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.inference.alignment import align_splits

TRAINED = DataSpec(
    "vector",
    (2,),
    "multiclass",
    3,
    class_names=("a", "b", "c"),
    feature_names=("x", "y"),
    mean=(1.0, 10.0),
    std=(2.0, 5.0),
)


def splits(spec: DataSpec, x: Tensor, y: Tensor) -> Splits:
    return Splits(Split((x,), y), None, Split((x,), y), spec)


def test_the_same_data_stay_as_they_are() -> None:
    given = splits(TRAINED, torch.ones(2, 2), torch.tensor([0, 2]))
    assert align_splits(given, TRAINED, "csv") is given


def test_columns_constants_and_classes_by_name() -> None:
    raw = torch.tensor([[7.0, 99.0, 3.0], [8.0, 98.0, 5.0]]).double()  # y, another column, x
    mean, std = torch.tensor([7.5, 90.0, 4.0]).double(), torch.tensor([0.5, 9.0, 2.0]).double()
    other = replace(
        TRAINED,
        input_shape=(3,),
        output_size=2,
        class_names=("c", "a"),
        feature_names=("y", "other", "x"),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
    )
    split_rows = align_splits(splits(other, (raw - mean) / std, torch.tensor([0, 1])), TRAINED, "csv")
    expected = (raw[:, [2, 0]] - torch.tensor(TRAINED.mean)) / torch.tensor(TRAINED.std)
    assert isinstance(split_rows.test, Split)
    assert torch.allclose(split_rows.test.inputs[0], expected)
    assert split_rows.test.targets.tolist() == [2, 0]
    assert split_rows.spec == TRAINED


def test_images_from_disk_and_their_constants() -> None:
    class Files(Dataset[Any]):
        targets = torch.tensor([1, 0])

        def __len__(self) -> int:
            return 2

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return torch.full((3, 4, 4), (0.6 - 0.5) / 0.5), int(self.targets[row])

    spec = DataSpec(
        "image", (3, 4, 4), "multiclass", 2, class_names=("a", "b"), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 2.0)
    )
    given = replace(spec, mean=(0.5,) * 3, std=(0.5,) * 3, class_names=("b", "a"))
    split_rows: Any = align_splits(Splits(Files(), None, Files(), given), spec, "image_folder").test
    assert split_rows.targets.tolist() == [0, 1]
    x, y = split_rows[0]
    assert int(y) == 0
    assert torch.allclose(x[:, 0, 0], torch.tensor([1.0, 0.8, 0.15]))


def test_padding_of_tags_is_no_class() -> None:
    spec = DataSpec("tokens", (3,), "tagging", 2, class_names=("h", "o"), vocabulary=("", "h", "o"))
    given = replace(spec, class_names=("o", "h"), input_shape=(5,))
    split_rows = align_splits(splits(given, torch.ones(1, 3).long(), torch.tensor([[0, 1, -100]])), spec, "words")
    assert isinstance(split_rows.train, Split)
    assert split_rows.train.targets.tolist() == [[1, 0, -100]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (3,), "feature_names": ()}, r"input_shape \(2,\), and data=csv has \(3,\)"),
        ({"task": "regression"}, "task multiclass"),
        ({"kind": "image"}, "kind vector"),
        ({"feature_names": ("x", "z")}, "has no y"),
        ({"class_names": ("a", "d")}, "has d besides"),
        ({"class_names": ()}, "output_size|class_names"),
    ],
)
def test_what_is_of_another_kind(change: dict[str, Any], message: str) -> None:
    given = replace(TRAINED, **change)
    with pytest.raises(MisfitError, match=message):
        align_splits(splits(given, torch.ones(1, 2), torch.zeros(1).long()), TRAINED, "csv")
