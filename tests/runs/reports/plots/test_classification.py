"""The confusion matrix and the reliability diagram."""

import numpy as np
import torch

from dlrun.data.spec import DataSpec
from dlrun.engine.calibration import compute_calibration
from dlrun.runs.reports.plots.classification import draw_confusion_matrix, draw_reliability


def test_the_confusion_matrix_is_scikit_learns() -> None:
    from sklearn import metrics

    generator = torch.Generator().manual_seed(0)
    targets, predicted = (torch.randint(0, 4, (60,), generator=generator) for _ in range(2))
    spec = DataSpec("vector", (2,), "multiclass", 5, class_names=tuple("abcde"))  # e never occurs
    figure = draw_confusion_matrix(targets, predicted, spec, "val")
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
    axes = draw_confusion_matrix(torch.arange(40), torch.arange(40), spec, "test").axes[0]
    assert (len(axes.texts), axes.get_title()) == (0, "Confusion on test: 100.00 % right")


def test_the_diagram_shows_the_bins() -> None:
    p = torch.tensor([0.1, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9])
    calibration = compute_calibration(p, torch.tensor([0, 1, 0, 1, 1, 1, 0]), "class $x$", bins=5)
    upper, lower = draw_reliability(calibration, "test").axes
    heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in upper.containers[0]}
    assert heights == {0.1: 0.0, 0.3: 0.5, 0.9: 0.75}
    ends = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in upper.containers[1]]
    assert np.allclose(ends, [(0.0, 0.1), (0.3, 0.5), (0.75, 0.9)], atol=1e-6)
    assert [bar.get_height() for bar in lower.containers[0]] == [1, 2, 0, 0, 4]
    assert upper.get_title() == f"Calibration on test: ECE {calibration.ece:.4f}"
    assert lower.get_xlabel() == r"probability of class \$x\$"
