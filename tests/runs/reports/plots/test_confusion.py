"""The confusion matrix."""

import numpy as np
import torch

from dlrun.data.spec import DataSpec
from dlrun.runs.reports.plots.confusion import confusion_matrix


def test_the_confusion_matrix_is_scikit_learns() -> None:
    from sklearn import metrics

    generator = torch.Generator().manual_seed(0)
    targets, predicted = (torch.randint(0, 4, (60,), generator=generator) for _ in range(2))
    spec = DataSpec("vector", (2,), "multiclass", 5, class_names=tuple("abcde"))  # e never occurs
    figure = confusion_matrix(targets, predicted, spec, "val")
    truth = metrics.confusion_matrix(targets, predicted, labels=range(5))
    axes = figure.axes[0]
    counts = {t.get_position()[::-1]: int(t.get_text()) for t in axes.texts}
    assert counts == {(i, j): truth[i, j] for i, j in np.ndindex(5, 5) if truth[i, j]}
    shares = np.asarray(axes.images[0].get_array())
    rows = truth.sum(1, keepdims=True)
    assert np.allclose(shares, np.divide(truth, rows, out=np.zeros((5, 5)), where=rows > 0))
    assert [t.get_text() for t in axes.get_xticklabels()] == list("abcde")
    accuracy = 100 * metrics.accuracy_score(targets, predicted)
    assert axes.get_title() == f"Confusion on val: {accuracy:.2f} % right"


def test_a_matrix_of_many_classes_has_no_numbers() -> None:
    spec = DataSpec("vector", (2,), "multiclass", 40)
    axes = confusion_matrix(torch.arange(40), torch.arange(40), spec, "test").axes[0]
    assert (len(axes.texts), axes.get_title()) == (0, "Confusion on test: 100.00 % right")
