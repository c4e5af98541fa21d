"""How figures lie in images, by figures that were drawn so."""

import numpy as np
import pytest
import torch

from dlrun.data.files import framing
from dlrun.data.files.framing import Framing


def bars(size: int = 28, count: int = 20) -> torch.Tensor:
    """Light bars 3 wide and 20 high on black, whose boxes lie in the middle to a pixel."""
    images = torch.zeros(count, 1, size, size)
    for i in range(count):
        left = size // 2 - 2 + i % 2
        images[i, 0, 4:24, left : left + 3] = 1
    return images


def test_a_framing_is_measured() -> None:
    framing_of_bars = Framing(*framing.measure_framing(bars()))
    assert framing_of_bars.smallest == framing_of_bars.extent == framing_of_bars.largest == pytest.approx(20 / 28)
    assert framing_of_bars.stroke == pytest.approx(2 * 60 / (2 * 20 + 2 * 3) / 28)
    assert framing_of_bars.mass == framing_of_bars.box == pytest.approx(0.5 / 28)
    assert all(framing_of_bars.matches(image.numpy()) for image in bars()[:2, 0].double())
    assert not framing_of_bars.matches(bars()[0, 0].double().roll(3, dims=1).numpy())
    assert not framing_of_bars.matches(1 - bars()[0, 0].double().numpy())
    assert framing.measure_framing(bars().repeat(1, 3, 1, 1)) == framing.measure_framing(bars())


@pytest.mark.parametrize(
    "images",
    [
        1 - bars(),
        torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        torch.zeros(20, 1, 28, 28),
        bars().repeat(1, 3, 1, 1) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1),
        bars()[..., 2:26],
    ],
    ids=["dark on light", "photographs", "nothing there", "colours", "not square"],
)
def test_other_images_have_none(images: torch.Tensor) -> None:
    assert framing.measure_framing(images) == ()


def test_the_centre_of_mass_is_scipys() -> None:
    from scipy import ndimage

    image = np.random.default_rng(0).random((9, 13))
    assert np.allclose(framing.find_centre_of_mass(image), ndimage.center_of_mass(image))


def test_a_grey_edge_does_not_change_the_stroke() -> None:
    sharp, soft = np.zeros((40, 40)), np.zeros((40, 40))
    sharp[5:35, 10:16] = 1
    soft[5:35, 10:15] = 1
    soft[5:35, [9, 15]] = 0.5
    assert framing.measure_stroke(soft) == pytest.approx(framing.measure_stroke(sharp), rel=0.02)
