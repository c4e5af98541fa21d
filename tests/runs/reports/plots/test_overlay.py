"""Several runs in one picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from dlrun.runs.logger import RunLogger
from dlrun.runs.loggers.base import LoggedRun
from dlrun.runs.loggers.tensorboard import TensorBoardLogger
from dlrun.runs.reports.plots import canvas
from dlrun.runs.reports.plots.loss import smooth
from dlrun.runs.reports.plots.overlay import draw_loss_overlay, tile_pictures


def run(folder: Path, losses: list[float], every: int = 0) -> Path:
    """A run folder with these losses, an epoch each; every > 0: steps are logged that often, ten an epoch."""
    folder.mkdir()
    tracker = RunLogger(LoggedRun(folder), {"tensorboard": TensorBoardLogger()})
    for epoch, loss in enumerate(losses, 1):
        for step in range(10 * epoch - 9, 10 * epoch + 1):
            if every and step % every == 0:
                tracker.log_step(step, {"train/loss_step": loss + step})
        tracker.log_epoch({"epoch": epoch, "step": 10 * epoch, "train/loss": loss}, {})
    tracker.close()
    return folder


def test_steps_are_drawn_where_every_run_has_logged_each(tmp_path: Path, lines: Any) -> None:
    losses = {"a": [3.0] * 4 + [2.0], "b": [9.0] * 4 + [1.0]}
    runs = [("a", run(tmp_path / "a", losses["a"], every=1)), ("$b$", run(tmp_path / "b", losses["b"], every=1))]
    axes = draw_loss_overlay(runs).axes[0]
    steps = np.arange(1, 51)
    curves = lines(axes)
    assert list(curves) == ["a", r"\$b\$"]
    assert np.allclose(curves["a"], [steps, smooth(np.repeat(losses["a"], 10) + steps)])
    faint = [np.asarray(line.get_ydata()) for line in axes.lines if str(line.get_label()).startswith("_")]
    assert np.allclose(faint[1], np.repeat(losses["b"], 10) + steps)
    assert "strong: smoothed" in axes.get_title()
    assert axes.get_xlabel() == "step"


def test_epochs_are_drawn_where_a_run_lacks_steps(tmp_path: Path, lines: Any) -> None:
    runs = [("a", run(tmp_path / "a", [3.0, 2.0], every=1)), ("b", run(tmp_path / "b", [9.0, 0.1], every=2))]
    axes = draw_loss_overlay(runs).axes[0]
    assert lines(axes) == {"a": [[1, 2], [3.0, 2.0]], "b": [[1, 2], [9.0, 0.1]]}
    assert axes.get_title() == "Training loss"  # two epochs have nothing to smooth
    assert (axes.get_xlabel(), axes.get_yscale()) == ("epoch", "log")


def test_runs_without_a_finite_loss_are_named(tmp_path: Path, lines: Any) -> None:
    (tmp_path / "empty").mkdir()
    runs = [
        ("good", run(tmp_path / "good", [3.0, 2.0], every=1)),
        ("lr=9", run(tmp_path / "bad", [3.0, float("nan")])),
        ("empty", tmp_path / "empty"),
        ("none", tmp_path / "none"),
    ]
    axes = draw_loss_overlay(runs).axes[0]
    assert list(lines(axes)) == ["good"]
    assert axes.get_xlabel() == "step"  # those left out do not decide
    assert axes.get_title().endswith("\nwithout lr=9, empty, none (no finite loss)")
    nothing = draw_loss_overlay(runs[1:]).axes[0]
    assert (lines(nothing), nothing.get_legend()) == ({}, None)


@pytest.mark.slow
def test_many_labels_stand_beside_the_picture(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "step": 1, "train/loss": 1.0}) + "\n")
    few, many = (draw_loss_overlay([(f"run {i}", folder) for i in range(n)]) for n in (8, 12))
    for figure, beside in ((few, False), (many, True)):
        canvas.render_pixels(figure)
        axes = figure.axes[0]
        legend = axes.get_legend()
        assert legend is not None
        assert bool(legend.get_window_extent().x0 > axes.get_window_extent().x1) == beside
    assert len({str(line.get_color()) for line in many.axes[0].lines}) == 12


def test_pictures_are_tiles_with_their_labels(tmp_path: Path) -> None:
    for i in range(5):
        canvas.save_png(np.full((3, 4, 3), 50 * i, np.uint8), tmp_path / f"{i}.png")
    figure = tile_pictures([(f"n={i}", tmp_path / f"{i}.png") for i in range(6)])
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [f"n={i}" for i in range(5)]
    for i, axes in enumerate(shown):
        assert np.array_equal(np.asarray(axes.images[0].get_array()), imread(tmp_path / f"{i}.png"))
    assert figure.get_suptitle() == "without n=5 (no picture)"
    assert len(figure.axes) == 8


@pytest.mark.parametrize("pictures", [[], [("a", Path("nowhere.png"))]])
def test_no_pictures_make_no_tiles(pictures: list[tuple[str, Path]]) -> None:
    assert [axes for axes in tile_pictures(pictures).axes if axes.images] == []
