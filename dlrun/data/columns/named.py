"""Tables whose first line is known to hold names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dlrun.data.columns.reading import TableFile, TextFormat, read_file


def read_named(path: Path, text_format: TextFormat, names: Sequence[str]) -> TableFile:
    """Read a table whose first line holds names, if any of these is among them, whatever the cells below suggest."""
    file = read_file(path, text_format)
    if text_format.header is not None or file.table.has_header:
        return file
    first = {cells[0].strip() for cells in file.table.columns}
    return read_file(path, replace(text_format, header=True)) if first & set(names) else file
