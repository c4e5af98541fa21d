"""`resume=auto`: the same command again goes on where its run was cut off, and else begins a new one."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrun import loop

WORDS = ("data=blobs", "model=mlp", "trainer.epochs=4", "figures=false", "tracking.graph=false", "resume=auto")


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch, dlrun: Callable[..., Any]) -> Callable[..., Any]:
    """`cut_off(*words)`: run them, with SIGTERM at the tenth step."""

    def run(*words: str) -> Any:
        real, calls = loop.backward, 0

        def counting(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 10:
                signal.raise_signal(signal.SIGTERM)
            return real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "backward", counting)
            return dlrun(*words)

    return run


def folders() -> list[Path]:
    return sorted(path.parent for path in Path("outputs").glob("*/*/environment.json"))


@pytest.mark.parametrize("where", [(), pytest.param(("hydra.run.dir=run",), marks=pytest.mark.slow)])
def test_the_same_command_goes_on(
    where: tuple[str, ...], dlrun: Callable[..., Any], cut_off: Callable[..., Any]
) -> None:
    whole = dlrun(*WORDS[:-1], "hydra.run.dir=whole").result
    assert cut_off(*WORDS, *where).code == 143
    done = dlrun(*WORDS, *where)
    assert done.code == 0, done.err
    assert "going on from" in done.out
    assert done.result["weights_sha256"] == whole["weights_sha256"]
    assert len(folders()) == (0 if where else 1)


@pytest.mark.slow
def test_what_is_finished_or_another_run_is_left_alone(dlrun: Callable[..., Any], cut_off: Callable[..., Any]) -> None:
    assert dlrun(*WORDS).code == 0
    assert dlrun(*WORDS).code == 0  # a new one
    assert cut_off(*WORDS, "seed=1").code == 143
    assert dlrun(*WORDS, "optimizer.lr=0.5").code == 0  # another config
    statuses = [json.loads((folder / "result.json").read_text())["status"] for folder in folders()]
    assert sorted(statuses) == ["completed"] * 3 + ["interrupted"]
    assert dlrun(*WORDS, "seed=1", "figures=true").code == 0  # pictures do not make another run
    assert len(folders()) == 4


@pytest.mark.slow
def test_the_newest_of_several_goes_on(dlrun: Callable[..., Any], cut_off: Callable[..., Any]) -> None:
    assert cut_off(*WORDS[:-1]).code == 143
    assert cut_off(*WORDS[:-1]).code == 143
    dlrun(*WORDS)
    statuses = [json.loads((folder / "result.json").read_text())["status"] for folder in folders()]
    assert statuses == ["interrupted", "completed"]


@pytest.mark.slow
def test_a_folder_cut_off_before_its_first_checkpoint_is_begun_again(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    assert dlrun(*WORDS, "hydra.run.dir=run").code == 0
    for path in [Path("run/result.json"), *Path("run/checkpoints").iterdir()]:
        path.unlink()
    Path("run/mine.txt").write_text("of the user's own")
    done = dlrun(*WORDS, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert len(done.rows) == 4
    assert Path("run/mine.txt").exists()


def test_a_sweep_goes_on_by_its_folder(dlrun: Callable[..., Any]) -> None:
    done = dlrun("-m", *WORDS, "seed=0,1")
    assert done.code == 2
    assert "sweep.dir=" in done.err


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
