"""Text of a loaded run in all that dlrun writes and says: it shows as text, and nothing in it runs."""

import ast
import csv
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table

from dlrun.config import request
from dlrun.core import csv_text, shell
from dlrun.core import markdown as markdown_text
from dlrun.core.errors import RequestError
from dlrun.core.yaml import dump_yaml, read_yaml
from dlrun.data.files.table import read_table
from dlrun.eject.source import write_constants, write_literal, write_name, write_prose
from dlrun.experiment import run as experiment
from dlrun.runs import checkpoint
from dlrun.runs.reports.console import Console, build_table
from dlrun.runs.reports.plots import canvas

QUICK = ("data=blobs", "trainer.max_steps=3", "tracking.graph=false")
RUNS = 'open("canary", "w").close()'
EVIL = [
    f'"""\n{RUNS}\n"""',
    f"'''\n{RUNS}\n'''",
    f'"\n{RUNS}#',
    f'\\"\n{RUNS}\n\\',
    f"\u2028{RUNS}\u2029\x85\x0b\x1c",
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "a|b\n| c | d |\n",
    "$x^$ and $\\frac$",
    "[bold red]x[/bold red] :warning: [link=file:///etc/passwd]y[/link]",
    "[a](javascript:alert(1)) ![b](http://example.com/x.png) `c` **d** _e_ # f",
    "=cmd|'/C calc'!A0",
    "; touch canary #",
    "$(touch canary) `touch canary`",
    "\ud800",
]
ALL = " ".join(EVIL[:-1])


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = [*QUICK, "figures=false", f"hydra.run.dir={folder}"]
    assert all(experiment.run(one_run) == 0 for one_run in request.from_command_line(words))
    return folder


def craft(run: Path, text: str, classes: bool = True) -> None:
    """Put the text wherever a run keeps one and nothing is built from it."""
    safe = text.encode("utf-8", "replace").decode()
    hidden = run / ".hydra"
    saved_choices = read_yaml((hidden / "hydra.yaml").read_text())
    saved_choices["hydra"]["runtime"]["choices"] |= dict.fromkeys(("model", "optimizer", "lesson"), safe)
    (hidden / "hydra.yaml").write_text(dump_yaml(saved_choices))
    (hidden / "overrides.yaml").write_text(dump_yaml([f"model.note={safe}"]))
    plain = read_yaml((hidden / "config.yaml").read_text())
    plain["model"]["note"] = safe
    (hidden / "config.yaml").write_text(dump_yaml(plain))
    for path, changes in (
        (run / "environment.json", {"device": text, "command": f"dlrun {shlex.quote(text)}", "git_commit": text}),
        (run / "result.json", {"weights_sha256": text, "warnings": [text], "error": text, "code_hash": text}),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    for path in (run / "checkpoints").iterdir():
        state = checkpoint.load(path)
        state["choices"] |= dict.fromkeys(("model", "optimizer", "lesson"), text)
        state["torch"] = text
        if classes:
            state["spec"]["class_names"] = [text, "b"]
        path.unlink()
        checkpoint.save(path, state)


class Page(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", [*(pytest.param(text, marks=pytest.mark.slow) for text in EVIL[:4]), ALL])
def test_an_exported_training_holds_it_as_text(
    dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path, text: str
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    craft(tmp_path / "run", text)
    outcome = dlrun("export", "run", "format=python")
    assert outcome.code == 0, outcome.err
    source = (tmp_path / "run" / "export" / "python" / "train.py").read_text()
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert "open" not in calls
    assert "close" not in source.split('"""')[2]
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_an_exported_training_runs_and_runs_nothing_else(
    dlrun: Callable[..., Any], python: Callable[..., Any], trained_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    craft(tmp_path / "run", EVIL[0])
    assert dlrun("export", "run", "format=python").code == 0
    outcome = python("run/export/python/train.py")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("text", EVIL)
def test_a_constant_of_the_source_is_what_it_was(text: str) -> None:
    values = {"TEXT": text, "LONG": text * 40, "MANY": [text, text * 40], "NAMED": {text: 1, text * 40: text}}
    source = write_constants("print(TEXT, LONG, MANY, NAMED)", values)
    constants: dict[str, Any] = {}
    for node in ast.parse(source.encode("utf-8", "surrogatepass")).body:
        assert isinstance(node, ast.Assign)
        constants[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    assert constants == values
    assert ast.literal_eval(write_literal({text: [text, (text,)]})) == {text: [text, (text,)]}
    assert ast.get_docstring(ast.parse(f'"""{write_prose(text)}."""')) is not None
    assert len(ast.parse(f'"""{write_prose(text)}."""').body) == 1


@pytest.mark.parametrize("name", ["x=1, y", "lambda", "", "a b", "__import__('os').system('x') or a"])
def test_the_name_of_an_argument_is_a_name(name: str) -> None:
    with pytest.raises(RequestError, match="cannot write an argument called"):
        write_name(name)


def test_a_layer_with_a_call_for_a_name_is_not_written(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    hidden = f"x=exec({RUNS!r}), y"
    layers = f'[{{Identity: {{"{hidden}": 1}}}}, {{Linear: [in, out]}}]'
    words = ("model=sequential", f"model.layers={layers}", "figures=false", "hydra.run.dir=run")
    training = dlrun(*QUICK, *words)
    assert training.code in (0, 2)
    if training.code == 0:
        outcome = dlrun("export", "run", "format=python")
        assert outcome.code == 2
        assert "cannot write an argument called" in outcome.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("comparison_without_pictures")
@pytest.mark.slow
@pytest.mark.parametrize("text", [ALL, EVIL[5]])
def test_tables_pages_and_lists_show_it(
    dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path, text: str
) -> None:
    for name in ("one", "two"):
        shutil.copytree(trained_run, tmp_path / "runs" / name)
    craft(tmp_path / "runs" / "one", text, classes=False)
    outcome = dlrun("compare", "runs", "paths.outputs=out")
    assert outcome.code == 0, outcome.err
    page = Page(next((tmp_path / "out").rglob("report.html")).read_text())
    assert "script" not in page.tags
    assert page.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "href", "alt", "src"}
    markdown = next((tmp_path / "out").rglob("comparison.md")).read_text()
    assert "<script>" not in markdown
    commands = [("ls", "runs", "runs"), ("diff", "runs/one", "runs/two"), ("eval", "runs/one")]
    commands += [("show", "runs/one"), ("watch", "runs/one")]
    commands += [(*words, "format=json") for words in (("ls", "runs", "runs"), ("show", "runs/one"))]
    commands += [(*words, "format=csv") for words in (("ls", "runs", "runs"), ("show", "runs/one"))]
    commands += [("diff", "runs/one", "runs/two", "format=json"), ("compare", "runs", "format=csv")]
    for words in commands:
        shown = dlrun(*words)
        assert shown.code == 0, words
        assert not set("\x1b\u2028\x85\x0b\x1c\ud800") & set(shown.out), words
    again = dlrun("rerun", "runs/one")
    assert again.code == 2
    assert "Traceback" not in again.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_class_names_that_a_spreadsheet_would_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    names = ["=cmd|'/C calc'!A0", "$x^$"]
    data = ("data=points", "data.x=[[1],[2],[3],[4]]", "data.y=[0,0,1,1]", "data.task=multiclass")
    quoted = ",".join(json.dumps(name) for name in names)
    words = ("trainer.epochs=1", "tracking.graph=false", f"data.class_names=[{quoted}]", "hydra.run.dir=run")
    outcome = dlrun(*data, *words)
    assert outcome.code == 0, outcome.err
    assert "could not be" not in outcome.out
    assert dlrun("eval", "run", "split=train", "figures=false").code == 0
    (evaluation,) = (tmp_path / "run" / "eval").iterdir()
    cells = {cell for row in csv.reader(io.StringIO((evaluation / "predictions.csv").read_text())) for cell in row}
    assert f"'{names[0]}" in cells
    assert names[0] not in cells
    (tmp_path / "rows.csv").write_text("x\n1\n4\n")
    answered = dlrun("predict", "run", "rows.csv", "--format=csv")
    assert answered.code == 0, answered.err
    assert not re.search(r"(^|,)=cmd", answered.out)


@pytest.mark.parametrize("text", EVIL)
def test_the_terminal_shows_it_as_it_stands(text: str) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.terminal.width = 400
    line = text.replace("\n", " ").encode("utf-8", "replace").decode()
    if not line.isprintable():
        return
    console.say(line)
    console.say(build_table([line, "b"], [(line, "1")]))
    table = Table(line)
    table.add_row(line)
    console.say(table)
    assert stream.getvalue().count(line.strip()) >= 5


@pytest.mark.slow
def test_a_picture_shows_it_as_it_stands() -> None:
    figure, axes = canvas.create_axes()
    axes.set(title=canvas.escape_label(EVIL[0]), xlabel=canvas.escape_label("$x^"), ylabel=canvas.escape_label("a$b$c"))
    for text in EVIL[:-1]:
        axes.plot([0, 1], label=canvas.escape_label(text))
    axes.legend()
    assert canvas.render_pixels(figure).dtype == np.uint8


CELLS = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''-x", "'", "it's", "x=1", "", "-", "+"]
NUMBERS = ["-0.5", "+1", "1e-3", "-inf", "0"]


def test_text_that_a_spreadsheet_would_run_is_guarded_and_comes_back(tmp_path: Path) -> None:
    file = io.StringIO()
    csv_text.CsvWriter(file).write_rows([["name", "value"], *([cell, -0.5] for cell in [*CELLS, *NUMBERS])])
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))[1:]
    assert {value for _, value in rows} == {"-0.5"}
    assert [cell for cell, _ in rows[len(CELLS) :]] == NUMBERS
    assert not any(re.match(r"[=+\-@\t\r]", cell) for cell, _ in rows[: len(CELLS)])
    assert [csv_text.unguard(cell) for cell, _ in rows] == [*CELLS, *NUMBERS]

    path = tmp_path / "x.csv"
    path.write_text(file.getvalue(), newline="")
    values = read_table(path, header=True)
    assert [cell for cell in values.columns[0] if cell.strip() == cell] == [
        cell for cell in [*CELLS, *NUMBERS] if cell.strip() == cell
    ]


def test_markdown_shows_text_and_no_markup() -> None:
    assert markdown_text.escape_inline("[a](b) | <c> `d` **e** _f_ macro_f1 $g$\nh") == (
        r"\[a\](b) \| &lt;c&gt; \`d\` \*\*e\*\* \_f\_ macro_f1 \$g\$ h"
    )
    assert markdown_text.escape_line_start("# a") == r"\# a"
    assert markdown_text.escape_line_start("1. a") == r"1\. a"
    assert markdown_text.escape_line_start("best: 1") == "best: 1"
    assert markdown_text.format_code("a\nb") == "    a\n    b\n"


@pytest.mark.parametrize("text", EVIL)
def test_advice_is_one_command(text: str) -> None:
    assert shlex.split(f"dlrun eval {shell.quote(text)}") == ["dlrun", "eval", text]
    again = shell.requote(f"dlrun a=1 {text}")
    assert again == "dlrun ..." or shlex.join(shlex.split(again)) == again
    assert shell.requote("rm -rf x") == "dlrun ..."
    assert shell.requote("dlrun x; rm -rf y") == "dlrun 'x;' rm -rf y"


def test_a_name_that_is_completed_runs_nothing(
    dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained_run, tmp_path / "outputs" / "2026-01-01" / "$(touch canary)")
    for name in ("bash", "zsh"):
        monkeypatch.setenv("_DLRUN_COMPLETE", f"{name}_complete")
        monkeypatch.setenv("COMP_WORDS", "dlrun eval outputs/2026-01-01/")
        outcome = dlrun()
        assert outcome.code == 0
        words = shlex.split(outcome.out)
        assert "outputs/2026-01-01/$(touch canary)" in words
        assert "'" in outcome.out
