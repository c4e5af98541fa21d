"""The reliability diagram."""

import numpy as np
import torch

from dlrun.engine.calibration import compute_calibration
from dlrun.runs.reports.plots.reliability import reliability_diagram


def test_the_diagram_shows_the_bins() -> None:
    p = torch.tensor([0.1, 0.3, 0.3, 0.9, 0.9, 0.9, 0.9])
    found = compute_calibration(p, torch.tensor([0, 1, 0, 1, 1, 1, 0]), "class $x$", bins=5)
    upper, lower = reliability_diagram(found, "test").axes
    heights = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_height() for bar in upper.containers[0]}
    assert heights == {0.1: 0.0, 0.3: 0.5, 0.9: 0.75}
    ends = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in upper.containers[1]]
    assert np.allclose(ends, [(0.0, 0.1), (0.3, 0.5), (0.75, 0.9)], atol=1e-6)
    assert [bar.get_height() for bar in lower.containers[0]] == [1, 2, 0, 0, 4]
    assert upper.get_title() == f"Calibration on test: ECE {found.ece:.4f}"
    assert lower.get_xlabel() == r"probability of class \$x\$"
