"""The pictures of a run: the same in figures/*.png and in TensorBoard."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dlrun import tracking
from dlrun.data.batches import Batches
from dlrun.data.spec import DataSpec
from dlrun.tracking import FileTracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dlrun.experiment import Parts

_MOST_ROWS = 20_000  # for scatter plots and matrices: more cannot be seen, and would cost memory
_MOST_LABELS = 30


def draw_all(parts: "Parts", folder: Path, tracker: FileTracker) -> None:
    """Every picture that makes sense for the run, drawn from the weights the model holds now."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    target = folder / "figures"
    target.mkdir(exist_ok=True)
    for name, figure in _pictures(parts, folder):
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        figure.savefig(target / f"{name}.png")
        pixels = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # (H, W, 3)
        tracker.log_image(f"figures/{name}", pixels.permute(2, 0, 1), parts.training.progress.step)


def _pictures(parts: "Parts", folder: Path) -> Iterator[tuple[str, "Figure"]]:
    rows = tracking.read_rows(folder)
    if len(rows) > 1:
        yield "loss", loss_curves(rows)
    spec = parts.splits.spec
    split, batches = _shown_split(parts)
    inputs, outputs, targets = outputs_of(parts, batches)
    if spec.task in ("binary", "multiclass"):
        predicted = parts.task.predictions(outputs)
        yield "confusion", confusion_matrix(targets, predicted, spec, split)
    elif spec.task == "regression" and spec.output_size == 1:
        yield "fit", regression_fit(inputs[0], outputs, targets, spec, split)
    if spec.kind == "image" and parts.settings.rest.tracking.samples:
        yield "samples", image_grid(inputs[0], targets, spec)


def _shown_split(parts: "Parts") -> tuple[str, Batches]:
    for name, batches in (("test", parts.test), ("val", parts.training.val)):
        if batches is not None:
            return name, batches
    return "train", parts.training.train


@torch.inference_mode()
def outputs_of(parts: "Parts", batches: Batches) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Inputs, outputs and targets on the CPU, of the first _MOST_ROWS rows in the order of epoch 1."""
    parts.model.eval()
    kept: list[tuple[tuple[Tensor, ...], Tensor, Tensor]] = []
    for inputs, targets in batches.epoch(1):
        with parts.runtime.autocast():
            outputs = parts.model(*inputs)
        kept.append((tuple(x.cpu() for x in inputs), outputs.float().cpu(), targets.cpu()))
        if sum(len(k[2]) for k in kept) >= _MOST_ROWS:
            break
    columns = tuple(torch.cat(column) for column in zip(*(k[0] for k in kept), strict=True))
    return columns, torch.cat([k[1] for k in kept]), torch.cat([k[2] for k in kept])


def _axes(width: float = 6.4, height: float = 4.8) -> tuple["Figure", "Axes"]:
    """No pyplot: it keeps every figure of the process alive and looks for a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.add_subplot()


def loss_curves(rows: list[dict[str, float]]) -> "Figure":
    """Training and validation loss over epochs, the best epoch marked."""
    figure, axes = _axes()
    epochs = [row["epoch"] for row in rows]
    for key, style in (("train/loss", "-"), ("val/loss", "--")):
        values = np.array([row.get(key, np.nan) for row in rows])
        if np.isfinite(values).any():
            axes.plot(epochs, values, style, label=key)
            best = int(np.nanargmin(values))
            axes.plot(epochs[best], values[best], "o", color=axes.lines[-1].get_color())
    shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    if np.nanmin(shown) > 0 and np.nanmax(shown) > 30 * np.nanmin(shown):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss", title="Loss (dots: lowest)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def confusion_matrix(targets: Tensor, predicted: Tensor, spec: DataSpec, split: str) -> "Figure":
    """Rows are the true classes, columns the predicted; shaded by the share of the row."""
    size = max(spec.output_size, 2)
    table = torch.bincount(targets * size + predicted, minlength=size * size).view(size, size).numpy()
    names = spec.class_names or tuple(str(i) for i in range(size))
    side = min(max(4.8, 0.5 * size + 2), 14)
    figure, axes = _axes(side + 1, side)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    if size <= _MOST_LABELS:
        axes.set_xticks(range(size), names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(size), names)
        for i, j in np.ndindex(size, size):
            if table[i, j]:
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(
                    j,
                    i,
                    f"{table[i, j]}",
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=7 if size > 12 else 9,
                )
    accuracy = table.trace() / max(table.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Confusion on {split}: {100 * accuracy:.2f} % right")
    return figure


def regression_fit(x: Tensor, outputs: Tensor, targets: Tensor, spec: DataSpec, split: str) -> "Figure":
    """One feature: the data and the learnt curve; several: predictions over true values."""
    figure, axes = _axes()
    flat = x.flatten(1)
    if flat.shape[1] == 1:
        order = flat[:, 0].argsort()
        axes.plot(flat[:, 0], targets[:, 0], ".", alpha=0.6, label=split)
        axes.plot(flat[order, 0], outputs[order, 0], "-", color="tab:red", label="model")
        axes.set(xlabel=spec.feature_names[0] if spec.feature_names else "x", ylabel="y", title="Fit")
    else:
        low, high = float(targets.min()), float(targets.max())
        axes.plot([low, high], [low, high], "-", color="gray", label="exact")
        axes.plot(targets[:, 0], outputs[:, 0], ".", alpha=0.6, label=split)
        axes.set(xlabel="true value", ylabel="predicted value", title="Predictions")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def image_grid(images: Tensor, targets: Tensor, spec: DataSpec, most: int = 24) -> "Figure":
    """The first images of a split (N, C, H, W) with their classes, normalization undone."""
    from matplotlib.figure import Figure

    images = images[:most].float()
    if spec.mean:
        shape = (1, -1, 1, 1)
        images = images * torch.tensor(spec.std).view(shape) + torch.tensor(spec.mean).view(shape)
    pixels = images.clamp(0, 1).permute(0, 2, 3, 1).numpy()
    columns = min(8, len(pixels))
    lines = -(-len(pixels) // columns)
    figure = Figure(figsize=(columns * 1.1, lines * 1.3), dpi=110, layout="constrained")
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for place in grid.flat:
        place.axis("off")
    for place, image, target in zip(grid.flat, pixels, targets.tolist(), strict=False):
        place.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        name = spec.class_names[int(target)] if spec.class_names and isinstance(target, int) else target
        place.set_title(f"{name}", fontsize=8)
    return figure
