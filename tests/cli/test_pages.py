"""`dlrun help`: the pages in the terminal and in a pipe."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli import pages


def test_without_a_topic_the_pages_are_listed(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("help")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()[1:]] == list(pages.TOPICS)
    assert "  sweeps" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.parametrize("topic", pages.TOPICS)
def test_in_a_pipe_a_page_is_its_markdown(topic: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("help", topic)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == (pages.DOCS / f"{topic}.md").read_text()


def test_on_a_terminal_a_page_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    pages.show_page(["run-folder"])
    lines = terminal.getvalue().splitlines()
    assert "The run folder" in terminal.getvalue()
    assert "# The run folder" not in terminal.getvalue()
    assert max(map(len, lines)) > 40


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("sweep",), "there is no page sweep; did you mean dlrun help sweeps? type one of quickstart, "),
        (("sweeps", "course"), "one topic at a time; type dlrun help sweeps"),
        (("../../README",), "there is no page ../../README; "),
    ],
)
def test_a_wrong_topic_is_a_sentence(words: tuple[str, ...], sentence: str, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("help", *words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"dlrun: {sentence}")
    assert len(outcome.err.splitlines()) == 1


@pytest.mark.slow
def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    outcome = subprocess.run(
        [sys.executable, "-c", code, "help", "sweeps"], capture_output=True, text=True, cwd=tmp_path
    )
    assert outcome.returncode == 0, outcome.stderr
