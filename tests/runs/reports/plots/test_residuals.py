"""The residual plot."""

import numpy as np
import torch

from dlrun.runs.reports.plots.residuals import residual_plot


def test_a_dot_a_row_and_their_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(60, 1, generator=generator).double()
    outputs = targets + 0.5 + 0.1 * torch.randn(60, 1, generator=generator)
    left, right = residual_plot(outputs, targets, ["y"], "test").axes
    dots = left.lines[1].get_xydata()
    assert np.allclose(dots, torch.cat([outputs, outputs - targets], dim=1))
    error = (outputs - targets).numpy()
    assert right.get_title() == f"mean {error.mean():.3g}, std {error.std():.3g}"
    assert sum(bar.get_width() for bar in right.patches) == 60
    running = left.lines[2].get_ydata()
    assert abs(np.mean(running) - 0.5) < 0.05


def test_a_line_of_pictures_a_target_and_few_or_equal_rows() -> None:
    figure = residual_plot(torch.zeros(3, 2), torch.zeros(3, 2), ["a", "b"], "val")
    assert [axes.get_title() for axes in figure.axes[::2]] == ["Residuals of a on val", "Residuals of b on val"]
    assert all(len(axes.lines) == 2 for axes in figure.axes[::2])  # no running mean of three rows
