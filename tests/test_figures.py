"""Pictures: there, of their size, not blank, and of the right numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrun import figures
from dlrun.data.spec import DataSpec

WIDE = (704, 528)  # 6.4 by 4.8 inches at 110 dots
BINARY = DataSpec("vector", (2,), "binary", 1, class_names=("no", "yes"))
FEW = ("trainer.epochs=2", "data.limit_batches=2", "tracking.graph=false")


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (("data=regression", "model=linear"), {"loss": WIDE, "fit": WIDE}),
        (("data=regression", "data.features=3", "model=linear"), {"loss": WIDE, "fit": WIDE}),
        (("data=blobs", "data.task=binary"), {"loss": WIDE, "confusion": (638, 528)}),
        (("data=digits", "model=cnn"), {"loss": WIDE, "confusion": (880, 770), "samples": (968, 429)}),
        (("data=digits", "trainer.epochs=1", "tracking.samples=false"), {"confusion": (880, 770)}),
    ],
    ids=["one feature", "three features", "binary", "images", "one epoch without samples"],
)
def test_a_run_leaves_its_pictures(
    words: tuple[str, ...], sizes: dict[str, tuple[int, int]], dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    done = dlrun(*FEW, *words)
    assert done.code == 0, done.err
    found = {path.stem: imread(path)[..., :3] for path in (tmp_path / done.folder / "figures").iterdir()}
    assert {name: pixels.shape[1::-1] for name, pixels in found.items()} == sizes
    assert all(pixels.std() > 0.02 for pixels in found.values())  # not blank
    shown = EventAccumulator(str(tmp_path / done.folder), size_guidance={"images": 0}).Reload()
    images = {tag: shown.Images(tag) for tag in shown.Tags()["images"]}
    assert {tag: [(e.width, e.height) for e in all_of] for tag, all_of in images.items()} == {
        f"figures/{name}": [size] for name, size in sizes.items()
    }


def test_no_pictures_where_none_are_wanted(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    done = dlrun(*FEW, "data=line", "model=linear", "figures=false")
    assert not (tmp_path / done.folder / "figures").exists()


def lines(figure: Figure) -> dict[str, list[list[float]]]:
    """What is drawn as lines with a label: x and y."""
    found = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): np.asarray(line.get_xydata()).T.tolist() for line in found}


def test_the_loss_is_drawn_over_epochs_with_its_lowest_point() -> None:
    rows = [{"epoch": e, "train/loss": 4.0 - e, "val/loss": abs(e - 2) + 0.5} for e in (1, 2, 3)]
    figure = figures.loss_curves(rows)
    assert lines(figure) == {
        "train/loss": [[1, 2, 3], [3, 2, 1]],
        "val/loss": [[1, 2, 3], [1.5, 0.5, 1.5]],
    }
    dots = [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [[[3, 1]], [[2, 0.5]]]
    assert figure.axes[0].get_yscale() == "linear"


def test_a_loss_over_many_sizes_has_a_logarithmic_axis() -> None:
    rows = [{"epoch": e, "train/loss": 10.0**-e} for e in range(4)]
    assert figures.loss_curves(rows).axes[0].get_yscale() == "log"


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    nan = float("nan")
    rows = [{"epoch": e, "train/loss": 1.0, "val/loss": loss} for e, loss in ((1, 0.7), (2, nan), (3, 0.5), (4, 0.6))]
    figure = figures.loss_curves(rows)
    assert np.isnan(lines(figure)["val/loss"][1]).tolist() == [False, True, False, False]
    dots = [np.asarray(line.get_xydata()).tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [[[1, 1]], [[3, 0.5]]]
    assert list(lines(figures.loss_curves([row | {"val/loss": nan} for row in rows]))) == ["train/loss"]


def test_the_confusion_matrix_is_scikit_learns() -> None:
    from sklearn import metrics

    generator = torch.Generator().manual_seed(0)
    targets, predicted = (torch.randint(0, 4, (60,), generator=generator) for _ in range(2))
    spec = DataSpec("vector", (2,), "multiclass", 5, class_names=tuple("abcde"))  # e never occurs
    figure = figures.confusion_matrix(targets, predicted, spec, "val")
    truth = metrics.confusion_matrix(targets, predicted, labels=range(5))
    axes = figure.axes[0]
    counts = {t.get_position()[::-1]: int(t.get_text()) for t in axes.texts}
    assert counts == {(i, j): truth[i, j] for i, j in np.ndindex(5, 5) if truth[i, j]}
    shares = np.asarray(axes.images[0].get_array())
    rows = truth.sum(1, keepdims=True)
    assert np.allclose(shares, np.divide(truth, rows, out=np.zeros((5, 5)), where=rows > 0))
    assert [t.get_text() for t in axes.get_xticklabels()] == list("abcde")
    accuracy = 100 * metrics.accuracy_score(targets, predicted)
    assert axes.get_title() == f"Confusion on val: {accuracy:.2f} % right"


def test_a_matrix_of_many_classes_has_no_numbers() -> None:
    spec = DataSpec("vector", (2,), "multiclass", 40)
    axes = figures.confusion_matrix(torch.arange(40), torch.arange(40), spec, "test").axes[0]
    assert (len(axes.texts), axes.get_title()) == (0, "Confusion on test: 100.00 % right")


def test_a_fit_of_one_feature_is_a_curve_through_the_data() -> None:
    x, y = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[9.0], [1.0], [4.0]])
    spec = DataSpec("vector", (1,), "regression", 1, feature_names=("weight",))
    figure = figures.regression_fit(x, y + 1, y, spec, "train")
    assert lines(figure) == {"train": [[3, 1, 2], [9, 1, 4]], "model": [[1, 2, 3], [2, 5, 10]]}
    assert figure.axes[0].get_xlabel() == "weight"


def test_a_fit_of_several_features_is_prediction_over_truth() -> None:
    y = torch.tensor([[9.0], [1.0], [4.0]])
    spec = DataSpec("vector", (2,), "regression", 1)
    figure = figures.regression_fit(torch.ones(3, 2), y + 1, y, spec, "test")
    assert lines(figure) == {"exact": [[1, 9], [1, 9]], "test": [[9, 1, 4], [10, 2, 5]]}


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_images_look_as_they_did_before_they_were_normalized(channels: int) -> None:
    pixels = torch.rand(30, channels, 5, 4, generator=torch.Generator().manual_seed(0))
    mean, std = tuple(0.1 * (c + 1) for c in range(channels)), tuple(0.5 + c for c in range(channels))
    shape = (1, channels, 1, 1)
    normalized = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    spec = DataSpec("image", (channels, 5, 4), "multiclass", 3, class_names=("a", "b", "c"), mean=mean, std=std)
    figure = figures.image_grid(normalized, torch.arange(30) % 3, spec)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 24
    for i, axes in enumerate(shown):
        wanted = pixels[i, 0] if channels == 1 else pixels[i].permute(1, 2, 0)
        assert np.allclose(np.asarray(axes.images[0].get_array()), wanted.numpy(), atol=1e-6)
        assert axes.get_title() == "abc"[i % 3]


def test_there_may_be_fewer_images_than_places() -> None:
    spec = DataSpec("image", (1, 2, 2), "regression", 1)
    figure = figures.image_grid(torch.rand(3, 1, 2, 2), torch.tensor([[0.5], [1.5], [2.5]]), spec)
    assert [axes.get_title() for axes in figure.axes] == ["[0.5]", "[1.5]", "[2.5]"]
