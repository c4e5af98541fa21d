"""Control characters in names and messages are shown, whatever prints them."""

import ast
import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlrun
from dlrun.core.errors import MultipleErrors, RequestError
from dlrun.core.terminal import escape_json, escape_line, escape_text

TITLE = "\x1b]0;title\x07"  # what sets a terminal's window title
NASTY = f"a{TITLE}\x9b31m\u202eb\u2028c\x7f"
SHOWN = r"a\x1b]0;title\x07\x9b31m\u202eb\u2028c\x7f"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
QUIET = ("tracking.graph=false", "trainer.max_steps=3", "preflight=false")


def test_control_characters_are_written_as_python_writes_them() -> None:
    assert escape_line(NASTY) == SHOWN
    assert escape_line("one\r\ntwo\tthree") == r"one\r\ntwo\tthree"
    assert escape_text("one\r\ntwo\tthree") == "one\\r\ntwo\tthree"
    assert escape_line("\udcff.csv") == r"\udcff.csv"  # a file name that is no UTF-8
    assert json.loads(escape_json(json.dumps(NASTY, ensure_ascii=False))) == NASTY


@pytest.mark.parametrize("text", ["猫 / 狗", "naïve café", "שלום", "क्‍ष", "👩‍🔬", "a\\x1b", "ﷺ"])
def test_printable_text_of_every_language_stays(text: str) -> None:
    assert escape_line(text) == text


def test_an_error_is_one_line_whatever_it_repeats() -> None:
    assert str(RequestError(f"there is no {NASTY}\n")) == f"there is no {SHOWN}\\n"
    several = MultipleErrors([RequestError(f"one\n{TITLE}"), RequestError("two")])
    assert str(several) == "2 things are wrong:\n  1. one\\n\\x1b]0;title\\x07\n  2. two"


def test_one_module_writes_to_the_terminal(sources: list[Any]) -> None:
    modules = set()
    for source in sources:
        if not any(word in source.text for word in ("print", "stdout", "stderr")):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "sys.stdout.write", "sys.stderr.write", "traceback.print_exception"):
                    modules.add(source.name)
    assert modules == {"core/terminal.py"}


def clean(text: str) -> bool:
    """Whether a terminal would only show it."""
    return CONTROLS.search(text) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """outputs/ with two runs in folders of such names, trained on a table whose columns and classes have them too."""
    place = tmp_path_factory.mktemp("outputs")
    names = (f"cat{TITLE}", f"dog\u202e{TITLE}")
    with (place / f"table{TITLE}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"height{TITLE}", "\x9bwidth", f"kind\x07{TITLE}"])
        writer.writerows([i % 7, i % 5, names[i % 2]] for i in range(60))
    words = ("data=csv", f"data.path={place}/table.csv", "model=linear", *QUIET)
    (place / "table.csv").write_bytes((place / f"table{TITLE}.csv").read_bytes())
    run = dlrun.train(*words, f"hydra.run.dir={place}/trained", "figures=false", quiet=True)
    assert run.folder is not None
    for name in ("one", "two"):
        shutil.copytree(run.folder, place / "day" / f"{name}{TITLE}")
    shutil.rmtree(run.folder)
    return place


def folders(place: Path) -> list[Path]:
    return sorted((place / "day").iterdir())


@pytest.mark.parametrize(
    "command", ["ls", "compare", "diff", "eval", "predict", "export", "clean", "resume", "missing", "filter"]
)
def test_no_command_prints_them(
    command: str, runs: Path, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = map(str, folders(runs))
    outputs = f"paths.outputs={runs}"
    words = {
        "ls": ("ls", "runs", outputs),
        "compare": ("compare", one, two, f"paths.outputs={runs}/out{TITLE}"),
        "diff": ("diff", one, two),
        "eval": ("eval", one, "figures=false"),
        "predict": ("predict", one, f"{runs}/table{TITLE}.csv"),
        "export": ("export", one, "format=safetensors"),
        "clean": ("clean", outputs, "status=completed"),
        "resume": ("resume", one),
        "missing": ("eval", f"{one}{TITLE}"),
        "filter": ("ls", "runs", outputs, f"no{TITLE}key=1"),
    }[command]
    outcome = dlrun(*words)
    assert outcome.code == (2 if command in ("missing", "filter") else 0), outcome.err
    assert clean(outcome.out + outcome.err), repr(outcome.out + outcome.err)
    assert r"\x1b]0;title\x07" in outcome.out + outcome.err


@pytest.mark.slow
def test_files_for_people_show_them_and_files_for_programs_keep_them(runs: Path, dlrun: Callable[..., Any]) -> None:
    one, two = folders(runs)
    assert clean((one / "run.log").read_text())
    assert r"cat\x1b]0;title\x07" in (one / "run.log").read_text() + dlrun("eval", str(one), "figures=false").out
    table = next((one / "eval").glob("*/predictions.csv"))
    assert TITLE in table.read_text()
    assert TITLE in dlrun("predict", str(one), f"{runs}/table.csv", "--format", "csv").out
    line = dlrun("predict", str(one), f"{runs}/table.csv", "--format", "jsonl").out.splitlines()[1]
    assert clean(line)
    assert TITLE in json.loads(line)["prediction"]
    outcome = dlrun("compare", str(one), str(two), f"paths.outputs={runs}/pages")
    assert outcome.code == 0
    folder = next(next((runs / "pages").iterdir()).glob("*/*"))
    for name in ("report.html", "comparison.md"):
        assert clean((folder / name).read_text()), name
