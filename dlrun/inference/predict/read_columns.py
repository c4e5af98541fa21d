"""Rows of a table for a model that knows its preprocessing: text, dates and gaps, columns by name or position."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dlrun.core.csv_text import unguard_row
from dlrun.core.errors import DataError
from dlrun.core.format import format_count
from dlrun.core.terminal import write_error
from dlrun.data.columns.matching import Match, has_known_names, match_by_name, match_by_position
from dlrun.data.columns.preprocessing import Preprocessing, encode_rows
from dlrun.data.columns.reading import EXCEL, FEATHER, PARQUET, TextFormat, choose_separator, judge_encoding, read_file
from dlrun.data.files.table import parse_numbers
from dlrun.data.spec import DataSpec
from dlrun.inference.predict.read_rows import RowReader
from dlrun.inference.predict.read_table import format_label
from dlrun.inference.predict.reader import STDIN, Item, Prepared, name_line, open_text

_OTHER_PROGRAMS = (*EXCEL, *PARQUET, *FEATHER)
# Enough to judge encoding and separator by.
_SAMPLE_CHARACTERS = 100_000


@dataclass(frozen=True)
class ColumnCells:
    """One row of text; None for a column that the table does not have."""

    inputs: list[str | None]


class ColumnsReader(RowReader):
    """A reader of tables: float64 (features,), as the preprocessing of training makes them."""

    accepted_inputs = (
        "a table (.csv, .tsv, .gz, .xlsx, .parquet, .feather), - for one on standard input, rows as 1.5,red,3, and "
        ".npy arrays of features"
    )
    endings = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", *_OTHER_PROGRAMS)

    def __init__(self, spec: DataSpec, separator: str | None = None, decimal: str | None = None) -> None:
        """separator: of text files; None for the one of training where it cuts the first line, else judged.

        decimal: the decimal mark; None for that of training.
        """
        super().__init__(spec)
        self.preprocessing = Preprocessing.from_plain(spec.preprocessing)
        if decimal in (".", ","):
            self.preprocessing = self.preprocessing.set_decimal(decimal)
        self.separator = "\t" if separator == "\\t" else separator
        self.names = [column.name for column in self.preprocessing.columns]

    def parse_row(self, word: str) -> Item | None:
        """A row if it has as many cells as a table that the model takes."""
        if "," not in word and parse_numbers([word]) is None:
            return None
        cells = next(csv.reader([word], skipinitialspace=True))
        return self._make_item(word, cells, match_by_position(self.preprocessing, len(cells), False))

    def read_table(self, word: str) -> Iterator[Item]:
        """Yield the rows of a file, of standard input, or of a file of another program."""
        if Path(word).suffix.lower() in _OTHER_PROGRAMS:
            yield from self._read_file(Path(word))
            return

        with open_text(word, self._judge_encoding(word)) as file:
            start = ""
            try:
                start = file.read(_SAMPLE_CHARACTERS)
                lines = _join_lines(start, file)
                reader = csv.reader(
                    lines, delimiter=self._choose_separator(word, start), skipinitialspace=True, strict=True
                )
                yield from self._read_rows(word, ((reader.line_num, cells) for cells in reader))
            except csv.Error as error:
                raise DataError(f"{name_line(word, reader.line_num)}: {error}; what follows was not read") from error
            except UnicodeDecodeError as error:
                raise DataError(f"{word} is not {error.encoding} text; save it as UTF-8") from error
            except (OSError, EOFError) as error:
                raise DataError(f"{word} cannot be read: {error}") from error

    def _judge_encoding(self, word: str) -> str:
        trained = self.preprocessing.text_format.get("encoding")
        if word == STDIN:
            return "utf-8-sig"
        # Latin-1 has a letter for each byte.
        with open_text(word, "latin-1") as file:
            sample = file.read(_SAMPLE_CHARACTERS).encode("latin-1")
        judged = judge_encoding(sample)
        # The sample may end within a letter; and Latin-1 fits everything.
        if judged not in ("cp1252", "latin-1"):
            return judged
        try:
            sample[:-4].decode("utf-8-sig")
        except UnicodeDecodeError:
            return str(trained) if trained and not str(trained).startswith("utf") else judged
        return "utf-8-sig"

    def _choose_separator(self, word: str, text: str) -> str:
        if self.separator is not None:
            return self.separator
        trained = self.preprocessing.text_format.get("separator")
        first = text.partition("\n")[0]
        # A single line tells little, and predictions are often asked for in the form of training.
        if trained and trained in first:
            return str(trained)
        return choose_separator(Path(word), text, [])

    def _read_file(self, path: Path) -> Iterator[Item]:
        """Yield the rows of a file that is read whole."""
        file = read_file(path, TextFormat(decimal=self.preprocessing.decimal))
        table = file.table
        match = self._match(list(table.names), table.has_header)
        self._print_notes(str(path), match)
        for line, cells in zip(table.lines, zip(*table.columns, strict=True), strict=True):
            yield self._make_item(f"{path}:{line}", list(cells), match)

    def _read_rows(self, word: str, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Item]:
        match = None
        for line, row in rows:
            if not row:
                continue
            # Cells that dlrun has guarded against spreadsheets are restored.
            cells = unguard_row(row)
            # The first line with content decides what the columns are.
            if match is None:
                match = self._detect(cells)
                self._print_notes(word, match)
                if match.has_header:
                    continue

            name = name_line(word, line)
            # Some programs end each line with a separator.
            if len(cells) == match.count + 1 and not cells[-1].strip():
                cells = cells[:-1]
            if len(cells) != match.count:
                yield Item(name, None, error=f"{format_count(len(cells), 'field')}, where the table has {match.count}")
                continue
            yield self._make_item(name, cells, match)

        if match is None:
            raise DataError(f"{word} is empty")

    def _detect(self, first: Sequence[str]) -> Match:
        """Match the columns by the first line of a table; DataError if they are not those of training."""
        names = [cell.strip() for cell in first]
        if has_known_names(self.preprocessing, names):
            return match_by_name(self.preprocessing, names)
        is_text = all(parse_numbers([name]) is None for name in names)
        has_numbers = any(column.kind != "category" for column in self.preprocessing.columns)
        # A line of text alone names columns, where rows have numbers.
        if is_text and has_numbers and self.preprocessing.has_names:
            return match_by_name(self.preprocessing, names)
        return match_by_position(self.preprocessing, len(names), is_text and has_numbers)

    def _match(self, names: Sequence[str], has_header: bool) -> Match:
        if has_header and self.preprocessing.has_names:
            return match_by_name(self.preprocessing, names)
        return match_by_position(self.preprocessing, len(names), has_header)

    def _print_notes(self, word: str, match: Match) -> None:
        for note in match.notes:
            write_error(f"dlrun: note: {'standard input' if word == STDIN else word}: {note}")

    def _make_item(self, name: str, cells: Sequence[str], match: Match) -> Item:
        inputs: list[str | None] = []
        for column in self.names:
            position = match.positions[column]
            inputs.append(None if position is None else cells[position])
        label = format_label(self.spec, [cells[position].strip() for position in match.targets])
        return Item(name, ColumnCells(inputs), label)

    def prepare(self, item: Item) -> Prepared:
        """Encode the cells of the row; values of an array are features already."""
        if isinstance(item.content, ColumnCells):
            cells = {name: [cell or ""] for name, cell in zip(self.names, item.content.inputs, strict=True)}
            values = encode_rows(self.preprocessing.columns, cells)[0]
        else:
            mean = np.array(self.spec.mean or (0.0,))
            std = np.array(self.spec.std or (1.0,))
            values = (np.asarray(item.content, dtype=np.float64) - mean) / std

        if not np.isfinite(values).all():
            raise DataError("it holds what is not a finite number")
        return Prepared((torch.from_numpy(values),))

    def collate(self, rows: list[Prepared]) -> tuple[Tensor, ...]:
        """Stack rows to (N, features)."""
        return (torch.stack([row.inputs[0] for row in rows]),)


def _join_lines(start: str, file: Iterator[str]) -> Iterator[str]:
    """The lines of a text whose start has been read."""
    lines = start.splitlines(keepends=True)
    yield from lines[:-1]
    rest = lines[-1] if lines else ""
    # The start may end within a line.
    yield rest + next(file, "") if not rest.endswith("\n") else rest
    yield from file
