"""What the terminal says, and run.log in the same words."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrun.runs.reports.console import Console, build_table, format_facts, format_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (1.0, "1.0000"),
        (0.00123456, "0.0012"),
        (0.000123456, "1.235e-04"),
        (-9999.0, "-9999.0000"),
        (12345.678, "1.235e+04"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1234567, "1,234,567"),
        ("text", "text"),
        (None, "None"),
    ],
)
def test_numbers_are_short(value: Any, text: str) -> None:
    assert format_number(value) == text


def test_terminal_and_log_say_the_same_from_the_first_word_on(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.say("before there was a folder")
    console.open_log(tmp_path / "run.log")
    console.say("[bold]brackets[/bold] stay [1, 2]")
    console.say("a path " + "x" * 200)  # can be copied: not wrapped
    console.say(format_facts([("a", "1"), ("longer name", "2")]))
    console.say(build_table(("name", "value"), [("first", "1"), ("second [x]", "22")]))
    console.log_only("Traceback")
    console.close()
    output = (tmp_path / "run.log").read_text()
    assert output == stream.getvalue() + "Traceback\n"
    lines = output.splitlines()
    assert lines[0] == "before there was a folder"
    assert lines[1] == "[bold]brackets[/bold] stay [1, 2]"
    assert lines[2] == "a path " + "x" * 200
    assert lines[3:5] == ["a            1", "longer name  2"]
    assert [line.split() for line in lines[5:] if "second" in line] == [["second", "[x]", "22"]]
    assert "\x1b" not in output


def test_a_table_keeps_to_a_narrow_pipe_and_is_whole_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    console = Console(stream)
    console.open_log(tmp_path / "run.log")
    console.say(build_table(("name", "value"), [("long" * 12, "1"), ("short", "22")]))
    console.close()
    assert max(map(len, stream.getvalue().splitlines())) <= 30
    assert stream.getvalue().count("long") >= 11
    assert "long" * 12 in (tmp_path / "run.log").read_text()


def test_the_log_is_on_the_disk_after_each_line(tmp_path: Path) -> None:
    console = Console(io.StringIO())
    console.open_log(tmp_path / "run.log")
    console.say("one")
    assert (tmp_path / "run.log").read_text() == "one\n"
    console.log_only("two")
    assert (tmp_path / "run.log").read_text() == "one\ntwo\n"
    console.close()


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        console = Console(io.StringIO())
        console.open_log(tmp_path / "run.log")
        console.say(word)
        console.close()
    assert (tmp_path / "run.log").read_text() == "first\nsecond\n"


def test_a_notebook_gets_plain_lines_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    # Asked once a process, outside of a notebook until now.
    monkeypatch.setattr("dlrun.runs.reports.console._is_in_notebook", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *things: shown.append(things))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # what a notebook's says of itself
    for quiet in (False, True):
        console = Console(quiet=quiet)
        console.open_log(tmp_path / f"{quiet}.log")
        console.say(build_table(("name", "value"), [("first", "1")]))
        console.close()
        assert capsys.readouterr().out == ("" if quiet else (tmp_path / f"{quiet}.log").read_text())
        assert "first" in (tmp_path / f"{quiet}.log").read_text()
    assert shown == []


def test_a_table_that_was_changed_after_it_was_built_is_logged_as_it_is(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.open_log(tmp_path / "run.log")
    for title in (None, "a title", None):
        table = build_table(("name", "wert"), [("ä\x1b[1m", "1"), ("x" * 150, "22")])
        table.title = title
        console.terminal.width = 100
        console.say(table)
    narrow = build_table(("name", "value"), [("a", "1")])
    narrow.pad_edge = False
    console.say(narrow)
    assert (tmp_path / "run.log").read_text() == stream.getvalue()


@pytest.mark.parametrize(
    ("headers", "rows", "left"),
    [
        (("metric", "train", "val"), [("loss", "0.5", "0.61234"), ("accuracy", "", "1")], 1),
        (("layer", "kind", "output"), [("a", "8×128", "x"), ("中文", "é", "")], 2),
        (("name",), [], 1),
        (("name", "value"), [("x" * 91, "1234")], 1),
        (("name", "value"), [("x" * 92, "1234"), (" a", "b ")], 1),
    ],
    ids=["numbers", "wide letters", "no rows", "as wide as the log", "wider"],
)
def test_tables_of_the_log_are_those_of_rich(
    headers: tuple[str, ...], rows: list[tuple[str, ...]], left: int, tmp_path: Path
) -> None:
    console = Console(quiet=True)
    console.open_log(tmp_path / "run.log")
    console.say(build_table(headers, rows, left))
    table = build_table(headers, rows, left)
    with console.log.capture() as captured:
        console.log.print(table, markup=False)
    assert (tmp_path / "run.log").read_text() == captured.get()
