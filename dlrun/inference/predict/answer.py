"""The prediction for one input."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.data.spec import DataSpec
from dlrun.engine.objective import Objective

# A class, or a sequence of tags, and its probability.
Choice = tuple[str, float]


# Of one of several outputs: its name, its class or values, and the probability of a class.
NamedAnswer = tuple[str, str | tuple[float, ...], float | None]


@dataclass(frozen=True)
class Answer:
    """A prediction, or the reason why there is none.

    choices: classes with their probabilities, most likely first; for tagging one choice, the sequence of tags with
    the product of their probabilities. values: for regression, one per target column; an autoencoder's are in the
    data's own units, and its reconstruction_error is the mean squared error of what the model sees. labels: for
    multilabel, each label with its probability, in the order of the data. outputs: for multitask, an answer each.
    All of them are empty on error.
    """

    input: str
    choices: tuple[Choice, ...] = ()
    values: tuple[float, ...] = ()
    outputs: tuple[NamedAnswer, ...] = ()
    reconstruction_error: float | None = None
    labels: tuple[Choice, ...] = ()
    # The true value, if the input contains it.
    label: str | None = None
    # How the input was changed.
    note: str = ""
    error: str = ""
    # File and line of an input that is displayed as its text.
    where: str = ""


def rank_classes(objective: Objective, outputs: Tensor, names: Sequence[str], top: int) -> list[tuple[Choice, ...]]:
    """Return the `top` most likely classes of each row of outputs (N, ...)."""
    probabilities = objective.compute_probabilities(outputs.float())
    if objective.spec.task == "binary":
        probabilities = torch.stack([1 - probabilities, probabilities], dim=1)

    # Stable: of equally likely classes the first comes first, on any device.
    values, indices = probabilities.sort(dim=1, descending=True, stable=True)
    choices: list[tuple[Choice, ...]] = []
    for classes, likelihoods in zip(indices[:, :top].tolist(), values[:, :top].tolist(), strict=True):
        row_names = [names[index] for index in classes]
        choices.append(tuple(zip(row_names, likelihoods, strict=True)))
    return choices


def undo_normalization(values: Tensor, spec: DataSpec) -> Tensor:
    """Values (N, input values) of a model in the units of its data, float64."""
    rows = values.double().reshape(-1, *spec.input_shape)
    if spec.mean:
        # One constant a feature (F,) or channel (C, 1, 1).
        shape = (-1, *[1] * (len(spec.input_shape) - 1))
        rows = rows * torch.tensor(spec.std).double().view(shape) + torch.tensor(spec.mean).double().view(shape)
    return rows.flatten(1)


def join_labels(labels: Sequence[Choice]) -> str:
    """Join the labels that are more likely than not; empty if there is none."""
    return ", ".join(name for name, probability in labels if probability > 0.5)


def rate_labels(objective: Objective, outputs: Tensor, names: Sequence[str]) -> list[tuple[Choice, ...]]:
    """Return every label with its probability, for each row of outputs (N, labels)."""
    rows = objective.compute_probabilities(outputs.float()).tolist()
    return [tuple(zip(names, probabilities, strict=True)) for probabilities in rows]


def answer_outputs(objective: Objective, outputs: Tensor) -> list[tuple[NamedAnswer, ...]]:
    """Return the answers of a net of several outputs, for each row of outputs (N, outputs)."""
    outputs = outputs.float()
    rows = zip(objective.predict(outputs).tolist(), objective.compute_probabilities(outputs).tolist(), strict=True)
    answers = []
    for values, probabilities in rows:
        row: list[NamedAnswer] = []
        start = 0
        for output, probability in zip(objective.spec.outputs, probabilities, strict=True):
            end = start + output.columns
            if output.task == "regression":
                row.append((output.name, tuple(values[start:end]), None))
            else:
                row.append((output.name, output.name_class(int(values[start])), probability))
            start = end
        answers.append(tuple(row))
    return answers


def join_outputs(outputs: Sequence[NamedAnswer]) -> str:
    """Join the answers of several outputs to one text: digit 3 (0.93), angle 0.12."""
    texts = []
    for name, answer, probability in outputs:
        if isinstance(answer, str):
            texts.append(f"{name} {answer}" + ("" if probability is None else f" ({probability:.4f})"))
        else:
            texts.append(f"{name} " + " ".join(f"{value:.4g}" for value in answer))
    return ", ".join(texts)


def join_tags(objective: Objective, outputs: Tensor, lengths: Tensor, names: Sequence[str]) -> list[tuple[Choice, ...]]:
    """Return the tags of each row of outputs (N, length, tags): letters joined to a word, longer names by spaces."""
    probabilities, tags = objective.compute_probabilities(outputs.float()).max(-1)
    has_letters_only = all(len(name) == 1 for name in names)
    separator = "" if has_letters_only else " "

    sequences: list[tuple[Choice, ...]] = []
    for row_tags, row_probabilities, length in zip(tags, probabilities, lengths.tolist(), strict=True):
        sequence = separator.join(names[tag] for tag in row_tags[:length].tolist())
        # Tags count as independent of each other.
        probability = float(row_probabilities[:length].prod())
        sequences.append(((sequence, probability),))
    return sequences
