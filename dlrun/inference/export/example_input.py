"""Rows to check an export with, and a few of them turned back into raw input, as an example."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlrun.core.csv_text import CsvWriter
from dlrun.core.errors import DataError
from dlrun.data.batches import Batches, EpochOrder, MemoryBatches, Placement
from dlrun.data.columns.preprocessing import Preprocessing, encode_rows
from dlrun.data.files.pixels import normalize_
from dlrun.data.spec import DataSpec, Split
from dlrun.data.tokens import is_text
from dlrun.data.windows import is_series
from dlrun.inference.saved_model import SavedModel

# Rows to check with where the data are not at hand.
_RANDOM_ROWS = 64
_EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Example:
    """Raw input as a user has it, and the tensors that a loader makes of it."""

    # picture, table, columns, series, text, document, array or arrays: how a loader reads the file.
    kind: str
    file: str
    content: bytes
    inputs: tuple[Tensor, ...]


def choose_rows(saved_model: SavedModel) -> tuple[str, Batches]:
    """Return a name for messages and batches: the held-out part, or random rows if the data are not here."""
    try:
        name, batches, _ = saved_model.load_held_out()
    except DataError:
        # Data that the command line names must be there, and only the data describe a full model.
        if saved_model.is_data_named or not saved_model.state:
            raise
        return "random rows, as the data are not here", _draw_random_rows(saved_model.spec)
    return f"rows of {name}", batches


def _draw_random_rows(spec: DataSpec) -> Batches:
    """Draw random rows in the shape that the model takes, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    inputs: tuple[Tensor, ...]
    if spec.kind == "tokens":
        longest = spec.input_shape[0]
        # Only codes that stand for something: 0 is padding.
        letters = torch.tensor([code for code, letter in enumerate(spec.vocabulary) if letter])
        lengths = torch.randint(1, longest + 1, (_RANDOM_ROWS,), generator=generator)
        codes = letters[torch.randint(len(letters), (_RANDOM_ROWS, longest), generator=generator)]
        # Codes behind the end of a text are padding, 0.
        is_inside = torch.arange(longest) < lengths[:, None]
        inputs = (codes * is_inside, lengths)
    elif spec.kind == "image":
        x = torch.rand(_RANDOM_ROWS, *spec.input_shape, generator=generator)
        if spec.mean:
            x = normalize_(x, spec.mean, spec.std)
        inputs = (x,)
    else:
        inputs = (torch.randn(_RANDOM_ROWS, *spec.input_shape, generator=generator),)

    placement = Placement(torch.device("cpu"), torch.float32, spec)
    order = EpochOrder(_RANDOM_ROWS, _RANDOM_ROWS)
    return MemoryBatches(Split(inputs, torch.zeros(_RANDOM_ROWS)), order, placement)


def make_example(spec: DataSpec, has_byte_pixels: bool, inputs: Sequence[Tensor]) -> Example:
    """Turn the first rows of a batch back into raw input.

    has_byte_pixels: whether images were pixels from 0 to 255 before (x / 255 - mean) / std.
    """
    # More inputs than the kind of data has: a user's model.
    if len(inputs) > (2 if spec.kind == "tokens" else 1):
        return _make_arrays([x[:_EXAMPLE_ROWS] for x in inputs])

    x = inputs[0][:_EXAMPLE_ROWS]
    if spec.kind == "tokens":
        return _make_text(spec, x, inputs[1][:_EXAMPLE_ROWS])
    if is_series(spec):
        return _make_series(spec, x[:1])
    if spec.preprocessing:
        return _make_columns(spec, x)
    if spec.kind == "vector" and x.dim() == 2:
        return _make_table(spec, x)
    if has_byte_pixels and spec.kind == "image" and spec.input_shape[0] in (1, 3):
        return _make_picture(spec, x[:1])

    file = io.BytesIO()
    np.save(file, x.contiguous().numpy())
    return Example("array", "example.npy", file.getvalue(), (x,))


def _make_arrays(inputs: Sequence[Tensor]) -> Example:
    """Save the several inputs of a user's model."""
    file = io.BytesIO()
    np.savez(file, *(x.contiguous().numpy() for x in inputs))
    return Example("arrays", "example.npz", file.getvalue(), tuple(inputs))


def _make_text(spec: DataSpec, codes: Tensor, lengths: Tensor) -> Example:
    separator = " " if has_words(spec) else ""
    text = ""
    kind = "document" if is_text(spec.preprocessing) else "text"
    for row, length in zip(codes.tolist(), lengths.tolist(), strict=True):
        text += separator.join(spec.vocabulary[code] for code in row[:length]) + "\n"
    return Example(kind, "example.txt", text.encode(), (codes, lengths))


def has_words(spec: DataSpec) -> bool:
    """Whether codes stand for words, which a text separates by spaces, and not for letters."""
    if is_text(spec.preprocessing):
        return bool(spec.preprocessing["unit"] == "words")
    return any(len(entry) > 1 for entry in spec.vocabulary)


def _make_table(spec: DataSpec, x: Tensor) -> Example:
    mean = torch.tensor(spec.mean or (0.0,)).double()
    std = torch.tensor(spec.std or (1.0,)).double()
    raw = x.double() * std + mean

    # Decimals behind which float32 holds nothing, per column.
    decimals = (6 - (mean.abs() + std).log10()).floor().int().expand(x.shape[1]).tolist()
    rows = []
    for values in raw.tolist():
        rows.append([f"{round(value, digits):.7g}" for value, digits in zip(values, decimals, strict=True)])

    file = io.StringIO()
    writer = CsvWriter(file)
    writer.write_row(spec.feature_names or [f"column_{i}" for i in range(x.shape[1])])
    writer.write_rows(rows)

    # The inputs of the example are those of the rounded file.
    rounded_values = torch.tensor([list(map(float, row)) for row in rows], dtype=torch.float64)
    inputs = ((rounded_values - mean) / std).to(x.dtype)
    return Example("table", "example.csv", file.getvalue().encode(), (inputs,))


def _make_series(spec: DataSpec, x: Tensor) -> Example:
    """The rows of one window as a table."""
    example = _make_table(spec, x[0])
    return Example("series", example.file, example.content, (example.inputs[0][None],))


def _make_columns(spec: DataSpec, x: Tensor) -> Example:
    """Cells of which the preprocessing makes about these features."""
    columns = Preprocessing.from_plain(spec.preprocessing).columns
    cells = {}
    start = 0
    values = x.double().numpy()
    for column in columns:
        width = len(column.features)
        cells[column.name] = [column.decode(row) for row in values[:, start : start + width]]
        start += width

    file = io.StringIO()
    writer = CsvWriter(file)
    writer.write_row(cells)
    writer.write_rows(zip(*cells.values(), strict=True))
    # The inputs of the example are those of the rounded file.
    inputs = (torch.from_numpy(encode_rows(columns, cells)).to(x.dtype),)
    return Example("columns", "example.csv", file.getvalue().encode(), inputs)


def _make_picture(spec: DataSpec, x: Tensor) -> Example:
    from PIL import Image

    shape = (-1, 1, 1)
    mean = x.new_tensor(spec.mean or (0.0,)).view(shape)
    std = x.new_tensor(spec.std or (1.0,)).view(shape)
    # 8 bits per channel, as in the image files of the data set.
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().numpy())
    file = io.BytesIO()
    image.save(file, "PNG")

    inputs = (pixels.to(x.dtype).div(255) - mean).div(std)[None]
    return Example("picture", "example.png", file.getvalue(), (inputs,))
