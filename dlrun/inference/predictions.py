"""Predictions of a saved model for tensors, arrays and lists: inputs checked against its spec, classes by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line
from dlrun.data import names
from dlrun.data.spec import DataSpec
from dlrun.data.tokens import Tokenizer, is_text
from dlrun.inference import notebook
from dlrun.inference.predict.answer import answer_outputs, join_labels, join_outputs, rate_labels
from dlrun.inference.predict.forward import compute_outputs, refuse_several_inputs
from dlrun.inference.saved_model import SavedModel
from dlrun.runs.reports.plots.errors import format_tags

# Rows that are shown of many.
_MOST_SHOWN = 10


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predictions of a model, a row for each input, on the CPU.

    values: float (N, outputs) for regression; 0 and 1 int64 (N, labels) for multilabel; those of all
        outputs side by side for multitask, float (N, columns); class numbers int64 (N,),
        (N, length) for tagging, otherwise.
    probabilities: float (N, classes), (N, length, classes) for tagging, each row summing to 1; (N, labels) for
        multilabel, each its own; None for regression.
    labels: names of the classes, the tags of a sequence joined, the labels of a row joined; empty for regression.
    """

    values: Tensor
    probabilities: Tensor | None
    labels: list[str]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        rows_shown = self._format_rows()[:_MOST_SHOWN]
        gap = [] if len(self) <= _MOST_SHOWN else [f"... {len(self) - _MOST_SHOWN} more"]
        noun = "prediction" if len(self) == 1 else "predictions"
        return escape_line(f"<{len(self)} {noun}: {', '.join([*rows_shown, *gap])}>")

    def _repr_html_(self) -> str:
        """What a notebook shows: a row for each input, up to a few."""
        best = self._get_best_probabilities()
        table = notebook.render_predictions(self._format_answers(_MOST_SHOWN), best and best[:_MOST_SHOWN])
        more = len(self) - _MOST_SHOWN
        return table if more <= 0 else f"{table}<p>{more} more rows</p>\n"

    def _format_rows(self) -> list[str]:
        """The first answers, with their probability where they have one."""
        answers = self._format_answers(_MOST_SHOWN)
        best = self._get_best_probabilities()
        if best is None:
            return answers
        return [f"{answer} ({p:.2f})" for answer, p in zip(answers, best, strict=False)]

    def _format_answers(self, count: int) -> list[str]:
        """The first labels, or the first values of a regression."""
        if self.labels:
            return self.labels[:count]
        return [" ".join(f"{value:.4g}" for value in row) for row in self.values[:count].flatten(1).tolist()]

    def _get_best_probabilities(self) -> list[float] | None:
        """Probability of each answer; None for values, for several labels and for sequences of tags."""
        if self.probabilities is None or self.values.dim() != 1:
            return None
        return [float(p) for p in self.probabilities.amax(1)]


def predict_rows(saved_model: SavedModel, x: Any) -> Predictions:
    """Predict rows in the form that the model was trained on, or one such row, as api.Run.predict describes."""
    # Otherwise the forward pass would fail with a TypeError about missing arguments.
    refuse_several_inputs(saved_model)
    spec = saved_model.spec
    objective = saved_model.objective
    inputs = _prepare_inputs(x, spec)
    outputs = compute_outputs(saved_model, inputs)
    values = objective.predict(outputs)
    if spec.task == "regression":
        return Predictions(values, None, [])

    probabilities = objective.compute_probabilities(outputs)
    if spec.outputs:
        return Predictions(values, None, [join_outputs(row) for row in answer_outputs(objective, outputs)])
    if spec.task == "multilabel":
        rows = rate_labels(objective, outputs, saved_model.class_names)
        return Predictions(values, probabilities, [join_labels(row) for row in rows])
    if spec.task == "binary":
        probabilities = torch.stack((1 - probabilities, probabilities), -1)

    # A label joins the tags of a sequence up to its length; a class counts as one tag.
    lengths = inputs[1].tolist() if spec.task == "tagging" else [1] * len(values)
    labels = [format_tags(spec, row.reshape(-1)[:length]) for row, length in zip(values, lengths, strict=True)]
    return Predictions(values, probabilities, labels)


def _prepare_inputs(x: Any, spec: DataSpec) -> tuple[Tensor, ...]:
    """Convert user input to the tensors that the model is called with, on the CPU, rows along the first dimension.

    RequestError for other shapes and types.
    """
    if spec.kind == "tokens":
        return _prepare_sequences(x, spec)

    rows = _to_tensor(x)
    if rows.shape == spec.input_shape:
        # A single row, as it comes out of a dataset.
        rows = rows.unsqueeze(0)
    if rows.shape[1:] != spec.input_shape or not len(rows):
        row_shape = ", ".join(map(str, spec.input_shape))
        raise RequestError(
            f"the input is of shape {_format_shape(rows.shape)}; the model takes (rows, {row_shape}), or one row"
        )

    # Pixels from 0 to 255 would pass every check above and give nonsense.
    if spec.kind == "image" and not rows.is_floating_point():
        raise RequestError(
            "the images hold whole numbers, and the model takes floats: x / 255, minus spec.mean, divided by spec.std; "
            "dlrun predict reads picture files"
        )
    return (rows if rows.is_floating_point() else rows.float(),)


def _prepare_sequences(x: Any, spec: DataSpec) -> tuple[Tensor, ...]:
    """Return codes (N, length) and lengths (N,); names as text are encoded if the model has their vocabulary."""
    texts = [x] if isinstance(x, str) else x
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        if is_text(spec.preprocessing):
            return Tokenizer.from_plain(spec.preprocessing, spec.vocabulary).encode_all(texts)
        if spec.vocabulary != names.VOCABULARY:
            raise RequestError("this model has a vocabulary of its own (spec.vocabulary); give (codes, lengths)")
        return names.encode(list(texts), spec.input_shape[0])

    if not isinstance(x, list | tuple) or len(x) != 2:
        raise RequestError(
            "the model takes sequences: give (codes, lengths), int64 of shapes (rows, length) and (rows,)"
        )
    codes = _to_tensor(x[0]).long()
    lengths = _to_tensor(x[1]).long()
    if codes.dim() == 1:
        # A single sequence, with its length as a number.
        codes = codes.unsqueeze(0)
        lengths = lengths.reshape(1)
    if codes.dim() != 2 or lengths.shape != codes.shape[:1] or not len(codes):
        raise RequestError(
            f"codes of shape {_format_shape(codes.shape)} and lengths of {_format_shape(lengths.shape)} "
            "do not belong together"
        )

    # Without a vocabulary any code is taken: only the model's embedding knows its size.
    last = len(spec.vocabulary) - 1 if spec.vocabulary else int(codes.max())
    if lengths.min() < 1 or lengths.max() > codes.shape[1] or codes.min() < 0 or codes.max() > last:
        raise RequestError(f"lengths must be 1 to {codes.shape[1]}, and codes 0 to {last}")
    return codes, lengths


def _to_tensor(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        # Detached, as a tensor may come out of a computation that requires gradients.
        return x.detach().cpu()
    try:
        return torch.from_numpy(np.array(x))
    except (TypeError, ValueError) as error:
        raise RequestError(f"the input is no tensor, array or nested list of numbers: {error}") from error


def _format_shape(shape: Sequence[int]) -> str:
    return str(tuple(shape))
