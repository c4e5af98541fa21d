"""Many runs in one picture: curves with a band over seeds, the metric over one swept key, and over two."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.core.format import format_folder_name
from dlrun.runs.reports.plots import canvas
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting
from dlrun.sweep.comparison.settings import (
    format_value,
    is_finite_number,
    is_logarithmic,
    shorten_keys,
    sort_values,
    to_key,
    truncate,
)
from dlrun.sweep.comparison.table import format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lines in colour: more cannot be told apart.
_MOST_LINES = 10
# Cells of a heat map up to which each is labelled with its value.
_MOST_CELLS = 100
_MOST_MAPS = 6
# Letters of a label.
_LONGEST = 44
_LONGEST_TICK = 18
# Labels of a legend inside the axes; a longer one stands beside them.
_MOST_INSIDE = 5

# C7 is left out: it is grey, as are the settings without a label.
_COLORS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)] + ["black"]


def draw_all(comparison: Comparison, folder: Path, curves_only: bool = False) -> list[Path]:
    """Save each picture that the runs are enough for as `folder`/compared_*.png; returns the paths.

    Pictures of the second ranking are named compared2_*.png, and so on. curves_only: no picture over the keys.
    """
    paths = []
    for number, ranking in enumerate(comparison.rankings, 1):
        start = "compared" if number == 1 else f"compared{number}"
        for name, figure in _draw_ranking(ranking, curves_only):
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"{start}_{name}.png")
            canvas.save_png(canvas.render_pixels(figure), paths[-1])
    return paths


def _draw_ranking(ranking: Ranking, curves_only: bool) -> list[tuple[str, "Figure"]]:
    if not ranking.usable_settings:
        return []

    names = {key: format_folder_name(name, 30) for key, name in shorten_keys(ranking.keys).items()}
    figures = []
    if any(len(_stack_curves(setting, ranking.metric)[0]) > 1 for setting in ranking.usable_settings):
        figures.append(("curves", draw_curves(ranking)))

    if curves_only:
        return figures
    for key in ranking.keys:
        if len(_list_numbers(ranking, key)) > 1:
            figures.append((names[key], draw_metric_over(ranking, key)))

    pairs = [pair for pair in combinations(ranking.keys, 2) if _is_grid(ranking, *pair)]
    for a, b in pairs[:_MOST_MAPS]:
        figures.append((f"{names[a]}_{names[b]}", draw_heat_map(ranking, a, b)))
    return figures


def draw_curves(ranking: Ranking) -> "Figure":
    """Draw the monitored metric over epochs: mean and range over seeds, up to the last epoch of the shortest run.

    The ten best settings are coloured and labelled, the others grey.
    """
    curves = []
    for setting in ranking.usable_settings:
        epochs, values = _stack_curves(setting, ranking.metric)
        if len(epochs):
            curves.append((setting, epochs, values))
    best = curves[:_MOST_LINES]
    rest = curves[_MOST_LINES:]

    figure, axes = _create_figure(len(best) + 1)
    for color, (setting, epochs, values) in zip(_COLORS, best, strict=False):
        label = canvas.escape_label(truncate(setting.label, _LONGEST))
        axes.plot(epochs, values.mean(0), "-", color=color, linewidth=1.8, label=label)
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    canvas.use_log_scale_if_wide(axes, np.concatenate([values.ravel() for *_, values in best]))
    _draw_baseline(axes, ranking)

    # The best set the limits: a setting far off would press them flat.
    limits = axes.get_ylim()
    for _, epochs, values in rest:
        axes.plot(epochs, values.mean(0), "-", color="0.75", linewidth=0.8, zorder=1)
    axes.set_ylim(limits)

    metric = canvas.escape_label(ranking.metric)
    title = metric
    if any(len(values) > 1 for *_, values in curves):
        title += ": mean and range over the seeds"
    if rest:
        title += f"\nthe {len(best)} best of {len(curves)} settings, the others grey"
    axes.set(xlabel="epoch", ylabel=metric, title=title)
    axes.locator_params(axis="x", integer=True)
    _add_legend(axes, len(best) + 1)
    return figure


def draw_metric_over(ranking: Ranking, key: str) -> "Figure":
    """Draw the monitored metric over one swept number: mean ± std over seeds, and a dot for each run.

    Each combination of the other keys is a line; the ten lines with the best settings are drawn.
    """
    other_keys = [other for other in ranking.keys if other != key]

    # The settings come best first, and so do the lines.
    lines: dict[str, list[Setting]] = {}
    for setting in ranking.usable_settings:
        if is_finite_number(setting.values[key]):
            combination = to_key([setting.values[other] for other in other_keys])
            lines.setdefault(combination, []).append(setting)

    count = min(len(lines), _MOST_LINES)
    numbers = _list_numbers(ranking, key)
    # A swept learning rate, for instance, is spaced by ratios.
    is_log = is_logarithmic(numbers)
    figure, axes = _create_figure(count + 1)
    for color, settings in zip(_COLORS, lines.values(), strict=False):
        _draw_line(axes, ranking, key, settings, color, numbers)
    if is_log:
        axes.set_xscale("log")

    scores = list[float]()
    for setting in ranking.usable_settings:
        scores += setting.by_seed.values()
    canvas.use_log_scale_if_wide(axes, scores)
    _draw_baseline(axes, ranking)

    metric = canvas.escape_label(ranking.metric)
    title = f"{metric} over {canvas.escape_label(key)}\nmean ± std over the seeds, a dot a run"
    if len(lines) > _MOST_LINES:
        title += f"\nthe {_MOST_LINES} best of {len(lines)} lines"
    axes.set(xlabel=canvas.escape_label(key), ylabel=metric, title=title)
    _add_legend(axes, count + 1)
    return figure


def _draw_line(
    axes: "Axes", ranking: Ranking, key: str, settings: Sequence[Setting], color: str, numbers: Sequence[float]
) -> None:
    """Draw the settings with one combination of the other keys."""
    settings = sorted(settings, key=lambda setting: float(setting.values[key]))
    names = shorten_keys(ranking.keys)
    words = []
    for other in ranking.keys:
        if other != key:
            words.append(f"{names[other]}={format_value(settings[0].values[other])}")
    label = " ".join(words) or "mean"

    # A single seed has no standard deviation, and no error bar.
    errors = np.nan_to_num([setting.score.std for setting in settings])
    axes.errorbar(
        [setting.values[key] for setting in settings],
        [setting.score.mean for setting in settings],
        yerr=errors,
        fmt="o-",
        color=color,
        capsize=3,
        linewidth=1.6,
        label=canvas.escape_label(truncate(label, _LONGEST)),
    )

    # The dots stand a little to the right, clear of the error bar.
    low = float(numbers[0])
    high = float(numbers[-1])
    is_log = is_logarithmic(numbers)
    x = list[float]()
    y = list[float]()
    for setting in settings:
        value = setting.values[key]
        position = value * (high / low) ** 0.015 if is_log else value + 0.015 * (high - low)
        x += [position] * len(setting.by_seed)
        y += setting.by_seed.values()
    axes.plot(x, y, ".", color=color, alpha=0.6, markersize=5)


def draw_heat_map(ranking: Ranking, a: str, b: str) -> "Figure":
    """Draw the mean of the monitored metric over two swept keys, `a` down and `b` across, with the best cell framed.

    If there are other keys, each cell is the best over them.
    """
    down, across, cells = build_grid(ranking, a, b)
    width = min(max(5.4, 0.85 * len(across) + 2.4), 14)
    height = min(max(2.8, 0.5 * len(down) + 1.8), 14)
    figure, axes = canvas.create_axes(width, height)

    metric = canvas.escape_label(ranking.metric)
    is_max = ranking.mode == "max"
    norm: Any = "log" if _is_wide(cells) else "linear"
    # Bright is better in either mode, but a dark page turns the lightness around: the label names no color.
    better = "higher" if is_max else "lower"
    image = axes.imshow(cells, cmap="viridis" if is_max else "viridis_r", norm=norm, aspect="auto")
    figure.colorbar(image, ax=axes, label=f"{metric} ({better} is better)")

    for axis, key, values in ((axes.yaxis, a, down), (axes.xaxis, b, across)):
        labels = [canvas.escape_label(truncate(format_value(value), _LONGEST_TICK)) for value in values]
        axis.set_ticks(range(len(values)), labels)
        axis.set_label_text(canvas.escape_label(key))
    # Long tick labels would overlap.
    if max(len(format_value(value)) for value in across) > 8:
        for label in axes.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")

    if cells.size <= _MOST_CELLS:
        shades = np.asarray(image.norm(cells), dtype=float)
        for i, j in np.argwhere(np.isfinite(cells)):
            # Black text on bright cells, white on dark ones.
            brightness = shades[i, j] if is_max else 1 - shades[i, j]
            color = "black" if brightness > 0.6 else "white"
            text = format_metric(cells[i, j], ranking)
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)
    _frame_best(axes, cells, ranking.mode)

    title = f"{metric}: mean over the seeds, best framed"
    others = [name for key, name in shorten_keys(ranking.keys).items() if key not in (a, b)]
    if others:
        title += f"\nthe best over {canvas.escape_label(', '.join(others))}"
    axes.set_title(title)
    return figure


def build_grid(ranking: Ranking, a: str, b: str) -> tuple[list[Any], list[Any], NDArray[np.float64]]:
    """The values of two keys, and the best mean (a, b) of the settings there; NaN in empty cells."""
    down = _list_values(ranking.settings, a)
    across = _list_values(ranking.settings, b)
    rows = {to_key(value): i for i, value in enumerate(down)}
    columns = {to_key(value): i for i, value in enumerate(across)}

    # Worst first, so that the best of a cell overwrites the others.
    cells = np.full((len(down), len(across)), np.nan)
    for setting in reversed(ranking.usable_settings):
        row = rows[to_key(setting.values[a])]
        column = columns[to_key(setting.values[b])]
        cells[row, column] = setting.score.mean
    return down, across, cells


def _frame_best(axes: "Axes", cells: NDArray[np.float64], mode: str) -> None:
    from matplotlib.patches import Rectangle

    best = np.nanargmax(cells) if mode == "max" else np.nanargmin(cells)
    i, j = np.unravel_index(int(best), cells.shape)
    corner = (float(j) - 0.47, float(i) - 0.47)
    axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="red", linewidth=2))


def _is_grid(ranking: Ranking, a: str, b: str) -> bool:
    """Whether two keys have two values each, and more than half of their combinations have a result."""
    cells = build_grid(ranking, a, b)[2]
    return min(cells.shape) > 1 and bool(np.isfinite(cells).mean() > 0.5)


def _is_wide(cells: NDArray[np.float64]) -> bool:
    finite = cells[np.isfinite(cells)]
    return bool(finite.min() > 0 and finite.max() > 30 * finite.min())


def _list_values(settings: Sequence[Setting], key: str) -> list[Any]:
    return sort_values(setting.values[key] for setting in settings)


def _list_numbers(ranking: Ranking, key: str) -> list[float]:
    return [value for value in _list_values(ranking.usable_settings, key) if is_finite_number(value)]


def _stack_curves(setting: Setting, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs (E,) and values (seeds, E) of the runs that have a curve, cut to the shortest one."""
    curves = []
    for run in setting.runs:
        rows = [row for row in run.rows if metric in row]
        if rows:
            curves.append(rows)
    if not curves:
        return np.array([]), np.array([]).reshape(0, 0)

    length = min(len(rows) for rows in curves)
    epochs = np.array([row["epoch"] for row in curves[0][:length]])
    values = []
    for rows in curves:
        values.append([row[metric] for row in rows[:length]])
    return epochs, np.array(values)


def _draw_baseline(axes: "Axes", ranking: Ranking) -> None:
    """Draw a dashed line; only its label if it is so far off that it would press the settings flat."""
    value = ranking.get_baseline(ranking.metric)
    if not math.isfinite(value):
        return

    # Distances are judged on the scale that the axis has.
    position = value
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        position = _take_log(value)
        low = _take_log(low)
        high = _take_log(high)

    label = "trivial baseline"
    height = value
    if position < 2 * low - high or position > 2 * high - low:
        label += f": {format_metric(value, ranking)}, off the scale"
        height = math.nan
    axes.axhline(height, color="0.4", linestyle="--", linewidth=1, label=label)


def _take_log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _create_figure(labels: int) -> tuple["Figure", "Axes"]:
    return canvas.create_axes(6.4 if labels <= _MOST_INSIDE else 9.6, 4.8)


def _add_legend(axes: "Axes", labels: int) -> None:
    axes.grid(alpha=0.3)
    if labels <= _MOST_INSIDE:
        axes.legend()
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
