"""`dlrun check resume`: what it trains, when it kills, what it compares, and that it sees a run that is another."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlrun.core.errors import RequestError, RunError
from dlrun.experiment.checks import resume
from dlrun.experiment.checks.one_run import parse_one_run
from dlrun.experiment.checks.resume import Plan, check_resume, compare_folders, kill, plan_training, wait_for_end
from dlrun.runs import checkpoint

SMALL = ["data=blobs", "model=linear"]  # 4 batches an epoch
FORGETFUL = """
import torch
from torch import nn

class Net(nn.Linear):
    calls = 0  # in no state_dict

    def __init__(self, spec):
        super().__init__(spec.input_size, spec.output_size)

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with nothing left in it or in the folder for temporary files."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.syspath_prepend(str(tmp_path / "here"))  # as `dlrun` itself does
    return temporary


def plan(*words: str) -> Plan:
    one_request = parse_one_run([*SMALL, *words], "resume")
    assert one_request is not None
    return plan_training([*SMALL, *words], one_request)


def value(plan: Plan, key: str) -> str | None:
    """What the last of the plan's words says of a key."""
    return next((w.partition("=")[2] for w in reversed(plan.words) if w.startswith(key + "=")), None)


@pytest.mark.parametrize(
    ("words", "epochs", "batches", "steps"),
    [
        ((), "8", None, 32),
        (("trainer.epochs=5",), "5", None, 20),
        (("data.batch_size=5",), "3", "20", 60),
        (("data.batch_size=2", "trainer.accumulate_steps=2", "trainer.epochs=2"), "2", "60", 60),
        (("trainer.max_steps=10",), "3", None, 10),
        (("data.batch_size=200",), "20", None, 20),
    ],
)
def test_the_training_is_short_and_saves_often(words: tuple[str, ...], epochs: str, batches: str, steps: int) -> None:
    short_plan = plan(*words)
    assert (value(short_plan, "trainer.epochs"), value(short_plan, "data.limit_batches"), short_plan.steps) == (
        epochs,
        batches,
        steps,
    )
    assert value(short_plan, "checkpoint.every_steps") == str(max(steps // 10, 1))
    assert short_plan.trust == []
    assert list(Path.cwd().iterdir()) == []


def test_modules_of_the_users_own_are_trusted_again() -> None:
    Path("forgetful.py").write_text(FORGETFUL)
    assert plan("model._target_=forgetful.Net").trust == ["trusted_modules=[forgetful]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=0,1"], "check resume looks at one run; leave out -m"),
        (["sweep.points=['seed=0','seed=1']"], "type sweep.points=\\[\\]"),
        (["trainer.max_steps=3"], "a training of 3 steps is too short to be killed in between"),
        (["data.batch_size=200", "trainer.epochs=2"], "type trainer.epochs=4 or more"),
    ],
)
def test_what_cannot_be_checked(words: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_resume([*SMALL, *words])
    assert list(Path.cwd().iterdir()) == []


def start_writer(folder: Path, *names: str, then: str = "time.sleep(60)") -> subprocess.Popen[bytes]:
    """A process that makes those files, and then waits to be killed."""
    folder.mkdir()
    code = f"import pathlib, time\nfor n in {names}: pathlib.Path({str(folder)!r}, n).touch()\n{then}"
    with folder.with_suffix(".stderr").open("wb") as file:
        return subprocess.Popen([sys.executable, "-c", code], stderr=file)


@pytest.mark.slow
def test_a_kill_comes_inside_a_save_or_after_one_and_never_before_the_first(tmp_path: Path) -> None:
    hit = start_writer(tmp_path / "inside", "step_00000004.pt", ".step_00000008.pt.1.tmp")
    assert kill(hit, tmp_path / "inside", 5, None)
    assert hit.returncode == -9
    after = start_writer(tmp_path / "after", "last.pt", "step_00000004.pt", "step_00000008.pt")
    assert kill(after, tmp_path / "after", 8, 0.001)
    ends = "time.sleep(0.1)"
    assert not kill(start_writer(tmp_path / "first", ".step_00000004.pt.1.tmp", then=ends), tmp_path / "first", 1, None)
    assert not kill(start_writer(tmp_path / "early", "step_00000004.pt", then=ends), tmp_path / "early", 5, 0.0)


def test_a_training_that_fails_is_said(tmp_path: Path) -> None:
    failing = start_writer(tmp_path / "run", then="raise SystemExit('no such luck')")
    with pytest.raises(RunError, match="ended with exit code 1: no such luck"):
        wait_for_end(failing, tmp_path / "run")


def test_every_difference_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ended = {"status": "completed", "weights_sha256": "a", "steps": 3}
    (one / "checkpoints").mkdir(parents=True)
    (one / "metrics.jsonl").write_text('{"epoch": 1}\n')
    (one / "fingerprints.jsonl").write_text("a")
    (one / "result.json").write_text(json.dumps({**ended, "train_seconds": 1.0}))
    checkpoint.save(one / "checkpoints/best.pt", {"format_version": 1, "model": {"w": torch.ones(2)}})
    shutil.copytree(one, two)
    monkeypatch.setattr(resume, "read_scalars", lambda folder: (folder / "events").exists())
    (two / "result.json").write_text(json.dumps({**ended, "train_seconds": 2.0}))
    assert set(compare_folders(one, two).values()) == {True}
    (two / "events").touch()
    (two / "metrics.jsonl").write_text('{"epoch": 1} \n')
    (two / "fingerprints.jsonl").write_text("b")
    checkpoint.save(two / "checkpoints/best.pt", {"format_version": 1, "model": {"w": torch.tensor([1.0, 1.0000001])}})
    (two / "result.json").write_text(json.dumps({**ended, "weights_sha256": "b", "train_seconds": 2.0}))
    assert list(compare_folders(one, two).values()) == [False] * 6


@pytest.mark.slow
@pytest.mark.usefixtures("warm_check_resume")
def test_a_run_is_the_same_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check_resume(["data=digits", "model.dropout=0.2", "scheduler=one_cycle"], seed=1) == 0
    out = capfd.readouterr().out
    assert "3 kills" in out
    assert "seed of the moments: 1" in out
    assert out.count(" equal") == 6
    assert "the same run, to the last bit" in out
    assert list(place.glob("dlrun*")) == list(Path.cwd().iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("warm_check_resume")
def test_a_run_that_is_another_one_is_seen(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("forgetful.py").write_text(FORGETFUL)
    assert check_resume([*SMALL, "model._target_=forgetful.Net"], seed=1) == 1
    out = capfd.readouterr().out
    assert out.count("DIFFERENT") == 6
    assert "a resumed run is not the same run" in out
    assert "the model (Net): attribute 'calls' is not in the checkpoint" in " ".join(out.split())
    assert list(place.glob("dlrun*")) == []
