"""Reading comma-separated text, plain or gzipped, with errors that name the line and the column."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlrun.core.csv_text import unguard_row
from dlrun.core.errors import DataError, RequestError
from dlrun.core.format import format_count
from dlrun.core.suggest import build_missing_path_error, suggest_one

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The cells of a file as text, column by column, all of the same length.

    names: from the header, or "column_0", "column_1", …; lines: the line of the file that each row ends in, from 1.
    """

    path: Path
    has_header: bool
    names: tuple[str, ...]
    columns: Sequence[Sequence[str]]
    lines: Sequence[int]

    def find_column(self, column: str | int, key: str = "data.target") -> int:
        """Position of a column given by name or by number (-1 is the last); RequestError if there is none.

        key: of the config, which names the column.
        """
        count = len(self.names)
        if isinstance(column, int):
            if not -count <= column < count:
                raise RequestError(
                    f"{key}={column} is no column of {self.path}, "
                    f"which has {count}: type a number from 0 to {count - 1}, or -1 for the last"
                )
            return column % count

        if column in self.names:
            return self.names.index(column)
        if not self.has_header:
            raise RequestError(
                f"{key}={column} is a name but {self.path} has no header line: type its number "
                "(0 is the first, -1 the last), or data.header=true if its first line holds the names"
            )

        hint = suggest_one(column, self.names) or f"; there are {', '.join(self.names)}"
        raise RequestError(f"{key}={column} is no column of {self.path}{hint}")

    def read_numbers(self, column: int) -> Numbers:
        """A column as float64 of shape (rows,); DataError for the first cell that is not a finite number."""
        cells = self.columns[column]
        values = parse_numbers(cells)
        if values is None or not np.isfinite(values).all():
            row = next(i for i, cell in enumerate(cells) if not _is_finite(cell))
            raise self.build_cell_error(column, row)
        return values

    def build_cell_error(self, column: int, row: int) -> DataError:
        """The error for a cell that should have been a finite number."""
        cell = self.columns[column][row]
        problem = f"holds '{cell[:40]}', which is not a finite number" if cell.strip() else "is empty"
        return DataError(
            f"{self.path}, line {self.lines[row]}: column '{self.names[column]}' {problem}; correct the line or "
            "remove it"
        )


def read_table(path: Path, header: bool | None = None, delimiter: str = ",") -> Table:
    """Read a .csv or .csv.gz file in UTF-8; empty lines are skipped.

    header=None: the first line holds names if it has text in each column whose following cells are numbers.
    Raises DataError (missing, unreadable, empty, ragged, duplicate names), RequestError (delimiter).
    """
    # A shell passes a tab as the two characters \t.
    lines, rows = _parse_even_rows(path, _read_text(path), "\t" if delimiter == "\\t" else delimiter)
    has_header = _starts_with_names(rows) if header is None else header

    names = [f"column_{i}" for i in range(len(rows[0]))]
    if has_header:
        names = [cell.strip() or name for cell, name in zip(rows[0], names, strict=True)]
        lines = lines[1:]
        rows = rows[1:]

    # Features and the target are named by their columns.
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise DataError(f"{path}: two columns are named '{repeated[0]}' in the header, rename one of them")
    if not rows:
        raise DataError(f"{path} holds a header line only: add rows, or type data.header=false")
    return Table(path, has_header, tuple(names), list(zip(*rows, strict=True)), lines)


def parse_numbers(cells: Sequence[str]) -> Numbers | None:
    """float64 of shape (len(cells),), infinite and NaN included; None if a cell is not a number."""
    # float() takes 1_000 and 2024_01_01 for numbers.
    if "_" in "".join(cells):
        return None
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells))
    except ValueError:
        return None


def read_bytes(path: Path, key: str) -> bytes:
    """The content of a file, unpacked if it is named .gz; DataError if it cannot be read.

    key: the config key that names it.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise build_missing_path_error(path, key) from None
    except IsADirectoryError:
        raise DataError(f"{key}={path} is a folder: type {key}=<a file>") from None
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{path} is named .gz but is not gzipped: rename it, or delete it if it was downloaded"
        ) from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged, its gzip stream does not end: delete it and get it anew") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_text(path: Path) -> str:
    try:
        # Excel puts a byte order mark at the start.
        return read_bytes(path, "data.path").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text, save the file as UTF-8") from error


def parse_rows(path: Path, text: str, delimiter: str) -> tuple[list[int], list[list[str]]]:
    """The lines that rows end in, from 1, and the rows."""
    # newline="" leaves line ends in quoted cells to the reader, which counts lines.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row:
                lines.append(reader.line_num)
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; correct the line") from error

    # A file that dlrun wrote may hold cells guarded against spreadsheets, by an apostrophe.
    if "'" in text:
        rows = [unguard_row(row) for row in rows]
    return lines, rows


def _parse_even_rows(path: Path, text: str, delimiter: str) -> tuple[list[int], list[list[str]]]:
    """Line numbers and rows, all with as many cells as the first."""
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise RequestError(f"data.delimiter='{delimiter}' must be one character, such as ',' or ';' or '\\t'")

    lines, rows = parse_rows(path, text, delimiter)
    if not rows:
        raise DataError(f"{path} is empty: it needs a row a sample")
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}: {format_count(len(row), 'field')}, where line {lines[0]} has {width}"
            )
    return lines, rows


def _starts_with_names(rows: list[list[str]]) -> bool:
    """Whether the first row has text in each column whose next 20 cells are numbers (and there is one)."""
    # A few rows will do: a later gap in a column must not make its header a row.
    below = list(zip(*rows[1:21], strict=True))
    numeric = [first for first, cells in zip(rows[0], below, strict=False) if parse_numbers(cells) is not None]
    return bool(numeric) and all(parse_numbers([first]) is None for first in numeric)


def _is_finite(cell: str) -> bool:
    value = parse_numbers([cell])
    return value is not None and bool(np.isfinite(value[0]))
