"""Lists as JSON and CSV, and the words that ask for them."""

import csv
import io
import json
import math

import pytest

from dlrun.core.errors import RequestError
from dlrun.core.output_format import format_csv, format_json, take_format


@pytest.mark.parametrize("words", [["format=json"], ["--format", "json"], ["--format=json"]])
def test_three_ways_to_type_a_format(words: list[str]) -> None:
    assert take_format(["runs", *words, "seed=1"]) == ("json", ["runs", "seed=1"])


def test_the_format_is_a_table_by_default() -> None:
    assert take_format(["runs", "format"]) == ("table", ["runs", "format"])


@pytest.mark.parametrize("words", [["format=jsn"], ["--format"], ["--format", "x"], ["format="]])
def test_another_format_is_a_sentence(words: list[str]) -> None:
    with pytest.raises(RequestError, match=r"is not a format; .*type one of table, json, csv"):
        take_format(words)


ODD = {"a": "\x1b[31m\x7f\u2028\ud800", "b": [math.nan, math.inf, 1.5, True, None], "c": "=1+1"}


def test_json_is_ascii_without_control_characters_and_comes_back() -> None:
    text = format_json([ODD])
    assert all(letter == "\n" or " " <= letter <= "~" for letter in text)
    assert json.loads(text) == [{**ODD, "b": [None, None, 1.5, True, None]}]


def test_csv_has_plain_numbers_and_guards_text() -> None:
    rows = [{"x": 0.1 + 0.2, "y": "=1+1"}, {"x": math.nan, "y": None}, {"x": True, "y": ["a", 1]}, {"x": -1}]
    assert list(csv.reader(io.StringIO(format_csv(("x", "y"), rows)))) == [
        ["x", "y"],
        ["0.30000000000000004", "'=1+1"],
        ["", ""],
        ["true", '["a", 1]'],
        ["-1", ""],
    ]
