"""Frames of a model while it learns."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec, Split, Splits
from dlrun.data.synthetic import blobs, line
from dlrun.experiment.callbacks.evolution import Evolution, choose_kind, write_animation


class GraphRecorder:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int, tuple[int, ...]]] = []
        self.texts: list[tuple[str, str, int]] = []

    def log_image(self, tag: str, image: Tensor, step: int) -> None:
        self.images.append((tag, step, tuple(image.shape)))

    def log_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))


UNUSED: Any = None  # `follow` gives each a recorder


def follow(evolution: Evolution, epochs: range) -> GraphRecorder:
    tracker: Any = GraphRecorder()
    evolution.run_logger = tracker
    training = evolution.context.state
    for epoch in epochs:
        training.progress.epoch = epoch
        evolution.on_epoch_end(UNUSED, {"epoch": epoch, "step": 3 * epoch, "train/loss": 1 / epoch})
    assert isinstance(tracker, GraphRecorder)
    return tracker


def frames(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("epoch_")) for path in (folder / "figures" / "evolution").iterdir())


class Noisy(nn.Linear):
    """Draws from every generator, as a user's own model may."""

    def forward(self, x: Tensor) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        return super().forward(x)


@pytest.mark.slow
def test_a_frame_comes_at_the_first_epoch_and_every_so_often(parts_of: Any, tmp_path: Path) -> None:
    model = Noisy(1, 1).train()
    evolution = Evolution(parts_of(model, line(rows=20)), tmp_path, 5, UNUSED)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    tracker = follow(evolution, range(1, 12))
    assert frames(tmp_path) == [1, 5, 10]
    assert tracker.images == [("visuals/evolution_fit", 3 * epoch, (3, 320, 416)) for epoch in (1, 5, 10)]
    assert model.training
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    write_animation(tmp_path / "figures", 11)
    with Image.open(tmp_path / "figures" / "evolution.gif") as animation:
        assert (animation.n_frames, animation.size) == (3, (416, 320))  # type: ignore[attr-defined]


def test_a_frame_shows_what_the_model_holds_on_axes_that_stay(
    parts_of: Any, tmp_path: Path, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.runs.reports.plots import canvas

    model, figures = nn.Linear(1, 1), []
    evolution = Evolution(parts_of(model, line(rows=20)), tmp_path, 1, UNUSED)
    monkeypatch.setattr(canvas, "render_pixels", lambda figure: figures.append(figure) or np.zeros((2, 2, 3), np.uint8))
    for slope in (0.0, 100.0):
        nn.init.constant_(model.weight, slope)
        nn.init.constant_(model.bias, 1.0)
        evolution.draw_frame(f"slope {slope}")
    first, second = (figure.axes[0] for figure in figures)
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    x, y = lines(second)["model"]
    assert np.allclose(y, 100 * np.array(x) + 1, rtol=1e-5)
    assert np.allclose(lines(second)["true"][1], 3 * np.array(x) + 0.8)
    assert second.get_title() == "slope 100.0"


@pytest.mark.slow
def test_the_animation_ends_with_the_run(parts_of: Any, tmp_path: Path) -> None:
    """Frames of later epochs are of a run since cut back."""
    parts = parts_of(nn.Linear(1, 1), line(rows=20))
    follow(Evolution(parts, tmp_path, 1, UNUSED), range(1, 5))
    resumed = Evolution(parts, tmp_path, 1, UNUSED)
    follow(resumed, range(3, 4))
    write_animation(tmp_path / "figures", 3)
    with Image.open(tmp_path / "figures" / "evolution.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]


def test_classes_over_two_features_are_shown_as_regions(parts_of: Any, tmp_path: Path) -> None:
    evolution = Evolution(parts_of(nn.Linear(2, 2), blobs(rows_per_class=10)), tmp_path, 10, UNUSED)
    assert follow(evolution, range(1, 3)).images == [("visuals/evolution_decision", 3, (3, 320, 416))]


class Shift(nn.Module):
    """Tags every code with the one before it: certain, and known."""

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        return nn.functional.one_hot(codes - 1, 4).float()


def test_a_tagged_word_is_logged_as_text(parts_of: Any, tmp_path: Path) -> None:
    spec = DataSpec("tokens", (4,), "tagging", 4, class_names=tuple("wxyz"), vocabulary=("_", *"abcd"))
    train = Split((torch.tensor([[2, 1, 4, 1]]), torch.tensor([3])), torch.tensor([[0, 0, 0, -100]]))
    evolution = Evolution(parts_of(Shift(), Splits(train, None, None, spec)), tmp_path, 2, UNUSED)
    tracker = follow(evolution, range(1, 4))
    assert tracker.texts == [("tagging/train", "bad → xwz", step) for step in (3, 6)]
    write_animation(tmp_path / "figures", 3)
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    "spec",
    [
        DataSpec("vector", (2,), "regression", 1),
        DataSpec("vector", (8,), "binary", 1),
        DataSpec("image", (1, 1, 1), "regression", 1),
        DataSpec("vector", (1,), "regression", 2),
    ],
)
def test_what_cannot_be_shown_is_refused(spec: DataSpec) -> None:
    with pytest.raises(RequestError, match=r"type tracking\.evolution_every_epochs=null$"):
        choose_kind(spec)
