"""Decision regions and probability curves, of models whose boundary is known, and features as an axis shows them."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import decision
from dlrun.runs.reports.plots.decision import draw_decision_regions, draw_probability_curve, find_crossings

X = torch.tensor([[0.0, 0.0], [1.0, 3.0], [4.0, 1.0], [2.0, 2.0]])


def logistic(x: Tensor) -> Tensor:
    """P(class 1) with the boundary x1 = 2."""
    return (5 * (x[:, 0] - 2)).sigmoid()


def boundary(figure: Figure) -> np.ndarray:
    """Corners of all boundary lines (N, 2)."""
    contours = [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)]
    return np.concatenate([path.vertices for contour in contours for path in contour.get_paths()])


def test_the_boundary_of_a_logistic_model_lies_where_it_must() -> None:
    spec = DataSpec("vector", (2,), "binary", 1, class_names=("no", "yes"), feature_names=("age", "size"))
    y = torch.tensor([0, 0, 1, 1])
    figure = draw_decision_regions(logistic, X, y, spec, "train")
    axes = figure.axes[0]
    line = boundary(figure)
    assert np.allclose(line[:, 0], 2, atol=1e-3)
    low, high = -0.12 * 3, 3 + 0.12 * 3
    assert np.allclose([line[:, 1].min(), line[:, 1].max()], [low, high])
    assert axes.get_title() == "Decision regions (train: 75.00 % right)"  # at x1 = 2 it is 0.5: class 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("age", "size")
    points = {str(p.get_label()): np.asarray(p.get_xydata()).tolist() for p in axes.lines}
    assert points == {"no": [[0, 0], [1, 3]], "yes": [[4, 1], [2, 2]]}
    assert figure.axes[1].get_ylabel() == "probability of yes"


def test_the_shades_are_the_probabilities() -> None:
    spec = DataSpec("vector", (2,), "binary", 1)
    image = draw_decision_regions(logistic, X, torch.tensor([0, 0, 1, 1]), spec, "train").axes[0].images[0]
    left, right, bottom, top = image.get_extent()
    pixels = np.asarray(image.get_array())
    across = np.linspace(left, right, 160)
    p = 1 / (1 + np.exp(-5 * (across - 2)))
    blue, orange = np.array([0x1F, 0x77, 0xB4]) / 255, np.array([0xFF, 0x7F, 0x0E]) / 255
    wanted = 0.5 + 0.5 * ((1 - p)[:, None] * blue + p[:, None] * orange)
    assert np.allclose(pixels[0], wanted, atol=1e-6)
    assert np.allclose(pixels[-1], wanted, atol=1e-6)
    assert np.allclose([left, right, bottom, top], [-0.48, 4.48, -0.36, 3.36])


def test_several_classes_have_a_line_around_each() -> None:
    """The likeliest class is that of the nearest of three centers: the lines are as far from two of them."""
    centers = torch.tensor([[0.0, 0.0], [4.0, 0.0], [2.0, 3.0]])
    spec = DataSpec("vector", (2,), "multiclass", 3)
    figure = draw_decision_regions(
        lambda x: (-torch.cdist(x.float(), centers)).softmax(1), centers, torch.tensor([0, 1, 2]), spec, "train"
    )
    line = torch.from_numpy(boundary(figure)).float()
    near = torch.cdist(line, centers).sort(1).values
    assert len(line) > 100
    assert (near[:, 1] - near[:, 0]).max() < 0.05
    assert len(figure.axes) == 1  # a scale of probability stands for one class only
    assert figure.axes[0].get_title() == "Decision regions (train: 100.00 % right)"


def test_normalized_features_are_shown_as_measured() -> None:
    spec = DataSpec("vector", (2,), "binary", 1, mean=(100.0, 0.0), std=(10.0, 1.0))
    figure = draw_decision_regions(logistic, X, torch.tensor([0, 0, 1, 1]), spec, "train")
    assert np.allclose(boundary(figure)[:, 0], 120, atol=1e-2)
    assert figure.axes[0].images[0].get_extent()[0] == pytest.approx(100 - 4.8)


def test_a_model_that_knows_one_class_only_has_no_boundary() -> None:
    spec = DataSpec("vector", (2,), "binary", 1)
    figure = draw_decision_regions(lambda x: torch.full((len(x),), 0.1), X, torch.zeros(4).long(), spec, "train")
    assert not [c for c in figure.axes[0].collections if isinstance(c, QuadContourSet)]


def test_more_than_two_features_are_refused() -> None:
    spec = DataSpec("vector", (8,), "binary", 1)
    with pytest.raises(RequestError, match="needs 2 features, and this data has 8; take data with two"):
        draw_decision_regions(lambda x: x[:, 0], torch.zeros(3, 8), torch.zeros(3).long(), spec, "train")


def test_probabilities_that_sum_to_more_than_1_by_rounding_warn_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def predict_surely(x: Tensor) -> Tensor:
        return torch.tensor([0.0, 1.0 + 2**-22, 0.0]).repeat(len(x), 1)

    x, y = torch.randn(20, 2), torch.arange(20) % 3
    for color in range(3):
        figure = draw_decision_regions(
            lambda x, k=color: predict_surely(x).roll(k, 1), x, y, DataSpec("vector", (2,), "multiclass", 3), "train"
        )
        image = figure.axes[0].images[0].get_array()
        assert image is not None
        assert image.max() <= 1
    assert capsys.readouterr().err == ""


HOURS = DataSpec("vector", (1,), "binary", 1, class_names=("fail", "pass"), feature_names=("hours",))


def test_the_curve_crosses_one_half_where_the_logit_is_zero(lines: Any) -> None:
    w, b = 1.3, -3.1
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1])
    axes = draw_probability_curve(lambda x: (w * x[:, 0] + b).sigmoid(), x, y, HOURS, "train").axes[0]
    curves = lines(axes)
    assert list(curves) == ["P(pass)", "train rows", f"even odds at {-b / w:.4g}"]
    grid, curve = curves["P(pass)"]
    assert (grid[0], grid[-1]) == (0, 4)  # half the range beyond the rows at each end
    assert np.allclose(curve, 1 / (1 + np.exp(-(w * np.array(grid) + b))), atol=1e-6)
    assert curves["train rows"] == [[1, 2, 3], [0, 0, 1]]
    assert curves[f"even odds at {-b / w:.4g}"][0] == pytest.approx([-b / w] * 2, abs=1e-5)
    assert axes.get_xlabel() == "hours"
    assert [t.get_text() for t in axes.get_yticklabels()][:: len(axes.get_yticklabels()) - 1] == [
        "0 (fail)",
        "1 (pass)",
    ]


def test_a_curve_may_cross_often_or_never() -> None:
    x = np.linspace(0, 3, 3001)
    assert find_crossings(x, 0.5 + 0.4 * np.sin(np.pi * (x + 0.25))) == pytest.approx([0.75, 1.75, 2.75], abs=1e-6)
    assert find_crossings(x, np.full_like(x, 0.3)) == []
    assert find_crossings(np.array([0.0, 1.0]), np.array([0.9, 0.4])) == pytest.approx([0.8])


def test_features_have_a_name() -> None:
    assert decision.get_feature_label(DataSpec("vector", (1,), "regression", 1)) == "x"
    assert [decision.get_feature_label(DataSpec("vector", (2,), "binary", 1), i) for i in (0, 1)] == ["x1", "x2"]
    assert (
        decision.get_feature_label(DataSpec("vector", (2,), "binary", 1, feature_names=("age", "height")), 1)
        == "height"
    )


def test_normalized_features_are_shown_as_they_were_measured() -> None:
    measured = np.array([[170.0, 60.0], [180.0, 90.0], [160.0, 75.0]])
    mean, std = measured.mean(0), measured.std(0)
    spec = DataSpec("vector", (2,), "binary", 1, mean=tuple(mean), std=tuple(std))
    normalized = torch.from_numpy((measured - mean) / std).float()
    assert np.allclose(decision.denormalize(normalized, spec), measured, atol=1e-4)


def test_an_even_grid_covers_the_range_and_a_margin() -> None:
    x = torch.tensor([3.0, 1.0, 2.0])
    assert np.allclose(decision.spread_evenly(x, 5), [1, 1.5, 2, 2.5, 3])
    assert np.allclose(decision.spread_evenly(x, 3, 0.5), [0, 2, 4])
    assert np.allclose(decision.spread_evenly(torch.ones(4), 3, 0.5), [0, 1, 2])  # no range at all
