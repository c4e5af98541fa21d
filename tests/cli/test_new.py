"""`dlrun new DIR`: the project that it writes, and what it refuses to write."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.yaml import read_yaml

FILES = [
    "README.md",
    "configs/data/spirals.yaml",
    "configs/experiment/first.yaml",
    "configs/experiment/wide.yaml",
    "configs/model/net.yaml",
    "pyproject.toml",
    "spiral_lab/__init__.py",
    "spiral_lab/callbacks.py",
    "spiral_lab/data.py",
    "spiral_lab/model.py",
    "tests/test_spiral_lab.py",
]


@pytest.fixture
def project(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project, which is the working directory."""
    outcome = dlrun("new", "labs/spiral_lab")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-3:] == ["cd labs/spiral_lab", "dlrun experiment=first", "pytest"]
    monkeypatch.chdir("labs/spiral_lab")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return Path.cwd()


def test_what_is_written_has_the_name_of_the_folder(project: Path) -> None:
    paths = [path for path in sorted(project.rglob("*")) if path.is_file()]
    assert [str(path.relative_to(project)) for path in paths] == FILES
    for path in paths:
        text = path.read_text()
        assert text.endswith("\n")
        assert not {"my_project", "{{", "}}"} & set(text.split())
    assert (project / "configs/model/net.yaml").read_text().splitlines()[1] == "_target_: spiral_lab.model.Net"


@pytest.mark.slow
def test_it_trains_and_goes_on_in_each_way(project: Path, dlrun: Callable[..., Any]) -> None:
    quick = ("trainer.epochs=1", "data.limit_batches=1", "figures=false", "tracking.graph=false")
    trust = "trusted_modules=[spiral_lab]"
    outcome = dlrun("experiment=wide", *quick, "user.width=7")
    assert outcome.code == 0, outcome.err
    config = read_yaml((outcome.folder / ".hydra/config.yaml").read_text())
    assert (config["user"], config["model"]["width"]) == ({"width": 7}, 7)
    assert (config["optimizer"]["lr"], config["run"]["tags"]) == (0.01, ["wide"])

    assert outcome.rows[0]["gradient/largest"] > 0

    resumed = dlrun("resume", str(outcome.folder), "trainer.epochs=2", trust)
    assert resumed.code == 0, resumed.err
    assert "spiral_lab" in dlrun("eval", str(outcome.folder)).err
    again = dlrun("rerun", str(outcome.folder), "user.width=5")
    assert again.code == 0, again.err
    assert again.result["parameters"] < outcome.result["parameters"]

    swept = dlrun("-m", "experiment=first,wide", *quick)
    assert swept.code == 0, swept.err
    (sweep,) = Path("outputs/multirun").glob("*/*")
    more = dlrun("resume", str(sweep), "experiment=first", "seed=1", trust)
    assert (more.code, len(list(sweep.glob("*/result.json")))) == (0, 3), more.err


@pytest.mark.slow
def test_its_options_are_known(project: Path, dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "  first    the net on the spirals\n" in dlrun("ls", "experiment").out
    composed = dlrun("experiment=wide", "user.width=7", "--cfg", "job", "--resolve", "--package", "model").out
    assert "_target_: spiral_lab.model.Net\nwidth: 7\n" in composed
    assert "spirals" in dlrun("ls", "data").out.split()
    assert "did you mean experiment=first?" in dlrun("experiment=frist").err
    several = dlrun("experiment=first", "user.widht=3", "trainer.epoch=2")
    assert (several.code, several.out) == (2, "")
    assert "user.widht" in several.err
    # A folder that is typed counts instead.
    Path("other/model").mkdir(parents=True)
    assert dlrun("--config-dir", "other", "experiment=first").code == 2

    monkeypatch.setenv("_DLRUN_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "dlrun experiment=")
    assert dlrun().out.split() == ["experiment=example", "experiment=first", "experiment=wide"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dlrun new takes one folder; type dlrun new my_project"),
        (["a", "b", "c=1"], "dlrun new takes one folder; leave out b c=1"),
        (
            ["my-project"],
            "my-project is no name of a Python module; type letters, digits and _, as in dlrun new my_proj",
        ),
        (["3d"], "3d is no name of a Python module; type letters, digits and _, as in dlrun new my_project"),
        (["class"], "class is no name of a Python module"),
        (["größe"], "größe is no name of a Python module"),
        (["deep/torch"], "torch is the name of another module; type another one, as in dlrun new my_torch"),
        (["json"], "json is the name of another module"),
        (["tests"], "tests is the name of another module"),
        (["full"], "full is not empty, and nothing in it is overwritten; type dlrun new <another folder>"),
        (["file"], "file is a file; type dlrun new <another folder>"),
        (["file/inside"], "cannot write to file/inside (Not a directory); type dlrun new <another folder>"),
    ],
)
def test_what_is_refused(dlrun: Callable[..., Any], tmp_path: Path, words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    Path("file").touch()
    before = sorted(tmp_path.rglob("*"))
    outcome = dlrun("new", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"dlrun: {message}")
    assert len(outcome.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("spiral_lab").mkdir()
    monkeypatch.chdir("spiral_lab")
    assert dlrun("new", ".").code == 0
    assert Path("spiral_lab/model.py").is_file()


@pytest.mark.slow
def test_the_lines_of_its_readme_and_its_tests_run(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    assert dlrun("new", "spiral_lab").code == 0
    project = tmp_path / "spiral_lab"
    lines = (project / "README.md").read_text().partition("```bash\n")[2].partition("```")[0].splitlines()
    assert lines[-1] == "pytest"
    run = ""
    for line in lines:
        module = "dlrun" if line.startswith("dlrun") else "pytest"
        words = shlex.split(line.replace("RUN", run), comments=True)[1:]
        process = warm.start("-m", module, *words, cwd=project)
        assert process.wait(300) == 0, (line, process.out, process.err)
        runs = sorted((project / "outputs").glob("2*/*"))
        run = str(runs[0].relative_to(project))
