"""Lists and tables as data: `format=json` and `format=csv`, for other programs to read."""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlrun.core.csv_text import CsvWriter

FORMATS = ("table", "json", "csv")


def format_json(values: Any) -> str:
    """Format values as indented JSON, in ASCII; null for numbers that are not finite."""
    text = json.dumps(_replace_not_finite(values), indent=2, ensure_ascii=True)
    # The one control character of ASCII that JSON holds as it is.
    return text.replace("\x7f", "\\u007f")


def _replace_not_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _replace_not_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_not_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV under a line of headers.

    A cell is empty for None, a missing value and a number that is not finite; a list is JSON. Text is guarded against
    spreadsheets, which would compute it.
    """
    buffer = io.StringIO()
    writer = CsvWriter(buffer)
    writer.write_row(columns)
    for row in rows:
        writer.write_row([_format_cell(row.get(column)) for column in columns])
    return buffer.getvalue().removesuffix("\n")


def _format_cell(value: Any) -> Any:
    plain = _replace_not_finite(value)
    if plain is None:
        return ""
    # As in JSON, and not as Python writes them.
    return json.dumps(plain) if isinstance(plain, bool | list | dict) else plain
