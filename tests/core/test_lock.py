"""A run folder has one writer, and whoever comes second hears who that is."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dlrun.core import lock
from dlrun.core.errors import RequestError
from dlrun.core.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from dlrun.core.lock import Lock
Lock().take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path, program: str = HOLD) -> subprocess.Popen[str]:
    """A process that holds `folder` until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_second_hears_who_holds_it_and_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with Lock() as own, pytest.raises(RequestError) as caught:
            own.take(tmp_path)
        assert f"{tmp_path} is being written by process {process.pid} on " in str(caught.value)
        assert (tmp_path / ".lock").exists()  # the loser leaves the holder's file alone
    finally:
        stop(process)
    assert (tmp_path / ".lock").exists()
    with Lock() as own:
        own.take(tmp_path)
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


FORKING = HOLD.replace("print", "import os\nif os.fork() == 0: time.sleep(60)\nprint")


def test_children_of_a_killed_run_do_not_hold_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with Lock() as own:
            own.take(tmp_path)
    finally:
        os.killpg(process.pid, 9)  # the child
        process.stdout and process.stdout.close()


def test_one_run_may_take_its_folder_twice(tmp_path: Path) -> None:
    with Lock() as own:
        own.take(tmp_path)
        own.take(tmp_path)
    own.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_under_our_hands_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, try_it = 0, lock.try_lock

    def slow(handle: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:  # the holder of before lets go between our opening and our locking
            (tmp_path / ".lock").unlink()
        return try_it(handle)

    monkeypatch.setattr(lock, "try_lock", slow)
    with Lock() as own:
        own.take(tmp_path)
        assert (tmp_path / ".lock").exists()
    assert calls == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> int:
        raise OSError(30, "Read-only file system")

    for name in ("open", "write"):
        monkeypatch.setattr(os, name, refuses)
        with Lock() as own, pytest.raises(RequestError, match=r"cannot write to .* \(Read-only file system\)"):
            own.take(tmp_path)
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with Lock() as own:
        own.take(tmp_path)
        assert own.folder == tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_run_that_is_being_written_is_neither_resumed_nor_overwritten(dlrun: Any, tmp_path: Path) -> None:
    quiet = ("data=blobs", "trainer.epochs=1", "figures=false", "tracking.graph=false")
    assert dlrun(*quiet, "hydra.run.dir=run").code == 0
    process = holder(tmp_path / "run")
    try:
        before = contents(tmp_path / "run")
        for words in (("resume", "run", "trainer.epochs=2"), (*quiet, "hydra.run.dir=run")):
            outcome = dlrun(*words)
            assert outcome.code == 2
            assert f"run is being written by process {process.pid} on " in outcome.err
            assert len(outcome.err.splitlines()) == 1
        assert contents(tmp_path / "run") == before
        assert dlrun("eval", "run", "figures=false").code == 0  # reading is no writing
    finally:
        stop(process)
    assert dlrun("resume", "run", "trainer.epochs=2").code == 0


@pytest.mark.slow
def test_two_real_runs_of_one_second_get_two_folders_and_one_folder_gets_one_run(tmp_path: Path, warm: Any) -> None:
    words = ["data=blobs", "trainer.epochs=3", "figures=false", "tracking.graph=false"]

    def take_twice(*more: str) -> list[tuple[int, str]]:
        started = [warm.start("-m", "dlrun", *words, *more, cwd=tmp_path) for _ in range(2)]
        return [(process.wait(), process.err) for process in started]

    while time.time() % 1 > 0.2:
        time.sleep(0.01)
    assert take_twice() == [(0, ""), (0, "")]
    runs = [file.parent for file in (tmp_path / "outputs").rglob("result.json")]
    assert len(runs) == 2
    for run in runs:
        assert json.loads((run / "result.json").read_text())["status"] == "completed"
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    codes = sorted(take_twice("hydra.run.dir=one"))
    assert [code for code, _ in codes] == [0, 2]
    # By a process whose number is not yet in the lock, now and then.
    assert "is being written by" in codes[1][1] or "already holds a run" in codes[1][1]
    assert len((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()) == 3
