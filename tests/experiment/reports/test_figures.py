"""Which pictures a run gets: in its folder and in TensorBoard alike."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from dlrun import load

FEW = ("trainer.epochs=2", "data.limit_batches=2", "tracking.graph=false")


SLOW = pytest.mark.slow


@pytest.fixture
def are_unchanged(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each drawing: whether the weights, the mode and the generators were afterwards as before."""
    import torch

    from dlrun.experiment.reports import figures

    contexts, draw_all = [], figures.draw_all

    def watch(parts: Any, folder: Path, tracker: Any, outputs: Any) -> None:
        parts.state.model.train()
        weights = {k: v.clone() for k, v in parts.state.model.state_dict().items()}
        state = random.getstate(), torch.get_rng_state().tolist()
        draw_all(parts, folder, tracker, outputs)
        contexts.append(parts.state.model.training and state == (random.getstate(), torch.get_rng_state().tolist()))
        contexts.append(all(v.equal(weights[k]) for k, v in parts.state.model.state_dict().items()))

    monkeypatch.setattr(figures, "draw_all", watch)
    return contexts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        pytest.param(("data=regression", "model=linear"), "fit landscape loss", id="one feature", marks=SLOW),
        pytest.param(
            ("data=blobs", "data.task=binary", "tracking.activations=true"),
            "activations confusion decision loss",
            id="two features",
            marks=SLOW,
        ),
        pytest.param(("data=hello", "model=rnn", "trainer.epochs=1"), "mistakes", id="words"),
        pytest.param(("data=digits", "model=cnn"), "confusion loss mistakes samples", id="images", marks=SLOW),
        pytest.param(
            ("data=pass_fail", "model=logistic"), "confusion landscape loss probability", id="hours", marks=SLOW
        ),
        pytest.param(("data=regression", "data.features=3"), "fit loss", id="three features", marks=SLOW),
        pytest.param(
            ("data=digits", "model=linear", "trainer.epochs=1", "tracking.samples=false"),
            "confusion mistakes",
            id="one epoch without samples",
            marks=SLOW,
        ),
    ],
)
def test_a_run_leaves_its_pictures(
    words: tuple[str, ...], names: str, dlrun: Callable[..., Any], tmp_path: Path, are_unchanged: list[bool]
) -> None:
    outcome = dlrun(*FEW, *words)
    assert outcome.code == 0, outcome.err
    assert are_unchanged == [True, True]
    pictures = {path.stem: imread(path)[..., :3] for path in (tmp_path / outcome.folder / "figures").iterdir()}
    assert sorted(pictures) == names.split()
    assert all(pixels.std() > 0.02 for pixels in pictures.values())  # not blank
    shown = EventAccumulator(str(tmp_path / outcome.folder), size_guidance={"images": 0}).Reload()
    for name, pixels in pictures.items():
        (event,) = shown.Images(f"visuals/{name}")
        assert (event.height, event.width) == pixels.shape[:2]
    assert len([tag for tag in shown.Tags()["images"] if tag.startswith("visuals/")]) == len(pictures)


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        pytest.param(("data=blobs", "data.task=binary", "data.val_fraction=0.2"), ["1"], marks=SLOW),
        pytest.param(("data=digits",), [str(n) for n in range(10)], marks=SLOW),
    ],
)
def test_tensorboard_has_precision_over_recall(
    words: tuple[str, ...], classes: list[str], dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = dlrun(*FEW, *words, "model=mlp")
    shown = EventAccumulator(str(tmp_path / outcome.folder), size_guidance={"tensors": 0}).Reload()
    curves = {tag.partition("/")[2]: tag for tag in shown.Tags()["tensors"] if tag.startswith("pr_curves/")}
    assert list(curves) == classes
    run = load(outcome.folder)
    part = run.splits.test or run.splits.val
    probabilities = run.predict(part.inputs[0]).probabilities
    for name, tag in curves.items():
        (event,) = shown.Tensors(tag)
        *_, precision, recall = make_ndarray(event.tensor_proto)  # (6, thresholds)
        right, sure = part.targets == int(name), probabilities[:, int(name)] >= 63 / 126
        both = int((right & sure).sum())
        assert recall[63] == pytest.approx(both / int(right.sum()))
        assert precision[63] == pytest.approx(both / max(int(sure.sum()), 1))
    assert event.step == outcome.result["steps"]


@pytest.mark.slow
def test_the_same_run_has_the_same_pictures(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    first, second = (tmp_path / dlrun(*FEW, "data=line", "model=linear").folder / "figures" for _ in range(2))
    assert first != second
    for path in first.iterdir():
        assert np.array_equal(imread(path), imread(second / path.name)), path.name


def test_no_pictures_where_none_are_wanted(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun(*FEW, "data=line", "model=linear", "figures=false")
    assert not (tmp_path / outcome.folder / "figures").exists()
    shown = EventAccumulator(str(tmp_path / outcome.folder)).Reload()
    assert not [tag for tag in shown.Tags()["tensors"] if tag.startswith("pr_curves/")]
