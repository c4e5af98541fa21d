from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.cnn import CNN

Make = Callable[..., DataSpec]


def test_parameter_count_on_mnist(image_spec: Make) -> None:
    assert sum(p.numel() for p in CNN(image_spec()).parameters()) == (
        (1 * 10 * 25 + 10) + (10 * 20 * 25 + 20) + (320 * 10 + 10)
    )


def test_output_against_functions(image_spec: Make) -> None:
    net = CNN(image_spec())
    w1, b1, w2, b2, w3, b3 = net.state_dict().values()
    x = torch.randn(4, 1, 28, 28)
    y = F.relu(F.max_pool2d(F.conv2d(x, w1, b1), 2))
    y = F.relu(F.max_pool2d(F.conv2d(y, w2, b2), 2))
    torch.testing.assert_close(net(x), y.reshape(4, 320) @ w3.T + b3)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 30, 26), (1, 16, 17)])
def test_output_shape(shape: tuple[int, ...], image_spec: Make) -> None:
    assert CNN(image_spec(*shape))(torch.randn(3, *shape)).shape == (3, 10)


@pytest.mark.parametrize(("channels", "kernel_size", "smallest"), [([4], 3, 4), ([4, 8], 5, 16), ([4, 8, 8], 4, 29)])
def test_smallest_image_is_told_and_works(
    channels: list[int], kernel_size: int, smallest: int, image_spec: Make
) -> None:
    shape = (1, smallest, smallest)
    assert CNN(image_spec(*shape), channels, kernel_size)(torch.randn(2, *shape)).shape == (2, 10)
    with pytest.raises(MisfitError, match=rf"at least {smallest}x{smallest} pixels"):
        CNN(image_spec(1, smallest - 1, 40), channels, kernel_size)


def test_digits_are_told_a_size(image_spec: Make) -> None:
    with pytest.raises(MisfitError, match=r"model=cnn .*8x8: type data\.image_size=28 for data"):
        CNN(image_spec(1, 8, 8))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"channels": []}, "channels"),
        ({"channels": [10, 0]}, "channels"),
        ({"kernel_size": 0}, "kernel_size"),
    ],
)
def test_bad_settings_end_in_a_sentence(settings: dict[str, Any], key: str, image_spec: Make) -> None:
    with pytest.raises(RequestError, match=rf"model\.{key}.*type model\.{key}="):
        CNN(image_spec(), **settings)
