from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.sequential import Sequential

Make = Callable[..., DataSpec]


def test_default_is_a_small_perceptron(image_spec: Make) -> None:
    net = Sequential(image_spec())
    assert [type(layer).__name__ for layer in net.layers] == ["Flatten", "Linear", "ReLU", "Linear"]
    assert sum(p.numel() for p in net.parameters()) == 784 * 64 + 64 + 64 * 10 + 10


def test_words_stand_for_sizes_of_images(image_spec: Make) -> None:
    layers: list[Any] = [
        {"BatchNorm2d": ["in"]},
        {"Conv2d": {"in_channels": "in", "out_channels": 8, "kernel_size": 3}},
        "ReLU",
        {"AdaptiveAvgPool2d": 1},
        "Flatten",
        {"Linear": [8, "out"]},
    ]
    net = Sequential(image_spec(3, 20, 16), layers)
    assert (net.layers[0].num_features, net.layers[1].in_channels) == (3, 3)  # type: ignore[union-attr]
    assert net(torch.randn(5, 3, 20, 16)).shape == (5, 10)


def test_words_stand_for_sizes_of_vectors(vector_spec: Make) -> None:
    net = Sequential(
        vector_spec(8, 3), [{"LayerNorm": [["in"]]}, {"Linear": {"in_features": "in", "out_features": "out"}}]
    )
    assert net(torch.randn(5, 8)).shape == (5, 3)


def test_lazy_layers_get_their_size(image_spec: Make) -> None:
    net = Sequential(image_spec(), [{"LazyConv2d": [4, 5]}, "Flatten", {"LazyLinear": "out"}])
    assert isinstance(net.layers[2], nn.Linear)
    assert net.layers[2].weight.shape == (10, 4 * 24 * 24)


def test_dry_run_leaves_batch_norm_and_random_numbers_alone(vector_spec: Make) -> None:
    layers: list[Any] = [{"BatchNorm1d": ["in"]}, {"Dropout": 0.5}, {"Linear": ["in", "out"]}]
    torch.manual_seed(0)
    net = Sequential(vector_spec(), layers)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    nn.Linear(8, 3)
    assert torch.equal(drawn, torch.rand(1))
    assert net.layers[0].num_batches_tracked == 0
    assert all(layer.training for layer in net.layers)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            ["Flatten", "ReLU", {"Liner": [1, 2]}],
            r"model\.layers\[2\]=Liner is unknown \(did you mean Linear",
        ),
        (["relu"], r"model\.layers\[0\]=relu is unknown \(did you mean ReLU"),
        (["Parameter"], r"model\.layers\[0\]=Parameter is unknown"),
        (["functional"], r"model\.layers\[0\]=functional is unknown"),
        (["os.system"], r"model\.layers\[0\]=os\.system is unknown"),
        (["Linear"], r"model\.layers\[0\] cannot build Linear .*out_features"),
        ([{"Linear": [4, -1]}], r"model\.layers\[0\] cannot build Linear from \[4, -1\]"),
        ([{"Linear": {"size": 3}}], r"model\.layers\[0\] cannot build Linear .*size"),
        ([{"Linear": [4, 5], "ReLU": []}], r"model\.layers\[0\]=.* is no layer"),
        ([7], r"model\.layers\[0\]=7 is no layer"),
    ],
)
def test_bad_entries_end_in_a_sentence(layers: list[Any], sentence: str, vector_spec: Make) -> None:
    with pytest.raises(RequestError, match=sentence):
        Sequential(vector_spec(), layers)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            [{"Linear": ["in", 64]}],
            r"model\.layers\[0\] \(Linear\) cannot take samples of shape \[1, 28, 28\]",
        ),
        (["Flatten", {"Linear": ["in", 64]}], r"ends with samples of shape \[64\], .*needs \[10\]"),
        (["Flatten", {"Linear": ["in", 5]}, {"Linear": [6, "out"]}], r"model\.layers\[2\] \(Linear\)"),
        ([{"Conv2d": ["in", 10, 28]}], r"ends with samples of shape \[10, 1, 1\]"),
        (["Flatten", {"GRU": ["in", 10]}], r"model\.layers\[1\] \(GRU\) gives no tensor"),
        (["ModuleList"], r"model\.layers\[0\] \(ModuleList\) cannot take"),
    ],
)
def test_shapes_that_do_not_fit_end_in_a_sentence(layers: list[Any], sentence: str, image_spec: Make) -> None:
    with pytest.raises(MisfitError, match=sentence):
        Sequential(image_spec(), layers)
