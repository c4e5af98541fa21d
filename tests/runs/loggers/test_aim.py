"""Aim's local repository, with a run that is killed and resumed."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("aim") is None, reason="aim is not installed"),
]

QUICK = ("data=digits", "data.limit_batches=2", "tracking.graph=false", "figures=false", "hydra.run.dir=run")

# In a process of its own, as Aim keeps threads and locks.
READ = """
import json, sys
from aim import Repo
from aim.sdk.index_manager import RepoIndexManager

repo = Repo(sys.argv[1])
# What `aim up` does by itself.
manager = RepoIndexManager.get_index_manager(repo)
for name in repo.list_all_runs():
    manager.index(name)
runs = []
for found in repo.query_metrics("True", report_mode=0).iter_runs():
    run = found.run
    series = {}
    for metric in found:
        name = "/".join([*metric.context.to_dict().values(), metric.name])
        epochs = metric.epochs.sparse_numpy()[1].tolist()
        series[name] = sorted(zip(epochs, metric.values.sparse_numpy()[1].tolist()))
    runs.append({"name": run.name, "tags": run.props.tags, "lr": run["hparams"]["optimizer.lr"],
                 "status": run["status"], "series": series})
print("RUNS" + json.dumps(runs))
"""


def read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(True) if line.endswith("\n")]


def test_a_killed_run_goes_on_in_the_same_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dlrun", *QUICK, "trainer.epochs=100", "logger=aim", "run.tags=[a]", "run.name=x"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_rows(tmp_path)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    words = [sys.executable, "-m", "dlrun", "resume", "run"]
    resumed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "not logged" not in resumed.stdout

    words = [sys.executable, "-c", READ, "outputs"]
    read = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    line = next(line for line in read.stdout.splitlines() if line.startswith("RUNS"))
    (run,) = json.loads(line.removeprefix("RUNS"))
    assert (run["name"], run["tags"], run["lr"], run["status"]) == ("x", ["a"], 0.001, "completed")
    rows = read_rows(tmp_path)
    assert len(rows) == 100
    for key in ("train/loss", "val/loss", "val/accuracy"):
        # Aim keeps one value a step.
        assert run["series"][key] == [[row["epoch"], row[key]] for row in rows], key
