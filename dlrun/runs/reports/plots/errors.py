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

# Rows of a table.
_MOST_LINES = 24
# Of a text in a line.
_MOST_CHARACTERS = 100


def find_worst(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the wrong rows, the most confident first.

    probabilities: (N, classes), or (N,) of class 1; targets: class numbers (N,). Returns row numbers, the classes
    predicted for them and the probabilities of those classes.
    """
    if probabilities.dim() == 1:
        # As two classes, so that what follows need not tell the tasks apart.
        probabilities = torch.stack([1 - probabilities, probabilities], dim=1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != targets).nonzero().flatten()
    # Stable, so that two reports of one run show equal rows in the same order.
    order = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    return order, predicted[order], confidence[order]


def draw_image_mistakes(
    images: Tensor, probabilities: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """Draw the wrong images (N, C, H, W), the most confident first, with their files or rows; None if all are right."""
    rows, predicted, confidence = find_worst(probabilities, targets)
    if len(rows) == 0:
        return None

    rows_shown = rows[: samples.MOST_TILES]
    titles = []
    for row, number, p in zip(rows_shown.tolist(), predicted.tolist(), confidence.tolist(), strict=False):
        classes = f"{_get_class_name(spec, int(targets[row]))} → {_get_class_name(spec, number)}"
        titles.append(f"{classes}\n{100 * p:.1f} %\n{_shorten(origin.format_short_label(row))}")

    heading = _format_title(len(rows_shown), len(rows), split) + "\ntrue → predicted, probability"
    pixels = samples.convert_to_pixels(images[rows_shown], spec)
    return samples.draw_tiles(pixels, titles, _compute_tile_width(titles), heading)


def _shorten(label: str, most: int = 18) -> str:
    """Keep the end of a long file name, which tells it from its neighbours."""
    return label if len(label) <= most else f"…{label[1 - most :]}"


def _compute_tile_width(titles: Sequence[str]) -> float:
    """Return the inches that a tile needs for the longest line of all titles."""
    # All tiles are equally wide, so the longest title decides.
    longest = max(len(line) for line in "\n".join(titles).splitlines())
    return max(1.1, 0.075 * longest)


def draw_text_mistakes(
    inputs: tuple[Tensor, ...], probabilities: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """Draw a table of the wrong texts (codes (N, T), lengths (N,)), the most confident first; None if all are right."""
    rows, predicted, confidence = find_worst(probabilities, targets)
    if len(rows) == 0:
        return None

    cells = []
    rows_shown = rows[:_MOST_LINES].tolist()
    for row, number, p in zip(rows_shown, predicted.tolist(), confidence.tolist(), strict=False):
        words = _cut_text(decode_text(spec, inputs[0][row], int(inputs[1][row])))
        true = _get_class_name(spec, int(targets[row]))
        where = origin.format_short_label(row)
        cells.append((where, words, true, _get_class_name(spec, number), f"{p:.4f}"))
    headers = ("where", "text", "true", "predicted", "probability")
    return _draw_table(headers, cells, _format_title(len(cells), len(rows), split))


def draw_tagging_mistakes(
    inputs: tuple[Tensor, ...], predicted: Tensor, targets: Tensor, spec: DataSpec, split: str, origin: Origin
) -> "Figure | None":
    """Draw a table of the words (codes (N, T), lengths (N,)) with a wrong tag (tags (N, T)); None if all are right."""
    # Predictions on padding are neither right nor wrong.
    is_wrong = (predicted != targets) & (targets != PADDING)
    rows = is_wrong.any(1).nonzero().flatten()
    if len(rows) == 0:
        return None

    cells = []
    for row in rows[:_MOST_LINES].tolist():
        length = int(inputs[1][row])
        words = decode_text(spec, inputs[0][row], length)
        true_tags = format_tags(spec, targets[row, :length])
        predicted_tags = format_tags(spec, predicted[row, :length])
        cells.append((origin.format_short_label(row), words, true_tags, predicted_tags))
    headers = ("where", "text", "true", "predicted")
    return _draw_table(headers, cells, _format_title(len(cells), len(rows), split))


def decode_text(spec: DataSpec, codes: Tensor, length: int) -> str:
    """Return the text of codes (T,), without the padding."""
    separator = " " if spec.preprocessing.get("unit") == "words" else ""
    return separator.join(spec.vocabulary[code] for code in codes[:length].tolist())


def _cut_text(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def format_tags(spec: DataSpec, numbers: Tensor) -> str:
    """Format tags (T,) by name: letters as a word, longer names with spaces between them."""
    names = [_get_class_name(spec, number) for number in numbers.tolist() if number != PADDING]
    # Letters make a word, which is read more easily without spaces.
    separator = "" if all(len(name) == 1 for name in names) else " "
    return separator.join(names)


def _get_class_name(spec: DataSpec, number: int) -> str:
    return spec.class_names[number] if spec.class_names else str(number)


def _format_title(shown_count: int, error_count: int, split: str) -> str:
    if error_count == 1:
        return f"The only mistake on {split}"
    if shown_count < error_count:
        return f"The {shown_count} surest of {error_count:,} mistakes on {split}"
    return f"All {error_count} mistakes on {split}"


def _draw_table(headers: Sequence[str], cells: Sequence[Sequence[str]], title: str) -> "Figure":
    """Draw text in columns, each as wide as its longest cell."""
    from matplotlib.transforms import Bbox

    columns = zip(headers, *cells, strict=True)
    widths = [max(map(len, column)) + 3 for column in columns]
    figure, axes = canvas.create_axes(max(3.6, 0.085 * sum(widths)), 0.22 * (len(cells) + 1) + 0.5)
    axes.axis("off")

    texts = [list(map(canvas.escape_label, row)) for row in cells]
    shares = [width / sum(widths) for width in widths]
    table = axes.table(
        texts, colLabels=list(headers), colWidths=shares, cellLoc="left", colLoc="left", bbox=Bbox.unit()
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, _), cell in table.get_celld().items():
        cell.set_edgecolor("lightgray")
        cell.set_facecolor("whitesmoke" if line == 0 else "white")

    axes.set_title(title, fontsize=10)
    return figure
