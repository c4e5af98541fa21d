"""Lists as JSON and CSV."""

import csv
import io
import json
import math

from dlrun.core.output_format import format_csv, format_json

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
