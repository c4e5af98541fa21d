"""`--help` of every command, `--version`, and what Hydra answers itself."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from dlrun.cli.command_help import COMMAND_HELP
from dlrun.cli.main import CHECKS, COMMANDS, SAVED_RUN_COMMANDS
from dlrun.config.compose import compose_config
from dlrun.config.explain import iter_keys

QUIET = ("figures=false", "tracking.graph=false", "trainer.epochs=1", "data.limit_batches=2", "data.val_fraction=0.2")
# What a command takes itself, besides keys of the config.
OWN = {
    "split": "dlrun/inference/evaluate.py",
    "format": "dlrun/inference/export/command.py",
    "weights": "dlrun/inference/export/command.py",
    "status": "dlrun/runs/query.py",
    "tag": "dlrun/runs/filters.py",
    "name": "dlrun/runs/filters.py",
    "sort": "dlrun/runs/query.py",
    "limit": "dlrun/runs/query.py",
    "--format": "dlrun/inference/predict/command.py",
    "--top": "dlrun/inference/predict/command.py",
    "--": "dlrun/inference/predict/command.py",
    "--last": "dlrun/runs/query.py",
    "--yes": "dlrun/cli/clean.py",
    "-m": "dlrun/experiment/checks/gradients.py",
}


def test_every_command_has_help() -> None:
    known = {*COMMANDS, *SAVED_RUN_COMMANDS, "ls", "help", *(f"check {check}" for check in CHECKS)}
    assert set(COMMAND_HELP) == known


@pytest.mark.parametrize("name", COMMAND_HELP)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command(dlrun: Callable, name: str, flag: str, tmp_path: Path) -> None:
    done = dlrun(*name.split(), flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"dlrun {name.split()[0]} ")
    assert max(map(len, done.out.splitlines()[1:])) <= 80
    examples = done.out.partition("examples\n")[2].splitlines()
    assert len(examples) >= 2
    assert not list(tmp_path.iterdir())


def test_help_is_found_behind_other_words(dlrun: Callable) -> None:
    alone = dlrun("eval", "--help").out
    assert dlrun("eval", "runs/none", "split=val", "--help").out == alone
    assert dlrun("model=mlp", "--help").out == dlrun("--help").out
    assert dlrun("help-me", "-h").code == 0


def test_an_input_that_reads_as_a_flag_asks_for_no_help(dlrun: Callable) -> None:
    done = dlrun("predict", "runs/none", "--", "--help")
    assert done.code == 2
    assert "runs/none" in done.err


@pytest.mark.parametrize("name", COMMAND_HELP)
def test_options_in_the_help_exist(name: str) -> None:
    root = Path(__file__).parents[2]
    keys = {*iter_keys(compose_config([])), "data", "model", "device"}
    for option, text in COMMAND_HELP[name].options:
        assert text
        word = re.split(r"[= ]", option)[0]
        if word in ("key",):
            continue
        if word in OWN:
            assert f'"{word}' in (root / OWN[word]).read_text(), option
        else:
            assert word in keys, option


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are kept that each example takes a copy of."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def with_runs(dlrun: Callable, tmp_path: Path, shelf: Path) -> Path:
    """runs/mine and runs/other, and a table to ask the first of them about."""
    for folder, seed in (("runs/mine", 0), ("runs/other", 1)):
        if not (shelf / folder).exists():
            assert dlrun("data=blobs", f"seed={seed}", f"hydra.run.dir={shelf / folder}", *QUIET).code == 0
    shutil.copytree(shelf / "runs", tmp_path / "runs")
    np.savetxt(tmp_path / "rows.csv", np.zeros((3, 2)), delimiter=",", header="x0,x1", comments="")
    return tmp_path


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "dlrun" / "docs").glob("*.md"))]
README = [line for page in PAGES for line in page.read_text().splitlines()]
EXAMPLES = [example for command in COMMAND_HELP.values() for example in command.examples]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_check_resume")
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(dlrun: Callable, with_runs: Path, example: str) -> None:
    if example.startswith("eval"):
        pytest.skip("a line for a shell; test_completion runs it")
    if example in README:
        pytest.skip("the README has this line; test_readme runs it")
    if example == "dlrun compare outputs" or "sort=" in example:
        assert dlrun("data=blobs", *QUIET).code == 0
    if example == "dlrun export runs/mine":
        pytest.importorskip("onnx")
    done = dlrun(*shlex.split(example)[1:])
    assert (done.code, done.err) == (0, "")
    assert done.out


def test_version(dlrun: Callable) -> None:
    done = dlrun("--version")
    assert (done.code, done.err) == (0, "")
    expected = [
        f"{name} {metadata.version(package)}" for name, package in (("torch", "torch"), ("Hydra", "hydra-core"))
    ]
    assert done.out.splitlines()[1:] == expected
    assert done.out.startswith("dlrun 0.")


@pytest.mark.parametrize("words", [["--version"], ["predict", "--help"], ["check", "lr", "-h"]])
def test_help_and_version_import_no_torch(words: list[str], tmp_path: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        ["--hydra-help"],
        ["--info"],
        ["--info", "all"],
        ["--info", "config"],
        ["--cfg", "hydra"],
        ["--cfg", "all", "--resolve"],
        ["--shell-completion", "install=bash"],
        ["-sc", "uninstall=bash"],
    ],
)
def test_what_hydra_answers_itself_ends_with_0(dlrun: Callable, words: list[str]) -> None:
    done = dlrun(*words)
    assert done.code == 0, done.err
    assert done.out
    assert "sys.exit" not in done.err


def test_an_exit_is_blamed_on_the_line_that_made_it(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "leaving_early.py").write_text("import sys\n\nclass Net:\n    pass\n\nsys.exit('no licence')\n")
    done = dlrun("model._target_=leaving_early.Net", "data=blobs")
    assert done.code == 2
    assert "code of your own called sys.exit(no licence)" in done.err
    assert "(leaving_early.py, line 6)" in done.err


def test_an_exit_of_a_library_is_not_blamed_on_the_user(dlrun: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    def compose_nothing(words: list[str]) -> None:
        argparse.ArgumentParser().parse_args(["--unknown"])

    monkeypatch.setattr("dlrun.config.request.from_command_line", compose_nothing)
    # The function above is code of a user's: compile it as dlrun's.
    code = compose_nothing.__code__.replace(co_filename=str(Path(argparse.__file__)))
    compose_nothing.__code__ = code
    done = dlrun("data=blobs")
    assert done.code == 2
    assert "code of your own" not in done.err
    assert "argparse.py, line" in done.err
