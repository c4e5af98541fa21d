import pytest
import torch

from dlrun.core.errors import RequestError
from dlrun.data.folders import apply_seeded, build_augment

SHAPE = (3, 16, 16)
IMAGE = torch.arange(3 * 16 * 16).remainder(256).to(torch.uint8).view(SHAPE)
STEPS = ["RandomHorizontalFlip", {"RandomCrop": {"size": 16, "padding": 4}}]


def test_steps_do_what_they_are_named_for():
    flip = build_augment([{"RandomHorizontalFlip": {"p": 1.0}}], SHAPE)
    assert torch.equal(flip(IMAGE), IMAGE.flip(2))


def test_a_function_of_seed_and_index():
    augment = build_augment(STEPS, SHAPE)
    forwards = {i: apply_seeded(augment, IMAGE, 5, i) for i in range(20)}
    backwards = {i: apply_seeded(augment, IMAGE, 5, i) for i in reversed(range(20))}
    assert all(torch.equal(forwards[i], backwards[i]) for i in range(20))
    assert len({image.numpy().tobytes() for image in forwards.values()}) > 10
    assert any(not torch.equal(forwards[i], apply_seeded(augment, IMAGE, 6, i)) for i in range(20))


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    augment = build_augment(STEPS, SHAPE)
    apply_seeded(augment, IMAGE, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            ["RandomHorizontalFlop"],
            "'RandomHorizontalFlop' is no transform.*did you mean 'RandomHorizontalFlip'",
        ),
        (["zzz"], "such as RandomHorizontalFlip"),
        (["functional"], "is no transform"),
        (["InterpolationMode"], "is no transform"),
        ([{"RandomCrop": {"sise": 16}}], "RandomCrop does not take"),
        (["RandomCrop"], "RandomCrop does not take"),
        ([{"Lambda": {"lambd": "print"}}], "not callable"),
        ([{"RandomCrop": {"size": 8}}], r"into \(3, 8, 8\).*data\.image_size=8"),
        ([{"RandomCrop": {"size": 99}}], "fails on an image"),
        ([{"Normalize": {"mean": [0.5], "std": [0.5]}}], "fails on an image"),
        ([7], "7 is neither a name"),
        ([{"RandomCrop": 16}], "neither a name"),
        ([{"RandomHorizontalFlip": None, "RandomVerticalFlip": None}], "neither a name"),
    ],
)
def test_steps_that_cannot_be(steps, words):
    with pytest.raises(RequestError, match=words) as caught:
        build_augment(steps, SHAPE)
    assert str(caught.value).startswith("data.augment")
    assert "\n" not in str(caught.value)
