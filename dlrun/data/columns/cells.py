"""Cells of a table as text: gaps, numbers as people write them, and dates."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_tz
from functools import cached_property, lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dlrun.data.files.table import parse_numbers

# What pandas.read_csv takes for a missing value by default, in lower case, and what the UCI repository writes.
GAPS = frozenset(("", "#n/a", "#na", "<na>", "n/a", "na", "-nan", "nan", "null", "none", "?", "-", "."))

_SIGNS = "$€£¥%"
_SPACES = " \u00a0\u202f'’"
_BLANK_GROUPS = re.compile(rf"\d{{1,3}}(?:[{_SPACES}]\d{{3}})+(?!\d)")
_DIGIT = re.compile(r"\d")
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
# As mails and web servers write them (RFC 2822), weekday and zone may be left out: Tue, 15 Nov 1994 12:45:26 +0000.
_MAIL_DATE = re.compile(
    r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), *)?\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4}"
    r" \d{2}:\d{2}(?::\d{2})?(?: (?:[+-]\d{4}|[A-Z]{1,4}))?"
)
# Seconds or milliseconds since 1970, of the years 2001 to 2128.
_STAMP = re.compile(r"([1-4]\d{9})(\d{3})?(?:\.\d*)?")

# Values (rows,), and the numbers of the rows that have none though they are no gaps.
Parsed = tuple[NDArray[np.float64], NDArray[np.int64]]
NO_ROWS = np.zeros(0, np.int64)
# Different dates that are kept: a column is judged, fitted and encoded, each time by its different texts.
_DATES_KEPT = 50_000


def is_gap(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.strip().lower() in GAPS


class Cells(Sequence[str]):
    """A column of text in which each distinct text is looked at once, and plain numbers as numbers."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._parsed: dict[str, Parsed] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[str]": ...

    def __getitem__(self, index: int | slice) -> "str | Sequence[str]":
        return self._texts[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def contains(self, mark: str) -> bool:
        """Whether any text holds a mark."""
        return any(mark in text for text in self._texts)

    @cached_property
    def plain_numbers(self) -> NDArray[np.float64] | None:
        """float64 (rows,) of a column of finite numbers as Python writes them, NaN for gaps; None for another one."""
        values = parse_numbers(self._texts)
        return values if values is not None and np.isfinite(values).all() else None

    @cached_property
    def encoded(self) -> tuple[list[str], NDArray[np.int64]]:
        """The distinct texts in the order of the rows, and for each row which of them it is, (rows,)."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(self._texts))}
        return list(distinct), np.fromiter(map(distinct.__getitem__, self._texts), np.int64, len(self._texts))

    @cached_property
    def gaps(self) -> NDArray[np.bool_]:
        """Where the gaps are, bool (rows,)."""
        if self.plain_numbers is not None:
            return np.isnan(self.plain_numbers)
        return self.map(is_gap, bool)

    def map(self, function: Callable[[str], Any], dtype: Any) -> NDArray[Any]:
        """The values of a function of each text, (rows,)."""
        distinct, codes = self.encoded
        values: NDArray[Any] = np.fromiter(map(function, distinct), dtype, len(distinct))[codes]
        return values

    def parse(self, decimal: str) -> Parsed:
        """The column as float64 (rows,), NaN for gaps; and the rows whose cell is no finite number."""
        if decimal == "." and self.plain_numbers is not None:
            return self.plain_numbers, NO_ROWS
        if decimal not in self._parsed:
            values = self.map(lambda cell: np.nan if is_gap(cell) else _parse_or_inf(cell, decimal), np.float64)
            is_wrong = np.isinf(values)
            values[is_wrong] = np.nan
            self._parsed[decimal] = (values, np.flatnonzero(is_wrong))

        return self._parsed[decimal]


def _parse_or_inf(cell: str, decimal: str) -> float:
    value = parse_number(cell, decimal)
    return np.inf if value is None else value


def as_cells(cells: Sequence[str]) -> Cells:
    """A column, or any texts, as Cells."""
    return cells if isinstance(cells, Cells) else Cells(cells)


def find_gaps(cells: Sequence[str]) -> NDArray[np.bool_]:
    """Where the gaps are, bool (rows,)."""
    return as_cells(cells).gaps


def parse_number(cell: str, decimal: str) -> float | None:
    """The number that a cell holds; None if it holds none.

    Currency and percent signs are left out, as are thousands marks: blanks, apostrophes, and the mark that is not the
    decimal one.
    """
    # Most cells of a column that has text hold none.
    if not _DIGIT.search(cell):
        return None
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


def parse_column(cells: Sequence[str], decimal: str) -> Parsed:
    """A column as float64 (rows,), NaN for gaps; and the rows whose cell is no finite number."""
    return as_cells(cells).parse(decimal)


def choose_decimal(columns: Iterable[Sequence[str]], separator: str) -> tuple[str, str]:
    """The decimal mark of a table, judged by columns of numbers, and an example that leaves it open ("" if none)."""
    counts = {".": 0, ",": 0}
    open_example = ""
    for column in columns:
        cells = as_cells(column)
        numbers = cells.plain_numbers
        if numbers is not None and (numbers == np.round(numbers)).all() and not cells.contains("."):
            continue
        for decimal, other in ((".", ","), (",", ".")):
            is_plain = decimal == "." and numbers is not None
            if is_plain or _are_all(_NUMBER[decimal].fullmatch, cells):
                counts[decimal] += any(map(_ENDS_WITH_DECIMALS[decimal].fullmatch, _iterate_stripped(cells)))
                # Several groups, 1.234.567, leave no other reading.
                if not is_plain:
                    counts[decimal] += any(text.count(other) > 1 for text in _iterate_stripped(cells))

        if numbers is None and not open_example and cells.contains(","):
            with_comma = [text for text in _iterate_stripped(cells) if "," in text]
            if with_comma and all(map(_HAS_GROUPS["."].fullmatch, with_comma)):
                open_example = with_comma[0]

    if counts[","] > counts["."]:
        return ",", ""
    if counts["."] or not open_example:
        return ".", ""
    # Where commas are decimal marks, tables are separated by semicolons.
    return ("," if separator == ";" else "."), open_example


def _iterate_stripped(cells: Sequence[str]) -> Iterator[str]:
    """The texts that are no gaps, without signs and blanks around them."""
    for cell in cells:
        if not is_gap(cell):
            yield cell.strip().strip(_SIGNS + _SPACES)


def _are_all(matches: Callable[[str], Any], cells: Sequence[str]) -> bool:
    """Whether all texts match, and there are any."""
    has_texts = False
    for text in _iterate_stripped(cells):
        if not matches(text):
            return False
        has_texts = True
    return has_texts


def uses_marks(cells: Sequence[str]) -> bool:
    """Whether a column of numbers has currency signs, percent signs or thousands marks that are left out."""
    if as_cells(cells).plain_numbers is not None:
        return False
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
    distinct = as_cells(cells).encoded[0] if isinstance(cells, Sequence) else cells
    for cell in distinct:
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


@lru_cache(_DATES_KEPT)
def parse_date(cell: str, day_first: bool) -> datetime | None:
    """The date and time that a cell holds, as they are written; None if it holds none."""
    text = cell.strip()
    match = _DATE.fullmatch(text)
    if match is None:
        return _parse_mail_date(text)

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


def _parse_mail_date(text: str) -> datetime | None:
    fields = parsedate_tz(text) if _MAIL_DATE.fullmatch(text) else None
    if fields is None:
        return None
    try:
        return datetime(*fields[:6])
    except ValueError:
        return None


def parse_stamp(cell: str) -> datetime | None:
    """The date and time in UTC of a Unix stamp, in seconds or milliseconds; None if a cell holds none."""
    match = _STAMP.fullmatch(cell.strip())
    return None if match is None else datetime.fromtimestamp(int(match[1]), UTC)
