"""The probability curve."""

from typing import Any

import numpy as np
import pytest
import torch

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots.probability import crossings, probability_curve

HOURS = DataSpec("vector", (1,), "binary", 1, class_names=("fail", "pass"), feature_names=("hours",))


def test_the_curve_crosses_one_half_where_the_logit_is_zero(lines: Any) -> None:
    w, b = 1.3, -3.1
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1])
    axes = probability_curve(lambda x: (w * x[:, 0] + b).sigmoid(), x, y, HOURS, "train").axes[0]
    found = lines(axes)
    assert list(found) == ["P(pass)", "train rows", f"even odds at {-b / w:.4g}"]
    grid, curve = found["P(pass)"]
    assert (grid[0], grid[-1]) == (0, 4)  # half the range beyond the rows at each end
    assert np.allclose(curve, 1 / (1 + np.exp(-(w * np.array(grid) + b))), atol=1e-6)
    assert found["train rows"] == [[1, 2, 3], [0, 0, 1]]
    assert found[f"even odds at {-b / w:.4g}"][0] == pytest.approx([-b / w] * 2, abs=1e-5)
    assert axes.get_xlabel() == "hours"
    assert [t.get_text() for t in axes.get_yticklabels()][:: len(axes.get_yticklabels()) - 1] == [
        "0 (fail)",
        "1 (pass)",
    ]


def test_a_curve_may_cross_often_or_never() -> None:
    x = np.linspace(0, 3, 3001)
    assert crossings(x, 0.5 + 0.4 * np.sin(np.pi * (x + 0.25))) == pytest.approx([0.75, 1.75, 2.75], abs=1e-6)
    assert crossings(x, np.full_like(x, 0.3)) == []
    assert crossings(np.array([0.0, 1.0]), np.array([0.9, 0.4])) == pytest.approx([0.8])
