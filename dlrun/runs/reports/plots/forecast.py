"""Pictures of forecasts: one of them beside what came, and the error by how far ahead they look."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.data.windows import SeriesPreprocessing, forecast_naively, name_naive_forecast
from dlrun.runs.reports.plots import canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_forecast(x: Tensor, forecasts: Tensor, targets: Tensor, spec: DataSpec, split: str) -> "Figure":
    """Draw the last window of a split, and the mean absolute error of each step beside that of the trivial forecast.

    x: (N, window, features), as the model takes them; forecasts and targets (N, horizon × targets), of which the first
    target is drawn.
    """
    fitted = SeriesPreprocessing.from_plain(spec.preprocessing)
    naive = forecast_naively(spec, x)
    shape = (len(x), fitted.horizon, fitted.target_count)
    steps = [values.double().cpu().reshape(shape)[:, :, 0].numpy() for values in (targets, forecasts, naive)]
    true, predicted, trivial = steps
    past = x[-1, :, 0].double().cpu().numpy() * fitted.std[0] + fitted.mean[0]

    figure = canvas.create_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    ahead = np.arange(1, fitted.horizon + 1)
    # A forecast of one step is a point.
    mark = "o" if fitted.horizon == 1 else ""
    left.plot(np.arange(1 - fitted.window, 1), past, color="gray", label="window")
    left.plot(ahead, true[-1], mark + "-", color="black", label="true")
    left.plot(ahead, predicted[-1], mark + "-", color="tab:blue", label="forecast")
    left.set(xlabel="steps ahead", title=canvas.escape_label(f"{fitted.features[0]}, the last window of {split}"))
    left.legend(fontsize=8)

    right.plot(ahead, np.abs(predicted - true).mean(0), mark + "-", color="tab:blue", label="forecast")
    right.plot(ahead, np.abs(trivial - true).mean(0), mark + "--", color="tab:orange", label=name_naive_forecast(spec))
    right.set(xlabel="steps ahead", title="mean absolute error", ylim=(0, None))
    right.legend(fontsize=8)
    return figure
