import math

import numpy as np
import pytest
import torch

from dlrun.core.errors import RequestError
from dlrun.data.synthetic import blobs, line, parabola, regression


def test_line_without_noise_lies_on_the_line():
    splits = line()
    (x,), y = splits.train.inputs, splits.train.targets
    assert x.shape == y.shape == (500, 1)
    assert x.dtype == y.dtype == torch.float64
    assert splits.val is splits.test is None
    assert 0 <= x.min() < 0.05
    assert 0.95 < x.max() < 1
    np.testing.assert_allclose(np.polyfit(x[:, 0].numpy(), y[:, 0].numpy(), 1), [3.0, 0.8], atol=1e-12)


def test_line_noise_is_a_standard_deviation():
    (x,), y = (s := line(rows=20_000, noise=0.5).train).inputs, s.targets
    assert (y - 3 * x - 0.8).std().item() == pytest.approx(0.5, rel=0.02)


def test_regression_is_scikit_learns():
    from sklearn.datasets import make_regression

    x, y = make_regression(n_samples=100, n_features=1, noise=10.0, bias=14.5, random_state=0)
    splits = regression()
    assert np.array_equal(splits.train.inputs[0].numpy(), x)
    assert np.array_equal(splits.train.targets.numpy(), y[:, None])
    assert splits.spec.task == "regression"
    assert regression(features=3).spec.input_shape == (3,)


@pytest.mark.parametrize(("noise", "scale", "mean"), [("uniform", 0.2 / math.sqrt(12), 0.1), ("normal", 0.1, 0)])
def test_parabola_residuals(noise, scale, mean):
    (x,), y = (s := parabola(rows=20_000, noise=noise).train).inputs, s.targets
    rest = y - x**2
    assert rest.std().item() == pytest.approx(scale, rel=0.02)
    assert rest.mean().item() == pytest.approx(mean, abs=0.003)
    assert (x[0], x[-1]) == (-1, 1)
    assert not (noise == "uniform" and ((rest < 0) | (rest >= 0.2)).any())


def test_parabola_without_noise():
    (x,), y = (s := parabola(noise_scale=0.0).train).inputs, s.targets
    assert torch.equal(y, x * x)


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 2), ("binary", 1)])
def test_blobs(task, outputs):
    splits = blobs(rows_per_class=5000, task=task)
    (x,), y = splits.train.inputs, splits.train.targets
    assert (splits.spec.task, splits.spec.output_size) == (task, outputs)
    assert y.dtype == torch.int64
    for label, centre in ((0, 2.0), (1, -2.0)):
        cloud = x[y == label]
        assert len(cloud) == 5000
        torch.testing.assert_close(cloud.mean(0), torch.full((2,), centre).double(), atol=0.06, rtol=0)
        torch.testing.assert_close(cloud.std(0), torch.ones(2).double(), atol=0.05, rtol=0)


def test_spread_is_the_clouds_std():
    narrow, wide = blobs(rows_per_class=9), blobs(rows_per_class=9, spread=3.0)
    centres = torch.tensor([2.0, -2.0]).double().repeat_interleave(9)[:, None]
    (a,), (b,) = narrow.train.inputs, wide.train.inputs
    torch.testing.assert_close(3 * (a - centres), b - centres)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (line(slope=2.0, intercept=-1.0, noise=3.0), lambda x: 2 * x[:, :1] - 1),
        (parabola(), lambda x: x[:, :1] ** 2),
        (regression(rows=9, noise=0.0), None),
        (regression(rows=9, features=3, noise=0.0), None),
    ],
)
def test_truth_is_what_the_targets_were_drawn_from(splits, expected):
    (x,), y = splits.train.inputs, splits.train.targets
    expected_targets = splits.truth(x)
    assert expected_targets.shape == y.shape
    torch.testing.assert_close(expected_targets, y if expected is None else expected(x))
    assert splits.truth(x.float()).dtype == torch.float32


def test_noise_does_not_change_the_truth():
    x = torch.tensor([[1.0], [-2.0]]).double()
    assert torch.equal(regression(noise=0.0).truth(x), regression(noise=25.0).truth(x))
    assert blobs().truth is None


@pytest.mark.parametrize("make", [line, regression, parabola, blobs])
def test_the_data_seed_alone_decides(make):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(torch.get_rng_state(), before)

    def rows(splits):
        return torch.cat([splits.train.inputs[0], splits.train.targets.double().view(-1, 1)], 1)

    assert torch.equal(rows(first), rows(again))
    assert not torch.equal(rows(first), rows(other))


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (line, {"rows": 0}, "data.rows=0"),
        (line, {"noise": -1.0}, "data.noise=-1.0"),
        (line, {"noise": math.nan}, "data.noise=nan"),
        (regression, {"features": 0}, "data.features=0"),
        (regression, {"rows": 0}, "data.rows=0"),
        (parabola, {"noise": "pink"}, "data.noise=uniform or"),
        (parabola, {"noise_scale": -0.1}, "data.noise_scale"),
        (blobs, {"rows_per_class": 0}, "data.rows_per_class=0"),
        (blobs, {"spread": -1.0}, "data.spread=-1.0"),
        (blobs, {"task": "regression"}, "data.task=binary"),
    ],
)
def test_impossible_settings(make, settings, words):
    with pytest.raises(RequestError, match=words):
        make(**settings)
