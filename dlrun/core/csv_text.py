"""Cells of the CSV files that dlrun writes: a spreadsheet must not take text for a formula and run it."""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # with apostrophes in front: one more is added, and one is taken away again
_GUARDED = re.compile(r"''*[=+\-@\t\r]")


def guard(cell: Any) -> Any:
    """The cell, with an apostrophe in front of text that a spreadsheet would compute; numbers stay numbers."""
    if not isinstance(cell, str) or not _FORMULA.match(cell) or _is_number(cell):
        return cell
    return f"'{cell}"


def unguard(cell: str) -> str:
    """The text that `guard` was given."""
    return cell[1:] if _GUARDED.match(cell) else cell


def unguard_row(row: list[str]) -> list[str]:
    """The texts of a row; the row itself where none was guarded."""
    if not any(cell.startswith("'") for cell in row):
        return row
    return [unguard(cell) for cell in row]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


class Writable(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> Any:
        """Add text."""


class CsvWriter:
    """Writes rows whose text cells are guarded."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._writer = csv.writer(self, lineterminator="\r\n")  # what ends a line is quoted in a cell: both of them

    def write(self, line: str) -> None:
        """Write what the writer of the library makes of a row."""
        self._file.write(line.removesuffix("\r\n") + "\n")

    def write_row(self, cells: Iterable[Any]) -> None:
        """Write one line."""
        self._writer.writerow([guard(cell) for cell in cells])

    def write_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write a line each."""
        for row in rows:
            self.write_row(row)
