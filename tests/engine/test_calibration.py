"""Calibration against NumPy and scikit-learn."""

import math

import numpy as np
import pytest
import torch

from dlrun.engine.calibration import BINS, compute_calibration


def test_the_error_is_the_weighted_gap() -> None:
    generator = np.random.default_rng(0)
    p = generator.random(500)
    happened = generator.random(500) < p**2  # too sure
    actual = compute_calibration(torch.from_numpy(p), torch.from_numpy(happened), "the predicted class")
    expected = 0.0
    for i in range(BINS):
        inside = (p > i / BINS) & (p <= (i + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - happened[inside].mean())
    assert actual.ece == pytest.approx(expected)
    assert actual.ece > 0.1
    assert actual.mean_confidence == pytest.approx(p.mean())
    assert actual.mean_frequency == pytest.approx(happened.mean())


def test_the_bins_are_scikit_learns() -> None:
    from sklearn.calibration import calibration_curve

    generator = np.random.default_rng(1)
    p = generator.random(300).astype(np.float32) * 0.5  # the upper bins are empty
    happened = generator.random(300) < 0.3
    actual = compute_calibration(torch.from_numpy(p), torch.from_numpy(happened), "class 1", bins=10)
    frequency, confidence = calibration_curve(happened, p, n_bins=10)
    filled = actual.counts > 0
    assert filled.tolist() == [True] * 5 + [False] * 5
    assert np.allclose(actual.frequency[filled], frequency)
    assert np.allclose(actual.confidence[filled], confidence)
    assert all(math.isnan(x) for x in actual.frequency[~filled].tolist())


def test_certainty_lies_in_the_outer_bins() -> None:
    actual = compute_calibration(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([False, True, False]), "class 1")
    assert actual.counts.tolist() == [1, *[0] * (BINS - 2), 2]
    assert actual.ece == pytest.approx(2 / 3 * 0.5)
