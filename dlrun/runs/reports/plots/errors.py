"""What a classifier gets wrong, the surest mistakes first."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrun.data.origin import Origin
from dlrun.data.spec import PADDING, DataSpec
from dlrun.runs.reports.plots import canvas, samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = 24  # of a table


def worst(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of class probabilities (N, classes), or (N,) of class 1: the wrong rows, the surest first.

    Returns their numbers, the classes predicted for them and those classes' probabilities.
    """
    if probabilities.dim() == 1:
        probabilities = torch.stack([1 - probabilities, probabilities], dim=1)
    sure, predicted = probabilities.max(1)
    wrong = (predicted != targets).nonzero().flatten()
    order = wrong[sure[wrong].argsort(descending=True, stable=True)]
    return order, predicted[order], sure[order]


def image_mistakes(
    images: Tensor, probabilities: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """The wrong images (N, C, H, W) that the model was surest of, with their files or rows; None when all are right."""
    rows, predicted, sure = worst(probabilities, targets)
    if len(rows) == 0:
        return None
    shown = rows[: samples.MOST_TILES]
    titles = []
    for row, said, p in zip(shown.tolist(), predicted.tolist(), sure.tolist(), strict=False):
        classes = f"{_name(spec, int(targets[row]))} → {_name(spec, said)}"
        titles.append(f"{classes}\n{100 * p:.1f} %\n{_shortened(origin.format_short_label(row))}")
    heading = _title(len(shown), len(rows), split) + "\ntrue → predicted, probability"
    return samples.tiles(samples.shown_pixels(images[shown], spec), titles, _width(titles), heading)


def _shortened(label: str, most: int = 18) -> str:
    """The end of a long file name, which tells it from its neighbours."""
    return label if len(label) <= most else f"…{label[1 - most :]}"


def _width(titles: Sequence[str]) -> float:
    """Inches a tile needs for its longest line of words."""
    return max(1.1, 0.075 * max(len(line) for title in titles for line in title.splitlines()))


def text_mistakes(
    inputs: tuple[Tensor, ...], probabilities: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """The wrong texts (codes (N, T), lengths (N,)) as a table; None when all are right."""
    rows, predicted, sure = worst(probabilities, targets)
    if len(rows) == 0:
        return None
    cells = []
    for row, said, p in zip(rows[:_LINES].tolist(), predicted.tolist(), sure.tolist(), strict=False):
        words = text(spec, inputs[0][row], int(inputs[1][row]))
        true = _name(spec, int(targets[row]))
        cells.append((origin.format_short_label(row), words, true, _name(spec, said), f"{p:.4f}"))
    heads = ("where", "text", "true", "predicted", "probability")
    return _table(heads, cells, _title(len(cells), len(rows), split))


def tagging_mistakes(
    inputs: tuple[Tensor, ...], predicted: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """The words (codes (N, T), lengths (N,)) with a wrong tag (tags (N, T)) as a table; None when all are right."""
    rows = ((predicted != targets) & (targets != PADDING)).any(1).nonzero().flatten()
    if len(rows) == 0:
        return None
    cells = []
    for row in rows[:_LINES].tolist():
        length = int(inputs[1][row])
        said, true = (tags(spec, found[row, :length]) for found in (predicted, targets))
        cells.append((origin.format_short_label(row), text(spec, inputs[0][row], length), true, said))
    return _table(("where", "text", "true", "predicted"), cells, _title(len(cells), len(rows), split))


def text(spec: DataSpec, codes: Tensor, length: int) -> str:
    """What codes (T,) stand for, without the padding."""
    return "".join(spec.vocabulary[code] for code in codes[:length].tolist())


def tags(spec: DataSpec, numbers: Tensor) -> str:
    """Tags (T,) by name: letters as a word, longer names with spaces between them."""
    names = [_name(spec, number) for number in numbers.tolist() if number != PADDING]
    return ("" if all(len(name) == 1 for name in names) else " ").join(names)


def _name(spec: DataSpec, number: int) -> str:
    return spec.class_names[number] if spec.class_names else str(number)


def _title(shown: int, wrong: int, split: str) -> str:
    most = f"The {shown} surest of {wrong:,} mistakes" if shown < wrong else f"All {wrong} mistakes"
    return f"{'The only mistake' if wrong == 1 else most} on {split}"


def _table(heads: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> "Figure":
    """Words in columns, each as wide as its longest cell."""
    from matplotlib.transforms import Bbox

    widths = [max(len(row[i]) for row in (heads, *cells)) + 3 for i in range(len(heads))]
    figure, axes = canvas.single(max(3.6, 0.085 * sum(widths)), 0.22 * (len(cells) + 1) + 0.5)
    axes.axis("off")
    shown = [[canvas.plain(cell) for cell in row] for row in cells]
    shares = [width / sum(widths) for width in widths]
    table = axes.table(shown, colLabels=list(heads), colWidths=shares, cellLoc="left", colLoc="left", bbox=Bbox.unit())
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, _), cell in table.get_celld().items():
        cell.set_edgecolor("lightgray")
        cell.set_facecolor("whitesmoke" if line == 0 else "white")
    axes.set_title(title, fontsize=10)
    return figure
