"""The rows that an export is checked on, and the few that go with it as an example of raw input."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dlrun.core.csv_text import CsvWriter
from dlrun.core.errors import DataError
from dlrun.data.batches import Batches, EpochOrder, MemoryBatches, Placement
from dlrun.data.files.pixels import normalize_
from dlrun.data.spec import DataSpec, Split
from dlrun.inference.saved_model import SavedModel

_MADE_UP = 64  # rows, where the data are not here
_SHOWN = 3  # rows of an example that is text


@dataclass(frozen=True)
class Example:
    """Raw input as a user has it, and what the model takes when the loader has prepared it."""

    kind: str  # picture, table, text, array, arrays: how a loader reads the file
    file: str
    content: bytes
    inputs: tuple[Tensor, ...]


def choose_rows(saved: SavedModel) -> tuple[str, Batches]:
    """What they are called, and the batches: the held-out part, or made-up rows where the data are not here."""
    asked = any(word.lstrip("+").startswith("data") for word in saved.request.overrides)
    try:
        name, batches, _ = saved.load_held_out()
    except DataError:
        if asked or not saved.state:  # a full model is described by its data alone
            raise
        return "made-up rows, as the data are not here", draw_random_rows(saved.spec)
    return f"rows of {name}", batches


def draw_random_rows(spec: DataSpec) -> Batches:
    """Random rows of the shape that the model takes, always the same."""
    generator = torch.Generator().manual_seed(0)
    inputs: tuple[Tensor, ...]
    if spec.kind == "tokens":
        longest = spec.input_shape[0]
        letters = torch.tensor([code for code, letter in enumerate(spec.vocabulary) if letter])
        lengths = torch.randint(1, longest + 1, (_MADE_UP,), generator=generator)
        codes = letters[torch.randint(len(letters), (_MADE_UP, longest), generator=generator)]
        inputs = (codes * (torch.arange(longest) < lengths[:, None]), lengths)
    elif spec.kind == "image":
        x = torch.rand(_MADE_UP, *spec.input_shape, generator=generator)
        inputs = (normalize_(x, spec.mean, spec.std) if spec.mean else x,)
    else:
        inputs = (torch.randn(_MADE_UP, *spec.input_shape, generator=generator),)
    place = Placement(torch.device("cpu"), torch.float32, spec)
    return MemoryBatches(Split(inputs, torch.zeros(_MADE_UP)), EpochOrder(_MADE_UP, _MADE_UP), place)


def make_example(spec: DataSpec, pictures: bool, inputs: Sequence[Tensor]) -> Example:
    """The first rows of a batch turned back into raw input.

    pictures: whether images were pixels from 0 to 255 before (x / 255 - mean) / std.
    """
    if len(inputs) > (2 if spec.kind == "tokens" else 1):
        return _arrays([x[:_SHOWN] for x in inputs])
    if spec.kind == "tokens":
        return _text(spec, inputs[0][:_SHOWN], inputs[1][:_SHOWN])
    if spec.kind == "vector" and inputs[0].dim() == 2:
        return _table(spec, inputs[0][:_SHOWN])
    if pictures and spec.kind == "image" and spec.input_shape[0] in (1, 3):
        return _picture(spec, inputs[0][:1])
    file = io.BytesIO()
    np.save(file, inputs[0][:_SHOWN].contiguous().numpy())
    return Example("array", "example.npy", file.getvalue(), (inputs[0][:_SHOWN],))


def _arrays(inputs: Sequence[Tensor]) -> Example:
    """Several inputs, as a net of the user's own takes them."""
    file = io.BytesIO()
    np.savez(file, *(x.contiguous().numpy() for x in inputs))
    return Example("arrays", "example.npz", file.getvalue(), tuple(inputs))


def _text(spec: DataSpec, codes: Tensor, lengths: Tensor) -> Example:
    between = " " if has_words(spec) else ""
    rows = [row[:length] for row, length in zip(codes.tolist(), lengths.tolist(), strict=True)]
    lines = [between.join(spec.vocabulary[code] for code in row) for row in rows]
    return Example("text", "example.txt", "".join(f"{line}\n" for line in lines).encode(), (codes, lengths))


def has_words(spec: DataSpec) -> bool:
    """Whether a code stands for more than one letter, so that a space is between them in a text."""
    return any(len(entry) > 1 for entry in spec.vocabulary)


def _table(spec: DataSpec, x: Tensor) -> Example:
    mean, std = torch.tensor(spec.mean or (0.0,)).double(), torch.tensor(spec.std or (1.0,)).double()
    raw = x.double() * std + mean
    digits = (6 - (mean.abs() + std).log10()).floor().int().expand(x.shape[1]).tolist()  # 32 bits hold no more
    cells = [[f"{round(value, n):.7g}" for value, n in zip(row, digits, strict=True)] for row in raw.tolist()]
    file = io.StringIO()
    writer = CsvWriter(file)
    writer.write_row(spec.feature_names or [f"column_{i}" for i in range(x.shape[1])])
    writer.write_rows(cells)
    read = torch.tensor([[float(cell) for cell in row] for row in cells], dtype=torch.float64)
    return Example("table", "example.csv", file.getvalue().encode(), (((read - mean) / std).to(x.dtype),))


def _picture(spec: DataSpec, x: Tensor) -> Example:
    from PIL import Image

    shape = (-1, 1, 1)
    mean = x.new_tensor(spec.mean or (0.0,)).view(shape)
    std = x.new_tensor(spec.std or (1.0,)).view(shape)
    pixels = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)[0]
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().numpy())
    file = io.BytesIO()
    image.save(file, "PNG")
    return Example("picture", "example.png", file.getvalue(), ((pixels.to(x.dtype).div(255) - mean).div(std)[None],))
