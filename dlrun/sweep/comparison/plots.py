"""Many runs in one picture: curves with a band over the seeds, the metric over one swept value, and over two."""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.core.run_names import folder_name
from dlrun.runs.reports.plots import canvas
from dlrun.sweep.comparison.ranking import Comparison, Ranking, Setting
from dlrun.sweep.comparison.settings import (
    to_key,
    truncate,
    sort_values,
    is_logarithmic,
    is_number,
    shorten_keys,
    format_value,
)
from dlrun.sweep.comparison.written import format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 10  # in colour: more cannot be told apart
_MOST_CELLS = 100  # with their value written in
_MOST_MAPS = 6
_LONGEST, _LONGEST_TICK = 44, 18  # letters of a label
_INSIDE = 5  # more labels than that stand beside the picture
_COLORS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)] + ["black"]  # C7 is grey, as are the settings not named


def draw_all(comparison: Comparison, folder: Path) -> list[Path]:
    """Every picture that makes sense, as `folder`/compared_*.png; returns their paths.

    The pictures of a second ranking and of those after it have its number in their names.
    """
    paths = []
    for number, ranking in enumerate(comparison.rankings, 1):
        start = "compared" if number == 1 else f"compared{number}"
        for name, figure in _pictures(ranking):
            folder.mkdir(exist_ok=True)
            paths.append(folder / f"{start}_{name}.png")
            canvas.save_png(canvas.pixels(figure), paths[-1])
    return paths


def _pictures(ranking: Ranking) -> list[tuple[str, "Figure"]]:
    if not ranking.counted:
        return []
    names = {key: folder_name(name, 30) for key, name in shorten_keys(ranking.keys).items()}
    found = []
    if any(len(_curve(setting, ranking.metric)[0]) > 1 for setting in ranking.counted):
        found.append(("curves", draw_curves(ranking)))
    for key in ranking.keys:
        if sum(is_number(value) for value in _values(ranking.counted, key)) > 1:
            found.append((names[key], draw_metric_over(ranking, key)))
    pairs = [pair for pair in combinations(ranking.keys, 2) if _is_grid(ranking, *pair)]
    return found + [(f"{names[a]}_{names[b]}", draw_heat_map(ranking, a, b)) for a, b in pairs[:_MOST_MAPS]]


def draw_curves(ranking: Ranking) -> "Figure":
    """The monitored metric over epochs: the mean over the seeds, as far as all of them came, and their range.

    The ten best settings in colour and named, the others faint.
    """
    shown = [(s, *_curve(s, ranking.metric)) for s in ranking.counted]
    shown = [one for one in shown if len(one[1])]
    best, rest = shown[:MOST_LINES], shown[MOST_LINES:]
    figure, axes = _sheet(len(best) + 1)
    for number, (setting, epochs, values) in enumerate(best):
        color = _COLORS[number]
        axes.plot(
            epochs,
            values.mean(0),
            "-",
            color=color,
            linewidth=1.8,
            label=canvas.plain(truncate(setting.label, _LONGEST)),
        )
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
    canvas.log_where_wide(axes, np.concatenate([values.ravel() for *_, values in best]))
    _baseline(axes, ranking)
    limits = axes.get_ylim()  # of the best: those far off would press them flat
    for _, epochs, values in rest:
        axes.plot(epochs, values.mean(0), "-", color="0.75", linewidth=0.8, zorder=1)
    axes.set_ylim(limits)
    several = any(len(values) > 1 for *_, values in shown)
    metric = canvas.plain(ranking.metric)
    title = f"{metric}: mean and range over the seeds" if several else metric
    title += f"\nthe {len(best)} best of {len(shown)} settings, the others grey" if rest else ""
    axes.set(xlabel="epoch", ylabel=canvas.plain(ranking.metric), title=title)
    axes.locator_params(axis="x", integer=True)
    _finish(axes, len(best) + 1)
    return figure


def draw_metric_over(ranking: Ranking, key: str) -> "Figure":
    """The monitored metric over one swept number: the mean over the seeds ± std, a point a run.

    A line for each combination of the other keys, of which the ten that hold the best settings are shown.
    """
    others = [other for other in ranking.keys if other != key]
    lines: dict[str, list[Setting]] = {}
    for setting in ranking.counted:  # best first, and so are the lines
        if is_number(setting.values[key]):
            lines.setdefault(to_key([setting.values[other] for other in others]), []).append(setting)
    figure, axes = _sheet(min(len(lines), MOST_LINES) + 1)
    names = shorten_keys(ranking.keys)
    numbers = [value for value in _values(ranking.counted, key) if is_number(value)]
    is_log = is_logarithmic(numbers)
    for number, settings in enumerate(list(lines.values())[:MOST_LINES]):
        settings = sorted(settings, key=lambda setting: float(setting.values[key]))
        x = [setting.values[key] for setting in settings]
        scores, color = [setting.score for setting in settings], _COLORS[number]
        label = " ".join(f"{names[other]}={format_value(settings[0].values[other])}" for other in others) or "mean"
        errors = [0 if math.isnan(score.std) else score.std for score in scores]
        line = {"color": color, "capsize": 3, "linewidth": 1.6, "label": canvas.plain(truncate(label, _LONGEST))}
        axes.errorbar(x, [score.mean for score in scores], yerr=errors, fmt="o-", **line)  # type: ignore[arg-type]
        points = [(_beside(s.values[key], numbers, is_log), y) for s in settings for y in s.by_seed.values()]
        axes.plot(*zip(*points, strict=True), ".", color=color, alpha=0.6, markersize=5)
    if is_log:
        axes.set_xscale("log")
    canvas.log_where_wide(axes, [value for setting in ranking.counted for value in setting.by_seed.values()])
    _baseline(axes, ranking)
    dropped = f"\nthe {MOST_LINES} best of {len(lines)} lines" if len(lines) > MOST_LINES else ""
    title = f"{canvas.plain(ranking.metric)} over {canvas.plain(key)}\nmean ± std over the seeds, a dot a run{dropped}"
    axes.set(xlabel=canvas.plain(key), ylabel=canvas.plain(ranking.metric), title=title)
    _finish(axes, min(len(lines), MOST_LINES) + 1)
    return figure


def _beside(x: float, numbers: Sequence[float], is_log: bool) -> float:
    """Where the dots of a value stand: a little to the right, so that the error bar does not hide them."""
    low, high = float(numbers[0]), float(numbers[-1])
    return x * (high / low) ** 0.015 if is_log else x + 0.015 * (high - low)


def draw_heat_map(ranking: Ranking, a: str, b: str) -> "Figure":
    """The mean of the monitored metric over two swept keys, `a` down and `b` across; the best cell framed.

    Where there are other keys a cell is the best over them.
    """
    down, across, cells = build_grid(ranking, a, b)
    width, height = min(max(5.4, 0.85 * len(across) + 2.4), 14), min(max(2.8, 0.5 * len(down) + 1.8), 14)
    figure, axes = canvas.single(width, height)
    norm: Any = "log" if _is_wide(cells) else "linear"
    image = axes.imshow(cells, cmap="viridis" if ranking.mode == "max" else "viridis_r", norm=norm, aspect="auto")
    figure.colorbar(image, ax=axes, label=f"{canvas.plain(ranking.metric)} (yellow: better)")
    for axis, key, values in ((axes.yaxis, a, down), (axes.xaxis, b, across)):
        axis.set_ticks(
            range(len(values)), [canvas.plain(truncate(format_value(value), _LONGEST_TICK)) for value in values]
        )
        axis.set_label_text(canvas.plain(key))
    if max(len(format_value(value)) for value in across) > 8:
        for label in axes.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")
    shades = np.asarray(image.norm(cells), dtype=float)
    for i, j in np.argwhere(np.isfinite(cells)) if cells.size <= _MOST_CELLS else ():
        bright = shades[i, j] if ranking.mode == "max" else 1 - shades[i, j]
        color = "black" if bright > 0.6 else "white"
        axes.text(j, i, format_metric(cells[i, j], ranking), ha="center", va="center", color=color, fontsize=9)
    _frame_best(axes, cells, ranking.mode)
    others = [name for key, name in shorten_keys(ranking.keys).items() if key not in (a, b)]
    best_of = f"\nthe best over {canvas.plain(', '.join(others))}" if others else ""
    axes.set_title(f"{canvas.plain(ranking.metric)}: mean over the seeds, best framed{best_of}")
    return figure


def build_grid(ranking: Ranking, a: str, b: str) -> tuple[list[Any], list[Any], NDArray[np.float64]]:
    """The values of two keys, and the best mean (a, b) of the settings there; NaN where there is none."""
    down, across = _values(ranking.settings, a), _values(ranking.settings, b)
    rows, columns = ({to_key(v): i for i, v in enumerate(values)} for values in (down, across))
    cells = np.full((len(down), len(across)), np.nan)
    for setting in reversed(ranking.counted):  # best last, so that it stays
        cells[rows[to_key(setting.values[a])], columns[to_key(setting.values[b])]] = setting.score.mean
    return down, across, cells


def _frame_best(axes: "Axes", cells: NDArray[np.float64], mode: str) -> None:
    from matplotlib.patches import Rectangle

    best = np.nanargmax(cells) if mode == "max" else np.nanargmin(cells)
    i, j = np.unravel_index(int(best), cells.shape)
    axes.add_patch(Rectangle((float(j) - 0.47, float(i) - 0.47), 0.94, 0.94, fill=False, edgecolor="red", linewidth=2))


def _is_grid(ranking: Ranking, a: str, b: str) -> bool:
    """Whether more than half of the combinations of two keys were made, and each key has two values at least."""
    cells = build_grid(ranking, a, b)[2]
    return min(cells.shape) > 1 and bool(np.isfinite(cells).mean() > 0.5)


def _is_wide(cells: NDArray[np.float64]) -> bool:
    shown = cells[np.isfinite(cells)]
    return bool(shown.min() > 0 and shown.max() > 30 * shown.min())


def _values(settings: Sequence[Setting], key: str) -> list[Any]:
    return sort_values(setting.values[key] for setting in settings)


def _curve(setting: Setting, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs (E,) and values (seeds, E) of the runs that have a curve, as far as the shortest goes."""
    rows = [[row for row in run.rows if metric in row] for run in setting.runs]
    rows = [found for found in rows if found]
    length = min((len(found) for found in rows), default=0)
    values = np.array([[row[metric] for row in found[:length]] for found in rows]).reshape(len(rows), length)
    return np.array([row["epoch"] for row in rows[0][:length]] if rows else []), values


def _baseline(axes: "Axes", ranking: Ranking) -> None:
    """A dashed line, but only a word where it is so far off that it would press the settings flat."""
    value = ranking.baseline(ranking.metric)
    if not math.isfinite(value):
        return
    is_log = axes.get_yscale() == "log"
    at, (low, high) = value, axes.get_ylim()
    if is_log:
        at, low, high = (math.log(x) if x > 0 else -math.inf for x in (value, low, high))
    far = at < 2 * low - high or at > 2 * high - low
    shown = f"trivial baseline: {format_metric(value, ranking)}, off the scale" if far else "trivial baseline"
    axes.axhline(math.nan if far else value, color="0.4", linestyle="--", linewidth=1, label=shown)


def _sheet(labels: int) -> tuple["Figure", "Axes"]:
    return canvas.single(6.4 if labels <= _INSIDE else 9.6, 4.8)


def _finish(axes: "Axes", labels: int) -> None:
    axes.grid(alpha=0.3)
    axes.legend(**({} if labels <= _INSIDE else {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}))
