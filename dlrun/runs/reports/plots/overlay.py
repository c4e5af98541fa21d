"""Several runs in one picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.runs.record import RunRecord
from dlrun.runs.reports.plots import canvas
from dlrun.runs.reports.plots.loss import FAINT, FEWEST_TO_SMOOTH, smooth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Steps or epochs, and losses.
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
# More labels than that stand beside the picture.
_MOST_INSIDE = 8


def draw_loss_overlay(runs: Sequence[tuple[str, Path]]) -> "Figure":
    """Draw the training loss of several run folders (label, folder), and from 50 values on smoothed.

    Per step if every run has logged every step, else per epoch. Runs without a loss, or with losses that are
    not finite, are left out and named in the title.
    """
    by_epoch: list[tuple[str, Curve]] = []
    by_step: list[tuple[str, Curve]] = []
    missing: list[str] = []
    for label, folder in runs:
        curve = _read_epoch_curve(folder)
        if not _is_finite(curve):
            missing.append(label)
            continue
        by_epoch.append((label, curve))
        step_curve = _read_step_curve(folder)
        if step_curve is not None:
            by_step.append((label, step_curve))

    # All by step or none: one axis cannot show both.
    is_per_step = len(by_step) == len(by_epoch)
    curves = by_step if is_per_step else by_epoch
    is_inside = len(curves) <= _MOST_INSIDE
    figure, axes = canvas.create_axes(6.4 if is_inside else 8.4, 4.8)
    for number, (label, (x, y)) in enumerate(curves):
        color = _choose_color(number, len(curves))
        text = canvas.escape_label(label)
        if len(y) < FEWEST_TO_SMOOTH:
            axes.plot(x, y, "-", color=color, linewidth=2, label=text)
        else:
            axes.plot(x, y, "-", color=color, alpha=FAINT, linewidth=0.8)
            axes.plot(x, smooth(y), "-", color=color, linewidth=2, label=text)
    canvas.use_log_scale_if_wide(axes, np.concatenate([y for _, (_, y) in curves]) if curves else [])

    axes.set(xlabel="step" if is_per_step else "epoch", ylabel="training loss (mean per sample)")
    title = "Training loss"
    if any(len(y) >= FEWEST_TO_SMOOTH for _, (_, y) in curves):
        title += " (faint: raw, strong: smoothed)"
    if missing:
        title += f"\n{_format_missing(missing, 'no finite loss')}"
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if curves and is_inside:
        axes.legend()
    elif curves:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _read_step_curve(folder: Path) -> Curve | None:
    """Read steps and losses from the event files; None unless every step from the first on is there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 reads every event; by default TensorBoard keeps a sample of 10,000.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    if "train/loss_step" not in events.Tags()["scalars"]:
        return None

    scalars = events.Scalars("train/loss_step")
    steps = np.array([event.step for event in scalars])
    if (steps != np.arange(1, len(steps) + 1)).any():
        return None
    return steps, np.array([event.value for event in scalars])


def _read_epoch_curve(folder: Path) -> Curve:
    """Read epochs and training losses from metrics.jsonl."""
    rows = RunRecord(folder).history
    epochs = np.array([row["epoch"] for row in rows])
    losses = np.array([row.get("train/loss", np.nan) for row in rows])
    return epochs, losses


def tile_pictures(pictures: Sequence[tuple[str, Path]]) -> "Figure":
    """Draw pictures (label, PNG file) as tiles, at most four in a line; missing files are named in the title."""
    from matplotlib.image import imread

    images = [(label, imread(path)) for label, path in pictures if path.is_file()]
    missing = [label for label, path in pictures if not path.is_file()]

    columns = min(4, max(len(images), 1))
    lines = max(-(-len(images) // columns), 1)
    figure = canvas.create_figure(4.2 * columns, 3.5 * lines)
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (label, image) in zip(grid.flat, images, strict=False):
        axes.imshow(image)
        axes.set_title(canvas.escape_label(label))

    if missing:
        figure.suptitle(_format_missing(missing, "no picture"))
    return figure


def _is_finite(curve: Curve) -> bool:
    return len(curve[1]) > 0 and bool(np.isfinite(curve[1]).all())


def _choose_color(number: int, count: int) -> Any:
    from matplotlib import colormaps

    if count <= 10:
        return colormaps["tab10"](number)
    # tab10 would repeat itself.
    return colormaps["turbo"](number / (count - 1))


def _format_missing(labels: Sequence[str], reason: str) -> str:
    """Name the runs that are not in the picture, for its title."""
    names = ", ".join(map(canvas.escape_label, labels))
    return textwrap.fill(f"without {names} ({reason})", 80)
