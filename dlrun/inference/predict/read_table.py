"""Rows of a table, with columns matched by name or position, normalized as in training."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.core.csv_text import unguard_row
from dlrun.core.errors import DataError, join_names
from dlrun.core.format import format_count
from dlrun.core.suggest import did_you_mean
from dlrun.data.files.table import parse_numbers
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_rows import RowReader
from dlrun.inference.predict.reader import Item, Prepared, name_line, open_text

if TYPE_CHECKING:
    from _csv import Reader as CsvReader


@dataclass(frozen=True)
class Layout:
    """Positions of the features and of the targets, if it has those, among the columns of a table."""

    features: tuple[int, ...]
    targets: tuple[int, ...]
    # Columns of the table.
    count: int
    has_header: bool


@dataclass(frozen=True)
class FeatureCells:
    """One row of text."""

    features: list[str]


class TableReader(RowReader):
    """A reader of tables: float64 (features,), (x - mean) / std with the constants of the training rows."""

    accepted_inputs = "a table (.csv or .csv.gz), - for one on standard input, rows as 1.5,2,3, and .npy arrays"
    endings = (".csv", ".csv.gz", ".tsv", ".txt")

    def __init__(self, spec: DataSpec, target: str | int | Sequence[str | int] | None, delimiter: str = ",") -> None:
        """target: name or position of the training table's target column, or of several; None if it is not known."""
        super().__init__(spec)
        # A table that is not known may have its target at the end.
        self.targets: list[str | int] = []
        if target is None:
            self.targets = [-1]
        elif isinstance(target, str | int):
            self.targets = [target]
        else:
            self.targets = list(target)

        # A command line cannot hold a tab conveniently, so the config spells it \t.
        self.delimiter = "\t" if delimiter == "\\t" else delimiter
        self.has_names = bool(spec.feature_names) and spec.feature_names != _number_columns(len(spec.feature_names))
        self.mean = np.array(spec.mean or (0.0,))
        self.std = np.array(spec.std or (1.0,))

    def parse_row(self, word: str) -> Item | None:
        """A row if it consists of numbers."""
        cells = word.split(",")
        return None if parse_numbers(cells) is None else Item(word, FeatureCells(cells))

    def read_table(self, word: str) -> Iterator[Item]:
        """Yield the rows of a file or of standard input."""
        with open_text(word) as file:
            reader = csv.reader(file, delimiter=self.delimiter, skipinitialspace=True, strict=True)
            try:
                yield from self._read_rows(word, reader)
            except csv.Error as error:
                raise DataError(f"{name_line(word, reader.line_num)}: {error}; what follows was not read") from error
            except UnicodeDecodeError as error:
                raise DataError(f"{word} is not UTF-8 text; save it as UTF-8") from error
            except (OSError, EOFError) as error:
                raise DataError(f"{word} cannot be read: {error}") from error

    def _read_rows(self, word: str, reader: "CsvReader") -> Iterator[Item]:
        layout = None
        for cells in reader:
            if not cells:
                continue
            # Cells that dlrun has guarded against spreadsheets are restored.
            cells = unguard_row(cells)

            # The first line with content decides what the columns are.
            if layout is None:
                layout = self.detect_layout(cells)
                if layout.has_header:
                    continue

            name = name_line(word, reader.line_num)
            if len(cells) != layout.count:
                yield Item(name, None, error=f"{format_count(len(cells), 'field')}, where the table has {layout.count}")
                continue

            label = format_label(self.spec, [cells[position].strip() for position in layout.targets])
            yield Item(name, FeatureCells([cells[position] for position in layout.features]), label)

        if layout is None:
            raise DataError(f"{word} is empty")

    def detect_layout(self, first: Sequence[str]) -> Layout:
        """Detect the columns from the first line of a table; DataError if they are not those of training."""
        cells = [cell.strip() for cell in first]
        count = len(cells)
        names = self.spec.feature_names

        # A header with all names: columns by name, in any order, with others between.
        if self.has_names and set(names) <= set(cells):
            positions = tuple(cells.index(name) for name in names)
            # All of the targets, or none of them.
            is_labelled = all(isinstance(target, str) and target in cells for target in self.targets)
            targets = tuple(cells.index(str(target)) for target in self.targets) if is_labelled else ()
            return Layout(positions, targets, count, True)

        has_header = all(parse_numbers([cell]) is None for cell in cells)
        if has_header and self.has_names:
            missing = [name for name in names if name not in cells]
            hint = did_you_mean(missing[0], cells)
            raise DataError(f"there is no column {join_names(missing)}; {hint}the first line holds {join_names(cells)}")

        # By position: the features alone, or with the target where the training table had it.
        size = self.spec.input_size
        if count == size:
            return Layout(tuple(range(size)), (), size, has_header)
        numbers = [target for target in self.targets if isinstance(target, int)]
        if count == size + len(self.targets) and len(numbers) == len(self.targets):
            targets = tuple(number % count for number in numbers)
            # The features are the columns around the targets.
            positions = tuple(position for position in range(count) if position not in targets)
            return Layout(positions, targets, count, has_header)

        raise DataError(f"{format_count(count, 'column')}, where the model takes {self._describe_columns()}")

    def _describe_columns(self) -> str:
        size = self.spec.input_size
        columns = f"{size} ({join_names(self.spec.feature_names)})" if self.has_names else f"{size}"
        return f"{columns}, by name if the first line has names"

    def prepare(self, item: Item) -> Prepared:
        """Parse the cells of the row, or convert the array, and normalize the values."""
        if isinstance(item.content, FeatureCells):
            values = self._parse_cells(item.content.features).reshape(self.spec.input_shape)
        else:
            values = np.asarray(item.content, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError("it holds what is not a finite number")
        return Prepared((torch.from_numpy((values - self.mean) / self.std),))

    def _parse_cells(self, cells: list[str]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        values = parse_numbers(cells)
        if len(cells) != self.spec.input_size:
            raise DataError(f"{len(cells)} numbers, where the model takes {self._describe_columns()}")
        # The fast path parses the whole row at once.
        if values is not None and np.isfinite(values).all():
            return values

        # Find the first bad cell to name its column.
        names = self.spec.feature_names or _number_columns(len(cells))
        for name, cell in zip(names, cells, strict=False):
            number = parse_numbers([cell])
            if number is not None and np.isfinite(number[0]):
                continue
            problem = f"holds '{cell[:40]}', which is no finite number" if cell.strip() else "is empty"
            raise DataError(f"column '{name}' {problem}")

        raise AssertionError("every cell is a finite number")

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Stack rows to (N, features)."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def format_label(spec: DataSpec, cells: list[str]) -> str | None:
    """The true answer of a row as predictions are written; None if the table has no targets."""
    if not cells:
        return None
    if spec.task != "multilabel":
        return ", ".join(cells)
    labels = zip(spec.class_names, cells, strict=True)
    return ", ".join(name for name, cell in labels if cell not in ("0", "0.0"))


def _number_columns(count: int) -> tuple[str, ...]:
    """Return the names given to the columns of a table without a header line."""
    return tuple(f"column_{number}" for number in range(count))
