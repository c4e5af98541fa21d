"""How well each class is told from the others."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrun.core.csv_text import CsvWriter

COLUMNS = ("class", "precision", "recall", "f1", "support", "predicted")


@dataclass(frozen=True)
class PerClass:
    """Counts by class, int64 (classes, classes): rows are the true classes, columns the predicted ones."""

    names: tuple[str, ...]
    confusion: Tensor

    def rows(self) -> list[tuple[str, float | None, float | None, float | None, int, int]]:
        """As HEADS says; null where there is nothing to divide by: nothing there, or nothing predicted."""
        found = []
        support, predicted = self.confusion.sum(1).tolist(), self.confusion.sum(0).tolist()
        for name, hits, true, said in zip(
            self.names, self.confusion.diagonal().tolist(), support, predicted, strict=True
        ):
            f1 = 2 * hits / (true + said) if true + said else None
            found.append((name, hits / said if said else None, hits / true if true else None, f1, true, said))
        return found

    def most_confused(self, most: int = 3) -> list[tuple[str, str, int]]:
        """True class, predicted class and how often, of the most frequent mistakes."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        counts, places = wrong.flatten().sort(descending=True, stable=True)
        size = len(self.names)
        pairs = zip(counts[:most].tolist(), places[:most].tolist(), strict=True)
        return [(self.names[at // size], self.names[at % size], count) for count, at in pairs if count]

    def as_csv(self) -> str:
        """The rows under HEADS; empty cells for null."""
        file = io.StringIO()
        writer = CsvWriter(file)
        writer.write_row(COLUMNS)
        writer.write_rows([["" if cell is None else cell for cell in row] for row in self.rows()])
        return file.getvalue()


def count_per_class(targets: Tensor, predicted: Tensor, names: Sequence[str]) -> PerClass:
    """targets, predicted: int64 (N,), numbers of the classes in `names`."""
    size = len(names)
    cells = torch.bincount(targets * size + predicted, minlength=size * size)
    return PerClass(tuple(names), cells.view(size, size))
