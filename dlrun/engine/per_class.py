"""Precision, recall and F1 of each class."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.core.csv_text import CsvWriter

COLUMNS = ("class", "precision", "recall", "f1", "support", "predicted")


@dataclass(frozen=True)
class PerClass:
    """Counts by class, or by label of a multilabel task, int64 (classes,).

    hits: right predictions. support: rows that are of the class. predicted: predictions of it.
    confusion: int64 (classes, classes), rows are the true classes and columns the predicted ones; None for labels, of
    which a row may have several.
    """

    names: tuple[str, ...]
    hits: Tensor
    support: Tensor
    predicted: Tensor
    confusion: Tensor | None = None

    def compute_rows(self) -> list[tuple[str, float | None, float | None, float | None, int, int]]:
        """A row of COLUMNS for each class; None for 0 / 0: no row of the class, or none predicted."""
        rows = []
        all_hits = self.hits.tolist()
        supports = self.support.tolist()
        predictions = self.predicted.tolist()
        for name, hits, support, predicted in zip(self.names, all_hits, supports, predictions, strict=True):
            precision = hits / predicted if predicted else None
            recall = hits / support if support else None
            # The harmonic mean of precision and recall, without dividing by either.
            f1 = 2 * hits / (support + predicted) if support + predicted else None
            rows.append((name, precision, recall, f1, support, predicted))
        return rows

    def find_most_confused(self, max_pairs: int = 3) -> list[tuple[str, str, int]]:
        """True class, predicted class and count of the most frequent errors."""
        if self.confusion is None:
            return []
        errors = self.confusion.clone().fill_diagonal_(0)
        # Stable, so that equal counts come in the order of the classes.
        counts, places = errors.flatten().sort(descending=True, stable=True)
        size = len(self.names)

        pairs = []
        for count, place in zip(counts[:max_pairs].tolist(), places[:max_pairs].tolist(), strict=True):
            if count:
                pairs.append((self.names[place // size], self.names[place % size], count))
        return pairs

    def to_csv(self) -> str:
        """The rows as CSV text under COLUMNS; empty cells for None."""
        file = io.StringIO()
        writer = CsvWriter(file)
        writer.write_row(COLUMNS)
        for row in self.compute_rows():
            writer.write_row(["" if cell is None else cell for cell in row])
        return file.getvalue()


def count_per_class(targets: Tensor, predicted: Tensor, names: Sequence[str]) -> PerClass:
    """Count targets and predictions, int64 (N,), numbers of the classes in `names`."""
    size = len(names)
    # One number for each pair of classes: counting pairs is counting numbers.
    cells = torch.bincount(targets * size + predicted, minlength=size * size)
    confusion = cells.view(size, size)
    return PerClass(tuple(names), confusion.diagonal(), confusion.sum(1), confusion.sum(0), confusion)


def count_per_label(targets: Tensor, predicted: Tensor, names: Sequence[str]) -> PerClass:
    """Count targets and predictions, (N, labels) of 0 and 1."""
    expects = targets > 0
    predicts = predicted > 0
    return PerClass(tuple(names), (expects & predicts).sum(0), expects.sum(0), predicts.sum(0))
