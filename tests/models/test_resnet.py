from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.models.resnet import ResidualBlock, ResNet

Make = Callable[..., DataSpec]


def test_parameter_count_on_mnist(image_spec: Make) -> None:
    blocks = [2 * (n * n * 9 + n) for n in (16, 32)]
    expected = (16 * 25 + 16) + (16 * 32 * 25 + 32) + sum(blocks) + (512 * 10 + 10)
    assert sum(p.numel() for p in ResNet(image_spec()).parameters()) == expected == 41514


def test_block_adds_its_input() -> None:
    block = ResidualBlock(4)
    w1, b1, w2, b2 = block.state_dict().values()
    x = torch.randn(2, 4, 6, 5)
    y = F.conv2d(F.conv2d(x, w1, b1, padding=1).clamp(min=0), w2, b2, padding=1)
    torch.testing.assert_close(block(x), (x + y).clamp(min=0))


def test_values_and_gradients_equal_those_of_relu_before_pooling(image_spec: Make) -> None:
    net = ResNet(image_spec()).double()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    net(x).square().sum().backward()
    gradients = [p.grad for p in net.parameters()]

    features = net.features
    y = features[3](F.max_pool2d(F.relu(features[0](x)), 2))
    y = features[7](F.max_pool2d(F.relu(features[4](y)), 2))
    expected = net.classifier(y.flatten(1))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(list(torch.autograd.grad(expected.square().sum(), list(net.parameters()))), gradients)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 30, 26), (1, 16, 16)])
def test_output_shape(shape: tuple[int, ...], image_spec: Make) -> None:
    assert ResNet(image_spec(*shape))(torch.randn(3, *shape)).shape == (3, 10)


def test_other_channels_give_other_stages(image_spec: Make) -> None:
    net = ResNet(image_spec(3, 64, 64), channels=[4, 6, 8])
    assert net.classifier.in_features == 8 * 4 * 4  # 64 -> 30 -> 13 -> 4 pixels a side
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_small_image_is_refused(image_spec: Make) -> None:
    with pytest.raises(MisfitError, match=r"model=resnet needs .* 16x16 .*data\.image_size=28"):
        ResNet(image_spec(1, 8, 8))


@pytest.mark.parametrize("channels", [[], [16, -1]])
def test_bad_channels_end_in_a_sentence(channels: list[int], image_spec: Make) -> None:
    with pytest.raises(RequestError, match=r"model\.channels.*type model\.channels=\[16,32\]"):
        ResNet(image_spec(), channels)
