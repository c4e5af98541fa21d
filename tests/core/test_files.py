"""A disk that is full, read-only or taken away costs neither the run nor what was saved before."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.core.files import DiskProblems, GrowingFile, link, remove_temporaries, write_atomically, write_text
from dlrun.runs.logger import read_rows

QUIET = ("tracking.graph=false", "figures=false", "data=blobs", "model=linear", "device.name=cpu")
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"old")
    return tmp_path / "file"


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_write_that_dies_leaves_the_old_file(
    owner: Any, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(owner, name, dies)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def record_sync(handle: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        sync(handle)

    def record_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_atomically(path, b"new")
    assert order == (["file", "rename", "folder"] if sys.platform == "linux" else order)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("again", [False, True])
def test_a_link_takes_the_place_of_what_had_its_name(again: bool, path: Path) -> None:
    name = path.with_name("last")
    name.write_bytes(b"before")
    for _ in range(1 + again):  # renaming one name of a file to another does nothing, and must not leave a third
        link(path, name)
    assert name.samefile(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["file", "last"]


def test_a_copy_that_dies_leaves_the_old_link(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = path.with_name("last")
    name.write_bytes(b"before")

    def dies(*args: Any) -> None:
        Path(args[1]).write_bytes(b"ha")
        raise FULL

    monkeypatch.setattr(os, "link", dies)
    monkeypatch.setattr(shutil, "copyfile", dies)
    with pytest.raises(OSError, match="No space left"):
        link(path, name)
    assert name.read_bytes() == b"before"
    assert sorted(file.name for file in path.parent.iterdir()) == ["file", "last"]


def test_halves_of_a_killed_process_are_forgotten(path: Path) -> None:
    for name in (".step_00000001.pt.77.tmp", ".hidden", "file.tmp"):
        path.with_name(name).touch()
    remove_temporaries(path.parent, path.parent / "nowhere")
    assert sorted(file.name for file in path.parent.iterdir()) == [".hidden", "file", "file.tmp"]


def test_what_fails_is_said_once_and_forgotten_when_it_is_made_good() -> None:
    messages: list[str] = []
    unsaved = DiskProblems(messages.append)

    def try_to_save(*, again: bool = True, error: Exception | None = FULL) -> None:
        with unsaved.tolerate("it", again):
            if error:
                raise error

    for _ in range(3):
        try_to_save()
    assert messages == [
        "it could not be saved (No space left on device); the run continues, and the next save tries again"
    ]
    assert unsaved.summary() == "it (No space left on device)"
    try_to_save(error=None)
    assert unsaved.summary() == ""
    try_to_save(again=False)
    try_to_save(again=False, error=None)  # another picture: the one before is lost all the same
    assert unsaved.summary() == "it (No space left on device)"
    with pytest.raises(ValueError, match="not the disk's"):
        try_to_save(error=ValueError("not the disk's"))


def test_what_a_file_could_not_take_is_added_later_and_no_line_is_torn(tmp_path: Path) -> None:
    import resource

    unsaved, path = DiskProblems(lambda _: None), tmp_path / "rows"
    file = GrowingFile(path, "rows", unsaved)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for line in range(100):
        limit = 355 if line < 60 else before[0]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            file.write(f"line {line:04d}\n")
            file.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_text().splitlines() == [f"line {i:04d}" for i in range(35 if 35 <= line < 60 else line + 1)]
        assert unsaved.summary() == ("rows (File too large)" if 35 <= line < 60 else "")


def test_a_file_in_a_folder_that_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    unsaved = DiskProblems(lambda _: None)
    file = GrowingFile(tmp_path / "run" / "rows", "rows", unsaved)
    shutil.rmtree(tmp_path / "run")
    file.write("x")
    file.flush()
    assert unsaved.summary() == "rows (No such file or directory)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(dlrun: Callable[..., Any], monkeypatch: Any) -> None:
    sync, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if 10 < count < 14:
            raise FULL
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    outcome = dlrun(*QUIET, "trainer.epochs=16", "checkpoint.every_epochs=2", "checkpoint.keep=1", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert count > 20
    warnings = [text for text in outcome.result["warnings"] if "checkpoint" in text]
    assert warnings == [
        "the checkpoint could not be saved (No space left on device); the run continues, and the next save tries again"
    ]
    assert outcome.out.count(warnings[0]) == 1
    again = dlrun("eval", "run")
    assert again.code == 0, again.err


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_in_a_sentence_and_the_result_is_said(
    dlrun: Callable[..., Any], monkeypatch: Any, tmp_path: Path
) -> None:
    clean = dlrun(*QUIET, "trainer.epochs=3", "hydra.run.dir=clean")
    count = 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count > 10:
            raise FULL

    monkeypatch.setattr(os, "fsync", full)
    outcome = dlrun(*QUIET, "trainer.epochs=3", "hydra.run.dir=run")
    assert outcome.code == 1
    assert outcome.err == (
        "dlrun: the run run is completed, but not all of it could be saved: "
        "the checkpoint (No space left on device), result.json (No space left on device)\n"
    )
    table = [line for line in outcome.out.splitlines() if line.split()[:1] in (["loss"], ["accuracy"])]
    assert table == [line for line in clean.out.splitlines() if line.split()[:1] in (["loss"], ["accuracy"])]
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert (tmp_path / "run/checkpoints/last.pt").exists()


NET = """
import shutil
from torch import nn
class Net(nn.Linear):
    calls = 0
    def __init__(self, spec):
        super().__init__(spec.input_size, spec.output_size)
    def forward(self, x):
        Net.calls += self.training
        if Net.calls == 60:
            shutil.rmtree("run")
        return super().forward(x)
"""


@pytest.mark.slow
def test_a_folder_that_is_deleted_meanwhile_does_not_end_the_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "net_that_deletes.py").write_text(NET)
    words = ("data=line", "model._target_=net_that_deletes.Net", "trainer.epochs=12", *QUIET[:2])
    outcome = dlrun(*words, "hydra.run.dir=run")
    assert outcome.code == 1
    assert "epoch 12/12" in outcome.out
    assert "completed after 12 epochs" in outcome.out
    for lost in ("the checkpoint", "metrics.jsonl", "TensorBoard's events", "run.log", "result.json"):
        assert f"{lost} (No such file or directory)" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_written_the_run_does_not_start(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("hydra.run.dir=file/run", "paths.outputs=file"):
        outcome = dlrun(*QUIET, place)
        assert outcome.code == 2
        assert "Not a directory" in outcome.err
        assert len(outcome.err.splitlines()) == 1


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv[0] = "dlrun"
from dlrun.cli.main import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5_000, 60_000])
def test_a_limit_on_file_size_is_survived_by_a_real_process(
    limit: int, tmp_path: Path, python: Callable[..., Any]
) -> None:
    words = ["data.limit_batches=5", "trainer.epochs=3", "trainer.log_every_steps=1", "tracking.graph=false"]
    outcome = python("-c", LIMITED.format(limit=limit), *words, "hydra.run.dir=run")
    assert outcome.code == 1, outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert "the checkpoint (File too large)" in outcome.err
    assert "Traceback" not in outcome.out
    assert "completed after 3 epochs" in outcome.out
    assert (tmp_path / "run/result.json").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert max(file.stat().st_size for file in (tmp_path / "run").rglob("*") if file.is_file()) <= limit


@pytest.mark.slow
def test_a_small_file_system_that_fills_up_keeps_what_it_holds(tmp_path: Path, command: Callable[..., Any]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with (small / "ballast").open("wb") as file:
            file.write(bytes(2**20))
        limits = ("data.limit_batches=5", "trainer.epochs=3", "checkpoint.keep=9", "tracking.graph=false")
        refused = command(*limits, "paths.outputs=small", "hydra.run.dir=small/run")
        assert refused.code == 2
        assert "checkpoint.keep=1" in refused.err
        outcome = command(*limits, "hydra.run.dir=small/run", "figures=false")
        assert outcome.code == 1, outcome.err
        assert "No space left on device" in outcome.err
        assert not list(small.rglob("*.tmp"))
        (small / "ballast").unlink()
        resumed = command("resume", "small/run", "trainer.epochs=4", "checkpoint.keep=1")
        assert resumed.code == 0, resumed.err
        assert [row["epoch"] for row in read_rows(small / "run")] == [1, 2, 3, 4]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_half_a_character_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "x.html", "a\ud800é")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == "a\\ud800é"
