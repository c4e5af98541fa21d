"""The contract between data and model survives a checkpoint."""

import dataclasses
import io

import pytest
import torch

from dlrun.data.spec import DataSpec, Output, Split

FULL = DataSpec(
    kind="image",
    input_shape=(3, 4, 5),
    task="multiclass",
    output_size=2,
    class_names=("cat", "dog"),
    vocabulary=("", "a"),
    feature_names=("x",),
    mean=(0.1, 0.2, 0.3),
    std=(1.0, 1.0, 2.0),
)


TWO = (Output("kind", "multiclass", 3, ("a", "b", "c")), Output("angle", "regression", 2))
SPECS = [
    FULL,
    DataSpec("vector", (8,), "regression", 1),
    DataSpec("vector", (8,), "regression", 8, reconstructs=True),
    DataSpec("vector", (8,), "multitask", 5, outputs=TWO),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_comes_back_from_a_file_of_plain_values(spec: DataSpec) -> None:
    file = io.BytesIO()
    torch.save(spec.to_dict(), file)
    file.seek(0)
    plain = torch.load(file, weights_only=True)
    assert {type(v) for v in plain.values()} <= {str, int, list, bool}
    assert DataSpec.from_dict(plain) == spec


@pytest.mark.parametrize(("shape", "size"), [((3, 4, 5), 60), ((8,), 8), ((), 1)])
def test_the_input_size_is_the_product_of_the_shape(shape: tuple[int, ...], size: int) -> None:
    assert dataclasses.replace(FULL, input_shape=shape).input_size == size


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.output_size = 3  # type: ignore[misc]


def test_rows_of_a_split_keep_inputs_and_targets_together() -> None:
    codes, lengths, targets = torch.arange(12).view(4, 3), torch.tensor([1, 2, 3, 1]), torch.tensor([5, 6, 7, 8])
    part = Split((codes, lengths), targets).rows(torch.tensor([2, 0, 2]))
    assert len(part) == 3
    assert part.inputs[0].tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    assert part.inputs[1].tolist() == [3, 1, 3]
    assert part.targets.tolist() == [7, 5, 7]
