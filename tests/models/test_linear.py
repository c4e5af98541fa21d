from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.spec import DataSpec
from dlrun.models.linear import Linear, Logistic

Make = Callable[..., DataSpec]


@pytest.mark.parametrize("model", [Linear, Logistic])
def test_output_is_the_matrix_product(model: type[Linear], vector_spec: Make) -> None:
    net = model(vector_spec(8, 3))
    x = torch.randn(5, 8)
    w, b = net.weight.detach().numpy(), net.bias.detach().numpy()
    np.testing.assert_allclose(net(x).detach().numpy(), x.numpy() @ w.T + b, rtol=1e-5, atol=1e-6)


def test_images_are_flattened_channel_by_channel(image_spec: Make) -> None:
    net = Linear(image_spec(3, 4, 5))
    x = torch.randn(2, 3, 4, 5)
    expected = torch.einsum("bchw,ochw->bo", x, net.weight.view(10, 3, 4, 5)) + net.bias
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected)


def test_parameters_are_weight_and_bias(vector_spec: Make) -> None:
    assert {k: tuple(v.shape) for k, v in Linear(vector_spec(1, 1)).state_dict().items()} == {
        "weight": (1, 1),
        "bias": (1,),
    }
    assert list(Linear(vector_spec(1, 1), bias=False).state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (Linear, {"regression", "binary", "multiclass", "multilabel", "multitask"}),
        (Logistic, {"binary", "multiclass", "multilabel"}),
    ],
)
def test_logistic_takes_no_regression(model: Any, tasks: set[str]) -> None:
    assert set(model.tasks) == tasks
    assert set(model.kinds) == {"vector", "image", "series"}
