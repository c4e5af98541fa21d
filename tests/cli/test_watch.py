"""`dlrun watch RUN`: a run of another process, followed to its end, however it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

QUICK = ("data=blobs", "model=mlp", "trainer.epochs=3", "tracking.graph=false", "figures=false")
SLOW_NET = """
import time, torch
from pathlib import Path

class Net(torch.nn.Linear):
    def __init__(self, spec):
        super().__init__(2, 2)

    def forward(self, x):
        # An epoch is one step; each waits until the test lets it go.
        while self.training and torch.is_grad_enabled() and not Path("go").exists():
            time.sleep(0.02)
        return super().forward(x)
"""


@pytest.fixture
def run(dlrun: Callable[..., Any]) -> Path:
    assert dlrun(*QUICK, "hydra.run.dir=runs/one").code == 0
    return Path("runs/one")


def list_epochs(text: str) -> list[str]:
    """The lines of epochs without the speed, which is in no file."""
    lines = [line for line in text.splitlines() if line.startswith("epoch ")]
    return [re.sub(r"  [\d,]+ samples/s", "", line) for line in lines]


def test_a_finished_run_is_printed_as_it_was(run: Path, dlrun: Callable[..., Any]) -> None:
    outcome = dlrun("watch", str(run))
    assert (outcome.code, outcome.err) == (0, "")
    assert len(list_epochs(outcome.out)) == 3
    log = (run / "run.log").read_text()
    assert list_epochs(outcome.out) == list_epochs(log)
    for line in log.splitlines():
        if line.startswith(("best: ", "completed after")):
            assert line.partition(";")[0] in outcome.out
    assert [line.split()[0] for line in outcome.out.splitlines() if line.startswith(" ")][:2] == ["metric", "loss"]


def test_a_run_whose_process_died_is_interrupted(run: Path, dlrun: Callable[..., Any]) -> None:
    (run / "result.json").unlink()
    (run / "checkpoints" / "last.pt").unlink()
    outcome = dlrun("watch", str(run))
    assert (outcome.code, outcome.err) == (130, "dlrun: runs/one was interrupted\n")
    assert "interrupted after 3 epochs: its process ended without a result" in outcome.out
    assert "dlrun resume runs/one continues it" in outcome.out


@pytest.mark.slow
def test_a_long_run_has_as_many_lines_as_its_own_display(dlrun: Callable[..., Any]) -> None:
    assert dlrun(*QUICK, "trainer.epochs=120", "trainer.max_steps=440", "hydra.run.dir=runs/long").code == 0
    watched = dlrun("watch", "runs/long").out
    assert list_epochs(watched) == list_epochs((Path("runs/long") / "run.log").read_text())
    assert len(list_epochs(watched)) < 50


def test_a_failed_run_shows_its_error(run: Path, dlrun: Callable[..., Any]) -> None:
    path = run / "result.json"
    path.write_text('{"status": "failed", "error": "it broke\\u001b[31m", "epochs": 1}')
    outcome = dlrun("watch", str(run))
    assert (outcome.code, outcome.err) == (1, "dlrun: runs/one is failed\n")
    assert "failed after 1 epochs" in outcome.out
    assert r"error: it broke\x1b[31m" in outcome.out


@pytest.mark.parametrize(("words", "message"), [([], "takes one run folder"), (["."], ". holds no run")])
def test_wrong_words(dlrun: Callable[..., Any], words: list[str], message: str) -> None:
    outcome = dlrun("watch", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


class Training:
    """A run of two steps in another process, each of which waits for a file."""

    def __init__(self, place: Path, warm: Any) -> None:
        (place / "slow_net.py").write_text(SLOW_NET)
        words = ("model._target_=slow_net.Net", "data.batch_size=1000", "trainer.epochs=2", "preflight=false")
        folder = ("tracking.graph=false", "figures=false", "hydra.run.dir=slow")
        self.process = warm.start("-m", "dlrun", "data=blobs", *words, *folder, cwd=place)
        self.place = place

    def wait_until_locked(self) -> None:
        deadline = time.monotonic() + 120
        while not (self.place / "slow" / "environment.json").exists():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)

    def go(self) -> None:
        (self.place / "go").touch()


@pytest.fixture
def training(tmp_path: Path, warm: Any) -> Iterator[Training]:
    started = Training(tmp_path, warm)
    yield started
    started.process.kill()
    started.process.wait()


def start_watching(place: Path) -> "subprocess.Popen[str]":
    code = "import sys; from dlrun.cli.main import main; c = main(); assert 'torch' not in sys.modules; sys.exit(c)"
    line = [sys.executable, "-c", code, "watch", "slow"]
    return subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_under_way_is_followed_to_its_end(training: Training, tmp_path: Path) -> None:
    training.wait_until_locked()
    with start_watching(tmp_path) as watching:
        assert watching.stdout is not None
        # In a pipe too, each line comes at once.
        assert watching.stdout.readline() == "slow is training; Ctrl-C leaves it alone\n"
        training.go()
        assert watching.stdout.readline().startswith("epoch 1/2  train/loss ")
        out = watching.stdout.read()
    assert watching.returncode == 0
    assert out.splitlines()[0].startswith("epoch 2/2  train/loss ")
    assert "completed after 2 epochs" in out
    assert training.process.wait(60) == 0


@pytest.mark.slow
def test_ctrl_c_leaves_the_run_alone_and_a_kill_is_seen(training: Training, tmp_path: Path) -> None:
    training.wait_until_locked()
    with start_watching(tmp_path) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert err == "slow trains on; dlrun watch slow follows it again\n"
    assert training.process.poll() is None

    with start_watching(tmp_path) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        os.kill(training.process.pid, signal.SIGKILL)
        out, err = watching.communicate(timeout=60)
    assert (watching.returncode, err) == (1, "dlrun: slow is empty\n")
    assert out.splitlines()[-1] == "slow ended before its first epoch"


@pytest.mark.slow
def test_a_reader_that_ends_ends_the_watching(training: Training, tmp_path: Path) -> None:
    training.wait_until_locked()
    line = f"'{sys.executable}' -m dlrun watch slow | (head -1; touch watched); echo ${{PIPESTATUS[0]}}"
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(["bash", "-c", line], cwd=tmp_path, **settings) as piped:
        while not (tmp_path / "watched").exists():
            assert piped.poll() is None
            time.sleep(0.05)
        # The next epoch is written to nobody.
        training.go()
        out, err = piped.communicate(timeout=120)
    assert out.splitlines() == ["slow is training; Ctrl-C leaves it alone", "0"]
    assert err == ""
