"""The loss over epochs."""

import math
from typing import Any

import numpy as np

from dlrun.runs.reports.plots import loss


def test_the_smoothed_loss_is_a_weighted_mean_of_all_values_so_far() -> None:
    """A value counts 0.9 times the next one; the division by 1 - 0.9^n makes the weights add up to 1."""
    values = np.random.default_rng(0).random(60)
    expected = [np.average(values[:n], weights=0.9 ** np.arange(n)[::-1]) for n in range(1, 61)]
    assert np.allclose(loss.smooth(values), expected, rtol=1e-12)
    assert np.allclose(loss.smooth([3.0] * 5), 3.0)


def test_a_gap_is_passed_over_by_the_smoothed_loss() -> None:
    nan = math.nan
    actual = loss.smooth([1.0, nan, 2.0, math.inf])
    assert np.isnan(actual).tolist() == [False, True, False, True]
    assert np.isclose(actual[2], (0.9 * 1.0 + 2.0) / 1.9)
    assert loss.smooth([]).tolist() == []


def dots(axes: Any) -> list[list[list[float]]]:
    return [np.asarray(line.get_xydata()).tolist() for line in axes.lines if line.get_marker() == "o"]


def test_few_losses_are_drawn_as_they_are_with_their_lowest_point(lines: Any) -> None:
    rows = [{"epoch": e, "train/loss": 50.0 - e, "val/loss": abs(e - 20) + 0.5} for e in range(1, 50)]
    axes = loss.draw_loss_curves(rows).axes[0]
    epochs = list(range(1, 50))
    assert lines(axes) == {
        "train/loss": [epochs, [50.0 - e for e in epochs]],
        "val/loss": [epochs, [abs(e - 20) + 0.5 for e in epochs]],
    }
    bold = {line.get_label(): (line.get_alpha(), line.get_linewidth()) for line in axes.lines}
    assert bold["train/loss"] == bold["val/loss"] == (None, 2)
    assert dots(axes) == [[[49, 1]], [[20, 0.5]]]


def test_from_fifty_epochs_on_the_smoothed_loss_is_the_bold_one(lines: Any) -> None:
    rows = [{"epoch": e, "train/loss": 101.0 - e, "val/loss": abs(e - 20) + 5} for e in range(1, 51)]
    axes = loss.draw_loss_curves(rows).axes[0]
    epochs = list(range(1, 51))
    train = [101.0 - e for e in epochs]
    val = [abs(e - 20) + 5 for e in epochs]
    assert lines(axes) == {
        "train/loss": [epochs, train],
        "train/loss, smoothed": [epochs, loss.smooth(train).tolist()],
        "val/loss": [epochs, val],
        "val/loss, smoothed": [epochs, loss.smooth(val).tolist()],
    }
    assert dots(axes) == [[[50, 51]], [[20, 5]]]
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
    assert list(lines(without)) == ["train/loss"]
    assert lines(loss.draw_loss_curves([{"epoch": 1.0, "train/loss": nan}]).axes[0]) == {}
