"""The folder of configs that pyproject.toml in the working directory names."""

from pathlib import Path

import pytest

from dlrun.config.compose import parse_flags
from dlrun.core.errors import RequestError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()


def test_it_is_read_where_there_is_one() -> None:
    assert parse_flags(["seed=1"]).config_dir is None
    Path("pyproject.toml").write_text('[tool.dlrun]\nconfigs = "mine"\n')
    assert parse_flags(["seed=1"]).config_dir == "mine"
    for words in (["--config-dir", "typed"], ["-cd", "typed"], ["--config-di=typed"]):
        assert parse_flags(words).config_dir == "typed"


@pytest.mark.parametrize("text", ["[tool.other]\nx = 1\n", "[tool.dlrun]\n", "broken [", "[tool]\ndlrun = 1\n"])
def test_without_the_key_there_is_none(text: str) -> None:
    Path("pyproject.toml").write_text(text)
    assert parse_flags([]).config_dir is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tool.dlrun]\nconfigs = "gone"\n', r"configs in \[tool.dlrun\] of pyproject.toml is 'gone', and there is no"),
        ("[tool.dlrun]\nconfigs = 3\n", "is 3, and there is no such folder"),
        ("[tool.dlrun]\nconfigs = [\n", "pyproject.toml cannot be read: "),
    ],
)
def test_what_it_cannot_be_is_a_sentence(text: str, message: str) -> None:
    Path("pyproject.toml").write_text(text)
    with pytest.raises(RequestError, match=message):
        parse_flags([])
