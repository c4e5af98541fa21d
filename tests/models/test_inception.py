from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from dlrun.core.errors import MisfitError
from dlrun.data.spec import DataSpec
from dlrun.models.inception import Inception, InceptionA

Make = Callable[..., DataSpec]


def block_parameters(n: int) -> int:
    one = n * 16 + 16
    five = (n * 16 + 16) + (16 * 24 * 25 + 24)
    three = (n * 16 + 16) + (16 * 24 * 9 + 24) + (24 * 24 * 9 + 24)
    return one + five + three + (n * 24 + 24)


def test_parameter_count_on_mnist(image_spec: Make) -> None:
    expected = 260 + block_parameters(10) + (88 * 20 * 25 + 20) + block_parameters(20) + (1408 * 10 + 10)
    assert sum(p.numel() for p in Inception(image_spec()).parameters()) == expected == 97298


def test_block_concatenates_its_branches_in_order() -> None:
    block = InceptionA(10)
    x = torch.randn(2, 10, 7, 6)
    s = list(block.state_dict().values())
    one = F.conv2d(x, s[0], s[1])
    five = F.conv2d(F.conv2d(x, s[2], s[3]), s[4], s[5], padding=2)
    three = F.conv2d(F.conv2d(x, s[6], s[7]), s[8], s[9], padding=1)
    three = F.conv2d(three, s[10], s[11], padding=1)
    window = F.unfold(x, 3, padding=1).view(2, 10, 9, 7, 6)
    pool = F.conv2d(window.mean(dim=2), s[12], s[13])
    torch.testing.assert_close(block(x), torch.cat([one, five, three, pool], dim=1))
    assert [t.shape[1] for t in (one, five, three, pool)] == [16, 24, 24, 24]


def test_bottleneck_saves_parameters_from_many_channels_on() -> None:
    def count(bottleneck: bool) -> int:
        return sum(p.numel() for p in InceptionA(192, bottleneck).parameters())

    saved = 192 * 24 * (25 + 9) - (2 * (192 * 16 + 16) + 16 * 24 * (25 + 9))
    assert count(bottleneck=False) - count(bottleneck=True) == saved > 0


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 30, 26), (1, 16, 16)])
def test_output_shape(shape: tuple[int, ...], bottleneck: bool, image_spec: Make) -> None:
    assert Inception(image_spec(*shape), bottleneck)(torch.randn(3, *shape)).shape == (3, 10)


def test_small_image_is_refused(image_spec: Make) -> None:
    with pytest.raises(MisfitError, match=r"model=inception needs .* 16x16 .*data\.image_size=28"):
        Inception(image_spec(1, 15, 28))
