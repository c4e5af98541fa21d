"""From words that name inputs to answers, in order, batch by batch: memory holds one batch of any number of inputs."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from dlrun.core import user_code
from dlrun.core.errors import DataError, RequestError
from dlrun.data.targets import CSV_TARGET, PICTURE_TARGETS, SERIES_TARGET, TEXT_TARGET
from dlrun.data.tokens import is_text
from dlrun.data.windows import is_series
from dlrun.engine.objective import Objective
from dlrun.inference.predict import forward
from dlrun.inference.predict.answer import (
    Answer,
    answer_outputs,
    join_tags,
    rank_classes,
    rate_labels,
    undo_normalization,
)
from dlrun.inference.predict.read_columns import ColumnsReader
from dlrun.inference.predict.read_document import DocumentReader
from dlrun.inference.predict.read_image import ImageReader
from dlrun.inference.predict.read_series import SeriesReader, list_steps
from dlrun.inference.predict.read_table import TableReader
from dlrun.inference.predict.read_text import TextReader
from dlrun.inference.predict.reader import Item, Prepared, Reader
from dlrun.inference.saved_model import SavedModel

_DECODER_THREADS = 4
# A row, or what is wrong with it.
_Row = Prepared | str
# Fields of an Answer, or why the model does not take the row.
_Prediction = dict[str, Any] | str


def predict_inputs(saved_model: SavedModel, inputs: Iterable[str], top: int = 1) -> Iterator[Answer]:
    """Yield an answer for each input that the words name, in their order; with the `top` most likely classes.

    inputs: files, folders, texts, rows, or "-", as the reader's `accepted_inputs` says. An input that cannot be read or
    that the model does not take gets an answer with an error; the others are unaffected.
    """
    reader = make_reader(saved_model)
    prepare = _wrap_prepare(reader)
    batch_size = forward.choose_batch_size(saved_model)
    # A generator: files are opened as their rows are needed.
    items = _read_items(reader, inputs)
    with ThreadPoolExecutor(_DECODER_THREADS) as pool:
        # Pillow decodes outside the interpreter lock, so threads help; the other readers only compute.
        map_rows = pool.map if isinstance(reader, ImageReader) else map
        while batch := list(islice(items, batch_size)):
            rows = list(map_rows(prepare, batch))
            yield from _answer_batch(saved_model, reader, batch, rows, top)


def make_reader(saved_model: SavedModel) -> Reader:
    """Return the reader of inputs for the model's kind of data."""
    spec = saved_model.spec
    data = saved_model.settings.data
    if spec.kind == "image":
        # Of the user's own pictures training took the centre.
        is_folder = data.target in PICTURE_TARGETS
        background = str(data.arguments.get("background", "white")) if is_folder else None
        return ImageReader(spec, _find_framing(saved_model), is_folder, background)

    if is_text(spec.preprocessing):
        arguments = data.arguments if data.target == TEXT_TARGET else {}
        return DocumentReader(spec, arguments.get("separator"), arguments.get("encoding"))
    if is_series(spec):
        arguments = data.arguments if data.target == SERIES_TARGET else {}
        return SeriesReader(spec, arguments.get("separator"), arguments.get("encoding"))
    if spec.kind == "tokens":
        return TextReader(spec)
    if spec.preprocessing:
        typed = data.arguments.get("separator") or data.arguments.get("delimiter")
        return ColumnsReader(spec, None if typed is None else str(typed), data.arguments.get("decimal"))
    if data.target != CSV_TARGET:
        return TableReader(spec, None)
    # The last column is the target by default, as in the csv data set.
    return TableReader(spec, data.arguments.get("target", -1), str(data.arguments.get("delimiter", ",")))


def _find_framing(saved_model: SavedModel) -> tuple[float, ...]:
    """Return how figures are framed in the training images; empty if they hold none or that is not known."""
    if "framing" in saved_model.state.get("spec", {}):
        return saved_model.spec.framing

    # Older checkpoints and full models do not record it.
    try:
        return saved_model.raw_splits.spec.framing
    except DataError:
        return ()


def _read_items(reader: Reader, words: Iterable[str]) -> Iterator[Item]:
    for word in words:
        try:
            yield from reader.read_items(word)
        except DataError as error:
            yield Item(word, None, error=str(error))


def _wrap_prepare(reader: Reader) -> Callable[[Item], _Row]:
    """Wrap the reader's `prepare` to return errors: an exception of one row would cost the whole batch."""

    def prepare(item: Item) -> _Row:
        if item.error:
            return item.error
        try:
            return reader.prepare(item)
        except RequestError as error:
            return str(error)

    return prepare


def _answer_batch(
    saved_model: SavedModel, reader: Reader, items: list[Item], rows: list[_Row], top: int
) -> Iterator[Answer]:
    """Yield an answer for each item of a batch, in order."""
    readable_rows = [row for row in rows if isinstance(row, Prepared)]
    # Rows that could not be read are left out of the batch, and their answers put back in place.
    predictions = iter(_predict_rows(saved_model, reader, readable_rows, top))
    for item, row in zip(items, rows, strict=True):
        if isinstance(row, str):
            yield Answer(item.name, label=item.label, error=row, where=item.where)
            continue

        prediction = next(predictions)
        fields: dict[str, Any] = {"error": prediction} if isinstance(prediction, str) else prediction
        answer = Answer(item.name, label=item.label, note=row.note, where=item.where, **fields)
        # A forecast answers for several times.
        yield from list_steps(item, answer)


def _predict_rows(saved_model: SavedModel, reader: Reader, rows: list[Prepared], top: int) -> list[_Prediction]:
    """Predict the rows together; if the model fails, one by one, to find those that it does not take."""
    if not rows:
        return []
    inputs = reader.collate(rows)
    try:
        outputs = forward.compute_outputs(saved_model, inputs)
        return [*_interpret_outputs(saved_model, inputs, outputs, top)]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        # The model may be the user's own, and a row unlike those of training.
        if len(rows) == 1:
            lines = [line for line in str(error).splitlines() if line.strip()]
            message = f"the model does not take it: {lines[0] if lines else type(error).__name__}"
            return [user_code.add_user_line(message, error)]

        predictions: list[_Prediction] = []
        for row in rows:
            predictions += _predict_rows(saved_model, reader, [row], top)
        return predictions


def _interpret_outputs(
    saved_model: SavedModel, inputs: tuple[Tensor, ...], outputs: Tensor, top: int
) -> list[dict[str, Any]]:
    """Return the fields of an Answer that each row of outputs stands for: values or choices."""
    objective = saved_model.objective
    if objective.spec.reconstructs:
        return _describe_reconstructions(objective, inputs[0], outputs)
    if objective.spec.task == "regression":
        # A model with one output may return (N,) or (N, 1).
        table = objective.predict(outputs).numpy().reshape(len(outputs), -1)
        return [{"values": tuple(map(_to_shortest_float, row))} for row in table]

    if objective.spec.outputs:
        return [{"outputs": row} for row in answer_outputs(objective, outputs)]
    if objective.spec.task == "multilabel":
        return [{"labels": row} for row in rate_labels(objective, outputs, saved_model.class_names)]
    if objective.spec.task == "tagging":
        choices = join_tags(objective, outputs, inputs[1], saved_model.class_names)
    else:
        choices = rank_classes(objective, outputs, saved_model.class_names, top)
    return [{"choices": row} for row in choices]


def _describe_reconstructions(objective: Objective, inputs: Tensor, outputs: Tensor) -> list[dict[str, Any]]:
    values = objective.predict(outputs)
    errors = (values.double() - inputs.flatten(1).double()).square().mean(1).tolist()
    rows = undo_normalization(values, objective.spec).float().numpy()
    return [
        {"values": tuple(map(_to_shortest_float, row)), "reconstruction_error": error}
        for row, error in zip(rows, errors, strict=True)
    ]


def _to_shortest_float(value: np.floating[Any]) -> float:
    """Return the float of the shortest decimal number that equals the value in the precision of the model."""
    return float(str(value))
