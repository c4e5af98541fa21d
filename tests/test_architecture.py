"""The shape of the code: who imports whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dlrun"
FILES = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Modules that a file imports; those under TYPE_CHECKING are for readers and are left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(n)
        for b in ast.walk(tree)
        if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
        for n in ast.walk(b)
    }
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


@pytest.mark.parametrize("folder", ["models", "optim"])
def test_models_and_optimizers_know_only_the_data_contract(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("dlrun")}
        allowed = ("dlrun.data.spec", "dlrun.core.errors", f"dlrun.{folder}")
        assert all(name.startswith(allowed) or name == "dlrun.data" for name in ours), (path, ours)


def test_the_loop_knows_no_config_terminal_or_tensorboard() -> None:
    for name in ("loop.py", "training.py", "task.py", "data/batches.py"):
        found = set(imports(PACKAGE / name))
        assert not {n for n in found if n.split(".")[0] in ("hydra", "omegaconf", "rich", "tensorboard")}, name
        assert not found & {
            "dlrun.config.schema",
            "dlrun.runs.logger",
            "dlrun.runs.reports.console",
            "torch.utils.tensorboard",
        }, name


def test_nothing_is_instantiated_by_hydra_which_evaluates_text() -> None:
    users = [path.name for path in FILES if "utils.instantiate" in path.read_text()]
    assert users == []


def test_only_one_file_knows_a_rank() -> None:
    words = ("WORLD_SIZE", "LOCAL_RANK", "get_rank", "world_size")
    assert [path.name for path in FILES if any(word in path.read_text() for word in words)] == ["ranks.py"]


def test_imports_run_downwards() -> None:
    graph = {module(p): {n for n in imports(p, top_only=True) if n.startswith("dlrun.")} for p in FILES}
    graph = {name: {n for n in found if n in graph} - {name} for name, found in graph.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_words_that_do_not_belong() -> None:
    for path in (*FILES, *(PACKAGE.parent / "configs").rglob("*.yaml"), PACKAGE.parent / "README.md"):
        text = path.read_text()
        assert "pickle.load(" not in text, path
        assert "TODO" not in text, path


def test_the_top_level_holds_the_agreed_entries() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=PACKAGE.parent)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = {"pyproject.toml", "README.md", "dlrun", "configs", "tests", "outputs", "Makefile"}
    assert {name for name in top if not name.startswith(".")} == agreed
