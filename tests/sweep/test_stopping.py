"""Ctrl-C and SIGTERM while a sweep trains: it ends soon, no process is left, and resuming it ends in the same."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlrun.sweep.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]
WORDS = (
    "-m",
    "data=blobs",
    "model=mlp",
    "model.dropout=0.3",
    "optimizer=sgd,adam",
    "seed=0,1",
    "sweep.dir=s",
    "sweep.stack=off",
)
Wait = Callable[..., None]
QUIET = ("trainer.epochs=120", "figures=false", "tracking.graph=false", "device.num_threads=1")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> dict[str, Any]:
    """What the sweep comes to when nobody stops it."""
    place = tmp_path_factory.mktemp("whole")
    process = warm.start("-m", "dlrun", *WORDS, *QUIET, cwd=place)
    assert process.wait(300) == 0, process.out + process.err
    return read_results(place / "s")


def read_results(sweep: Path) -> dict[str, Any]:
    """All that a sweep leaves but for what a clock says."""
    contents: dict[str, Any] = {}
    for path in sorted(sweep.glob("*/result.json")):
        result = json.loads(path.read_text())
        contents[path.parent.name] = {
            k: v for k, v in result.items() if k not in ("train_seconds", "samples_per_second")
        }
        contents[f"{path.parent.name} rows"] = (path.parent / "metrics.jsonl").read_bytes()
    lines = [line.split(",") for line in (sweep / "comparison.csv").read_text().splitlines()]
    timed = lines[0].index("train_seconds")
    contents["comparison"] = [[cell for i, cell in enumerate(line) if i != timed] for line in lines]
    return contents


def members(session: int) -> Iterator[str]:
    """The processes of a session that live."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                yield f"{path.name} {(path / 'cmdline').read_bytes()!r}"
        except (OSError, ValueError, IndexError):
            continue


def trains(sweep: Path, jobs: int) -> bool:
    """Whether as many jobs as run at a time are some epochs on, one of them not the very first."""
    lengths = [path.read_bytes().count(b"\n") for path in sweep.glob("*/metrics.jsonl")]
    return len(lengths) > 1 and sum(3 <= length < 110 for length in lengths) >= jobs


@pytest.mark.parametrize(
    ("name", "group", "jobs"),
    [
        # One handler takes every signal: each of them once, and each pair of choices. A terminal sends SIGINT, and
        # Slurm SIGUSR1, to each process.
        ("SIGINT", True, 2),
        ("SIGTERM", False, 2),
        ("SIGHUP", False, 1),
        ("SIGUSR1", True, 1),
    ],
)
def test_a_stopped_sweep_is_gone_on_with(
    name: str,
    group: bool,
    jobs: int,
    wait_for: Wait,
    command: Callable,
    warm: Any,
    tmp_path: Path,
    reference: dict[str, Any],
) -> None:
    words = ("-m", "dlrun", *WORDS, *QUIET, f"sweep.jobs={jobs}")
    process = warm.start(*words, cwd=tmp_path, start_new_session=True)
    wait_for(lambda: process.poll() is not None or trains(tmp_path / "s", jobs))
    (os.killpg if group else os.kill)(process.pid, signal.Signals[name])
    code = process.wait(timeout=300)
    text = process.out + process.err
    assert code == 128 + signal.Signals[name], text
    assert "resume it: dlrun resume s" in text
    assert "FAILED" not in text
    assert "Traceback" not in text
    wait_for(lambda: not list(members(process.pid)), seconds=60)
    ledger = Ledger.read(tmp_path / "s")
    statuses = [ledger.read_status(entry) for entry in ledger.entries.values()]
    assert statuses.count("interrupted") == jobs
    saved = [path.read_text() for path in (tmp_path / "s").glob("*/result.json")]
    assert sum('"status": "interrupted"' in text for text in saved) == jobs  # none was cut off
    assert set(statuses) <= {"completed", "interrupted", "pending"}
    assert [e.status for e in ledger.entries.values()] == statuses
    assert not list((tmp_path / "s").rglob("*.tmp"))
    resumed = command("resume", "s", f"sweep.jobs={jobs}")
    assert resumed.code == 0, resumed.out + resumed.err
    assert read_results(tmp_path / "s") == reference


@pytest.mark.parametrize(("name", "moment"), [("SIGINT", 0.0), ("SIGTERM", 0.05), ("SIGINT", 0.3)])
def test_a_signal_while_the_jobs_start_is_not_lost(
    name: str, moment: float, wait_for: Wait, warm: Any, tmp_path: Path
) -> None:
    words = ("-m", "data=blobs", "model=linear", "trainer.epochs=2000", *QUIET[1:], "seed=0,1,2", "sweep.dir=s")
    ledger = tmp_path / "s" / "sweep.jsonl"
    process = warm.start("-m", "dlrun", *words, "sweep.jobs=2", cwd=tmp_path, start_new_session=True)
    wait_for(lambda: ledger.exists() and b"running" in ledger.read_bytes())
    time.sleep(moment)
    os.killpg(process.pid, signal.Signals[name])
    code = process.wait(timeout=300)
    assert code == 128 + signal.Signals[name], process.out + process.err
    assert "FAILED" not in process.out + process.err
    wait_for(lambda: not list(members(process.pid)), seconds=60)
    after = Ledger.read(tmp_path / "s")
    assert {after.read_status(entry) for entry in after.entries.values()} <= {"interrupted", "pending"}
