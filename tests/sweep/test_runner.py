"""A sweep from start to end: what is printed before, what failing jobs cost, and how they are resumed."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlrun.config.request import Request
from dlrun.core.errors import RequestError, UnavailableError
from dlrun.experiment import setup
from dlrun.sweep import runner
from dlrun.sweep.ledger import Ledger

pytestmark = pytest.mark.usefixtures("comparison_without_pictures")
TINY = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=1", "figures=false", "tracking.graph=false")
NET = """
import multiprocessing, os, signal
from pathlib import Path
from torch import nn

class Net(nn.Module):
    def __init__(self, spec, kind: str = "well"):
        super().__init__()
        if kind == "late" and multiprocessing.parent_process() is not None and not Path("mended").exists():
            raise SystemExit(4)
        self.layer, self.kind, self.calls = nn.Linear(spec.input_size, spec.output_size), kind, 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 25 and not Path("mended").exists():
            if self.kind == "crash":
                raise ValueError("broken on purpose")
            if self.kind == "memory":
                raise MemoryError("not enough of it")
            if self.kind == "exit":
                raise SystemExit(3)
            if self.kind == "killed" and multiprocessing.parent_process() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "endless":
                return self.layer(x) * float("nan")
        return self.layer(x)
"""


def results(sweep: Path) -> dict[str, dict[str, Any]]:
    """result.json by job folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(sweep.glob("*/result.json"))}


def statuses(sweep: Path) -> list[str]:
    return [result["status"] for result in results(sweep).values()]


@pytest.mark.slow
def test_a_dry_run_says_the_plan_and_writes_nothing(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("-m", *TINY, "optimizer.lr=0.1,0.2", "seed=0,1,2", "sweep.dry_run=true", "sweep.jobs=2")
    assert outcome.code == 0, outcome.err
    assert "6 runs: 2 settings × 3 seeds; 2 at a time" in outcome.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_all_that_is_wrong_with_all_points_is_said_at_once(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("-m", *TINY, "optimizer.lr=0.1,-1,-2", "trainer.epochs=1,0", "sweep.dir=s")
    assert outcome.code == 2
    assert "things are wrong" in outcome.err
    assert all(f"optimizer.lr={lr}" in outcome.err for lr in (-1, -2))
    assert "trainer.epochs=0 optimizer.lr=0.1 (and 2 more like it): trainer.epochs=0 must be above 0" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [0, -1, "x", 1.5, None, True, [2]])
def test_a_number_of_jobs_that_is_none_is_refused(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="must be a whole number above 0, or auto; type sweep"):
        runner.run([Request({"sweep": {"jobs": value}}, {}, [])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_data_that_are_not_there_cost_their_job_only(
    dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_without_data(settings: Any, *args: Any) -> Any:
        if settings.data.arguments["rows"] == 30:
            raise UnavailableError("data=line is not in data; put it there")
        return build(settings, *args)

    build = setup.build.build_data
    monkeypatch.setattr(setup.build, "build_data", fail_without_data)
    words = ("-m", *TINY, "sweep.dir=s")
    outcome = dlrun(*words, "data.rows=20,30,40")
    assert outcome.code == 1, outcome.err
    assert outcome.out.index("1/3  data.rows=30: FAILED: data=line is not in data") < outcome.out.index("2/3")
    assert statuses(tmp_path / "s") == ["completed"] * 2
    assert "no result: data.rows=30 (data=line is not in data; put it there)" in outcome.out
    nothing = dlrun("-m", *TINY, "data.rows=30", "sweep.dir=t")
    assert (nothing.code, nothing.err) == (2, "dlrun: data=line is not in data; put it there\n")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(Ledger.read(tmp_path / "s").entries) == 3


@pytest.mark.slow
def test_the_first_failure_can_end_the_sweep(dlrun: Callable, tmp_path: Path) -> None:
    words = ("-m", *TINY, "trainer.epochs=3", "sweep.dir=s", "optimizer.lr=1e30,0.1,0.2")
    outcome = dlrun(*words, "sweep.fail_fast=true")
    assert outcome.code == 1
    assert "0 of 3 runs finished, 1 failed (sweep.fail_fast=true: the others were not started)" in outcome.out
    assert statuses(tmp_path / "s") == ["failed"]
    again = dlrun(*words)
    assert again.code == 1
    assert statuses(tmp_path / "s") == ["failed", "completed", "completed"]


@pytest.mark.parametrize(
    "where", ["ledger", *(pytest.param(name, marks=pytest.mark.slow) for name in ("comparison", "states"))]
)
def test_a_full_disk_is_a_sentence(
    where: str, dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    names = {
        "ledger": "ledger.write_atomically",
        "comparison": "comparison.report.write_text",
        "states": "ledger.os.fsync",
    }
    if where == "states":
        monkeypatch.setattr(Ledger, "_append", full)
    else:
        monkeypatch.setattr(f"dlrun.sweep.{names[where]}", full)
    outcome = dlrun("-m", *TINY, "sweep.dir=s", "seed=0,1")
    assert "No space left on device" in outcome.out + outcome.err
    assert outcome.code == (2 if where == "ledger" else 1)
    assert statuses(tmp_path / "s") == ([] if where == "ledger" else ["completed"] * 2)
    monkeypatch.undo()


@pytest.mark.slow
def test_what_another_process_has_done_meanwhile_is_not_undone(
    dlrun: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-m", *TINY, "sweep.dir=s", "seed=0,1")
    before = runner.check_jobs

    def take_folder(jobs: Sequence[Any], **options: Any) -> Any:
        open_jobs = before(jobs, **options)
        monkeypatch.setattr(runner, "check_jobs", before)
        assert dlrun(*words).code == 0
        return open_jobs

    monkeypatch.setattr(runner, "check_jobs", take_folder)
    outcome = dlrun(*words)
    assert outcome.code == 2
    assert "s was resumed by another process meanwhile; type the command again" in outcome.err
    assert statuses(tmp_path / "s") == ["completed"] * 2


@pytest.mark.slow
def test_a_job_of_a_sweep_equals_the_same_job_alone(dlrun: Callable, tmp_path: Path, no_stand_in: None) -> None:
    common = ("data=blobs", "data.val_fraction=0.2", "figures=false", "tracking.graph=false", "device.num_threads=1")
    points = [
        ("model=mlp", "model.dropout=0.3", "optimizer=adam"),
        ("model=mlp", "model.dropout=0.5", "optimizer=momentum", "scheduler=cosine"),
        ("model=linear", "optimizer=lbfgs"),
        ("model=mlp", "optimizer=sgd", "scheduler=one_cycle", "scheduler.interval=step"),
        ("model=mlp", "model.dropout=0.1", "data.loader=workers", "data.num_workers=1"),
        ("model=logistic", "optimizer=rprop", "scheduler=plateau", "trainer.accumulate_steps=2"),
    ]
    lines = ",".join(f"'{' '.join(line)} trainer.epochs=2 seed={i}'" for i, line in enumerate(points))
    for jobs in (1, 2):
        outcome = dlrun("-m", *common, f"sweep.points=[{lines}]", f"sweep.jobs={jobs}", f"sweep.dir=s{jobs}")
        assert outcome.code == 0, outcome.out + outcome.err
    for number, line in reversed(list(enumerate(points))):
        alone = dlrun(*common, *line, "trainer.epochs=2", f"seed={number}")
        folders = list(tmp_path.glob(f"s[12]/{number}_*"))
        assert len(folders) == 2
        for folder in folders:
            values = json.loads((folder / "result.json").read_text())
            assert values["weights_sha256"] == alone.result["weights_sha256"], line
            assert values["config_hash"] == alone.result["config_hash"], line
            assert (folder / "metrics.jsonl").read_bytes() == (alone.folder / "metrics.jsonl").read_bytes(), line


@pytest.mark.slow
def test_failing_jobs_cost_themselves_only_and_are_made_up_for(
    dlrun: Callable, tmp_path: Path, no_stand_in: None
) -> None:
    (tmp_path / "swept_net.py").write_text(NET)
    words = ("data=blobs", "model._target_=swept_net.Net", "trainer.epochs=12", "figures=false", "tracking.graph=false")
    kinds = ("crash", "well", "killed", "memory", "endless", "exit", "late", "fine")
    lines = [f"+model.kind={kind}" for kind in kinds] + ["data=line task.loss=mse optimizer=sgd optimizer.lr=1e30"]
    points = ",".join(f"'{line}'" for line in lines)
    outcome = dlrun("-m", *words, f"sweep.points=[{points}]", "sweep.jobs=2", "sweep.dir=s")
    assert outcome.code == 1, outcome.err
    assert "2 of 9 runs finished, 7 failed" in outcome.out
    for line, why in {
        "crash": "ValueError: broken on purpose",
        "killed": "its process was killed by SIGKILL",
        "memory": "memory",
        "endless": "the loss is nan",
        "exit": "SystemExit: 3",
        "late": "SystemExit: 4",
    }.items():
        (output,) = [text for text in outcome.out.splitlines() if f"+model.kind={line}: FAILED" in text]
        assert why in output
    output = [text for text in outcome.out.splitlines() if "FAILED" in text]
    assert len(output) == 7
    assert outcome.out.count("run.log") == 7
    assert outcome.out.count("no result: ") == 2  # of those that ended without one
    ledger = Ledger.read(tmp_path / "s")
    assert sorted(entry.status for entry in ledger.entries.values()) == ["completed"] * 2 + ["failed"] * 7
    finished = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "s").glob("*/result.json")
        if "completed" in path.read_text()
    }
    refused = dlrun("resume", "s")
    assert refused.code == 2
    assert "trusted_modules='[swept_net]'" in refused.err
    (tmp_path / "mended").touch()
    resumed = dlrun("resume", "s", "trusted_modules=[swept_net]")
    assert resumed.code == 1
    assert "6 of 7 runs finished, 1 failed" in resumed.out
    assert sorted(statuses(tmp_path / "s")) == ["completed"] * 8 + ["failed"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    weights = [result["weights_sha256"] for result in results(tmp_path / "s").values() if result["status"] != "failed"]
    assert len(set(weights)) == 1  # all make the same steps, however often they were tried


@pytest.mark.slow
def test_code_that_has_changed_between_is_said(dlrun: Callable, tmp_path: Path) -> None:
    net = tmp_path / "changing_net.py"
    net.write_text(NET)
    words = ("-m", "model._target_=changing_net.Net", "sweep.dir=s", *(w for w in TINY if w != "model=linear"))
    assert dlrun(*words, "seed=0,1").code == 0
    net.write_text(NET + "\n# another\n")
    outcome = dlrun(*words, "seed=0,1,2")
    assert outcome.code == 0, outcome.err
    assert "2 of them finished before" in outcome.out
    assert "code" in " ".join(line for line in outcome.out.splitlines() if line.startswith("note: "))


@pytest.mark.slow
def test_a_sweep_is_gone_on_with_from_elsewhere(dlrun: Callable, tmp_path: Path, monkeypatch: Any) -> None:
    assert dlrun("-m", *TINY, "optimizer.lr=0.1,0.2", "seed=0", "sweep.dir=s").code == 0
    (tmp_path / "s").rename(tmp_path / "renamed")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = dlrun("resume", "../renamed", "seed=range(3,5)")
    assert outcome.code == 0, outcome.err
    assert "6 runs: 2 settings × 3 seeds, 2 of them finished before" in outcome.out
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert statuses(tmp_path / "renamed") == ["completed"] * 6
    assert (tmp_path / "renamed" / "comparison.csv").read_text().count("setting") == 2


@pytest.mark.slow
def test_damaged_rows_of_one_job_do_not_end_the_sweep(dlrun: Callable[..., Any]) -> None:
    assert dlrun("-m", *TINY, "seed=0,1,2", "sweep.dir=s").code == 0
    next(Path("s").glob("0_*/metrics.jsonl")).write_text('{"a":\n')
    next(Path("s").glob("1_*")).joinpath("result.json").write_text('{"status": "completed", "best": []}')
    outcome = dlrun("resume", "s")
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "1/1  seed=1" in outcome.out  # its result is damaged, so it resumes from its checkpoint
    assert "note: damaged: s/0_" in outcome.out


@pytest.mark.slow
def test_a_reader_who_goes_away_does_not_end_the_sweep(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dlrun", "-m", *TINY, "seed=0,1,2", "sweep.dir=s"]
    sweep = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
    assert sweep.stdout is not None
    sweep.stdout.readline()
    sweep.stdout.close()
    assert sweep.wait(600) == 0
    assert len(list((tmp_path / "s").glob("*/result.json"))) == 3
    assert (tmp_path / "s" / "report.html").is_file()


@pytest.mark.slow
def test_a_failed_job_goes_on_and_one_that_cannot_be_opened_is_left_alone(dlrun: Callable, tmp_path: Path) -> None:
    words = ("-m", "data=blobs", "model=linear", "trainer.epochs=2", "seed=0,1", "sweep.dir=s")
    assert dlrun(*words, "figures=false", "tracking.graph=false").code == 0
    damaged, failed = sorted(path.parent for path in Path("s").glob("*/result.json"))
    weights = json.loads((failed / "result.json").read_text())["weights_sha256"]
    for folder in (damaged, failed):
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"status": "failed"}))
    for file in (damaged / "checkpoints").iterdir():
        file.write_bytes(b"")
    before = {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()}

    outcome = dlrun("resume", "s")
    assert outcome.code == 1
    assert "was cut short (0 bytes)" in outcome.out
    assert {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()} == before
    assert json.loads((failed / "result.json").read_text())["status"] == "completed"
    assert json.loads((failed / "result.json").read_text())["weights_sha256"] == weights
    assert "resuming from" in (failed / "run.log").read_text()
