"""Whatever fails in a process that reads data ends in one sentence, soon, and with no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dlrun.core.errors import DataError, RunError
from dlrun.data import workers
from dlrun.data.batches import EpochOrder, LoaderBatches, Placement
from dlrun.data.datasets import Rows
from dlrun.data.spec import DataSpec

PLACE = Placement(torch.device("cpu"), torch.float32, DataSpec("vector", (1,), "regression", 1))


class TwoArguments(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lambda")
        self.function = lambda: None


def raise_error(error: BaseException) -> None:
    raise error


ACTS: dict[str, tuple[Callable[[], Any], str]] = {
    "an exception": (lambda: raise_error(ValueError("bad\nthing")), "ValueError: bad thing (test_workers.py, line "),
    "sys.exit": (lambda: sys.exit(3), "SystemExit: 3"),
    "two arguments": (lambda: raise_error(TwoArguments("this", "that")), "TwoArguments: this and that"),
    "unpicklable": (lambda: raise_error(Unpicklable()), "Unpicklable: holds a lambda"),
    "memory": (lambda: raise_error(MemoryError()), "MemoryError; there is no memory left"),
    "no tensor": (lambda: (len, torch.zeros(1)), "TypeError"),
    "a shape": (lambda: (torch.zeros(3), torch.zeros(1)), "row 5 is ((3,), (1,)): rows of one shape make a batch"),
}
DEATHS: dict[str, tuple[Callable[[], Any], str]] = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed (Killed); perhaps memory ran out"),
    "left": (lambda: os._exit(4), "ended by itself"),
}


class Failing(Dataset[Any]):
    """Row 5 does what it is told to, in a worker."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> Any:
        acted = self.act() if row == 5 and get_worker_info() else None
        return acted or (torch.zeros(1), torch.zeros(1))


def read(act: Callable[[], Any]) -> None:
    """Read an epoch with one worker process; row 5 of the data set is row 2 of the part that is read."""
    part = Rows(Failing(act), torch.tensor([0, 1, 5, 3]))
    list(LoaderBatches(part, EpochOrder(4, 4), PLACE, 1).epoch(1))


@pytest.mark.parametrize("name", ACTS)
def test_what_fails_in_a_worker_names_the_row(name: str) -> None:
    act, message = ACTS[name]
    with pytest.raises(DataError, match="row 5 ") as raised:
        read(act)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", DEATHS)
def test_a_worker_that_dies_is_explained(name: str) -> None:
    act, message = DEATHS[name]
    with pytest.raises((RuntimeError, ConnectionError, EOFError)) as raised:
        read(act)
    assert message in str(workers.explain_death(raised.value))


def test_errors_of_ours_keep_their_sentence() -> None:
    for error in (DataError("photo.jpg cannot be read"), RunError("the disk is gone")):
        with pytest.raises(type(error)) as raised:
            read(lambda error=error: raise_error(error))  # type: ignore[misc]
        assert str(raised.value) == str(error)
        assert "In the worker process" in raised.value.__notes__[0]


def test_workers_that_are_left_can_be_ended() -> None:
    loader = DataLoader(
        workers.GuardedDataset(Failing(lambda: None)), num_workers=1, worker_init_fn=workers.prepare_worker
    )
    batches = workers.fetch(loader)
    next(batches)
    (worker,) = [each for each in workers._workers if each.is_alive()]
    worker.terminate()  # SIGTERM is for the run alone
    assert worker.is_alive()
    workers.end_workers()
    assert not worker.is_alive()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_a_worker_that_starts_is_held_back(name: str) -> None:
    def start(number: int) -> None:
        os.kill(os.getpid(), signal.Signals[name])
        workers.prepare_worker(number)

    loader = DataLoader(workers.GuardedDataset(Failing(lambda: None)), num_workers=1, worker_init_fn=start)
    assert len(list(workers.fetch(loader))) == 8


NET = """\
import os, signal, sys, time, torch
from torch.utils.data import Dataset, get_worker_info
from dlrun.data.spec import DataSpec, Splits
class Rows(Dataset):
    def __init__(self, act): self.act, self.targets = act, torch.zeros(64, 1)
    def __len__(self): return 64
    def __getitem__(self, row):
        if row == 63 and get_worker_info(): exec(self.act)
        return torch.zeros(1), torch.zeros(1)
def rows(act, part):
    acts = {"train": "", "test": ""} | {part: act}
    return Splits(Rows(acts["train"]), None, Rows(acts["test"]), DataSpec("vector", (1,), "regression", 1))
"""
WORDS = (
    "data._target_=failing.rows", "data.loader=workers", "data.num_workers=2", "data.val_fraction=0",
    "data.shuffle=false", "model=linear", "data.batch_size=8", "hydra.run.dir=run", "tracking.graph=false",
    "figures=false", "trainer.epochs=1",
)  # fmt: skip


def end_of(process: Any, seconds: float) -> tuple[int, str]:
    """The exit code and stderr of a process with a session of its own, after which no process of that is there."""
    try:
        code = process.wait(seconds)
    finally:
        left = subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout.split()
        for pid in left:
            os.kill(int(pid), signal.SIGKILL)
    assert not left, f"processes are left: {left}"
    return code, process.err


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("raise ValueError('bad')", "row 63 of the data (Rows) cannot be read: ValueError: bad"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "a worker process that reads data was killed"),
    ],
)
def test_a_run_with_a_failing_worker_ends(act: str, message: str, ranks: int, warm: Any, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(NET)
    words = ("-m", "dlrun", *WORDS, f'+data.act="{act}"', "+data.part=train")
    began = time.monotonic()
    if ranks == 2:
        launch = ("--standalone", "--nproc-per-node=2", *words)
        process = warm.start_torchrun(*launch, cwd=tmp_path, start_new_session=True)
    else:
        process = warm.start(*words, cwd=tmp_path, start_new_session=True)
    code, err = end_of(process, 120)
    assert code == 1, err
    lines = [line for line in err.splitlines() if line.startswith("dlrun: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert ranks == 2 or "Traceback" not in err  # torchrun has a page of its own to show
    assert time.monotonic() - began < 90
    # A killed worker may be noticed at the first batches, before there is a run folder: then there is none.
    if "SIGKILL" not in act or (tmp_path / "run").exists():
        assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "failed"
        assert "Traceback" in (tmp_path / "run/run.log").read_text()


@pytest.mark.slow
def test_eval_with_a_failing_worker_ends(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(NET)
    assert dlrun(*WORDS, "+data.act=''", "+data.part=test").code == 0
    trusted = ["trusted_modules=[failing]", 'data.act="raise ValueError(1)"']
    process = warm.start("-m", "dlrun", "eval", "run", *trusted, cwd=tmp_path, start_new_session=True)
    code, err = end_of(process, 120)
    assert code == 2
    assert err.startswith("dlrun: row 63 of the data (Rows) cannot be read: ValueError: 1")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_damaged_picture_is_named_by_every_command(dlrun: Callable[..., Any], warm: Any, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        for i in range(20):
            picture = tmp_path / "photos" / name / f"{i}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((64, 64), 50).save(picture)
    words = ("data=image_folder", "data.path=photos", "data.in_memory=false", "data.num_workers=1", *WORDS[5:])
    assert dlrun(*words, "data.image_size=16", "model=mlp").code == 0
    for picture in (tmp_path / "photos").glob("*/*.jpg"):
        picture.write_bytes(picture.read_bytes()[:900])
    for line in (["eval", "run"], [*words, "model=mlp", "data.image_size=16", "hydra.run.dir=other"]):
        process = warm.start("-m", "dlrun", *line, cwd=tmp_path, start_new_session=True)
        code, err = end_of(process, 120)
        assert code == 2, err
        assert "cannot be read as an image" in err
        assert len(err.splitlines()) == 1
