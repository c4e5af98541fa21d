import math

import pytest
import torch
import torch.nn.functional as F

from dlrun.core.errors import RequestError
from dlrun.data.shapes import flower, points


def test_points_for_regression():
    splits = points([1, 2.5, 3], [2, 4, 6])
    (x,), y = splits.train.inputs, splits.train.targets
    assert (x.tolist(), y.tolist()) == ([[1.0], [2.5], [3.0]], [[2.0], [4.0], [6.0]])
    assert x.dtype == y.dtype == torch.float64
    assert (splits.spec.task, splits.spec.input_shape, splits.spec.output_size) == ("regression", (1,), 1)
    wide = points([[1, 2], [3, 4]], [[1, 0, 2], [0, 1, 2]], feature_names=["a", "b"])
    assert (wide.spec.input_shape, wide.spec.output_size) == ((2,), 3)
    assert wide.spec.feature_names == ("a", "b")


@pytest.mark.parametrize(
    ("task", "y", "names", "outputs"),
    [("binary", [0, 0, 1], ("fail", "pass"), 1), ("multiclass", [2, 0, 1], None, 3), ("binary", [1, 1, 1], None, 1)],
)
def test_points_for_classes(task, y, names, outputs):
    splits = points([1, 2, 3], y, task, class_names=names and list(names))
    assert splits.train.targets.tolist() == y
    assert splits.train.targets.dtype == torch.int64
    assert splits.spec.output_size == outputs
    assert splits.spec.class_names == (names or tuple("012")[: max(outputs, 2)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": [], "y": []}, r"data\.x has no rows"),
        ({"y": [1]}, r"data\.x has 2 rows and data\.y 1"),
        ({"x": [[1, 2], [3]]}, r"data\.x has rows of different lengths"),
        ({"x": [[], []]}, r"data\.x has rows of different lengths or none"),
        ({"x": [1, "two"]}, r"data\.x holds 'two' in row 2"),
        ({"y": [1, math.nan]}, r"data\.y holds nan in row 2"),
        ({"y": [True, 0]}, r"data\.y holds True in row 1"),
        ({"task": "ranking"}, r"data\.task=ranking"),
        ({"task": "binary", "y": [0, 2]}, r"takes 0 and 1"),
        ({"task": "multiclass", "y": [0, 1.5]}, r"whole numbers from 0"),
        ({"task": "multiclass", "y": [0, -1]}, r"whole numbers from 0"),
        ({"task": "multiclass", "y": [0, 10**15]}, r"holds class 1000000000000000, .* up to 99,999"),
        ({"task": "multiclass", "y": [[0, 1], [1, 0]]}, r"takes one class a row"),
        ({"task": "binary", "class_names": ["no"]}, r"data\.class_names has 1 names, and data\.y 2 classes"),
        ({"task": "multiclass", "y": [0, 3], "class_names": ["a", "b", "c"]}, r"has 3 names, and data\.y 4"),
        ({"class_names": ["a"]}, r"data\.class_names are for classes"),
        ({"feature_names": ["a", "b"]}, r"data\.feature_names has 2 names, and data\.x 1 columns"),
    ],
)
def test_impossible_points(settings, message):
    with pytest.raises(RequestError, match=message):
        points(**{"x": [1, 2], "y": [0, 1], **settings})


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 2)])
def test_flower_without_noise_lies_on_the_rose(task, outputs):
    splits = flower(rows=401, petals=6, radius=2.0, noise=0.0, task=task)
    (x,), y = splits.train.inputs, splits.train.targets
    assert (splits.spec.task, splits.spec.output_size) == (task, outputs)
    assert y.bincount().tolist() == [200, 201]
    angle, reach = torch.atan2(x[:, 1], x[:, 0]), x.norm(dim=1)
    torch.testing.assert_close(reach, 2 * (6 * angle).sin().abs(), atol=1e-12, rtol=0)
    for label in (0, 1):  # six petals of each class
        petals = (angle[(y == label) & (reach > 1)] / (math.pi / 6)).floor().unique()
        assert len(petals) == 6


@pytest.mark.parametrize("seed", range(3))
def test_no_line_parts_the_flower(seed):
    split = flower(seed=seed).train
    x, y = torch.cat([split.inputs[0], torch.ones(400, 1).double()], 1), split.targets.double()
    w = torch.zeros(3).double()
    for _ in range(20):  # Newton's method for logistic regression
        p = (x @ w).sigmoid()
        w = w - torch.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]), x.T @ (p - y))
    assert 0.42 < ((x @ w > 0) == y.bool()).double().mean().item() < 0.58


@pytest.mark.slow
def test_four_tanh_units_learn_the_flower():
    torch.manual_seed(0)
    split = flower().train
    x, y = split.inputs[0].float(), split.targets.float()
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.01) if p.dim() == 2 else p.zero_()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.2)
    for _ in range(5000):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(x)[:, 0], y).backward()
        optimizer.step()
    assert ((net(x)[:, 0] > 0) == y.bool()).float().mean().item() >= 0.88


def test_the_data_seed_alone_draws_the_flower():
    before = torch.get_rng_state()
    first, again, other = (flower(seed=seed).train.inputs[0] for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 1}, r"data\.rows=1"),
        ({"noise": -1.0}, r"data\.noise=-1\.0"),
        ({"radius": math.nan}, r"data\.radius=nan"),
        ({"petals": 3}, r"data\.petals=3 must be even"),
        ({"petals": 0}, r"data\.petals=0"),
        ({"task": "regression"}, r"data\.task=regression does not fit data=flower"),
    ],
)
def test_impossible_flowers(settings, message):
    with pytest.raises(RequestError, match=message):
        flower(**settings)
