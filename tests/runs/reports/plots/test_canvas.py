"""The sheet: its pixels, and text that stays as it is."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dlrun.runs.reports.plots import canvas


def test_the_file_holds_the_pixels_that_were_drawn(tmp_path: Path) -> None:
    figure, axes = canvas.create_axes(2, 1)
    axes.plot([0, 1], [0, 1])
    image = canvas.render_pixels(figure)
    assert image.shape == (110, 220, 3)
    assert image.std() > 5  # not blank
    canvas.save_png(image, tmp_path / "a.png")
    assert np.array_equal((imread(tmp_path / "a.png") * 255).round().astype(np.uint8), image)


def test_dollar_signs_are_no_formula() -> None:
    figure, axes = canvas.create_axes(2, 1)
    axes.set_title(canvas.escape_label("between $5 and $\\frac"))  # as a formula this cannot be read, and raises
    canvas.render_pixels(figure)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1, 31], "log"), ([1, 29], "linear"), ([0, 100], "linear"), ([1, np.nan, 1000], "log"), ([], "linear")],
)
def test_a_wide_range_of_positive_values_is_logarithmic(values: list[float], scale: str) -> None:
    _, axes = canvas.create_axes()
    canvas.use_log_scale_if_wide(axes, values)
    assert axes.get_yscale() == scale
