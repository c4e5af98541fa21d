"""The loss over one or two trained numbers, against its closed form."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dlrun.data.spec import DataSpec
from dlrun.engine.objective import Objective
from dlrun.runs.reports.plots.landscape import Landscape, draw_loss_landscape, list_trained_numbers, make_loss_function

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
LINE = DataSpec("vector", (1,), "regression", 1)
BOWL_X, BOWL_Y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])


def squares(points: np.ndarray) -> np.ndarray:
    """Mean of (w x + b - y)² for rows (w, b) or (w,)."""
    b = points[:, 1:2] if points.shape[1] > 1 else 0.0
    wanted: np.ndarray = ((points[:, :1] * BOWL_X + b - BOWL_Y) ** 2).mean(1)
    return wanted


def empty(columns: int) -> np.ndarray:
    return np.empty((0, columns))


def test_trained_numbers_have_the_names_of_the_tracked_ones() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    model[1].requires_grad_(False)
    assert list_trained_numbers(model) == ["0.weight[0]", "0.weight[1]", "0.bias"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_at_a_point_is_the_mean_over_rows_and_the_model_stays(reduction: str) -> None:
    model = nn.Linear(1, 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    points = np.array([[2.0, 0.0], [1.0, 0.5], [-3.0, 2.0]])
    losses = make_loss_function(model, Objective(LINE, reduction=reduction), (X,), Y)(points)
    assert np.allclose(losses, squares(points), rtol=1e-6)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert make_loss_function(model, Objective(LINE), (X,), Y)(empty(2)).shape == (0,)


def test_a_binary_models_loss_is_its_cross_entropy() -> None:
    spec = DataSpec("vector", (1,), "binary", 1)
    points = np.array([[0.7, -1.0]])
    losses = make_loss_function(nn.Linear(1, 1), Objective(spec), (X,), torch.tensor([0, 0, 1]))(points)
    p = 1 / (1 + np.exp(-(0.7 * BOWL_X - 1)))
    assert losses[0] == pytest.approx(-np.log(np.array([1 - p[0], 1 - p[1], p[2]])).mean(), rel=1e-6)


def test_one_number_has_a_curve_with_the_way_and_what_was_tried(lines: Any) -> None:
    way, tried = np.array([[1.0], [1.5], [2.0]]), np.arange(5.0)[:, None]
    figure = draw_loss_landscape(Landscape(["weight"], squares, way, tried))
    axes = figure.axes[0]
    curves = lines(axes)
    assert list(curves) == ["loss", "tried: 5 values", "optimizer (a dot per epoch)", "start", "end"]
    grid = np.linspace(2 - 2.5, 2 + 2.5, 201)  # around the best point, a quarter wider than what was visited
    assert np.allclose(curves["loss"], [grid, squares(grid[:, None])])
    assert np.allclose(curves["tried: 5 values"], [tried[:, 0], squares(tried)])
    assert np.allclose(curves["optimizer (a dot per epoch)"], [way[:, 0], squares(way)])
    assert curves["start"][0] == [1]
    assert curves["end"] == [[2], [0]]
    assert figure.get_suptitle() == "Loss over weight"


def test_two_numbers_have_a_surface_and_contours(lines: Any) -> None:
    way = np.array([[1.0, 1.0], [2.0, 0.0]])
    solid, flat, scale = draw_loss_landscape(Landscape(["weight", "bias"], squares, way, np.zeros((3, 2)))).axes
    assert type(solid).__name__ == "Axes3D"
    assert np.allclose(solid.lines[0].get_data_3d(), [[1, 2], [1, 0], squares(way)])  # type: ignore[attr-defined]
    assert lines(flat)["optimizer (a dot per epoch)"] == [[1, 2], [1, 0]]
    assert lines(flat)["tried: 3 points"] == [[0, 0, 0], [0, 0, 0]]
    assert np.allclose(flat.dataLim.get_points(), [[2 - 2.5, -1.25], [2 + 2.5, 1.25]])
    corners = [[w, b] for w in (-0.5, 4.5) for b in (-1.25, 1.25)]
    assert scale.get_ylim()[1] == pytest.approx(squares(np.array(corners)).max(), rel=1e-6)
    assert (flat.get_xlabel(), flat.get_ylabel()) == ("weight", "bias")


def test_a_diverging_way_is_cut_and_the_title_says_so(lines: Any) -> None:
    factor = -1.8
    way = (2 + -(factor ** np.arange(30)))[:, None]  # loss 14/3 · 1.8^2n: above 100 times the first from n = 4 on
    figure = draw_loss_landscape(Landscape(["weight"], squares, way, empty(1)))
    curves = lines(figure.axes[0])
    assert curves["optimizer (a dot per epoch)"][0] == pytest.approx(way[:4, 0].tolist())
    assert "end" not in curves
    assert figure.get_suptitle().endswith("(the optimizer left this range: 26 of 30 points not shown)")
    assert max(curves["loss"][1]) < 100 * squares(np.array([[1.0]]))[0] * 2


@pytest.mark.parametrize(
    "way",
    [empty(1), np.array([[2.0]]), np.array([[np.nan], [np.inf]]), np.array([[3.0], [np.nan]])],
    ids=["nothing known", "at the minimum", "never finite", "one point"],
)
def test_a_way_of_hardly_a_point_is_drawn_too(way: np.ndarray, lines: Any) -> None:
    with np.errstate(invalid="ignore"):
        figure = draw_loss_landscape(Landscape(["w"], squares, way, empty(1)))
    assert np.isfinite(lines(figure.axes[0])["loss"]).all()


def test_a_long_way_is_thinned_to_its_ends(lines: Any) -> None:
    way = np.linspace(1, 2, 5001)[:, None]
    curves = lines(draw_loss_landscape(Landscape(["w"], squares, way, empty(1))).axes[0])["optimizer (a dot per epoch)"]
    assert (len(curves[0]), curves[0][0], curves[0][-1]) == (500, 1, 2)


def test_a_flat_loss_has_a_picture() -> None:
    figure = draw_loss_landscape(Landscape(["w", "b"], lambda points: np.ones(len(points)), np.zeros((2, 2)), empty(2)))
    assert len(figure.axes) == 3
