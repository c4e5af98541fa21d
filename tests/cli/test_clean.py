"""`dlrun clean`: failed and empty runs go after they were shown; nothing else does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.cli import clean

DAY = Path("outputs/2026-11-20")
Made = dict[str, Path]


@pytest.fixture
def run_folders(dlrun: Callable[..., Any]) -> Made:
    """A folder of each kind, all of them an hour old."""
    folders = {}
    for i, status in enumerate(("failed", "empty", "completed", "interrupted", "early_stopped", "damaged")):
        folders[status] = folder = DAY / f"0{i}-00-00_mlp_blobs"
        (folder / ".hydra").mkdir(parents=True)
        (folder / "run.log").write_text("x" * 1000)
        if status != "empty":
            (folder / "result.json").write_text("{" if status == "damaged" else json.dumps({"status": status}))
    folders["bare"] = Path("outputs/2026-11-19/06-00-00_mlp_blobs")
    folders["bare"].mkdir(parents=True)
    age(Path("outputs"))
    return folders


def age(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        os.utime(path, (time.time() - 3600,) * 2, follow_symlinks=False)


def list_present(run_folders: Made) -> set[str]:
    return {status for status, folder in run_folders.items() if folder.exists()}


def test_nothing_goes_before_it_was_shown(dlrun: Callable[..., Any], run_folders: Made) -> None:
    outcome = dlrun("clean")
    assert (outcome.code, outcome.err) == (0, "")
    shown = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("outputs")]
    assert sorted(shown) == sorted(str(run_folders[name]) for name in ("failed", "empty", "bare"))
    assert "3 runs, 2.0 kB; nothing is removed yet: type dlrun clean --yes" in outcome.out
    assert list_present(run_folders) == set(run_folders)


def test_failed_and_empty_runs_go(dlrun: Callable[..., Any], run_folders: Made) -> None:
    outcome = dlrun("clean", "--yes")
    assert (outcome.code, outcome.err) == (0, "")
    assert "removed 3 runs, 2.0 kB" in outcome.out
    assert list_present(run_folders) == {"completed", "interrupted", "early_stopped", "damaged"}
    assert not run_folders["bare"].parent.exists()  # a day without runs
    assert run_folders["completed"].parent.exists()
    assert dlrun("clean", "--yes").out == "nothing to remove in outputs: no run with status=failed,empty\n"


def test_others_go_only_where_they_are_named(dlrun: Callable[..., Any], run_folders: Made) -> None:
    assert dlrun("clean", "status=interrupted,early_stopped", "--yes").code == 0
    assert list_present(run_folders) == set(run_folders) - {"interrupted", "early_stopped"}
    assert dlrun("clean", "status=running", "--yes").code == 2
    assert dlrun("clean", "outputs/2026-11-19", "--yes").code == 0
    assert list_present(run_folders) == {"failed", "empty", "completed", "damaged"}


def test_nothing_outside_of_outputs_goes(dlrun: Callable[..., Any], run_folders: Made, tmp_path: Path) -> None:
    run_folders["failed"].rename("elsewhere")
    (DAY / "linked").symlink_to(tmp_path / "elsewhere")
    (run_folders["empty"] / "checkpoints").symlink_to(tmp_path / "elsewhere")
    age(Path("outputs"))
    for place in ("elsewhere", ".", "outputs/2026-11-20/linked"):
        outcome = dlrun("clean", place, "--yes")
        assert (outcome.code, outcome.out) == (2, "")
        assert "and dlrun clean removes nothing elsewhere" in outcome.err
    assert dlrun("clean", "--yes").code == 0
    assert not run_folders["empty"].exists()
    assert sorted(p.name for p in Path("elsewhere").iterdir()) == [".hydra", "result.json", "run.log"]
    assert (DAY / "linked").is_symlink()


def test_outputs_may_itself_be_a_link(dlrun: Callable[..., Any], run_folders: Made) -> None:
    Path("outputs").rename("scratch")
    Path("outputs").symlink_to("scratch")
    assert "removed 3 runs" in dlrun("clean", "--yes").out
    assert list_present(run_folders) == {"completed", "interrupted", "early_stopped", "damaged"}
    assert Path("outputs").is_symlink()


def hold(folder: Path) -> "subprocess.Popen[str]":
    code = "import sys; from pathlib import Path; from dlrun.core.lock import Lock\n"
    code += "with Lock() as own: own.take(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_is_under_way_stays(dlrun: Callable[..., Any], run_folders: Made) -> None:
    sweep = Path("outputs/multirun/2026-11-20/05-00-00")
    sweep.mkdir(parents=True)
    run_folders["failed"].rename(sweep / "0_seed=0")
    (sweep / "sweep.jsonl").touch()
    with hold(run_folders["empty"]) as run, hold(sweep) as jobs:
        age(Path("outputs"))
        outcome = dlrun("clean", "--yes")
        run.communicate()
        jobs.communicate()
    assert f"kept: {sweep}/0_seed=0 (its sweep is under way)" in outcome.out
    assert run_folders["empty"].exists()
    assert (sweep / "0_seed=0").exists()
    assert "removed 1 run, 0.0 kB" in outcome.out  # the bare one
    age(Path("outputs"))
    assert "removed 2 runs" in dlrun("clean", "--yes").out


def test_a_run_that_is_resumed_between_showing_and_removing_is_kept(
    dlrun: Callable[..., Any], run_folders: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, started = clean.remove_all, list[Any]()

    def late(*arguments: Any) -> None:
        started.append(hold(run_folders["failed"]))
        (run_folders["empty"] / "result.json").write_text('{"status": "completed"}')
        before(*arguments)

    monkeypatch.setattr(clean, "remove_all", late)
    outcome = dlrun("clean", "--yes")
    started[0].communicate()
    assert outcome.code == 1
    assert f"{run_folders['empty']} has been resumed meanwhile" in outcome.err
    assert f"{run_folders['failed']} is being written by process" in outcome.err
    assert list_present(run_folders) == set(run_folders) - {"bare"}


def test_what_is_young_or_holds_files_of_the_users_own_stays(dlrun: Callable[..., Any], run_folders: Made) -> None:
    (run_folders["failed"] / "notes.txt").touch()
    os.utime(run_folders["bare"])
    (run_folders["empty"] / "run.log").touch()
    outcome = dlrun("clean", "--yes")
    assert f"kept: {run_folders['failed']} (it holds more than a run: notes.txt)" in outcome.out
    assert outcome.out.count("has changed less than 60 seconds ago") == 2
    assert outcome.out.endswith("nothing to remove in outputs\n")
    assert list_present(run_folders) == set(run_folders)


@pytest.mark.slow
def test_a_real_failed_run_goes_and_its_sweep_can_be_gone_on_with(dlrun: Callable[..., Any]) -> None:
    words = ("data=blobs", "model=mlp", "optimizer=sgd", "trainer.epochs=1", "tracking.graph=false", "figures=false")
    assert dlrun("-m", *words, "optimizer.lr=0.1,1e30", "sweep.dir=outputs/s").code == 1
    assert "removed 1 run" in dlrun("clean", "--yes").out
    assert [p.name[0] for p in Path("outputs/s").glob("*_*/")] == ["0"]
    again = dlrun("resume", "outputs/s")
    assert again.code == 1
    assert "1/1" in again.out
