"""`resume=auto`: the same command again resumes where its run was cut off, and otherwise starts a new one."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun.config.request import from_command_line
from dlrun.core.errors import UnreadableError
from dlrun.engine.state import TrainState
from dlrun.experiment import run as experiment
from dlrun.runs import checkpoint
from dlrun.runs import folder as run_folder

WORDS = ("data=blobs", "model=mlp", "trainer.epochs=4", "figures=false", "tracking.graph=false", "resume=auto")


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch, dlrun: Callable[..., Any]) -> Callable[..., Any]:
    """`cut_off(*words)`: run them, with SIGTERM at the tenth step."""

    def run(*words: str) -> Any:
        real, calls = TrainState.log_model_metrics, 0

        def count_calls(state: TrainState) -> None:
            nonlocal calls
            calls += 1
            if calls == 10:
                signal.raise_signal(signal.SIGTERM)
            real(state)

        with monkeypatch.context() as patched:
            patched.setattr(TrainState, "log_model_metrics", count_calls)
            return dlrun(*words)

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, a finished run, and `parts`, the same run stopped after its second epoch; to be copied."""
    place = tmp_path_factory.mktemp("runs")
    for name in ("whole", "parts"):
        request = from_command_line([*WORDS[:-1], f"hydra.run.dir={place / name}"])[0]
        assert experiment.run(request) == 0

    parts = place / "parts"
    _, state, _ = checkpoint.load_newest(parts / "checkpoints")
    for file in (parts / "checkpoints").iterdir():
        file.unlink()
    (parts / "result.json").unlink()

    words = [*WORDS[:-1], f"hydra.run.dir={place / 'two'}"]
    words[words.index("trainer.epochs=4")] = "trainer.epochs=2"
    assert experiment.run(from_command_line(words)[0]) == 0
    _, two, _ = checkpoint.load_newest(place / "two" / "checkpoints")
    checkpoint.save(parts / "checkpoints" / "last.pt", two | {"run_id": state["run_id"], "config": state["config"]})
    best = checkpoint.load(place / "two" / "checkpoints" / "best.pt")
    checkpoint.save(parts / "checkpoints" / "best.pt", best | {"run_id": state["run_id"], "config": state["config"]})
    return place


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sha256(folder: Path) -> str:
    return str(json.loads((folder / "result.json").read_text())["weights_sha256"])


def take_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (folder / "checkpoints").glob("*.pt"):
        file.write_bytes(file.read_bytes()[:-100])


def newer_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (folder / "checkpoints").glob("*.pt"):
        checkpoint.save(file, checkpoint.load(file) | {"format_version": 99})


def folders_instead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (folder / "checkpoints").glob("*.pt"):
        file.unlink()
        file.mkdir()


def best_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checkpoints" / "last.pt").unlink()


def fail_to_open(monkeypatch: pytest.MonkeyPatch, end: str, error: OSError) -> None:
    """Files with such a name cannot be opened any more."""
    real = os.open

    def open_file(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path).endswith(end):
            raise error
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", open_file)


def stale_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_open(monkeypatch, ".pt", OSError(errno.ESTALE, "Stale file handle"))


def stale_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.listdir

    def list_names(path: Any = ".") -> Any:
        if Path(path).name == "checkpoints":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    monkeypatch.setattr(os, "listdir", list_names)


@pytest.mark.parametrize(
    "status",
    ["interrupted", *(pytest.param(status, marks=pytest.mark.slow) for status in ("killed", "failed", "unreadable"))],
)
def test_what_was_cut_off_or_failed_goes_on(status: str, dlrun: Callable[..., Any], runs: Path) -> None:
    shutil.copytree(runs / "parts", "run")
    if status == "unreadable":
        Path("run/result.json").write_text("{")
        Path("run/.hydra/config.yaml").write_text("[")
    elif status != "killed":
        Path("run/result.json").write_text(json.dumps({"status": status}))
    outcome = dlrun(*WORDS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.out
    assert sha256(Path("run")) == sha256(runs / "whole")
    assert Path("run/metrics.jsonl").read_bytes() == (runs / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["hydra.run.dir=run", "paths.outputs=outputs"])
def test_a_finished_run_says_so_and_stays(name: str, dlrun: Callable[..., Any], runs: Path) -> None:
    folder = Path("run" if name.endswith("run") else "outputs/2026-11-20/10-00-00_mlp_blobs")
    shutil.copytree(runs / "whole", folder)
    before = content(folder)
    outcome = dlrun(*WORDS, name)
    assert (outcome.code, outcome.out) == (
        0,
        f"{folder} is completed; to train longer type dlrun resume {folder} trainer.epochs=...\n",
    )
    assert content(folder) == before
    for file in (folder / "checkpoints").iterdir():
        file.write_bytes(b"")
    assert dlrun(*WORDS, name).code == 0  # finished is finished


@pytest.mark.parametrize(
    ("spoil", "reason", "status"),
    [
        (take_bytes, "was cut short", "failed"),
        (newer_format, "checkpoint format 99", None),
        (folders_instead, "it is a folder", "interrupted"),
        (best_alone, "holds best.pt alone", None),
        (stale_files, "Stale file handle", "failed"),
        (stale_folder, "Stale file handle", None),
    ],
)
def test_unreadable_is_not_absent(
    spoil: Callable[..., None],
    reason: str,
    status: str | None,
    dlrun: Callable[..., Any],
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path("outputs/2026-11-20/10-00-00_mlp_blobs")
    shutil.copytree(runs / "parts", folder)
    if status is not None:
        known = json.loads((runs / "whole" / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(known | {"status": status}))
    with monkeypatch.context() as patched:
        patched.chdir(Path.cwd())
        spoil(folder, patched)
        left = [
            dlrun(*WORDS, f"hydra.run.dir={folder}"),
            dlrun("resume", str(folder)),
            dlrun(f"resume={folder}"),
        ]
        named = dlrun(*WORDS[:-1], f"hydra.run.dir={folder}")
        searched = dlrun(*WORDS) if spoil is not stale_folder else None
        with pytest.raises(UnreadableError):
            run_folder.clear_for_restart(folder)
    for outcome in left:
        assert (outcome.code, len(outcome.err.splitlines())) == (1, 1), outcome.err
        assert reason in outcome.err
        assert "everything is left as it was" in outcome.err
    assert named.code in (1, 2)
    assert named.out == ""
    if searched is not None:
        assert searched.code == 1
    expected = content(runs / "parts").keys()
    if spoil not in (folders_instead, best_alone):
        assert content(folder).keys() - {"result.json"} == expected - {"result.json"}
    assert (folder / "metrics.jsonl").read_bytes() == (runs / "parts" / "metrics.jsonl").read_bytes()
    assert (folder / "result.json").exists() == (status is not None)
    assert len(folders()) == 1


def test_rows_that_cannot_be_read_are_not_written_over(
    dlrun: Callable[..., Any], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "parts", "run")
    before = content(Path("run"))
    with monkeypatch.context() as patched:
        fail_to_open(patched, "metrics.jsonl", OSError(errno.EIO, "Input/output error"))
        outcome = dlrun("resume", "run")
    assert outcome.code == 1
    assert "run/metrics.jsonl cannot be read (Input/output error); everything is left as it was" in outcome.err
    assert content(Path("run")) == before


def test_a_damaged_line_costs_no_other_line(dlrun: Callable[..., Any], runs: Path) -> None:
    shutil.copytree(runs / "parts", "run")
    rows = Path("run/metrics.jsonl").read_text().splitlines()
    Path("run/metrics.jsonl").write_text("\n".join([rows[0][:9], *rows[1:]]) + "\n")
    outcome = dlrun("resume", "run")
    assert outcome.code == 0, outcome.err
    assert [row["epoch"] for row in outcome.rows] == [2, 3, 4]
    assert any("metrics.jsonl was damaged in line 1" in note for note in outcome.result["warnings"])


def folders() -> list[Path]:
    return sorted(path.parent for path in Path("outputs").glob("*/*/environment.json"))


@pytest.mark.parametrize("where", [(), pytest.param(("hydra.run.dir=run",), marks=pytest.mark.slow)])
def test_the_same_command_goes_on(
    where: tuple[str, ...], dlrun: Callable[..., Any], kill_at: Callable[..., Any]
) -> None:
    reference = dlrun(*WORDS[:-1], "hydra.run.dir=whole").result
    assert kill_at(*WORDS, *where).code == 143
    outcome = dlrun(*WORDS, *where)
    assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.out
    assert outcome.result["weights_sha256"] == reference["weights_sha256"]
    assert len(folders()) == (0 if where else 1)


@pytest.mark.slow
def test_what_is_finished_or_another_run_is_left_alone(dlrun: Callable[..., Any], kill_at: Callable[..., Any]) -> None:
    assert dlrun(*WORDS).code == 0
    again = dlrun(*WORDS)
    assert again.code == 0
    assert (
        again.out
        == f"{folders()[0]} is completed; to train longer type dlrun resume {folders()[0]} trainer.epochs=...\n"
    )
    assert dlrun(*WORDS[:-1]).code == 0  # a new one
    assert kill_at(*WORDS, "seed=1").code == 143
    assert dlrun(*WORDS, "optimizer.lr=0.5").code == 0  # another config
    statuses = [json.loads((folder / "result.json").read_text())["status"] for folder in folders()]
    assert sorted(statuses) == ["completed"] * 3 + ["interrupted"]
    assert dlrun(*WORDS, "seed=1", "figures=true").code == 0  # pictures do not make another run
    assert len(folders()) == 4


@pytest.mark.slow
def test_the_newest_of_several_goes_on(dlrun: Callable[..., Any], kill_at: Callable[..., Any]) -> None:
    assert kill_at(*WORDS[:-1]).code == 143
    assert kill_at(*WORDS[:-1]).code == 143
    dlrun(*WORDS)
    statuses = [json.loads((folder / "result.json").read_text())["status"] for folder in folders()]
    assert statuses == ["interrupted", "completed"]


@pytest.mark.slow
def test_a_folder_cut_off_before_its_first_checkpoint_is_begun_again(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    assert dlrun(*WORDS, "hydra.run.dir=run").code == 0
    for path in [Path("run/result.json"), *Path("run/checkpoints").iterdir()]:
        path.unlink()
    Path("run/mine.txt").write_text("of the user's own")
    Path("run/.environment.json.123.tmp").write_text("of a process that was killed")
    outcome = dlrun(*WORDS, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert len(outcome.rows) == 4
    assert Path("run/mine.txt").exists()
    assert not list(Path("run").glob(".*.tmp"))


def test_a_sweep_goes_on_by_its_folder(dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("-m", *WORDS, "seed=0,1")
    assert outcome.code == 2
    assert "sweep.dir=" in outcome.err


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_not_taken(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    long = [*WORDS[:-1], "trainer.epochs=100000", "checkpoint.every_steps=1"]
    processes = [warm.start("-m", "dlrun", *long, cwd=tmp_path)]
    try:
        while not list(tmp_path.glob("outputs/*/*/checkpoints/last.pt")):
            time.sleep(0.1)
        processes.append(warm.start("-m", "dlrun", *long, "resume=auto", cwd=tmp_path))
        while len(folders()) < 2:
            assert processes[1].poll() is None
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
