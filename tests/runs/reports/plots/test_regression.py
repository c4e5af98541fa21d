"""What a regression has learnt, and what it leaves over."""

from typing import Any

import numpy as np
import torch

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import regression
from dlrun.runs.reports.plots.regression import draw_residuals


def test_a_fit_of_one_feature_is_an_even_curve_through_the_data(lines: Any) -> None:
    x, y = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[9.0], [1.0], [4.0]])
    spec = DataSpec("vector", (1,), "regression", 1, feature_names=("weight",))
    held_out = (torch.tensor([[5.0]]), torch.tensor([[20.0]]))
    rows = {"train": (x, y), "val": held_out}
    axes = regression.draw_curve_fit(rows, lambda x: 2 * x, spec, lambda x: x**2).axes[0]
    curves = lines(axes)
    assert list(curves) == ["train", "val", "true", "model"]
    assert curves["train"] == [[3, 1, 2], [9, 1, 4]]
    assert curves["val"] == [[5], [20]]
    grid = np.linspace(1, 5, 400)  # over the range of all rows, not at the rows
    assert np.allclose(curves["model"], [grid, 2 * grid])
    assert np.allclose(curves["true"], [grid, grid**2])
    assert axes.get_xlabel() == "weight"
    assert list(lines(regression.draw_curve_fit(rows, lambda x: x, spec).axes[0])) == ["train", "val", "model"]


def test_the_curve_is_asked_in_the_models_units_and_shown_in_the_measured_ones(lines: Any) -> None:
    spec = DataSpec("vector", (1,), "regression", 1, mean=(100.0,), std=(10.0,))
    rows = {"train": (torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1))}
    curves = lines(regression.draw_curve_fit(rows, lambda x: x, spec).axes[0])
    assert curves["train"][0] == [90, 110]
    assert np.allclose(curves["model"], [np.linspace(90, 110, 400), np.linspace(-1, 1, 400)])


def test_a_fit_of_several_features_is_prediction_over_truth_with_residuals(lines: Any) -> None:
    y = torch.tensor([[9.0], [1.0], [4.0]])
    outputs = y + torch.tensor([[1.0], [-2.0], [2.0]])
    left, right = regression.draw_predictions(outputs, y, "test").axes
    assert lines(left) == {"exact": [[1, 9], [1, 9]], "test": [[9, 1, 4], [10, -1, 6]]}
    assert np.asarray(right.lines[-1].get_xydata()).T.tolist() == [[10, -1, 6], [1, -2, 2]]
    assert right.get_title() == f"Residuals (root mean square {np.sqrt(3):.4g})"


def test_a_dot_a_row_and_their_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(60, 1, generator=generator).double()
    outputs = targets + 0.5 + 0.1 * torch.randn(60, 1, generator=generator)
    left, right = draw_residuals(outputs, targets, ["y"], "test").axes
    dots = left.lines[1].get_xydata()
    assert np.allclose(dots, torch.cat([outputs, outputs - targets], dim=1))
    error = (outputs - targets).numpy()
    assert right.get_title() == f"mean {error.mean():.3g}, std {error.std():.3g}"
    assert sum(bar.get_width() for bar in right.patches) == 60
    running = left.lines[2].get_ydata()
    assert abs(np.mean(running) - 0.5) < 0.05


def test_a_line_of_pictures_a_target_and_few_or_equal_rows() -> None:
    figure = draw_residuals(torch.zeros(3, 2), torch.zeros(3, 2), ["a", "b"], "val")
    assert [axes.get_title() for axes in figure.axes[::2]] == ["Residuals of a on val", "Residuals of b on val"]
    assert all(len(axes.lines) == 2 for axes in figure.axes[::2])  # no running mean of three rows
