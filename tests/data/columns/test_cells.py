"""Numbers and dates as people write them."""

import math
from datetime import datetime

import numpy as np
import pytest

from dlrun.data.columns.cells import choose_day_first, choose_decimal, is_gap, parse_column, parse_date, parse_number


@pytest.mark.parametrize(
    ("cell", "decimal", "value"),
    [
        ("1.5", ".", 1.5),
        (" -2e3 ", ".", -2000.0),
        ("$1,234,567.89", ".", 1234567.89),
        ("-$5", ".", -5.0),
        ("12 %", ".", 12.0),
        ("1 234,5 €", ",", 1234.5),
        ("1.234.567,8", ",", 1234567.8),
        ("1'234.5", ".", 1234.5),
        ("1,2", ".", None),
        ("12,34,567", ".", None),
        ("1_000", ".", None),
        ("0x10", ".", None),
        ("inf", ".", None),
        ("7 8", ".", None),
        ("$", ".", None),
    ],
)
def test_a_number_is_read_or_refused(cell: str, decimal: str, value: float | None) -> None:
    assert parse_number(cell, decimal) == value


def test_a_column_has_nan_for_gaps_and_names_what_is_wrong() -> None:
    values, wrong = parse_column(["1", "NA", "x", "?", "2.5"], ".")
    assert np.array_equal(values, [1, math.nan, math.nan, math.nan, 2.5], equal_nan=True)
    assert wrong.tolist() == [2]
    assert [cell for cell in ("", " ", "n/a", "None", "-", "0", "no") if not is_gap(cell)] == ["0", "no"]


@pytest.mark.parametrize(
    ("columns", "separator", "decimal", "example"),
    [
        ([("1,5", "2,75")], ";", ",", ""),
        ([("1.5", "2.75")], ";", ".", ""),
        ([("1,234", "5")], ",", ".", "1,234"),  # open: by the separator
        ([("1,234", "5")], ";", ",", "1,234"),
        ([("1,234", "5"), ("0.5", "2")], ";", ".", ""),
        ([("1.234.567", "2")], "\t", ",", ""),
        ([("Berlin, DE", "Paris, FR")], ";", ".", ""),
    ],
)
def test_the_decimal_mark_follows_from_the_numbers(
    columns: list[tuple[str, ...]], separator: str, decimal: str, example: str
) -> None:
    assert choose_decimal(columns, separator) == (decimal, example)


def test_dates_in_the_orders_that_are_written() -> None:
    assert parse_date("2024-02-29T13:45:10", False) == datetime(2024, 2, 29, 13, 45, 10)
    assert parse_date("29.2.24", True) == datetime(2024, 2, 29)
    assert parse_date("2/29/1970", False) is None  # no leap year
    assert parse_date("12-1990", False) is None
    assert choose_day_first(["1/2/2020", "13/2/2020"]) is True
    assert choose_day_first(["1/2/2020", "2/13/2020"]) is False
    assert choose_day_first(["1/2/2020"]) is None
    assert choose_day_first(["2020-01-02"]) is False
