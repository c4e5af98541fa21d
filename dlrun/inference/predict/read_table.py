"""Rows of a table, by the names of their columns or by their number, normalized as in training."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dlrun.core.csv_text import unguarded
from dlrun.core.errors import DataError, did_you_mean, listed
from dlrun.data.files.table import parse_numbers
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_array import read_array_rows
from dlrun.inference.predict.reader import STDIN, Item, Prepared, explain_missing, line_prefix, list_files, open_text

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

_FILES = (".csv", ".csv.gz", ".tsv", ".txt")


@dataclass(frozen=True)
class Layout:
    """Where a table has what: the features' columns, the label's, and how many columns there are."""

    features: tuple[int, ...]
    label: int | None
    count: int
    has_header: bool


@dataclass(frozen=True)
class Cells:
    """One row of text."""

    features: list[str]


class TableReader:
    """A reader of tables: float64 (features,), (x - mean) / std with the constants of the training rows."""

    takes = "a table (.csv or .csv.gz), - for one on standard input, rows as 1.5,2,3, and .npy arrays"

    def __init__(self, spec: DataSpec, target: str | int | None, delimiter: str = ",") -> None:
        """target: name or number of the training table's target; null where its table is not known."""
        self.spec, self.target = spec, target
        self.delimiter = "\t" if delimiter == "\\t" else delimiter
        self.named = bool(spec.feature_names) and spec.feature_names != _numbered(len(spec.feature_names))
        self.mean = np.array(spec.mean or (0.0,))
        self.std = np.array(spec.std or (1.0,))

    def read_items(self, word: str) -> Iterator[Item]:
        """See Reader: a word that is no file is a row itself where it consists of numbers."""
        path = Path(word)
        if word == STDIN or (path.is_file() and path.suffix != ".npy"):
            yield from self._of_table(word)
        elif path.suffix == ".npy" and path.exists():
            yield from read_array_rows(path, self.spec.input_shape)
        elif path.is_dir():
            for file in list_files(path, _FILES):
                yield from self._of_table(str(file))
        elif parse_numbers(word.split(",")) is not None:
            yield Item(word, Cells(word.split(",")))
        else:
            raise explain_missing(word, self.takes)

    def _of_table(self, word: str) -> Iterator[Item]:
        with open_text(word) as file:
            reader = csv.reader(file, delimiter=self.delimiter, skipinitialspace=True, strict=True)
            try:
                yield from self._of_rows(word, reader)
            except csv.Error as error:
                raise DataError(f"{line_prefix(word)}{reader.line_num}: {error}; what follows was not read") from error
            except UnicodeDecodeError as error:
                raise DataError(f"{word} is not UTF-8 text; save it as UTF-8") from error
            except (OSError, EOFError) as error:
                raise DataError(f"{word} cannot be read: {error}") from error

    def _of_rows(self, word: str, reader: "CsvReader") -> Iterator[Item]:
        layout = None
        for cells in reader:
            if not cells:
                continue
            cells = unguarded(cells)
            if layout is None:
                layout = self.layout(cells)
                if layout.has_header:
                    continue
            name = f"{line_prefix(word)}{reader.line_num}"
            if len(cells) != layout.count:
                yield Item(name, None, error=f"{len(cells)} fields, where the table has {layout.count}")
                continue
            label = None if layout.label is None else cells[layout.label].strip()
            yield Item(name, Cells([cells[i] for i in layout.features]), label)
        if layout is None:
            raise DataError(f"{word} is empty")

    def layout(self, first: Sequence[str]) -> Layout:
        """What the first line of a table says of its columns; DataError where they are not those of the training."""
        cells, size = [cell.strip() for cell in first], self.spec.input_size
        if self.named and set(self.spec.feature_names) <= set(cells):
            places = tuple(cells.index(name) for name in self.spec.feature_names)
            label = cells.index(self.target) if isinstance(self.target, str) and self.target in cells else None
            return Layout(places, label, len(cells), True)
        has_header = all(parse_numbers([cell]) is None for cell in cells)
        if has_header and self.named:
            lacking = [name for name in self.spec.feature_names if name not in cells]
            hint = did_you_mean(lacking[0], cells)
            raise DataError(f"there is no column {listed(lacking)}; {hint}the first line holds {listed(cells)}")
        if len(cells) == size:
            return Layout(tuple(range(size)), None, size, has_header)
        if len(cells) == size + 1 and not isinstance(self.target, str):
            label = (-1 if self.target is None else self.target) % len(cells)
            places = tuple(i for i in range(len(cells)) if i != label)
            return Layout(places, label, len(cells), has_header)
        raise DataError(f"{len(cells)} columns, where the model takes {self._described(size)}")

    def _described(self, size: int) -> str:
        columns = f"{size} ({listed(self.spec.feature_names)})" if self.named else f"{size}"
        return f"{columns}, by name if the first line has names"

    def prepare(self, item: Item) -> Prepared:
        """See Reader."""
        if not isinstance(item.content, Cells):
            values = np.asarray(item.content, dtype=np.float64)
        else:
            values = self._numbers(item.content.features).reshape(self.spec.input_shape)
        if not np.isfinite(values).all():
            raise DataError("it holds what is not a finite number")
        return Prepared((torch.from_numpy((values - self.mean) / self.std),))

    def _numbers(self, cells: list[str]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
        values = parse_numbers(cells)
        if len(cells) != self.spec.input_size:
            raise DataError(f"{len(cells)} numbers, where the model takes {self._described(self.spec.input_size)}")
        if values is None or not np.isfinite(values).all():
            names = self.spec.feature_names or _numbered(len(cells))
            bad = next(
                i for i, cell in enumerate(cells) if (one := parse_numbers([cell])) is None or not np.isfinite(one[0])
            )
            what = f"holds '{cells[bad][:40]}', which is no finite number" if cells[bad].strip() else "is empty"
            raise DataError(f"column '{names[bad]}' {what}")
        return values

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """See Reader."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def _numbered(count: int) -> tuple[str, ...]:
    """The names that a table without a header line gets."""
    return tuple(f"column_{i}" for i in range(count))
