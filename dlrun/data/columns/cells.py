"""Cells of a table as text: gaps, numbers as people write them, and dates."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from dlrun.data.files.table import parse_numbers

# What pandas.read_csv takes for a missing value by default, in lower case, and what the UCI repository writes.
GAPS = frozenset(("", "#n/a", "#na", "<na>", "n/a", "na", "-nan", "nan", "null", "none", "?", "-", "."))

_SIGNS = "$€£¥%"
_SPACES = " \u00a0\u202f'’"
_BLANK_GROUPS = re.compile(rf"\d{{1,3}}(?:[{_SPACES}]\d{{3}})+(?!\d)")
_NUMBER = {
    ".": re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d+)?"),
    ",": re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d*)?(?:[eE][+-]?\d+)?"),
}

# Three digits behind the mark may be a group of thousands: they decide nothing.
_ENDS_WITH_DECIMALS = {
    ".": re.compile(r"[+-]?[\d,]*\.(?:\d{1,2}|\d{4,})"),
    ",": re.compile(r"[+-]?[\d.]*,(?:\d{1,2}|\d{4,})"),
}
_HAS_GROUPS = {".": re.compile(r"[+-]?\d{1,3}(?:,\d{3})+"), ",": re.compile(r"[+-]?\d{1,3}(?:\.\d{3}){2,}")}

# 2024-02-29, 29.2.2024, 2/29/24, each with or without a time.
_DATE = re.compile(
    r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[ T]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
)


def is_gap(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in GAPS


def find_gaps(cells: Sequence[str]) -> NDArray[np.bool_]:
    """Where the gaps are, bool (rows,)."""
    # Most columns are plain numbers throughout, which this finds ten times faster.
    values = parse_numbers(cells)
    if values is not None and np.isfinite(values).all():
        return np.zeros(len(cells), dtype=bool)
    return np.fromiter((is_gap(cell) for cell in cells), bool, len(cells))


def parse_number(cell: str, decimal: str) -> float | None:
    """The number that a cell holds; None if it holds none.

    Currency and percent signs are left out, as are thousands marks: blanks, apostrophes, and the mark that is not the
    decimal one.
    """
    text = cell.strip().strip(_SIGNS + _SPACES)
    # The sign may stand before the currency.
    if text[:1] in ("-", "+"):
        text = text[0] + text[1:].lstrip(_SIGNS + _SPACES)
    text = _BLANK_GROUPS.sub(lambda match: re.sub(f"[{_SPACES}]", "", match[0]), text)
    if _NUMBER[decimal].fullmatch(text):
        group = "," if decimal == "." else "."
        text = text.replace(group, "").replace(",", ".")

    values = parse_numbers([text])
    return None if values is None or not np.isfinite(values[0]) else float(values[0])


def parse_column(cells: Sequence[str], decimal: str) -> tuple[NDArray[np.float64], list[int]]:
    """A column as float64 (rows,), NaN for gaps; and the rows whose cell is no finite number."""
    # Most columns are plain numbers throughout.
    values = parse_numbers(cells) if decimal == "." else None
    if values is not None and np.isfinite(values).all():
        return values, []

    # Cells of a column repeat, and parsing one is the slow part.
    known: dict[str, float | None] = {}
    parsed = np.full(len(cells), np.nan)
    wrong = []
    for row, cell in enumerate(cells):
        if cell not in known:
            known[cell] = np.nan if is_gap(cell) else parse_number(cell, decimal)
        value = known[cell]
        if value is None:
            wrong.append(row)
        else:
            parsed[row] = value
    return parsed, wrong


def choose_decimal(columns: Iterable[Sequence[str]], separator: str) -> tuple[str, str]:
    """The decimal mark of a table, judged by columns of numbers, and an example that leaves it open ("" if none)."""
    counts = {".": 0, ",": 0}
    open_example = ""
    for cells in columns:
        texts = [cell.strip().strip(_SIGNS + _SPACES) for cell in dict.fromkeys(cells) if not is_gap(cell)]
        for decimal, other in ((".", ","), (",", ".")):
            if texts and all(_NUMBER[decimal].fullmatch(text) for text in texts):
                counts[decimal] += any(_ENDS_WITH_DECIMALS[decimal].fullmatch(text) for text in texts)
                # Several groups, 1.234.567, leave no other reading.
                counts[decimal] += any(text.count(other) > 1 for text in texts)
        with_comma = [text for text in texts if _HAS_GROUPS["."].fullmatch(text)]
        if with_comma and len(with_comma) == sum("," in text for text in texts):
            open_example = open_example or with_comma[0]

    if counts[","] > counts["."]:
        return ",", ""
    if counts["."] or not open_example:
        return ".", ""
    # Where commas are decimal marks, tables are separated by semicolons.
    return ("," if separator == ";" else "."), open_example


def uses_marks(cells: Sequence[str]) -> bool:
    """Whether a column of numbers has currency signs, percent signs or thousands marks that are left out."""
    for cell in cells:
        text = cell.strip()
        if text and (text[0] in _SIGNS or text[-1] in _SIGNS or "," in text or any(mark in text for mark in _SPACES)):
            return True
    return False


def choose_day_first(cells: Iterable[str]) -> bool | None:
    """Whether dates begin with the day; None if they fit both ways. Dates that begin with the year fit any."""
    day_first = False
    month_first = False
    is_open = False
    for cell in cells:
        match = _DATE.fullmatch(cell.strip())
        if match is None or len(match[1]) == 4:
            continue
        # 29.2.2024 is written so where the day comes first.
        day_first = day_first or int(match[1]) > 12 or match[2] == "."
        month_first = month_first or int(match[3]) > 12
        is_open = True
    # No day is above 12, so 1/2/2024 could be either.
    if is_open and not day_first and not month_first:
        return None
    return day_first


def parse_date(cell: str, day_first: bool) -> datetime | None:
    """The date and time that a cell holds, as they are written; None if it holds none."""
    match = _DATE.fullmatch(cell.strip())
    if match is None:
        return None

    first = int(match[1])
    middle = int(match[3])
    last = int(match[4])
    if len(match[1]) == 4:
        year, month, day = first, middle, last
    elif day_first:
        year, month, day = last, middle, first
    else:
        year, month, day = last, first, middle
    # As POSIX reads two digits: 69 is 1969, 68 is 2068.
    if year < 100:
        year += 1900 if year >= 69 else 2000

    hour = int(match[5] or 0)
    try:
        return datetime(year, month, day, hour, int(match[6] or 0), int(match[7] or 0))
    except ValueError:
        return None
