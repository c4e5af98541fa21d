import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.mlp import ACTIVATIONS, MLP

Make = Callable[..., DataSpec]

FORMULAS: dict[str, Callable[[float], float]] = {
    "relu": lambda z: max(z, 0.0),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "tanh": math.tanh,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "softplus": lambda z: math.log1p(math.exp(z)),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "selu": lambda z: 1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * (math.exp(z) - 1)),
    "identity": lambda z: z,
    "none": lambda z: z,
}


def test_parameter_count_on_mnist(image_spec: Make) -> None:
    assert sum(p.numel() for p in MLP(image_spec()).parameters()) == 784 * 128 + 128 + 128 * 10 + 10


def test_every_activation_has_a_formula() -> None:
    assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_output_against_numpy(activation: str, vector_spec: Make) -> None:
    net = MLP(vector_spec(8, 3), hidden_sizes=[6, 4], activation=activation).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    values = [p.detach().numpy() for p in net.parameters()]
    hidden = x.numpy()
    for w, b in zip(values[:-2:2], values[1:-2:2], strict=True):
        hidden = np.vectorize(FORMULAS[activation])(hidden @ w.T + b)
    np.testing.assert_allclose(net(x).detach().numpy(), hidden @ values[-2].T + values[-1], rtol=1e-9)


def test_no_hidden_layer_leaves_a_linear_model(vector_spec: Make) -> None:
    assert [type(layer) for layer in MLP(vector_spec(), hidden_sizes=[]).layers] == [nn.Linear]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 30, 26)])
def test_images_are_flattened_first(shape: tuple[int, ...], image_spec: Make) -> None:
    net = MLP(image_spec(*shape))
    assert isinstance(net.layers[0], nn.Flatten)
    assert net(torch.randn(4, *shape)).shape == (4, 10)


def test_bias_can_be_left_out(vector_spec: Make) -> None:
    assert all(name.endswith("weight") for name in MLP(vector_spec(), bias=False).state_dict())


def test_dropout_acts_in_training_only(vector_spec: Make) -> None:
    net = MLP(vector_spec(), dropout=0.5)
    x = torch.randn(16, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden_sizes": [128, 0]}, r"model\.hidden_sizes holds 0"),
        ({"activation": "rleu"}, r"model\.activation=rleu .*did you mean .*relu.*sigmoid, tanh"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
    ],
)
def test_bad_settings_end_in_a_sentence(settings: dict[str, Any], sentence: str, vector_spec: Make) -> None:
    with pytest.raises(RequestError, match=sentence):
        MLP(vector_spec(), **settings)
