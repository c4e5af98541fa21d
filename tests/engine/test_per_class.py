"""The table of the classes against scikit-learn."""

import csv

import numpy as np
import pytest
import torch

from dlrun.engine.per_class import COLUMNS, count_per_class


def test_precision_recall_and_f1_are_scikit_learns() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    generator = torch.Generator().manual_seed(0)
    targets, predicted = (torch.randint(0, 4, (80,), generator=generator) for _ in range(2))
    rows = count_per_class(targets, predicted, ["a", "b", "c", "d"]).compute_rows()
    truth = np.array(precision_recall_fscore_support(targets, predicted)).T
    assert np.allclose(np.array([row[1:5] for row in rows], dtype=float), truth)
    assert [row[5] for row in rows] == [int((predicted == i).sum()) for i in range(4)]


def test_nothing_to_divide_by_is_empty_not_zero() -> None:
    counts = count_per_class(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), ["a", "b, with a comma", "c"])
    assert counts.compute_rows()[1:] == [("b, with a comma", None, 0.0, 0.0, 1, 0), ("c", None, None, None, 0, 0)]
    lines = list(csv.DictReader(counts.to_csv().splitlines()))
    assert tuple(lines[0]) == COLUMNS
    assert lines[1] == dict(zip(COLUMNS, ["b, with a comma", "", "0.0", "0.0", "1", "0"], strict=True))


@pytest.mark.parametrize(("most", "expected"), [(3, [("a", "b", 2), ("c", "a", 1)]), (1, [("a", "b", 2)])])
def test_the_most_frequent_mistakes(most: int, expected: list[tuple[str, str, int]]) -> None:
    counts = count_per_class(torch.tensor([0, 0, 0, 2, 1]), torch.tensor([1, 1, 0, 0, 1]), ["a", "b", "c"])
    assert counts.find_most_confused(most) == expected
