"""The shape of the code: what `make check` (import-linter: who may import whom) cannot see."""

import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dlrun"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_ROOMS = 12


def test_nothing_is_instantiated_by_hydra_which_evaluates_text() -> None:
    users = [path.name for path in FILES if "utils.instantiate" in path.read_text()]
    assert users == []


def test_only_one_file_asks_for_ranks() -> None:
    words = ("WORLD_SIZE", "LOCAL_RANK", "get_rank", "get_world_size", "init_process_group")
    assert [path.name for path in FILES if any(word in path.read_text() for word in words)] == ["distributed.py"]


def test_no_words_that_do_not_belong() -> None:
    for path in (*FILES, *(PACKAGE.parent / "configs").rglob("*.yaml"), *PACKAGE.rglob("*.md")):
        text = path.read_text()
        assert "pickle.load(" not in text, path
        assert "TODO" not in text, path


def test_a_newcomer_sees_few_rooms_and_reads_what_each_is_for() -> None:
    # Bytecode of folders that have moved may lie in a checkout.
    rooms = {path.parent for path in PACKAGE.glob("*/*.py")}
    assert len(rooms) <= MOST_ROOMS
    for room in rooms:
        assert (room / "__init__.py").read_text().startswith('"""'), room
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_the_top_level_holds_the_agreed_entries() -> None:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PACKAGE.parent)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = {"pyproject.toml", "README.md", "dlrun", "configs", "tests", "outputs", "Makefile"}
    assert {name for name in top if not name.startswith(".")} == agreed
