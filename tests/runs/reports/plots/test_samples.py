"""Images side by side."""

import numpy as np
import pytest
import torch

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots.samples import draw_image_grid


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sample_images_look_as_they_did_before_they_were_normalized(channels: int) -> None:
    pixels = torch.rand(30, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    mean, std = tuple(0.1 * (c + 1) for c in range(channels)), tuple(0.5 + c for c in range(channels))
    shape = (1, channels, 1, 1)
    normalized = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    spec = DataSpec("image", (channels, 5, 4), "multiclass", 3, class_names=("a", "b", "c"), mean=mean, std=std)
    axes = draw_image_grid(normalized, torch.arange(30) % 3, spec).axes[0]
    assert [text.get_text() for text in axes.texts] == list("abc" * 8)
    assert len(axes.images) == 24
    for image, original in zip(axes.images, pixels, strict=False):
        wanted = original.permute(1, 2, 0) if channels == 3 else original[0]
        assert np.allclose(np.asarray(image.get_array()), wanted.numpy(), atol=1e-6)


def test_images_keep_their_shape_and_have_their_title_above() -> None:
    spec = DataSpec("image", (1, 4, 8), "multiclass", 10)
    axes = draw_image_grid(torch.zeros(10, 1, 4, 8), torch.arange(10), spec).axes[0]
    places = [image.get_extent() for image in axes.images]
    for (left, right, bottom, top), text in zip(places, axes.texts, strict=True):
        assert (bottom - top) / (right - left) == pytest.approx(0.5)
        assert text.get_position()[0] == pytest.approx((left + right) / 2)
        assert 0 < top - text.get_position()[1] < 0.1
    assert len({(place[0], place[3]) for place in places}) == 10
    assert len({place[3] for place in places}) == 2  # eight in a line
    width, height = axes.figure.get_size_inches()
    assert (axes.get_xlim(), axes.get_ylim()) == (pytest.approx((0, width)), pytest.approx((height, 0)))


def test_there_may_be_fewer_images_than_places() -> None:
    spec = DataSpec("image", (1, 2, 2), "regression", 1)
    figure = draw_image_grid(torch.rand(3, 1, 2, 2), torch.tensor([[0.5], [1.5], [2.5]]), spec)
    assert [text.get_text() for text in figure.axes[0].texts] == ["[0.5]", "[1.5]", "[2.5]"]
