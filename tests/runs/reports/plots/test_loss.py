"""The loss over epochs."""

import math
from typing import Any

import numpy as np
import pytest

from dlrun.runs.reports.plots import loss


@pytest.mark.parametrize(("count", "memory"), [(4, 0.5), (20, 0.75), (60, 0.9)])
def test_the_smoothed_loss_is_a_weighted_mean_of_all_values_so_far(count: int, memory: float) -> None:
    """A value counts `memory` times the next one; the division by 1 - memory^n makes the weights add up to 1."""
    values = np.random.default_rng(0).random(count)
    expected = [np.average(values[:n], weights=memory ** np.arange(n)[::-1]) for n in range(1, count + 1)]
    assert np.allclose(loss.smooth(values), expected, rtol=1e-12)
    assert np.allclose(loss.smooth([3.0] * 5), 3.0)


def test_a_gap_is_passed_over_by_the_smoothed_loss() -> None:
    nan = math.nan
    found = loss.smooth([1.0, nan, 2.0, math.inf])
    assert np.isnan(found).tolist() == [False, True, False, True]
    assert np.isclose(found[2], (0.5 * 1.0 + 2.0) / 1.5)
    assert loss.smooth([]).tolist() == []


def dots(axes: Any) -> list[list[list[float]]]:
    return [np.asarray(line.get_xydata()).tolist() for line in axes.lines if line.get_marker() == "o"]


def test_the_loss_is_drawn_over_epochs_with_its_lowest_point(lines: Any) -> None:
    rows = [{"epoch": e, "train/loss": 4.0 - e, "val/loss": abs(e - 2) + 0.5} for e in (1, 2, 3)]
    axes = loss.draw_loss_curves(rows).axes[0]
    train, val = [3.0, 2.0, 1.0], [1.5, 0.5, 1.5]
    assert lines(axes) == {
        "train/loss": [[1, 2, 3], train],
        "train/loss, smoothed": [[1, 2, 3], loss.smooth(train).tolist()],
        "val/loss": [[1, 2, 3], val],
        "val/loss, smoothed": [[1, 2, 3], loss.smooth(val).tolist()],
    }
    assert dots(axes) == [[[3, 1]], [[2, 0.5]]]
    assert axes.get_yscale() == "linear"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (mean per sample)")
    faint = {line.get_label(): line.get_alpha() for line in axes.lines}
    assert faint["train/loss"] < 0.5
    assert faint["train/loss, smoothed"] is None


def test_a_loss_over_many_sizes_has_a_logarithmic_axis() -> None:
    rows = [{"epoch": e, "train/loss": 10.0**-e} for e in range(4)]
    assert loss.draw_loss_curves(rows).axes[0].get_yscale() == "log"


def test_a_loss_that_is_not_finite_leaves_a_gap(lines: Any) -> None:
    nan = float("nan")
    rows = [{"epoch": e, "train/loss": 1.0, "val/loss": v} for e, v in ((1, 0.7), (2, nan), (3, 0.5), (4, 0.6))]
    axes = loss.draw_loss_curves(rows).axes[0]
    assert np.isnan(lines(axes)["val/loss"][1]).tolist() == [False, True, False, False]
    assert dots(axes) == [[[1, 1]], [[3, 0.5]]]
    without = loss.draw_loss_curves([row | {"val/loss": nan} for row in rows]).axes[0]
    assert list(lines(without)) == ["train/loss", "train/loss, smoothed"]
    assert lines(loss.draw_loss_curves([{"epoch": 1.0, "train/loss": nan}]).axes[0]) == {}
