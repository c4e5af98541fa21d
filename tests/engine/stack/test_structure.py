"""Which models share a stack: the same classes, sizes and settings, whatever their weights and dropout rates."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dlrun.data.spec import DataSpec
from dlrun.engine.stack.model import describe_structure, has_chain
from dlrun.models.cnn import CNN
from dlrun.models.mlp import MLP
from dlrun.models.resnet import ResNet

VECTOR = DataSpec("vector", (5,), "multiclass", 3)
IMAGE = DataSpec("image", (1, 16, 16), "multiclass", 3)


class Scaled(nn.Module):
    """A layer with settings of all kinds."""

    def __init__(self, factor: object = 1.0, size: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.layer = nn.Linear(2, size)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


class Doubled(MLP):
    """Its forward pass is another than that of the class which lists the layers."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(MLP):
    """A class that changes nothing."""


class Ticking(MLP):
    """Has a parameter that is in none of its layers."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec, [4])
        self.scale = nn.Parameter(torch.ones(1))


def add_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(VECTOR, [4], dropout=0.1),
        lambda: CNN(IMAGE, [2, 3], 3),
        lambda: ResNet(IMAGE, [2]),
        lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.LeakyReLU(0.2)),
        lambda: Scaled(VECTOR),
        lambda: Scaled([torch.relu, {"a": nn.ReLU}, functools.partial(torch.add, 1), torch.ones(2)]),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    ],
)
def test_models_that_differ_in_their_weights_have_one_structure(build: Callable[[], nn.Module]) -> None:
    assert describe_structure(build()) == describe_structure(build())


def test_rates_of_dropout_may_differ() -> None:
    assert describe_structure(MLP(VECTOR, [4], dropout=0.1)) == describe_structure(MLP(VECTOR, [4], dropout=0.9))


def tie(model: nn.Sequential) -> nn.Module:
    model[1].weight = model[0].weight
    return model


def freeze(model: nn.Module) -> nn.Module:
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MLP(VECTOR, [4]), MLP(VECTOR, [5])),
        (MLP(VECTOR, [4]), MLP(VECTOR, [4], bias=False)),
        (MLP(VECTOR, [4]), MLP(VECTOR, [4], activation="tanh")),
        (MLP(VECTOR, [4]), MLP(VECTOR, [4], dropout=0.5)),
        (MLP(VECTOR, [4]), MLP(VECTOR, [4]).double()),
        (MLP(VECTOR, [4]), freeze(MLP(VECTOR, [4]))),
        (MLP(VECTOR, [4]), Renamed(VECTOR, [4])),
        (MLP(VECTOR, [4]), add_hook(MLP(VECTOR, [4]))),
        (add_hook(nn.ReLU()), add_hook(nn.ReLU())),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.AlphaDropout(0.1), nn.AlphaDropout(0.2)),
        (nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=0.2)),
        (nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)),
        (nn.Linear(2, 2), nn.LazyLinear(2)),
        (nn.Conv2d(1, 2, 3), nn.Conv2d(1, 2, 3, padding=1)),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tie(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))),
        (Scaled(1.0), Scaled(2.0)),
        (Scaled(1), Scaled(True)),
        (Scaled(nn.ReLU()), Scaled(nn.Tanh())),
        (Scaled(VECTOR), Scaled(IMAGE)),
        (Scaled(torch.relu), Scaled(torch.tanh)),
        (Scaled(lambda x: x), Scaled(lambda x: 2 * x)),
        (Scaled(functools.partial(torch.add, 1)), Scaled(functools.partial(torch.add, 2))),
        (Scaled(torch.ones(2)), Scaled(torch.zeros(2))),
        (Scaled(object()), Scaled(object())),
        (Scaled([[[1]]]), Scaled([[[2]]])),
    ],
)
def test_models_that_compute_something_else_have_another(one: nn.Module, other: nn.Module) -> None:
    assert describe_structure(one) != describe_structure(other)


def test_a_setting_that_holds_itself_ends() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert describe_structure(Scaled(endless)) != describe_structure(Scaled([]))


@pytest.mark.parametrize(
    ("model", "is_chain"),
    [
        (MLP(VECTOR, [4, 4], dropout=0.2), True),
        (CNN(IMAGE, [2], 3), True),
        (Renamed(VECTOR, [4]), True),
        (nn.Sequential(nn.Sequential(nn.Linear(5, 3)), nn.Tanh()), True),
        (nn.Linear(5, 3), True),
        (ResNet(IMAGE, [2]), False),
        (nn.Sequential(ResNet(IMAGE, [2]), nn.ReLU()), False),
        (Doubled(VECTOR, [4]), False),
        (Ticking(VECTOR), False),
        (add_hook(MLP(VECTOR, [4])), False),
        (nn.Sequential(nn.Linear(5, 3), add_hook(nn.ReLU())), False),
        (nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), False),
        (nn.BatchNorm1d(3, momentum=None), False),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), False),
        (nn.MaxPool2d(2, return_indices=True), False),
        (nn.AlphaDropout(), False),
    ],
)
def test_only_a_chain_of_plain_layers_is_covered_by_the_registry(model: nn.Module, is_chain: bool) -> None:
    assert has_chain(model) is is_chain
