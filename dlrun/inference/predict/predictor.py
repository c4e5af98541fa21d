"""From words that name inputs to answers, in batches and in order: however many there are, a batch is in memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from dlrun.core import user_code
from dlrun.core.errors import DataError, RequestError
from dlrun.inference.predict import forward
from dlrun.inference.predict.answer import Answer, Choice, join_tags, rank_classes
from dlrun.inference.predict.read_image import ImageReader
from dlrun.inference.predict.read_table import TableReader
from dlrun.inference.predict.read_text import TextReader
from dlrun.inference.predict.reader import Item, Prepared, Reader
from dlrun.inference.saved_model import SavedModel

_DECODERS = 4  # pictures that are open at a time
_Look = Callable[[Item], Prepared | str]  # a row, or what is wrong with it


def predict_inputs(saved: SavedModel, inputs: Iterable[str], top: int = 1) -> Iterator[Answer]:
    """An answer to every input that the words name, in their order; of classes the `top` likeliest.

    inputs: files, folders, texts, rows, or "-": what `reader_of(saved).takes` says. What cannot be read, and what the
    model cannot take, has an answer with an error; the others are answered.
    """
    reader = make_reader(saved)
    items = _items(reader, inputs)
    with ThreadPoolExecutor(_DECODERS) as pool:
        each = pool.map if isinstance(reader, ImageReader) else map  # Pillow decodes outside the interpreter lock
        while chunk := list(islice(items, forward.choose_batch_size(saved))):
            looked: Iterable[Prepared | str] = each(_looking(reader), chunk)
            yield from _answered(saved, reader, list(zip(chunk, looked, strict=True)), top)


def make_reader(saved: SavedModel) -> Reader:
    """What reads inputs for a model."""
    spec, data = saved.spec, saved.settings.data
    if spec.kind == "image":
        return ImageReader(spec, find_framing(saved), crops=data.target == "dlrun.data.folders.image_folder")
    if spec.kind == "tokens":
        return TextReader(spec)
    if data.target != "dlrun.data.tabular.csv":
        return TableReader(spec, None)
    return TableReader(spec, data.arguments.get("target", -1), str(data.arguments.get("delimiter", ",")))


def find_framing(saved: SavedModel) -> tuple[float, ...]:
    """How figures lay in the training images; where an older checkpoint does not say it, as its data do."""
    if "framing" in saved.state.get("spec", {}):
        return saved.spec.framing
    try:
        return saved.raw_splits.spec.framing
    except DataError:
        return ()


def _items(reader: Reader, words: Iterable[str]) -> Iterator[Item]:
    for word in words:
        try:
            yield from reader.read_items(word)
        except DataError as error:
            yield Item(word, None, error=str(error))


def _looking(reader: Reader) -> _Look:
    def look(item: Item) -> Prepared | str:
        if item.error:
            return item.error
        try:
            return reader.prepare(item)
        except RequestError as error:
            return str(error)

    return look


def _answered(
    saved: SavedModel, reader: Reader, looked: list[tuple[Item, Prepared | str]], top: int
) -> Iterator[Answer]:
    """The answers of one batch."""
    rows = [prepared for _, prepared in looked if isinstance(prepared, Prepared)]
    found = iter(_asked(saved, reader, rows, top))
    for item, prepared in looked:
        if isinstance(prepared, str):
            yield Answer(item.name, label=item.label, error=prepared, where=item.where)
            continue
        said = next(found)
        about: dict[str, Any] = {"error": said} if isinstance(said, str) else said
        yield Answer(item.name, label=item.label, note=prepared.note, where=item.where, **about)


def _asked(saved: SavedModel, reader: Reader, rows: list[Prepared], top: int) -> list[dict[str, Any] | str]:
    """Choices or values of each row, or why the model does not take it: then each is asked alone."""
    if not rows:
        return []
    inputs = reader.collate(rows)
    try:
        return [*_read_off(saved, inputs, forward.compute_outputs(saved, inputs), top)]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:  # a model of the user's, an unusual row
        if len(rows) == 1:
            lines = [line for line in str(error).splitlines() if line.strip()]
            message = f"the model does not take it: {lines[0] if lines else type(error).__name__}"
            return [user_code.with_place(message, error)]
        return [said for row in rows for said in _asked(saved, reader, [row], top)]


def _read_off(saved: SavedModel, inputs: tuple[Tensor, ...], outputs: Tensor, top: int) -> list[dict[str, Any]]:
    """What the outputs of a batch mean."""
    task, names = saved.task, saved.class_names
    if task.spec.task == "regression":
        return [
            {"values": tuple(_shortest(value) for value in row)} for row in outputs.numpy().reshape(len(outputs), -1)
        ]
    found: list[tuple[Choice, ...]]
    if task.spec.task == "tagging":
        found = join_tags(task, outputs, inputs[1], names)
    else:
        found = rank_classes(task, outputs, names, top)
    return [{"choices": said} for said in found]


def _shortest(value: np.floating[Any]) -> float:
    """The shortest decimal number that is the same in the precision of the model."""
    return float(str(value))
