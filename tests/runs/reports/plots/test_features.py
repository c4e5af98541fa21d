"""Features as an axis shows them."""

import numpy as np
import torch

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots import features


def test_features_have_a_name() -> None:
    assert features.label(DataSpec("vector", (1,), "regression", 1)) == "x"
    assert [features.label(DataSpec("vector", (2,), "binary", 1), i) for i in (0, 1)] == ["x1", "x2"]
    assert features.label(DataSpec("vector", (2,), "binary", 1, feature_names=("age", "height")), 1) == "height"


def test_normalized_features_are_shown_as_they_were_measured() -> None:
    measured = np.array([[170.0, 60.0], [180.0, 90.0], [160.0, 75.0]])
    mean, std = measured.mean(0), measured.std(0)
    spec = DataSpec("vector", (2,), "binary", 1, mean=tuple(mean), std=tuple(std))
    normalized = torch.from_numpy((measured - mean) / std).float()
    assert np.allclose(features.measured(normalized, spec), measured, atol=1e-4)


def test_an_even_grid_covers_the_range_and_a_margin() -> None:
    x = torch.tensor([3.0, 1.0, 2.0])
    assert np.allclose(features.even(x, 5), [1, 1.5, 2, 2.5, 3])
    assert np.allclose(features.even(x, 3, 0.5), [0, 2, 4])
    assert np.allclose(features.even(torch.ones(4), 3, 0.5), [0, 1, 2])  # no range at all
