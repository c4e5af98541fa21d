import math

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.core.errors import RequestError
from dlrun.data.files.pixels import build_image_splits, choose_channel_constants, normalize_, resize


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_resize_shrinks_as_pillow_does():
    images = noise(1, 1, 20, 20)
    expected = np.asarray(Image.fromarray(images[0, 0].numpy()).resize((7, 7), Image.Resampling.BILINEAR))
    torch.testing.assert_close(resize(images, 7)[0, 0], torch.from_numpy(expected.copy()))


def test_resize_grows_linearly():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(resize(ramp, 8)[0, 0], expected.expand(8, 8))


def test_same_size_is_left_alone():
    images = noise(2, 1, 5, 5)
    assert resize(images, None) is images
    assert resize(images, 5) is images


def test_constants_are_numpys():
    images = noise(6, 3, 5, 5)
    mean, std = choose_channel_constants(images, None, None)
    np.testing.assert_allclose(mean, images.numpy().mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std, images.numpy().std((0, 2, 3)), rtol=1e-5)
    assert choose_channel_constants(images, [0, 0, 0], None) == ((0, 0, 0), std)
    assert choose_channel_constants(torch.zeros(2, 1, 3, 3), None, None) == ((0,), (1,))


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_constants_that_are_no_numbers_are_refused(key: str, value: float) -> None:
    constants = {"mean": [0.5, 0.5], "std": [0.5, 0.5], key: [1.0, value]}
    with pytest.raises(RequestError, match=rf"^data\.{key}=\[1\.0, (nan|inf)\] must be finite numbers"):
        choose_channel_constants(noise(2, 2, 3, 3), **constants)


def test_normalize_is_in_place_and_undone_by_the_constants():
    images = noise(2, 3, 4, 4)
    before = images.clone()
    after = normalize_(images, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert after is images
    back = after * torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1) + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(back, before)


def test_splits_share_the_constants_of_training():
    train, test = noise(8, 1, 6, 6), noise(4, 1, 6, 6) * 0.1
    parts = {"train": (train.clone(), torch.zeros(8).long()), "test": (test.clone(), torch.ones(4).long())}
    splits = build_image_splits(parts, ["a", "b"])
    (m,), (s,) = splits.spec.mean, splits.spec.std
    torch.testing.assert_close(splits.test.inputs[0], (test - m) / s)
    assert m == pytest.approx(train.mean().item())
    assert (splits.spec.kind, splits.spec.input_shape, splits.spec.output_size) == ("image", (1, 6, 6), 2)
    assert splits.val is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"mean": [0.5, 0.5]}, r"data\.mean has 2 values but the images have 1 channels"),
        ({"std": [0.0]}, r"data\.std=\[0\.0\] must be above 0"),
        ({"std": [float("nan")]}, r"data\.std=\[nan\]"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(RequestError, match=words):
        build_image_splits({"train": (noise(2, 1, 4, 4), torch.zeros(2).long())}, ["a"], **settings)
