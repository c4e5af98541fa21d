"""Cells of the CSV files that dlrun writes: a spreadsheet must not take text for a formula and run it."""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

# Text that already begins with apostrophes counts too: one more is added, and one is taken away again.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"''*[=+\-@\t\r]")


def _guard(cell: Any) -> Any:
    """Put an apostrophe in front of text that a spreadsheet would compute; numbers stay numbers."""
    # A negative number begins with a minus, and is no formula.
    if not isinstance(cell, str) or not _FORMULA.match(cell) or _is_number(cell):
        return cell
    return f"'{cell}"


def unguard(cell: str) -> str:
    """Take away the apostrophe that `_guard` added."""
    return cell[1:] if _GUARDED.match(cell) else cell


def unguard_row(row: list[str]) -> list[str]:
    """Unguard all cells of a row; returns the row itself if none was guarded."""
    if not any(cell.startswith("'") for cell in row):
        return row
    return [unguard(cell) for cell in row]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False

    # float() takes blanks around a number, a spreadsheet may not.
    return text == text.strip()


class Writable(Protocol):
    """A file or buffer that takes text."""

    def write(self, text: str, /) -> Any:
        """Add text."""


class CsvWriter:
    """Writes rows whose text cells are guarded."""

    def __init__(self, file: Writable) -> None:
        self._file = file

        # With both characters as the line end, csv quotes a cell that holds either of them.
        self._writer = csv.writer(self, lineterminator="\r\n")

    def write(self, line: str) -> None:
        """Write a line of csv.writer, with a newline alone at its end."""
        self._file.write(line.removesuffix("\r\n") + "\n")

    def write_row(self, cells: Iterable[Any]) -> None:
        """Write one row."""
        self._writer.writerow([_guard(cell) for cell in cells])

    def write_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write several rows."""
        for row in rows:
            self.write_row(row)
