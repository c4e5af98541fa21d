"""Images for a net with trained weights: normalized as those that the weights were trained on."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18

from dlrun.runs.checkpoint import load

RUN = (
    *("data=image_folder", "data.path=photos", "data.image_size=32", "trainer.max_steps=1", "tracking.graph=false"),
    *("figures=false", "model=torchvision", "preflight=false"),
)
NOTE = "images are normalized as those of the trained weights, by mean [0.485, 0.456, 0.406]"


@pytest.fixture
def weights(tmp_path: Path, formats: ModuleType, shallow: None) -> str:
    """A file of a net's weights, beside a few images."""
    formats.write_folder(tmp_path / "photos", {"a": 4, "b": 4}, (32, 32))
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    return "model.weights=resnet18.pth"


def read_spec(folder: Path) -> dict[str, Any]:
    return dict(load(folder / "checkpoints" / "last.pt")["spec"])


@pytest.mark.slow
def test_the_weights_of_a_net_choose_and_what_is_typed_wins(dlrun: Callable[..., Any], weights: str) -> None:
    published = ResNet18_Weights.DEFAULT.transforms()
    trained = dlrun(*RUN, weights)
    assert trained.code == 0, trained.err
    assert NOTE in " ".join(trained.out.split())
    spec = read_spec(trained.folder)
    assert (spec["mean"], spec["std"]) == (published.mean, published.std)
    assert "the same as recorded in training" in dlrun("eval", str(trained.folder), "figures=false").out

    for words in (
        (weights, "data.normalization=images"),
        ("model.weights=null",),
        (weights, "data.mean=[0.5,0.5,0.5]"),
    ):
        other = dlrun(*RUN, *words)
        assert other.code == 0, other.err
        assert "images are normalized as" not in other.out
        spec = read_spec(other.folder)
        assert spec["mean"] != published.mean
        assert spec["std"] != published.std


@pytest.mark.slow
def test_grey_images_and_a_wrong_choice(dlrun: Callable[..., Any], weights: str) -> None:
    grey = dlrun(*RUN, weights, "data.grayscale=true")
    assert grey.code == 0, grey.err
    assert read_spec(grey.folder)["mean"] == [pytest.approx((0.485 + 0.456 + 0.406) / 3)]
    wrong = dlrun(*RUN, weights, "data.normalization=imagenet")
    assert (wrong.code, wrong.out) == (2, "")
    assert "must be one of auto, images; type data.normalization=auto" in wrong.err
