"""Pictures of many runs: what is drawn is what the runs hold."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from dlrun.runs.record import RunRecord
from dlrun.sweep.comparison import plots
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting


def run(folder: Path, seed: int, curve: list[float], metric: str = "val/loss") -> RunRecord:
    """A run with a curve, the lowest value of which is its best."""
    folder.mkdir(parents=True)
    rows = [{"epoch": i, "step": i, metric: y} for i, y in enumerate(curve, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = {"metric": metric, "value": min(curve, default=0.5), "epoch": 1}
    result = {"status": "completed", "metrics": {}, "baseline": {metric: 0.9}, "best": best}
    return RunRecord.from_parts(folder, [], {"seed": seed}, {}, result)


def rank(tmp_path: Path, settings: list[tuple[dict[str, Any], list[list[float]]]], mode: str = "min") -> Ranking:
    """Settings as they stand, each with the curves of its seeds."""
    records = [
        Setting(values, [run(tmp_path / f"{i}_{seed}", seed, curve) for seed, curve in enumerate(curves)], [])
        for i, (values, curves) in enumerate(settings)
    ]
    return Ranking("val/loss", mode, "digits", list(settings[0][0]), records)


def grid(tmp_path: Path) -> Ranking:
    """lr × depth × optimizer, best first: 0.1 + lr + depth/100 (+ 0.3 for sgd)."""
    points = product((0.01, 0.1, 0.4), (3, 5), ("adam", "sgd"))
    values = [{"optimizer.lr": lr, "model.depth": depth, "optimizer": o} for lr, depth, o in points]
    scores = [0.1 + v["optimizer.lr"] + v["model.depth"] / 100 + 0.3 * (v["optimizer"] == "sgd") for v in values]
    order = np.argsort(scores, kind="stable")
    return rank(tmp_path, [(values[i], [[1.0, scores[i]], [1.0, scores[i] + 0.02]]) for i in order])


def test_curves_are_means_with_the_range_as_far_as_all_seeds_came(tmp_path: Path, lines: Any) -> None:
    ranking = rank(
        tmp_path, [({"model": "$a$"}, [[0.6, 0.4, 0.2], [0.8, 0.5]]), ({"model": "b"}, [[0.7, 0.6, 0.5], []])]
    )
    axes = plots.draw_curves(ranking).axes[0]
    curves = lines(axes)
    assert list(curves) == [r"model=\$a\$", "model=b", "trivial baseline"]
    assert np.allclose(curves[r"model=\$a\$"], [[1, 2], [0.7, 0.45]])
    assert np.allclose(curves["model=b"], [[1, 2, 3], [0.7, 0.6, 0.5]])
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in np.round(band, 6)} >= {(1.0, 0.6), (1.0, 0.8), (2.0, 0.4), (2.0, 0.5)}
    assert axes.get_title() == "val/loss: mean and range over the seeds"


def test_more_than_ten_settings_are_grey_and_do_not_set_the_scale(tmp_path: Path, lines: Any) -> None:
    settings = [({"model.depth": i}, [[1.0, 0.5 + i / 100]]) for i in range(10)]
    settings += [({"model.depth": 10 + i}, [[1e6, 1e5]]) for i in range(4)]
    axes = plots.draw_curves(rank(tmp_path, settings)).axes[0]
    assert len(lines(axes)) == 10 + 1
    assert len(axes.lines) == 14 + 1
    assert axes.get_ylim()[1] < 2
    assert axes.get_title() == "val/loss\nthe 10 best of 14 settings, the others grey"


def test_a_baseline_far_off_is_a_word(tmp_path: Path, lines: Any) -> None:
    axes = plots.draw_curves(rank(tmp_path, [({"model": "a"}, [[0.011, 0.010]])])).axes[0]
    assert "trivial baseline: 0.90000, off the scale" in lines(axes)
    assert axes.get_ylim()[1] < 0.02


def test_the_metric_over_a_number_has_a_line_for_each_other_combination(tmp_path: Path) -> None:
    axes = plots.draw_metric_over(grid(tmp_path), "optimizer.lr").axes[0]
    shown = {str(c.get_label()): c for c in axes.containers}
    assert list(shown) == [f"depth={d} optimizer={o}" for o in ("adam", "sgd") for d in (3, 5)]
    line, _, (bars,) = shown["depth=5 optimizer=sgd"].lines
    assert np.allclose(line.get_xydata(), [[lr, 0.46 + lr] for lr in (0.01, 0.1, 0.4)])
    std = np.std([0, 0.02], ddof=1)
    assert np.allclose(bars.get_segments()[0][:, 1], [0.47 - std, 0.47 + std])
    assert axes.get_xscale() == "log"
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert np.allclose(
        sorted(dots[-1].get_ydata()), sorted(0.45 + lr + n for lr in (0.01, 0.1, 0.4) for n in (0, 0.02))
    )
    assert (np.asarray(dots[-1].get_xdata()[:2]) > 0.01).all()


def test_evenly_spaced_numbers_have_a_linear_axis_and_many_lines_are_cut(tmp_path: Path) -> None:
    settings = [({"model.depth": d, "model.name": str(n)}, [[0.5 + n / 100]]) for n in range(12) for d in (1, 2)]
    axes = plots.draw_metric_over(rank(tmp_path, settings), "model.depth").axes[0]
    assert axes.get_xscale() == "linear"
    assert len(axes.containers) == 10
    assert axes.get_title().endswith("the 10 best of 12 lines")


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_grid_holds_the_best_over_the_other_keys(mode: str, tmp_path: Path) -> None:
    ranking = grid(tmp_path)
    if mode == "max":
        ranking = Ranking(ranking.metric, "max", ranking.data, ranking.keys, ranking.settings[::-1])
    down, across, cells = plots.build_grid(ranking, "model.depth", "optimizer.lr")
    assert (down, across) == ([3, 5], [0.01, 0.1, 0.4])
    assert np.allclose(cells, [[0.11 + d / 100 + lr + 0.3 * (mode == "max") for lr in across] for d in down])
    axes = plots.draw_heat_map(ranking, "model.depth", "optimizer.lr").axes[0]
    (frame,) = axes.patches
    assert frame.get_xy() == pytest.approx((-0.47, -0.47) if mode == "min" else (1.53, 0.53))
    assert axes.texts[0].get_text() == f"{cells[0, 0]:.3f}"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "0.4"]
    assert axes.get_title().endswith("the best over optimizer")


def test_a_cell_without_a_run_stays_empty_and_large_maps_have_no_numbers(tmp_path: Path) -> None:
    some = [({"a.x": i, "a.y": str(j)}, [[0.5 + i]]) for i in range(2) for j in range(2) if i + j < 2]
    axes = plots.draw_heat_map(rank(tmp_path / "some", some), "a.x", "a.y").axes[0]
    assert len(axes.texts) == 3
    many = [({"a.x": i, "a.y": j}, [[0.5 + i]]) for i in range(11) for j in range(10)]
    assert not plots.draw_heat_map(rank(tmp_path / "many", many), "a.x", "a.y").axes[0].texts


@pytest.mark.slow
def test_pictures_are_those_that_make_sense(tmp_path: Path) -> None:
    full = grid(tmp_path / "whole")
    few = [setting for setting in full.settings if setting.values["optimizer"] == "adam"]
    ranking = Ranking(full.metric, full.mode, full.data, ["optimizer.lr", "model.depth"], few)
    lost = Ranking("val/loss", "min", "x", ["model"], [Setting({"model": "a"}, [], ranking.settings[0].runs)])
    only = rank(tmp_path / "only", [({}, [[0.5, 0.4]])])
    paths = plots.draw_all(Comparison([ranking, lost, only]), tmp_path / "figures")
    assert [path.name for path in paths] == [
        "compared_curves.png", "compared_lr.png", "compared_depth.png", "compared_lr_depth.png", "compared3_curves.png"
    ]  # fmt: skip
    assert all(imread(path).ndim == 3 for path in paths)
    assert plots.draw_all(Comparison([lost]), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_keys_that_go_together_make_no_map(tmp_path: Path) -> None:
    pairs = [({"optimizer": o, "optimizer.lr": lr}, [[]]) for o, lr in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    ranking = rank(tmp_path, pairs)
    assert [path.name for path in plots.draw_all(Comparison([ranking]), tmp_path / "f")] == ["compared_lr.png"]
    assert math.isnan(plots.build_grid(ranking, "optimizer", "optimizer.lr")[2][0, 1])
