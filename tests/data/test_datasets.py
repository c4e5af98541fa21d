import numpy as np
import pytest

from dlrun.core.errors import DataError, RequestError
from dlrun.data.datasets import partition, partition_by_class


@pytest.mark.parametrize(
    ("rows", "fraction", "held_out"),
    [(10, 0.2, 2), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4), (9, 0, 0), (1, 0, 0)],
)
def test_every_row_is_in_one_part(rows, fraction, held_out):
    train, test = partition(rows, fraction, seed=0)
    assert len(test) == held_out
    assert sorted([*train, *test]) == list(range(rows))


def test_seed_draws_the_part():
    assert np.array_equal(partition(100, 0.2, 1)[1], partition(100, 0.2, 1)[1])
    assert not np.array_equal(partition(100, 0.2, 1)[1], partition(100, 0.2, 2)[1])


def test_stratified_keeps_the_mix():
    labels = np.repeat([0, 1, 2], [500, 100, 5])
    train, test = partition_by_class(labels, "abc", 0.2, 0, "x")
    assert np.bincount(labels[test]).tolist() == [100, 20, 1]
    assert sorted([*train, *test]) == list(range(605))
    other = partition_by_class(labels, "abc", 0.2, 1, "x")[1]
    assert not np.array_equal(test, other)


def test_class_of_one_row():
    with pytest.raises(DataError, match=r"t.csv: class 'b' has one row only"):
        partition_by_class(np.array([0, 0, 1]), "ab", 0.2, 0, "t.csv")
    train, test = partition_by_class(np.array([0, 0, 1]), "ab", 0, 0, "t.csv")
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [])


@pytest.mark.parametrize("fraction", [1, 1.5, -0.1, float("nan")])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(RequestError, match=r"data.test_fraction"):
        partition(10, fraction, 0)
    with pytest.raises(RequestError, match=r"data.test_fraction"):
        partition_by_class(np.zeros(4, np.int64), "a", fraction, 0, "x")
