"""Several runs in one picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrun.runs.record import RunRecord
from dlrun.runs.reports.plots import canvas
from dlrun.runs.reports.plots.loss import FAINT, smoothed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps or epochs, and losses
_INSIDE = 8  # more labels than that stand beside the picture


def curves(runs: Sequence[tuple[str, Path]]) -> "Figure":
    """The training loss of several run folders (label, folder), raw and smoothed.

    Per step where every run has logged every step, else per epoch. A run without a loss, or with one that is
    not finite, is left out and named in the title.
    """
    whole = [(label, folder, per_epoch(folder)) for label, folder in runs]
    kept = [(label, folder, curve) for label, folder, curve in whole if _is_finite(curve)]
    missing = [label for label, _, curve in whole if not _is_finite(curve)]
    stepped = [(label, curve) for label, folder, _ in kept if (curve := per_step(folder)) is not None]
    by_step = len(stepped) == len(kept)
    shown = stepped if by_step else [(label, curve) for label, _, curve in kept]
    figure, axes = canvas.single(6.4 if len(shown) <= _INSIDE else 8.4, 4.8)
    for number, (label, (x, y)) in enumerate(shown):
        color = _color(number, len(shown))
        axes.plot(x, y, "-", color=color, alpha=FAINT, linewidth=0.8)
        axes.plot(x, smoothed(y), "-", color=color, linewidth=2, label=canvas.plain(label))
    canvas.log_where_wide(axes, np.concatenate([y for _, (_, y) in shown]) if shown else [])
    axes.set(xlabel="step" if by_step else "epoch", ylabel="training loss (mean per sample)")
    lacking = f"\n{_lacking(missing, 'no finite loss')}" if missing else ""
    axes.set_title(f"Training loss (faint: raw, strong: smoothed){lacking}")
    axes.grid(alpha=0.3)
    if shown:
        axes.legend(**({} if len(shown) <= _INSIDE else {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}))
    return figure


def per_step(folder: Path) -> Curve | None:
    """Steps and losses as the event files have them; None unless every step from the first on is there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    if "train/loss_step" not in events.Tags()["scalars"]:
        return None
    found = events.Scalars("train/loss_step")
    steps = np.array([event.step for event in found])
    if (steps != np.arange(1, len(steps) + 1)).any():
        return None
    return steps, np.array([event.value for event in found])


def per_epoch(folder: Path) -> Curve:
    """Epochs and training losses of metrics.jsonl."""
    rows = RunRecord(folder).history
    return np.array([row["epoch"] for row in rows]), np.array([row.get("train/loss", np.nan) for row in rows])


def side_by_side(pictures: Sequence[tuple[str, Path]]) -> "Figure":
    """Pictures (label, PNG file) as tiles, at most four in a line; a missing file is named in the title."""
    from matplotlib.image import imread

    there = [(label, imread(path)) for label, path in pictures if path.is_file()]
    missing = [label for label, path in pictures if not path.is_file()]
    columns = min(4, max(len(there), 1))
    lines = max(-(-len(there) // columns), 1)
    figure = canvas.sheet(4.2 * columns, 3.5 * lines)
    places: Any = figure.subplots(lines, columns, squeeze=False)
    for place in places.flat:
        place.axis("off")
    for place, (label, image) in zip(places.flat, there, strict=False):
        place.imshow(image)
        place.set_title(canvas.plain(label))
    if missing:
        figure.suptitle(_lacking(missing, "no picture"))
    return figure


def _is_finite(curve: Curve) -> bool:
    return len(curve[1]) > 0 and bool(np.isfinite(curve[1]).all())


def _color(number: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](number) if count <= 10 else colormaps["turbo"](number / (count - 1))


def _lacking(labels: Sequence[str], why: str) -> str:
    """Which runs are not in the picture, for its title."""
    return textwrap.fill(f"without {', '.join(map(canvas.plain, labels))} ({why})", 80)
