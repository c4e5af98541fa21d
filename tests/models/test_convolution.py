"""The course's sums about convolutions, done by hand beside dlrun's own parts."""

import contextlib
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.engine.objective import Objective
from dlrun.experiment.builder.start_values import set_start_values
from dlrun.experiment.preflight.checks import Layer, inspect_layers
from dlrun.models.sequential import Sequential

IMAGE = [[2, 0, 1, 5, 3], [4, 1, 0, 2, 6], [7, 3, 2, 1, 0], [1, 5, 4, 0, 2], [3, 2, 6, 1, 4]]
KERNEL = [[1, 0, -1], [2, 3, 0], [-2, 1, 4]]


def convolve_by_hand(stride: int, padding: int) -> list[list[int]]:
    """KERNEL laid on IMAGE, with `padding` zeros around it, at every `stride`-th place: products, summed."""

    def pixel(row: int, column: int) -> int:
        return IMAGE[row][column] if 0 <= row < 5 and 0 <= column < 5 else 0

    corners = range(-padding, 5 + padding - 3 + 1, stride)
    return [
        [sum(KERNEL[i][j] * pixel(top + i, left + j) for i, j in product(range(3), repeat=2)) for left in corners]
        for top in corners
    ]


def convolution(channels: int, size: int, outputs: int, **settings: Any) -> Sequential:
    """One Conv2d and a Flatten, as model=sequential builds them."""
    spec = DataSpec("image", (channels, size, size), "regression", outputs)
    return Sequential(spec, [{"Conv2d": {"in_channels": "in", **settings}}, "Flatten"])


def test_one_place_in_figures() -> None:
    first = 2 * 1 + 0 * 0 + 1 * -1 + 4 * 2 + 1 * 3 + 0 * 0 + 7 * -2 + 3 * 1 + 2 * 4
    assert convolve_by_hand(1, 0)[0][0] == first == 9


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 0, 3), (1, 1, 5), (2, 0, 2), (2, 1, 3)])
def test_five_by_five_by_three_by_three(stride: int, padding: int, size: int) -> None:
    wanted = convolve_by_hand(stride, padding)
    assert [len(row) for row in wanted] == [size] * size
    net = convolution(1, 5, size * size, out_channels=1, kernel_size=3, stride=stride, padding=padding)
    set_start_values(net, {"w": [[KERNEL]], "b": 0.5})
    image = torch.tensor(IMAGE, dtype=torch.float32).view(1, 1, 5, 5)
    assert net(image).view(size, size).tolist() == [[x + 0.5 for x in row] for row in wanted]


def rows_of(net: Sequential, spec: DataSpec) -> list[Layer]:
    given = ((torch.zeros(2, *spec.input_shape),), torch.zeros(2, spec.output_size))
    return inspect_layers(net, given, Objective(spec), contextlib.nullcontext)


@pytest.mark.parametrize(("padding", "stride"), [*product((0, 1, 2), (1, 2, 3))])
def test_the_layer_table_follows_the_output_size_formula(padding: int, stride: int) -> None:
    for n, k in product((5, 6, 8, 11), (1, 2, 3, 5)):
        size = (n - k + 2 * padding) // stride + 1  # floor: a last place that does not fit is left out
        net = convolution(1, n, 2 * size * size, out_channels=2, kernel_size=k, stride=stride, padding=padding)
        first = rows_of(net, DataSpec("image", (1, n, n), "regression", 2 * size * size))[0]
        assert first.output_shape == (2, size, size), (n, k)
        assert first.multiply_adds == 2 * size * size * k * k, (n, k)


def test_a_bottleneck_of_one_by_one_saves_nine_tenths() -> None:
    """192 channels of 28x28 to 32 by 5x5, the example of GoogLeNet's lessons: 120 million against 12 million."""
    spec = DataSpec("image", (192, 28, 28), "regression", 32 * 28 * 28)
    wide = {"Conv2d": {"in_channels": 192, "out_channels": 32, "kernel_size": 5, "padding": 2}}
    narrow = {"Conv2d": {"in_channels": 16, "out_channels": 32, "kernel_size": 5, "padding": 2}}

    def work(*built: Any) -> int:
        return sum(row.multiply_adds for row in rows_of(Sequential(spec, [*built, "Flatten"]), spec))

    assert work(wide) == 28**2 * 32 * 5**2 * 192 == 120_422_400
    assert work({"Conv2d": ["in", 16, 1]}, narrow) == 28**2 * 16 * 192 + 28**2 * 32 * 5**2 * 16 == 12_443_648


def test_zeros_around_an_image_keep_its_size_and_its_middle() -> None:
    def give_answer(padding: int) -> Tensor:
        size = 3 + 2 * padding
        net = convolution(1, 5, size * size, out_channels=1, kernel_size=3, padding=padding)
        set_start_values(net, {"w": [[KERNEL]], "b": 0.0})
        answer: Tensor = net(torch.tensor(IMAGE, dtype=torch.float32).view(1, 1, 5, 5)).view(size, size)
        return answer

    assert torch.equal(give_answer(1)[1:-1, 1:-1], give_answer(0))
