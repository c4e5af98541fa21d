"""No link leads out of a run folder: nothing is read, written or deleted through one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dlrun as package
from dlrun.config import request
from dlrun.core.errors import RequestError
from dlrun.core.inside import refuse_outside
from dlrun.experiment import run as experiment

QUICK = ("data=blobs", "trainer.max_steps=3", "tracking.graph=false", "figures=false")


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, to be copied."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert all(
        experiment.run(one_run) == 0 for one_run in request.from_command_line([*QUICK, f"hydra.run.dir={folder}"])
    )
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else, with a file of each kind that dlrun would write or delete."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("step_00000001.pt", "step_00000002.pt", "run.log", "secret.png", "config.yaml", ".x.tmp"):
        (folder / name).write_text("theirs")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace_by_link(path: Path, target: Path) -> None:
    """A link in place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


FOLDERS = ("checkpoints", "figures", "eval", "export", ".hydra")
FILES = ("run.log", ".lock", "result.json", "metrics.jsonl", "environment.json", "figures/secret.png", "report.html")


@pytest.mark.parametrize("name", [*FOLDERS, *FILES, "fingerprints.jsonl", "checkpoints/best.pt", "figures/a/b/c.png"])
@pytest.mark.parametrize("kind", ["there", "dangling"])
def test_every_link_out_is_found(trained_run: Path, tmp_path: Path, victim: Path, name: str, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    refuse_outside(run)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    replace_by_link(run / name, victim / ("nothing" if kind == "dangling" else "" if name in FOLDERS else "secret.png"))
    with pytest.raises(RequestError, match=r"is a link to .*victim.*follows no link out of a run"):
        refuse_outside(run)


@pytest.mark.parametrize("name", ["checkpoints", "figures/secret.png", "run.log", ".lock"])
@pytest.mark.parametrize(
    "words",
    [("eval",), ("resume", "trainer.max_steps=6"), ("export", "format=python"), ("predict", "1,2")],
    ids=lambda words: words[0],
)
def test_a_run_with_a_link_out_is_refused(
    dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path, victim: Path, name: str, words: tuple[str, ...]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.copy(file, victim)
    replace_by_link(tmp_path / "run" / name, victim if name == "checkpoints" else victim / "secret.png")
    before, run_before = content(victim), content(tmp_path / "run")
    outcome = dlrun(words[0], "run", *words[1:])
    assert outcome.code == 2, outcome.out
    assert "is a link to" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert (content(victim), content(tmp_path / "run")) == (before, run_before)
    with pytest.raises(RequestError, match="is a link to"):
        package.load(tmp_path / "run")


def test_nor_is_a_folder_with_one_taken_for_a_new_run(dlrun: Callable[..., Any], tmp_path: Path, victim: Path) -> None:
    before = content(victim)
    for name in ("checkpoints", ".hydra", "run.log"):
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / name).symlink_to(victim / ("run.log" if name == "run.log" else ""))
        outcome = dlrun(*QUICK, "hydra.run.dir=new")
        assert outcome.code == 2, name
        assert "is a link to" in outcome.err
        assert content(victim) == before


@pytest.mark.slow
def test_a_link_of_the_whole_folder_stays_fine(dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "disk" / "run")
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    for place in ("run", "outputs/run", "run/checkpoints/last.pt"):
        assert dlrun("eval", place, "figures=false").code == 0
    assert dlrun("resume", "run", "trainer.max_steps=6").code == 0
    assert dlrun(*QUICK).code == 0


def test_links_within_a_run_and_files_of_the_users_own_stay_fine(
    trained_run: Path, tmp_path: Path, victim: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    last, best = run / "checkpoints" / "last.pt", run / "checkpoints" / "best.pt"
    best.unlink()
    best.symlink_to("last.pt")
    last.unlink()
    os.link(next((run / "checkpoints").glob("step_*.pt")), last)
    (run / "notes").symlink_to(victim)
    refuse_outside(run)


def test_a_pipe_is_no_file_of_a_run(dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    outcome = dlrun("resume", "run", "trainer.max_steps=6")
    assert outcome.code == 2
    assert "metrics.jsonl is no ordinary file" in outcome.err


@pytest.mark.slow
def test_a_job_of_a_sweep_lies_in_it(
    dlrun: Callable[..., Any], trained_run: Path, tmp_path: Path, victim: Path
) -> None:
    assert dlrun("-m", *QUICK, "seed=1,2", "sweep.dir=sweep").code == 0
    job = tmp_path / "sweep" / "1_seed=2"
    replace_by_link(job, victim)
    before = content(victim)
    for words in (("resume", "sweep"), ("resume", "sweep", "seed=3"), ("-m", *QUICK, "seed=1,2", "sweep.dir=sweep")):
        outcome = dlrun(*words)
        assert outcome.code == 2, words
        assert "sweep/1_seed=2 is a link out of sweep" in outcome.err
        assert content(victim) == before

    job.unlink()
    replace_by_link(tmp_path / "sweep" / "figures", victim)
    outcome = dlrun("compare", "sweep")
    assert outcome.code == 2
    assert "is a link to" in outcome.err
    assert content(victim) == before
