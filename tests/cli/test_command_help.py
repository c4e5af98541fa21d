"""`--help` of every command, `--version`, and what Hydra answers itself."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from dlrun.cli.command import Command, Group
from dlrun.cli.commands import DLRUN
from dlrun.config import explain
from dlrun.config.compose import compose_config
from dlrun.config.explain import iter_keys

QUIET = ("figures=false", "tracking.graph=false", "trainer.epochs=1", "data.limit_batches=2", "data.val_fraction=0.2")
# Words that a command takes itself, besides keys of the config.
OWN = {"status", "tag", "name", "key", "values", "group"}


def list_commands(group: Group, prefix: str = "") -> dict[str, Command]:
    """The commands by the words that name them; the name of a group is its default command."""
    commands = {prefix.strip(): group.default}
    for name, command in group.commands.items():
        if isinstance(command, Group):
            commands |= list_commands(command, f"{prefix}{name} ")
        elif isinstance(command, Command) and not command.hidden:
            commands[f"{prefix}{name}"] = command
    return commands


COMMANDS = list_commands(DLRUN)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command(dlrun: Callable, name: str, flag: str, tmp_path: Path) -> None:
    outcome = dlrun(*name.split(), flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: {f'dlrun {name}'.strip()} [OPTIONS] ")
    assert max(map(len, outcome.out.splitlines()[1:])) <= 80
    # Its first sentence stands in the list of commands, uncut.
    assert f"  {COMMANDS[name].help.partition('.')[0]}." in outcome.out
    assert not name or "..." not in COMMANDS[name].get_short_help_str(60)
    examples = outcome.out.partition("Examples:\n")[2].splitlines()
    assert len(examples) >= 2
    assert not list(tmp_path.iterdir())


def test_help_is_found_behind_other_words(dlrun: Callable) -> None:
    alone = dlrun("eval", "--help").out
    assert dlrun("eval", "runs/none", "split=val", "--help").out == alone
    assert dlrun("model=mlp", "--help").out == dlrun("--help").out
    assert dlrun("help-me", "-h").code == 0


def test_an_input_that_reads_as_a_flag_asks_for_no_help(dlrun: Callable) -> None:
    outcome = dlrun("predict", "runs/none", "--", "--help")
    assert outcome.code == 2
    assert "runs/none" in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_keys_in_the_help_exist(name: str) -> None:
    keys = {*iter_keys(compose_config([])), "data", "model", "device"}
    for word, text in COMMANDS[name].words:
        assert text
        key, equals, _ = word.partition("=")
        assert not equals or key in keys | OWN | {"key"}, word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ls", "runs", "--format"), "--format has no value; dlrun ls runs --help shows its options"),
        (("clean", "--yes=1"), "--yes takes no value; dlrun clean --help shows its options"),
        (("ls", "runs", "--limit", "x"), "limit=x must be a whole number above 0; type --limit 10"),
        (("ls", "runs", "last=0"), "last=0 must be a whole number above 0; type --last 10"),
        (
            ("show", "run", "--format", "jsn"),
            "format=jsn is not a format; did you mean format=json or format=csv? type one of",
        ),
        (("eval", "run", "split=vall"), "split=vall is not a split; did you mean split=val or split=all? type one of"),
    ],
)
def test_options_that_are_wrong(dlrun: Callable, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    outcome = dlrun(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"dlrun: {message}")
    assert not list(tmp_path.iterdir())


def test_words_of_hydra_pass_through_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-cd", "here", "-m", "--cfg", "job", "-p", "trainer", "~a", "+b=--help", "", "-", "-=1", "--=2", "-0.5h"]
    composed: list[tuple[str, ...]] = []
    monkeypatch.setattr(DLRUN.default, "callback", lambda words: composed.append(words))
    DLRUN.invoke(DLRUN.make_context("dlrun", [*words, "--", "-h", "--version"]))
    assert composed == [(*words, "--", "-h", "--version")]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are kept that each example takes a copy of."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def folder_with_runs(dlrun: Callable, tmp_path: Path, shelf: Path) -> Path:
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
EXAMPLES = [example for name, command in COMMANDS.items() if name for example in command.examples]


@pytest.mark.slow
@pytest.mark.usefixtures("warm_check_resume")
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(dlrun: Callable, folder_with_runs: Path, example: str) -> None:
    if example.startswith("eval") or "|" in example:
        pytest.skip("a line for a shell; test_completion runs it")
    if example in README:
        pytest.skip("the README has this line; test_readme runs it")
    if example == "dlrun compare outputs" or "sort=" in example:
        assert dlrun("data=blobs", *QUIET).code == 0
    if example == "dlrun export runs/mine":
        pytest.importorskip("onnx")
    outcome = dlrun(*shlex.split(example)[1:])
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out


def test_version(dlrun: Callable) -> None:
    outcome = dlrun("--version")
    assert (outcome.code, outcome.err) == (0, "")
    expected = [
        f"{name} {metadata.version(package)}" for name, package in (("torch", "torch"), ("Hydra", "hydra-core"))
    ]
    assert outcome.out.splitlines()[1:] == expected
    assert outcome.out.startswith("dlrun 0.")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--version"], ["predict", "--help"], ["check", "lr", "-h"]])
def test_help_and_version_import_no_torch(words: list[str], tmp_path: Path) -> None:
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    outcome = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert (outcome.returncode, outcome.stderr) == (0, "")


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
    outcome = dlrun(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.out
    assert "sys.exit" not in outcome.err


def test_an_exit_is_blamed_on_the_line_that_made_it(dlrun: Callable, tmp_path: Path) -> None:
    (tmp_path / "leaving_early.py").write_text("import sys\n\nclass Net:\n    pass\n\nsys.exit('no licence')\n")
    outcome = dlrun("model._target_=leaving_early.Net", "data=blobs")
    assert outcome.code == 2
    assert "code of your own called sys.exit(no licence)" in outcome.err
    assert "(leaving_early.py, line 6)" in outcome.err


def test_an_exit_of_a_library_is_not_blamed_on_the_user(dlrun: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    def compose_nothing(words: list[str]) -> None:
        argparse.ArgumentParser().parse_args(["--unknown"])

    monkeypatch.setattr("dlrun.config.request.from_command_line", compose_nothing)
    # The function above is code of a user's: compile it as dlrun's.
    code = compose_nothing.__code__.replace(co_filename=str(Path(argparse.__file__)))
    compose_nothing.__code__ = code
    outcome = dlrun("data=blobs")
    assert outcome.code == 2
    assert "code of your own" not in outcome.err
    assert "argparse.py, line" in outcome.err


def test_a_mistyped_command_is_looked_for_among_all_of_them() -> None:
    # config lies below cli, and has a list of its own.
    assert sorted(explain._VERBS) == sorted(DLRUN.list_commands(DLRUN.make_context("dlrun", ["help"])))
